//! The guest's serial console: read live, kept in a file, waited for by text.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

/// The one prompt that is waited for.
pub const LOGIN: &str = "login: ";

#[derive(Default)]
struct Inner {
    text: Vec<u8>,
    closed: bool,
}

/// Everything the guest printed so far, and a place up to which the test has read.
#[derive(Clone)]
pub struct Console {
    inner: Arc<(Mutex<Inner>, Condvar)>,
}

impl Console {
    /// Reads `source` to its end in the background, into `log` and, with `prefix`, onto stdout.
    pub fn read(
        mut source: impl Read + Send + 'static,
        log: &Path,
        prefix: Option<String>,
    ) -> Self {
        let mut file =
            File::create(log).unwrap_or_else(|e| panic!("create {}: {e}", log.display()));
        let console = Self {
            inner: Arc::default(),
        };
        let shared = console.clone();
        thread::spawn(move || {
            let mut chunk = [0u8; 4096];
            let mut line = Vec::new();
            loop {
                let n = source.read(&mut chunk).unwrap_or(0);
                let (mutex, changed) = &*shared.inner;
                if n == 0 {
                    lock(mutex).closed = true;
                    changed.notify_all();
                    return;
                }
                let _ = file.write_all(&chunk[..n]);
                if let Some(prefix) = &prefix {
                    show(prefix, &mut line, &chunk[..n]);
                }
                lock(mutex).text.extend_from_slice(&chunk[..n]);
                changed.notify_all();
            }
        });
        console
    }

    /// How much has been printed: a place to search from.
    pub fn here(&self) -> usize {
        lock(&self.inner.0).text.len()
    }

    /// The first whole line at or after `from` that holds one of `patterns`, and the place behind it.
    ///
    /// `Err` says why it will not come: the deadline, or the guest's end.
    pub fn find(
        &self,
        patterns: &[&str],
        from: usize,
        limit: Duration,
    ) -> Result<(String, usize), String> {
        let deadline = Instant::now() + limit;
        let (mutex, changed) = &*self.inner;
        let mut inner = lock(mutex);
        let mut at = from;
        loop {
            while let Some(end) = inner.text[at..].iter().position(|b| *b == b'\n') {
                let line = clean(&inner.text[at..at + end]);
                at += end + 1;
                if patterns.iter().any(|p| line.contains(p)) {
                    return Ok((line, at));
                }
            }
            // A prompt ends without a newline; any other line is only read when it is whole.
            let rest = clean(&inner.text[at..]);
            if patterns.contains(&LOGIN) && rest.contains(LOGIN) {
                return Ok((rest, inner.text.len()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if inner.closed {
                return Err(format!("the guest ended without printing {patterns:?}"));
            }
            if left.is_zero() {
                return Err(format!("{patterns:?} did not come within {limit:?}"));
            }
            inner = match changed.wait_timeout(inner, left) {
                Ok((inner, _)) => inner,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// All text so far, without escape sequences and carriage returns.
    pub fn text(&self) -> String {
        clean(&lock(&self.inner.0).text)
    }

    /// The last `lines` lines.
    pub fn tail(&self, lines: usize) -> String {
        let text = self.text();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

fn lock(mutex: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn show(prefix: &str, line: &mut Vec<u8>, chunk: &[u8]) {
    for byte in chunk {
        if *byte == b'\n' {
            println!("{prefix}{}", clean(line));
            line.clear();
        } else {
            line.push(*byte);
        }
    }
}

/// Text without ANSI escape sequences (firmware and GRUB draw with them), NULs and `\r`.
fn clean(bytes: &[u8]) -> String {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes.iter().copied().peekable();
    while let Some(byte) = rest.next() {
        match byte {
            0x1b => match rest.next() {
                // CSI: parameters up to a final byte of 0x40..=0x7e (ECMA-48).
                Some(b'[') => while rest.next().is_some_and(|b| !(0x40..=0x7e).contains(&b)) {},
                // SS3 and the two-byte sequences take one more byte at most.
                Some(b'(' | b')' | b'O') => drop(rest.next()),
                _ => {}
            },
            b'\r' | 0 => {}
            other => out.push(other),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
