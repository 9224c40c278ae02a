//! An HTTP server inside a lab's namespace: it answers as boot helper and apiserver do, and notes who
//! asked from where. It runs in the test itself, so that a dozen labs cost no processes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

use crate::support::netns::Netns;

/// One request.
#[derive(Clone, Debug)]
pub struct Hit {
    /// `GET /config/…`
    pub line: String,
    pub host: String,
    pub from: SocketAddr,
    /// Bytes of the body.
    pub body: usize,
}

#[derive(Default)]
struct State {
    hits: Vec<Hit>,
    config: Value,
    allocation: Option<Value>,
    closed: bool,
}

type Shared = Arc<(Mutex<State>, Condvar)>;

/// A running server; it ends when dropped.
pub struct Web {
    shared: Shared,
    listener: TcpListener,
}

impl Web {
    /// Listens at `listen` inside `ns`. Until told otherwise `/config` answers an empty object.
    pub fn start(ns: &Netns, listen: &str) -> Self {
        let path = format!("/run/netns/{}", ns.name());
        let listen = listen.to_owned();
        // A socket belongs to the namespace of the thread that made it.
        let listener = thread::spawn(move || {
            let file = std::fs::File::open(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
            setns(file, CloneFlags::CLONE_NEWNET).expect("setns");
            TcpListener::bind(&listen).unwrap_or_else(|e| panic!("listen on {listen}: {e}"))
        })
        .join()
        .expect("a listening socket");
        let shared = Shared::default();
        lock(&shared).config = json!({});
        let web = Self {
            listener: listener.try_clone().expect("a second handle"),
            shared: Arc::clone(&shared),
        };
        thread::spawn(move || {
            while let Ok((stream, from)) = listener.accept() {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    // A guest that goes in the middle of a request is no error of the test.
                    let _ = converse(stream, from, &shared);
                });
            }
        });
        web
    }

    /// What `GET /config/…` answers from now on.
    pub fn config(&self, config: Value) -> &Self {
        lock(&self.shared).config = config;
        self
    }

    /// Ends every Wait with this allocation.
    pub fn allocate(&self, allocation: Value) {
        lock(&self.shared).allocation = Some(allocation);
        self.shared.1.notify_all();
    }

    /// Every request so far.
    pub fn hits(&self) -> Vec<Hit> {
        lock(&self.shared).hits.clone()
    }

    /// Waits for the `count`-th request whose first line holds `pattern` and that `fits`.
    pub fn wait_hit(&self, pattern: &str, seconds: u64, fits: impl Fn(&Hit) -> bool) -> Hit {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        let mut state = lock(&self.shared);
        loop {
            let mut hits = state.hits.iter();
            if let Some(hit) = hits.find(|hit| hit.line.contains(pattern) && fits(hit)) {
                return hit.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "no such {pattern:?} within {seconds} s: {:#?}",
                state.hits
            );
            state = wait(&self.shared, state, left);
        }
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        lock(&self.shared).closed = true;
        self.shared.1.notify_all();
        // SAFETY: shuts down a socket that is open; `accept` returns an error then.
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
    }
}

fn lock(shared: &Shared) -> MutexGuard<'_, State> {
    shared.0.lock().unwrap_or_else(|p| p.into_inner())
}

fn wait<'a>(
    shared: &'a Shared,
    state: MutexGuard<'a, State>,
    limit: Duration,
) -> MutexGuard<'a, State> {
    match shared.1.wait_timeout(state, limit) {
        Ok((state, _)) => state,
        Err(poisoned) => poisoned.into_inner().0,
    }
}

/// Answers requests until the client leaves.
fn converse(stream: TcpStream, from: SocketAddr, shared: &Shared) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let Some((line, host, length)) = head(&mut reader)? else {
            return Ok(());
        };
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let mut state = lock(shared);
        state.hits.push(Hit {
            line: line.clone(),
            host,
            from,
            body: length,
        });
        shared.1.notify_all();
        let (kind, answer) = if line.contains("/config/") {
            ("application/json", state.config.to_string().into_bytes())
        } else if line.ends_with("/Wait HTTP/1.1") {
            while state.allocation.is_none() && !state.closed {
                state = wait(shared, state, Duration::from_secs(60));
            }
            let Some(allocation) = state.allocation.clone() else {
                return Ok(());
            };
            let message = json!({"allocation": allocation}).to_string();
            let answer = [envelope(0, &message), envelope(2, "{}")].concat();
            ("application/connect+json", answer)
        } else {
            ("application/json", b"{}".to_vec())
        };
        drop(state);
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            answer.len()
        );
        (&stream).write_all(&[head.as_bytes(), &answer].concat())?;
    }
}

/// Request line, `Host`, and the body's length; nothing when the client has left.
fn head(reader: &mut impl BufRead) -> std::io::Result<Option<(String, String, usize)>> {
    let mut first = String::new();
    if reader.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let (mut host, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let Some((key, value)) = line.trim_end().split_once(':') else {
            return Ok(Some((first.trim_end().to_owned(), host, length)));
        };
        match key.to_ascii_lowercase().as_str() {
            "host" => value.trim().clone_into(&mut host),
            "content-length" => length = value.trim().parse().unwrap_or(0),
            _ => {}
        }
    }
}

/// A message of a Connect stream: flags, length, text.
fn envelope(flags: u8, text: &str) -> Vec<u8> {
    let mut bytes = vec![flags];
    bytes.extend((text.len() as u32).to_be_bytes());
    bytes.extend(text.as_bytes());
    bytes
}
