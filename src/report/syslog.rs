//! Syslog messages (RFC 5424), framed for TCP (RFC 6587, octet counting) or UDP (RFC 5426). Pure.

use jiff::Timestamp;
use tracing::Level;

use super::remote::{Entry, Labels};

/// Facilities (RFC 5424 §6.2.1).
const KERNEL: u8 = 0;
const DAEMON: u8 = 3;
/// What every receiver on IPv6 has to accept in a datagram (RFC 5426 §3.2).
const MAX_DATAGRAM: usize = 1180;

/// The messages of an entry: one for each line of its text.
pub fn messages<'a>(
    labels: &'a Labels,
    entry: &'a Entry,
) -> impl Iterator<Item = String> + use<'a> {
    let facility = if entry.kernel { KERNEL } else { DAEMON };
    let severity = match entry.level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    };
    let program = if entry.kernel {
        "kernel"
    } else {
        "metal-anvil"
    };
    let time = Timestamp::from_nanosecond(entry.nanos).unwrap_or_default();
    let head = format!(
        "<{}>1 {time:.6} {} {program} - - -",
        facility * 8 + severity,
        labels.machine
    );
    entry.text.lines().map(move |line| format!("{head} {line}"))
}

/// A message as it goes over a TCP connection.
#[must_use]
pub fn counted(message: &str) -> String {
    format!("{} {message}", message.len())
}

/// A message as it goes into a datagram: the end of a long one is left out.
#[must_use]
pub fn datagram(message: &str) -> &[u8] {
    let mut end = message.len().min(MAX_DATAGRAM);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message.as_bytes().get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn entry(kernel: bool, level: Level, text: &str) -> Entry {
        Entry {
            nanos: 1_767_225_600_123_456_789,
            level,
            kernel,
            text: text.to_owned(),
        }
    }

    #[test]
    fn a_message_has_the_parts_of_the_rfc() {
        let labels = Labels {
            machine: Uuid::nil(),
            partition: "fra".into(),
        };
        let of = |entry: &Entry| messages(&labels, entry).collect::<Vec<_>>();
        let own = of(&entry(
            false,
            Level::ERROR,
            "FAILED: network:\n  eth0 no carrier",
        ));
        let head = "2026-01-01T00:00:00.123456Z 00000000-0000-0000-0000-000000000000";
        assert_eq!(
            own,
            [
                format!("<27>1 {head} metal-anvil - - - FAILED: network:"),
                format!("<27>1 {head} metal-anvil - - -   eth0 no carrier"),
            ]
        );
        let kernel = of(&entry(true, Level::WARN, "x"));
        assert_eq!(kernel, [format!("<4>1 {head} kernel - - - x")]);
        assert_eq!(counted("äb"), "3 äb");
        let long = "é".repeat(1000);
        assert_eq!(datagram(&long).len(), MAX_DATAGRAM);
        assert_eq!(datagram(&format!("x{long}")).len(), MAX_DATAGRAM - 1);
    }
}
