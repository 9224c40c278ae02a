//! The machine's clock: from NTP, or from a web server's `Date`, before TLS is used.
//!
//! A server's battery may be flat: its clock says 2019 or 2099, and no certificate is valid.
//! What is tried and fails never sets the clock.

mod hardware;
pub mod query;
mod server;
pub mod sntp;

use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

pub use server::{BadServer, Host, Server, nameservers};

/// The clock that firmware and kernel read at power-on.
const HARDWARE_CLOCK: &str = "/dev/rtc0";
/// A `Date` has whole seconds and no protection: it counts only against a clock that is
/// further off than any certificate or token cares for.
const DATE_COUNTS_FROM: Duration = Duration::from_secs(24 * 3600);
/// Less is not worth a step.
const SMALLEST_STEP: Duration = Duration::from_millis(100);
/// The hardware clock has whole seconds.
const SMALLEST_HARDWARE_STEP: Duration = Duration::from_secs(1);

/// Why the clock was not set.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0} from now is no time between 2026 and 2094: the clock stays as it is")]
    Implausible(SignedDuration),
    #[error("cannot set the system clock to {to}: {source}")]
    Refused { to: Timestamp, source: io::Error },
}

/// What was done to the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was right, to within a tenth of a second.
    Right,
    Set {
        old: Timestamp,
        new: Timestamp,
    },
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Right => f.write_str("clock is right"),
            Self::Set { old, new } => write!(f, "clock set from {old:.0} to {new:.0}"),
        }
    }
}

/// How far this machine's clock is off a web server's, if so far that it has to be set.
#[must_use]
pub fn off_by_days(offset: SignedDuration) -> bool {
    offset.unsigned_abs() > DATE_COUNTS_FROM
}

/// Adds `offset` to the system clock. The hardware clock is [`keep`]'s.
///
/// # Errors
/// The new time would be none to be believed, or the kernel refuses; nothing was changed then.
pub fn correct(offset: SignedDuration) -> Result<Outcome, Error> {
    let old = Timestamp::now();
    let Some(new) = planned(old, offset)? else {
        return Ok(Outcome::Right);
    };
    let spec = TimeSpec::new(new.as_second(), new.subsec_nanosecond().into());
    clock_settime(ClockId::CLOCK_REALTIME, spec).map_err(|errno| Error::Refused {
        to: new,
        source: errno.into(),
    })?;
    Ok(Outcome::Set { old, new })
}

/// Gives the hardware clock the system's time, which was `offset` away, so that the installed OS
/// and the next boot start with it. One that cannot be set is logged.
pub fn keep(offset: SignedDuration) {
    if offset.unsigned_abs() >= SMALLEST_HARDWARE_STEP
        && let Err(error) = hardware::set(Path::new(HARDWARE_CLOCK), Timestamp::now())
    {
        tracing::warn!("hardware clock {HARDWARE_CLOCK} keeps its wrong time: {error}");
    }
}

/// The time to set; nothing when the clock is right.
fn planned(now: Timestamp, offset: SignedDuration) -> Result<Option<Timestamp>, Error> {
    let believed = sntp::EARLIEST..=sntp::EARLIEST + i64::from(sntp::HORIZON);
    let new = now
        .checked_add(offset)
        .ok()
        .filter(|new| believed.contains(&new.as_second()))
        .ok_or(Error::Implausible(offset))?;
    Ok((offset.unsigned_abs() >= SMALLEST_STEP).then_some(new))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn only_times_that_can_be_are_set() {
        let years = |years: i64| SignedDuration::from_hours(years * 8766);
        let ms = SignedDuration::from_millis;
        // this machine's clock, what is added, the time that is set
        let cases = [
            ("2026-11-24T12:00:00Z", ms(0), Ok(None)),
            ("2026-11-24T12:00:00Z", ms(-99), Ok(None)),
            (
                "2026-11-24T12:00:00Z",
                ms(-1500),
                Ok(Some("2026-11-24T11:59:58.5Z")),
            ),
            (
                "2019-01-01T00:00:00Z",
                years(8),
                Ok(Some("2027-01-01T00:00:00Z")),
            ),
            (
                "2099-01-01T00:00:00Z",
                years(-72),
                Ok(Some("2027-01-01T00:00:00Z")),
            ),
            ("2026-11-24T12:00:00Z", years(-1), Err(())),
            ("2026-11-24T12:00:00Z", years(80), Err(())),
            ("2019-01-01T00:00:00Z", ms(0), Err(())),
            ("2026-11-24T12:00:00Z", SignedDuration::MAX, Err(())),
            ("2026-11-24T12:00:00Z", SignedDuration::MIN, Err(())),
        ];
        for (now, offset, expected) in cases {
            let planned = planned(time(now), offset).map_err(drop);
            assert_eq!(planned, expected.map(|t| t.map(time)), "{now} {offset}");
        }
    }

    #[test]
    fn a_date_counts_from_a_day_on() {
        let hours = SignedDuration::from_hours;
        assert!(!off_by_days(hours(24)));
        assert!(!off_by_days(hours(-24)));
        assert!(off_by_days(hours(25)));
        assert!(off_by_days(hours(-25)));
        assert!(off_by_days(SignedDuration::MIN));
    }

    #[test]
    fn a_step_names_both_times() {
        let outcome = Outcome::Set {
            old: time("2019-01-01T00:00:09.5Z"),
            new: time("2026-11-24T12:00:00.25Z"),
        };
        assert_eq!(
            outcome.to_string(),
            "clock set from 2019-01-01T00:00:09Z to 2026-11-24T12:00:00Z"
        );
    }
}
