//! SNTP: the request of a client and the check of the answer (RFC 5905 §7.3 and §14,
//! RFC 4330 §5). Pure: anybody on the way can send an answer.

use jiff::{SignedDuration, Timestamp};

/// Header without extensions and authentication, bytes.
pub const PACKET: usize = 48;
/// 2026-01-01T00:00:00Z, seconds since 1970: this program did not exist before.
pub const EARLIEST: i64 = 1_767_225_600;
/// Seconds from [`EARLIEST`] to the last time that is believed, in 2094.
pub const HORIZON: u32 = i32::MAX as u32;

/// 1900 to 1970, seconds.
const UNIX_EPOCH: i64 = 2_208_988_800;
/// Leap indicator 0, version 4, mode 3 (client).
const CLIENT: u8 = 4 << 3 | 3;
/// The mode of an answer.
const SERVER: u8 = 4;
/// "Clock not synchronized".
const ALARM: u8 = 3;
/// From this stratum on a server says that it does not know the time.
const UNSYNCHRONISED: u8 = 16;
/// `MAXDISP`: a clock that may be so many seconds off its root is none.
const MAX_DISTANCE: u32 = 16;
/// The server cannot have kept the request longer than the whole exchange took, but
/// clocks tick in steps.
const TOLERANCE: SignedDuration = SignedDuration::from_millis(100);

/// A request. The server sends `nonce` back; it is random, so that nobody who does not see
/// the request can answer it, and it tells nobody this machine's time.
#[must_use]
pub fn request(nonce: u64) -> [u8; PACKET] {
    let mut packet = [0; PACKET];
    packet[0] = CLIENT;
    packet[40..].copy_from_slice(&nonce.to_be_bytes());
    packet
}

/// What one good answer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// What has to be added to this machine's clock.
    pub offset: SignedDuration,
    /// 1 to 15: servers between this one and a reference clock, this one included.
    pub stratum: u8,
}

/// Why an answer does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{0} bytes are no NTP packet, expected at least {PACKET}")]
    Short(usize),
    #[error("mode {mode}, version {version}: no answer of an NTP server")]
    NotAnAnswer { mode: u8, version: u8 },
    #[error("it answers another request than the one that was sent")]
    NotOurs,
    /// Kiss-o'-death, RFC 5905 §7.4. Such a server is not asked again.
    #[error("the server refuses with the kiss code {0:?}")]
    Kiss(String),
    #[error("the server is not synchronised itself (leap {leap}, stratum {stratum})")]
    Unsynchronised { leap: u8, stratum: u8 },
    #[error("the server may be {0} s or more off its own source")]
    Distance(u32),
    #[error("a time stamp is missing")]
    NoTime,
    #[error("the server's time lies outside 2026 to 2094")]
    Implausible,
    #[error("the server's time stamps contradict each other")]
    Order,
}

/// Judges `packet`, an answer to the request with `nonce` that left at `sent` and came back
/// at `received` by this machine's own clock.
///
/// # Errors
/// See [`Error`].
pub fn answer(
    packet: &[u8],
    nonce: u64,
    sent: Timestamp,
    received: Timestamp,
) -> Result<Answer, Error> {
    let header: &[u8; PACKET] = packet.first_chunk().ok_or(Error::Short(packet.len()))?;
    let [first, stratum, ..] = *header;
    let (leap, version, mode) = (first >> 6, first >> 3 & 7, first & 7);
    // Version 3 has the same layout; some servers answer so whatever they were asked.
    if mode != SERVER || !matches!(version, 3 | 4) {
        return Err(Error::NotAnAnswer { mode, version });
    }
    if field(header, 24) != nonce.to_be_bytes() {
        return Err(Error::NotOurs);
    }
    let code = field::<4>(header, 12);
    if stratum == 0 && code.iter().all(u8::is_ascii_graphic) {
        return Err(Error::Kiss(code.map(char::from).iter().collect()));
    }
    if leap == ALARM || stratum == 0 || stratum >= UNSYNCHRONISED {
        return Err(Error::Unsynchronised { leap, stratum });
    }
    // Half the delay to the reference clock, and what may have been lost on the way.
    let [delay, dispersion] = [4, 8].map(|at| u32::from_be_bytes(field(header, at)));
    let distance = (delay / 2).saturating_add(dispersion) >> 16;
    if distance >= MAX_DISTANCE {
        return Err(Error::Distance(distance));
    }
    let arrived = time(field(header, 32))?;
    let left = time(field(header, 40))?;
    let held = left.duration_since(arrived);
    let took = received.duration_since(sent);
    if held.is_negative() || took < held - TOLERANCE {
        return Err(Error::Order);
    }
    let there = arrived.duration_since(sent);
    let back = left.duration_since(received);
    Ok(Answer {
        // Halved first: no sum of two such halves overflows.
        offset: there / 2 + back / 2,
        stratum,
    })
}

fn field<const N: usize>(header: &[u8; PACKET], at: usize) -> [u8; N] {
    std::array::from_fn(|index| header[at + index])
}

/// Seconds and fraction since 1900, modulo 2^32 seconds: era 0 ends in 2036. Of all eras
/// the one is meant in which the time is not before [`EARLIEST`].
fn time(stamp: [u8; 8]) -> Result<Timestamp, Error> {
    let stamp = u64::from_be_bytes(stamp);
    if stamp == 0 {
        return Err(Error::NoTime);
    }
    let seconds = (stamp >> 32) as u32;
    let since = seconds.wrapping_sub((EARLIEST + UNIX_EPOCH) as u32);
    if since > HORIZON {
        return Err(Error::Implausible);
    }
    let fraction = stamp & u64::from(u32::MAX);
    let nanoseconds = ((fraction * 1_000_000_000) >> 32) as i32;
    Timestamp::new(EARLIEST + i64::from(since), nanoseconds).map_err(|_| Error::Implausible)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NONCE: u64 = 0x0123_4567_89ab_cdef;
    /// 2026-11-24T12:00:00Z.
    const NOW: i64 = 1_795_521_600;

    fn at(seconds: i64, milliseconds: i32) -> Timestamp {
        Timestamp::new(seconds, milliseconds * 1_000_000).unwrap()
    }

    fn stamp(time: Timestamp) -> [u8; 8] {
        let seconds = (time.as_second() + UNIX_EPOCH) as u32;
        // Rounded up, so that reading it back gives the same whole nanosecond.
        let fraction = (((time.subsec_nanosecond() as u64) << 32).div_ceil(1_000_000_000)) as u32;
        (u64::from(seconds) << 32 | u64::from(fraction)).to_be_bytes()
    }

    /// A good answer: arrived and left at these times.
    fn packet(arrived: Timestamp, left: Timestamp) -> [u8; PACKET] {
        let mut packet = [0; PACKET];
        packet[0] = 4 << 3 | SERVER;
        packet[1] = 10;
        packet[24..32].copy_from_slice(&NONCE.to_be_bytes());
        packet[32..40].copy_from_slice(&stamp(arrived));
        packet[40..].copy_from_slice(&stamp(left));
        packet
    }

    #[test]
    fn the_request_is_a_client_of_version_4_and_says_nothing_but_the_nonce() {
        let bytes = request(NONCE);
        assert_eq!(bytes[0], 0x23);
        assert!(bytes[1..40].iter().all(|byte| *byte == 0));
        assert_eq!(bytes[40..], NONCE.to_be_bytes());
    }

    #[test]
    fn the_offset_is_the_servers_time_in_the_middle_of_the_exchange() {
        // This machine's time at the start, the server's, what has to be added.
        let cases = [
            (at(NOW, 0), at(NOW, 100), 0),
            (at(NOW, 0), at(NOW + 7, 100), 7),
            (at(NOW + 9, 0), at(NOW, 100), -9),
            // 2019 and 2099, by a flat battery.
            (at(1_546_300_800, 0), at(NOW, 100), NOW - 1_546_300_800),
            (at(4_070_908_800, 0), at(NOW, 100), NOW - 4_070_908_800),
        ];
        for (sent, arrived, expected) in cases {
            let ms = |n| SignedDuration::from_millis(n);
            let packet = packet(arrived, arrived + ms(50));
            let answer = answer(&packet, NONCE, sent, sent + ms(250)).unwrap();
            assert_eq!(answer.offset, SignedDuration::from_secs(expected), "{sent}");
            assert_eq!(answer.stratum, 10);
        }
    }

    #[test]
    fn era_1_begins_in_2036() {
        let second = |number: u64| time((number << 32 | 1).to_be_bytes()).map(|t| t.to_string());
        let good = |text: &str| Ok(text.to_owned());
        let first = (EARLIEST + UNIX_EPOCH) as u64;
        let cases = [
            (first, good("2026-01-01T00:00:00Z")),
            (0xffff_ffff, good("2036-02-07T06:28:15Z")),
            (0, good("2036-02-07T06:28:16Z")),
            (1, good("2036-02-07T06:28:17Z")),
            (first - 1, Err(Error::Implausible)),
            // 2019: not read as 2155.
            (1_546_300_800 + 2_208_988_800, Err(Error::Implausible)),
        ];
        for (number, expected) in cases {
            assert_eq!(second(number), expected, "{number}");
        }
        assert_eq!(time([0; 8]), Err(Error::NoTime));
    }

    #[test]
    fn what_does_not_count() {
        let good = packet(at(NOW, 0), at(NOW, 0));
        let judge = |packet: &[u8]| answer(packet, NONCE, at(NOW, 0), at(NOW, 10));
        assert!(judge(&good).is_ok());
        assert!(judge(&[&good[..], &[0; 20]].concat()).is_ok(), "extensions");
        let with = |at: usize, bytes: &[u8]| {
            let mut packet = good;
            packet[at..at + bytes.len()].copy_from_slice(bytes);
            packet.to_vec()
        };
        let kiss = |code: &str| Error::Kiss(code.to_owned());
        let deny = [&[0][..], &[0; 10], b"DENY"].concat();
        let not = |mode, version| Error::NotAnAnswer { mode, version };
        let unsynchronised = |leap, stratum| Error::Unsynchronised { leap, stratum };
        let cases: [(Vec<u8>, Error); 15] = [
            (good[..47].to_vec(), Error::Short(47)),
            (vec![], Error::Short(0)),
            (with(0, &[4 << 3 | 3]), not(3, 4)),
            (with(0, &[4 << 3 | 5]), not(5, 4)),
            (with(0, &[5 << 3 | 4]), not(4, 5)),
            (with(24, &[0; 8]), Error::NotOurs),
            (with(1, &deny), kiss("DENY")),
            (with(1, &[0]), unsynchronised(0, 0)),
            (with(0, &[3 << 6 | 4 << 3 | 4]), unsynchronised(3, 10)),
            (with(1, &[16]), unsynchronised(0, 16)),
            (with(8, &[0, 16, 0, 0]), Error::Distance(16)),
            (with(4, &[0xff; 8]), Error::Distance(0xffff)),
            (with(32, &[0; 8]), Error::NoTime),
            (with(40, &[0; 8]), Error::NoTime),
            (packet(at(NOW, 1), at(NOW, 0)).to_vec(), Error::Order),
        ];
        for (packet, expected) in cases {
            assert_eq!(judge(&packet), Err(expected), "{packet:02x?}");
        }
        // Held for a minute, although all was over in 10 ms.
        let held = packet(at(NOW, 0), at(NOW + 60, 0));
        assert_eq!(judge(&held), Err(Error::Order));
    }

    #[test]
    fn a_kiss_for_another_request_is_no_kiss() {
        let mut forged = packet(at(NOW, 0), at(NOW, 0));
        forged[1] = 0;
        forged[24] ^= 1;
        let judged = answer(&forged, NONCE, at(NOW, 0), at(NOW, 10));
        assert_eq!(judged, Err(Error::NotOurs));
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_no_answer_leads_out_of_the_believed_years(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..80),
            own in -377_705_023_201_i64..253_402_207_200,
        ) {
            if let Some(nonce) = bytes.get_mut(24..32) {
                nonce.copy_from_slice(&NONCE.to_be_bytes());
            }
            let own = at(own, 0);
            if let Ok(answer) = answer(&bytes, NONCE, own, own) {
                let new = own.checked_add(answer.offset).unwrap().as_second();
                prop_assert!((EARLIEST - 1..=EARLIEST + i64::from(HORIZON) + 1).contains(&new));
            }
        }
    }
}
