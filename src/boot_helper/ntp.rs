//! An SNTP answer (RFC 4330, RFC 5905 §7.3): this host's clock, for machines that have no
//! other server. An answer is as large as its question, so nobody is amplified.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::UdpSocket;
use tracing::debug;

use super::metrics::Metrics;
use super::source::{Prefix, RateLimit};

/// Bytes of a packet without extensions.
pub const PACKET: usize = 48;
/// Seconds from 1900, NTP's epoch, to 1970.
const EPOCH: u64 = 2_208_988_800;
/// Modes of a packet.
const CLIENT: u8 = 3;
const SERVER: u8 = 4;
/// Leap indicator of a clock that nothing sets.
const UNSYNCHRONIZED: u8 = 3;
/// Stratum of an answer: this host's server is one or two steps from a reference clock. What
/// clients need is that it is between 1 and 15.
const STRATUM: u8 = 3;
/// Pause after a failed receive.
const PAUSE: Duration = Duration::from_millis(100);

/// What the kernel says about this host's clock.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Set by a server, as far as the kernel knows (adjtimex(2), STA_UNSYNC).
    pub synchronized: bool,
    /// How wrong it may be.
    pub error: Duration,
}

impl Clock {
    /// Asks the kernel.
    #[must_use]
    pub fn read() -> Self {
        // SAFETY: all of timex is plain numbers, for which zero is a value.
        let mut timex: libc::timex = unsafe { std::mem::zeroed() };
        // SAFETY: `timex` is ours and lives longer than the call; `modes` 0 changes nothing.
        let state = unsafe { libc::adjtimex(&raw mut timex) };
        Self {
            synchronized: state >= 0
                && state != libc::TIME_ERROR
                && timex.status & libc::STA_UNSYNC == 0,
            error: Duration::from_micros(u64::try_from(timex.maxerror).unwrap_or(0)),
        }
    }
}

/// The answer to a question that came at `received`; `None` for what is no question.
///
/// A host whose own clock is not set says so: a client must not take its time (RFC 4330 §5).
#[must_use]
pub fn answer(question: &[u8], received: SystemTime, clock: Clock) -> Option<[u8; PACKET]> {
    let head = *question.first()?;
    let version = head >> 3 & 0b111;
    if question.len() < PACKET || head & 0b111 != CLIENT || !(3..=4).contains(&version) {
        return None;
    }
    let (leap, stratum) = if clock.synchronized {
        (0, STRATUM)
    } else {
        (UNSYNCHRONIZED, 16)
    };
    let mut packet = [0; PACKET];
    packet[0] = leap << 6 | version << 3 | SERVER;
    packet[1] = stratum;
    // The poll interval is the client's own.
    packet[2] = question[2];
    // Precision: 2^-20 s, about a microsecond.
    packet[3] = (-20_i8).to_ne_bytes()[0];
    let dispersion = clock.error.as_nanos().min(u128::from(u32::MAX)) * 65536 / 1_000_000_000;
    let dispersion = u32::try_from(dispersion).unwrap_or(u32::MAX);
    packet[8..12].copy_from_slice(&dispersion.to_be_bytes());
    packet[12..16].copy_from_slice(b"MBOT");
    let time = stamp(received);
    packet[16..24].copy_from_slice(&time);
    // The client's transmit time is our originate time: its proof that this is its answer.
    packet[24..32].copy_from_slice(&question[40..48]);
    packet[32..40].copy_from_slice(&time);
    packet[40..48].copy_from_slice(&time);
    Some(packet)
}

/// Seconds since 1900 and a fraction, 32 bits each. The seconds wrap in 2036, as they should.
fn stamp(time: SystemTime) -> [u8; 8] {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs().wrapping_add(EPOCH) & u64::from(u32::MAX);
    let fraction = (u64::from(since.subsec_nanos()) << 32) / 1_000_000_000;
    (seconds << 32 | fraction).to_be_bytes()
}

/// Who may ask, and how often.
#[derive(Clone)]
pub struct Responder {
    pub allowed: Arc<[Prefix]>,
    pub limit: Arc<RateLimit>,
    pub metrics: Arc<Metrics>,
}

impl Responder {
    /// Answers for as long as it is polled.
    pub async fn serve(self, socket: UdpSocket) {
        let mut buffer = [0; 1024];
        loop {
            let (length, peer) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    debug!("NTP: {error}");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let SocketAddr::V6(v6) = peer else { continue };
            let allowed = self.allowed.is_empty()
                || self.allowed.iter().any(|prefix| prefix.contains(*v6.ip()));
            if !allowed
                || self
                    .limit
                    .take(*v6.ip(), std::time::Instant::now())
                    .is_err()
            {
                self.metrics.refused("ntp");
                continue;
            }
            let packet = answer(&buffer[..length], SystemTime::now(), Clock::read());
            if let Some(packet) = packet {
                self.metrics.ntp_answers.add(1);
                if let Err(error) = socket.send_to(&packet, peer).await {
                    debug!(%peer, "NTP: {error}");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SET: Clock = Clock {
        synchronized: true,
        error: Duration::from_millis(500),
    };

    fn question(head: u8) -> [u8; PACKET] {
        let mut packet = [0; PACKET];
        packet[0] = head;
        packet[2] = 6;
        packet[40..48].copy_from_slice(b"CLIENT!!");
        packet
    }

    #[test]
    fn a_question_is_answered_with_the_time() {
        let now = UNIX_EPOCH + Duration::from_millis(1_795_000_000_500);
        let packet = answer(&question(0b00_100_011), now, SET).unwrap();
        assert_eq!(packet[0], 0b00_100_100, "no leap, version 4, server");
        assert_eq!(packet[1], STRATUM);
        assert_eq!(packet[2], 6);
        assert_eq!(packet[8..12], [0, 0, 0x80, 0], "half a second");
        assert_eq!(packet[24..32], *b"CLIENT!!");
        let seconds = u32::try_from(1_795_000_000 + EPOCH).unwrap();
        assert_eq!(packet[40..44], seconds.to_be_bytes());
        assert_eq!(packet[44..48], [0x80, 0, 0, 0]);
        assert_eq!(packet[32..40], packet[40..48]);
    }

    #[test]
    fn a_clock_that_nothing_sets_is_not_to_be_believed() {
        let clock = Clock {
            synchronized: false,
            error: Duration::ZERO,
        };
        let packet = answer(&question(0b00_011_011), UNIX_EPOCH, clock).unwrap();
        assert_eq!(packet[0], 0b11_011_100, "alarm, version 3, server");
        assert_eq!(packet[1], 16);
    }

    #[test]
    fn only_questions_are_answered() {
        for head in [
            0b00_100_100,
            0b00_100_101,
            0b00_100_110,
            0b00_010_011,
            0b00_101_011,
        ] {
            assert!(
                answer(&question(head), UNIX_EPOCH, SET).is_none(),
                "{head:#b}"
            );
        }
        let short = &question(0b00_100_011)[..PACKET - 1];
        assert!(answer(short, UNIX_EPOCH, SET).is_none());
        assert!(answer(&[], UNIX_EPOCH, SET).is_none());
    }

    #[test]
    fn the_seconds_wrap_in_2036() {
        let wrap = UNIX_EPOCH + Duration::from_secs((1 << 32) - EPOCH + 7);
        assert_eq!(stamp(wrap), [0, 0, 0, 7, 0, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn an_answer_is_never_larger_than_its_question(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(packet) = answer(&bytes, SystemTime::now(), SET) {
                prop_assert!(packet.len() <= bytes.len());
            }
        }
    }
}
