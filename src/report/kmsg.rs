//! The kernel's messages (`/dev/kmsg`, Documentation/ABI/testing/dev-kmsg) as lines of the log.

use std::fs::{self, File};
use std::io::{self, Read};
use std::time::Duration;

use tracing::Level;

use super::event::{Event, Line, Origin};
use super::stream;

/// Longest record, bytes (`PRINTK_MESSAGE_MAX`, kernel/printk/internal.h).
const MAX_RECORD: usize = 2048;
/// `SYSLOG_ACTION_CONSOLE_LEVEL` of syslog(2).
const CONSOLE_LEVEL: libc::c_int = 8;
/// Only what the kernel says before it stops (`KERN_EMERG`).
const EMERGENCIES: libc::c_int = 1;
/// What the kernel shows on its consoles where nothing else was said
/// (`CONSOLE_LOGLEVEL_DEFAULT`).
const DEFAULT_LEVEL: u8 = 7;

/// A record of the kernel's log.
#[derive(Debug, PartialEq, Eq)]
struct Message {
    /// 0 (emergency) to 7 (debug).
    severity: u8,
    /// Since the kernel started.
    at: Duration,
    text: String,
}

/// Reads `prio,sequence,microseconds,flags;text`; lines after the first are keys for machines.
fn parse(record: &[u8]) -> Option<Message> {
    let record = String::from_utf8_lossy(record);
    let (prefix, rest) = record.split_once(';')?;
    let mut fields = prefix.split(',');
    let priority: u32 = fields.next()?.parse().ok()?;
    let micros = fields.nth(1)?.parse().ok()?;
    Some(Message {
        // The facility stands above the lowest three bits (syslog(3)).
        severity: (priority & 7) as u8,
        at: Duration::from_micros(micros),
        text: rest.lines().next().unwrap_or_default().to_owned(),
    })
}

/// The kernel's level in the agent's terms.
fn level(severity: u8) -> Level {
    match severity {
        0..=3 => Level::ERROR,
        4 => Level::WARN,
        5 | 6 => Level::INFO,
        _ => Level::DEBUG,
    }
}

/// The severities that the kernel shows on its consoles: those below this one.
fn shown_below() -> u8 {
    let levels = fs::read_to_string("/proc/sys/kernel/printk").unwrap_or_default();
    let first = levels.split_whitespace().next();
    first
        .and_then(|level| level.parse().ok())
        .unwrap_or(DEFAULT_LEVEL)
}

/// Tells the kernel's messages from now on, those of before included. With `quiet` the kernel
/// shows none but emergencies on its consoles any more; a panic is shown all the same.
///
/// # Errors
/// `/dev/kmsg` cannot be read, or there is no thread for it.
pub fn start(quiet: bool) -> io::Result<()> {
    let mut source = File::open("/dev/kmsg")?;
    let shown = shown_below();
    // What comes from here on would have been shown by the kernel, and is not.
    let unseen_from = if quiet && hush() {
        stream::now()
    } else {
        Duration::MAX
    };
    let work = move || {
        let mut record = [0; MAX_RECORD + 1024];
        loop {
            let length = match source.read(&mut record) {
                Ok(0) => return,
                Ok(length) => length,
                // Overwritten before it was read; the next read goes on with what is left.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => continue,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // A record that is too long for any kernel of today.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => continue,
                Err(_) => return,
            };
            if let Some(message) = record.get(..length).and_then(parse) {
                let unseen = message.at >= unseen_from && message.severity < shown;
                let origin = Origin::Kernel { unseen };
                let line = Line::new(level(message.severity), origin, &message.text);
                stream::tell_of(message.at, Event::Line(line));
            }
        }
    };
    std::thread::Builder::new()
        .name("kmsg".into())
        .spawn(work)
        .map(drop)
}

/// Whether the kernel's consoles are quiet now.
fn hush() -> bool {
    let nothing = std::ptr::null_mut();
    // SAFETY: this action takes no buffer; the pointer is not followed.
    unsafe { libc::klogctl(CONSOLE_LEVEL, nothing, EMERGENCIES) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read() {
        let message = |severity, micros, text: &str| Message {
            severity,
            at: Duration::from_micros(micros),
            text: text.to_owned(),
        };
        for (record, expected) in [
            (
                "6,339,5140900,-;NET: Registered protocol family 10\n",
                Some(message(6, 5_140_900, "NET: Registered protocol family 10")),
            ),
            // Facility 3 (daemon), a continuation's flag, keys on lines of their own.
            (
                "28,340,5690716,c,caller=T1;a;b\n SUBSYSTEM=pci\n DEVICE=+pci:0000:00:01.0\n",
                Some(message(4, 5_690_716, "a;b")),
            ),
            ("6,1,2,-;", Some(message(6, 2, ""))),
            ("6,1,x,-;text", None),
            ("no prefix", None),
            ("", None),
        ] {
            assert_eq!(parse(record.as_bytes()), expected, "{record:?}");
        }
    }

    #[test]
    fn severities_become_levels() {
        let levels = [0, 3, 4, 5, 6, 7].map(level);
        let expected = [
            Level::ERROR,
            Level::ERROR,
            Level::WARN,
            Level::INFO,
            Level::INFO,
            Level::DEBUG,
        ];
        assert_eq!(levels, expected);
    }
}
