//! A small QMP client: commands in, answers out, events kept (QEMU's machine protocol, JSON lines).

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

#[derive(Default)]
struct Inbox {
    answers: VecDeque<Value>,
    events: Vec<Value>,
    closed: bool,
}

/// The connection to one QEMU.
pub struct Qmp {
    stream: UnixStream,
    inbox: Arc<(Mutex<Inbox>, Condvar)>,
}

impl Qmp {
    /// Connects to the socket that QEMU makes when it starts.
    pub fn connect(path: &Path, limit: Duration) -> Result<Self, String> {
        let deadline = Instant::now() + limit;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() >= deadline => {
                    return Err(format!("QMP socket {}: {error}", path.display()));
                }
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        };
        let reader = stream.try_clone().map_err(|e| format!("QMP socket: {e}"))?;
        let inbox: Arc<(Mutex<Inbox>, Condvar)> = Arc::default();
        let shared = Arc::clone(&inbox);
        thread::spawn(move || {
            let mut lines = BufReader::new(reader).lines();
            loop {
                let message = match lines.next() {
                    Some(Ok(line)) => serde_json::from_str::<Value>(&line).ok(),
                    _ => None,
                };
                let (mutex, changed) = &*shared;
                let mut inbox = mutex.lock().unwrap_or_else(|p| p.into_inner());
                match message {
                    None => inbox.closed = true,
                    Some(event) if event.get("event").is_some() => inbox.events.push(event),
                    Some(greeting) if greeting.get("QMP").is_some() => {}
                    Some(answer) => inbox.answers.push_back(answer),
                }
                changed.notify_all();
                if inbox.closed {
                    return;
                }
            }
        });
        let qmp = Self { stream, inbox };
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs one command and answers its `return`.
    pub fn execute(&self, command: &str, arguments: Value) -> Result<Value, String> {
        let order = json!({"execute": command, "arguments": arguments});
        (&self.stream)
            .write_all(format!("{order}\n").as_bytes())
            .map_err(|e| format!("QMP {command}: {e}"))?;
        let answer = self
            .wait(Duration::from_secs(30), |inbox| inbox.answers.pop_front())
            .ok_or_else(|| format!("QMP {command}: no answer"))?;
        match answer.get("error") {
            Some(error) => Err(format!("QMP {command}: {error}")),
            None => Ok(answer["return"].clone()),
        }
    }

    /// The first event of this name, waited for.
    pub fn event(&self, name: &str, limit: Duration) -> Option<Value> {
        self.event_where(name, limit, |_| true)
    }

    /// Waits for an event of this name that `fits`, or for one that came before.
    pub fn event_where(
        &self,
        name: &str,
        limit: Duration,
        fits: impl Fn(&Value) -> bool,
    ) -> Option<Value> {
        self.wait(limit, |inbox| {
            let mut events = inbox.events.iter();
            events.find(|e| e["event"] == name && fits(e)).cloned()
        })
    }

    /// How many events of this name have come so far.
    pub fn events(&self, name: &str) -> usize {
        let (mutex, _) = &*self.inbox;
        let inbox = mutex.lock().unwrap_or_else(|p| p.into_inner());
        inbox.events.iter().filter(|e| e["event"] == name).count()
    }

    fn wait<T>(&self, limit: Duration, mut take: impl FnMut(&mut Inbox) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + limit;
        let (mutex, changed) = &*self.inbox;
        let mut inbox = mutex.lock().unwrap_or_else(|p| p.into_inner());
        loop {
            if let Some(found) = take(&mut inbox) {
                return Some(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if inbox.closed || left.is_zero() {
                return None;
            }
            inbox = match changed.wait_timeout(inbox, left) {
                Ok((inbox, _)) => inbox,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}
