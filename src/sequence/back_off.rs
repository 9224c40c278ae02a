//! How long a failed machine pauses before it resets, and what it says meanwhile.

use std::time::Duration;

use crate::efi::failures;
use crate::efi::vars::Vars;

/// A machine that always fails pauses no longer than this.
const LONGEST: Duration = Duration::from_secs(600);
/// The count of a machine whose firmware cannot count.
const UNKNOWN: u8 = 4;

/// Counts one more failure and answers the pause that follows it, and the failure's number.
pub(super) fn next(efi: Option<&Vars>, first: Duration) -> (Duration, u8) {
    let before = match efi.map(failures::count) {
        Some(Ok(before)) => before,
        Some(Err(error)) => {
            tracing::warn!("cannot count the failures in a row: {error}");
            UNKNOWN
        }
        // Before there is a firmware to ask nobody has been spoken to, either.
        None => 0,
    };
    (after(before, first), before.saturating_add(1))
}

/// The pause after so many failures in a row before this one.
pub(super) fn after(before: u8, first: Duration) -> Duration {
    pause(before, first, rand::random_range(0.0..=1.0))
}

/// Full jitter: a random part `unit` (0 to 1) of a ceiling that doubles with each failure, for
/// a rack that fails at once must not come back at once. Never shorter than the first pause,
/// which leaves the time to read why.
fn pause(before: u8, first: Duration, unit: f64) -> Duration {
    if before == 0 {
        return first;
    }
    let ceiling = first
        .max(Duration::from_secs(1))
        .saturating_mul(2_u32.saturating_pow(before.into()))
        .min(LONGEST);
    ceiling.mul_f64(unit).max(first)
}

/// Whether the countdown says a line when so many seconds are left.
pub(super) fn is_worth_a_line(left: u64) -> bool {
    left > 0 && (left.is_multiple_of(60) || matches!(left, 30 | 10 | 5))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::efi::vars::tests::fixture;

    const FIRST: Duration = Duration::from_secs(5);

    #[test]
    fn pauses_grow_to_ten_minutes() {
        let ceilings: Vec<u64> = (0..=failures::MOST)
            .map(|before| pause(before, FIRST, 1.0).as_secs())
            .collect();
        assert_eq!(ceilings, [5, 10, 20, 40, 80, 160, 320, 600, 600]);
        for before in 0..=failures::MOST {
            assert_eq!(pause(before, FIRST, 0.0), FIRST);
        }
        // An operator's first pause may be nothing, or an hour.
        assert_eq!(pause(0, Duration::ZERO, 1.0), Duration::ZERO);
        assert_eq!(pause(3, Duration::ZERO, 1.0), Duration::from_secs(8));
        let hour = Duration::from_secs(3600);
        assert_eq!(pause(200, hour, 0.5), hour);
    }

    #[test]
    fn machines_that_failed_at_once_spread_out() {
        let (_dir, vars) = fixture();
        let pauses: Vec<Duration> = (0..200).map(|_| next(Some(&vars), FIRST).0).collect();
        let late = &pauses[usize::from(failures::MOST)..];
        assert!(late.iter().any(|pause| *pause < LONGEST / 4));
        assert!(late.iter().any(|pause| *pause > LONGEST * 3 / 4));
        assert_eq!(next(Some(&vars), FIRST).1, failures::MOST + 1);
    }

    #[test]
    fn a_firmware_that_cannot_count_does_not_hammer() {
        // A directory in the variable's place: it can be neither read nor written.
        let (dir, vars) = fixture();
        let name = format!("MetalAnvilFailures-{}", crate::efi::journal::VENDOR);
        std::fs::create_dir(dir.path().join(name)).unwrap();
        let pauses: Vec<Duration> = (0..200).map(|_| next(Some(&vars), FIRST).0).collect();
        assert!(pauses.iter().any(|pause| *pause > FIRST * 4), "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= FIRST * 16));
        assert_eq!(next(None, FIRST), (FIRST, 1), "no firmware at all");
    }

    #[test]
    fn a_countdown_has_few_lines() {
        let lines: Vec<u64> = (0..=130)
            .rev()
            .filter(|left| is_worth_a_line(*left))
            .collect();
        assert_eq!(lines, [120, 60, 30, 10, 5]);
    }
}
