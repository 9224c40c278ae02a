//! How often in a row this machine was sent to its installed OS, in a variable of nine bytes: an OS
//! that cannot start leads back to this medium, and only the next boot can notice.

use jiff::{SignedDuration, Timestamp};

use super::Error;
use super::journal::VENDOR;
use super::vars::{NV_BS_RT, Vars};

const NAME: &str = "MetalAnvilDiskBoots";

/// An OS that stays away for longer than this did start. The longest pause between two boots, and
/// a server's way through its firmware, are shorter.
const IN_A_ROW: SignedDuration = SignedDuration::from_mins(30);

/// Counts one more boot of the disk and answers how many in a row there were before it.
///
/// # Errors
/// The firmware does not store it.
pub fn count(vars: &Vars, now: Timestamp) -> Result<u8, Error> {
    // What cannot be understood is not ours: as good as none.
    let before = vars
        .read(NAME, VENDOR)?
        .and_then(|variable| <[u8; 9]>::try_from(variable.data).ok())
        .and_then(|[count, at @ ..]| {
            Some((count, Timestamp::from_second(i64::from_le_bytes(at)).ok()?))
        })
        .filter(|(_, at)| *at <= now && now.duration_since(*at) <= IN_A_ROW)
        .map_or(0, |(count, _)| count);
    let [a, b, c, d, e, f, g, h] = now.as_second().to_le_bytes();
    let data = [before.saturating_add(1), a, b, c, d, e, f, g, h];
    vars.write(NAME, VENDOR, NV_BS_RT, &data)?;
    Ok(before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::efi::vars::tests::fixture;

    #[test]
    fn boots_in_a_row_are_counted() {
        let (_dir, vars) = fixture();
        let begin: Timestamp = "2026-11-22T08:00:00Z".parse().unwrap();
        let at = |minutes| begin + SignedDuration::from_mins(minutes);
        for (minutes, expected) in [
            (0, 0),
            (30, 1),
            (45, 2),
            // The OS ran for a while.
            (76, 0),
            (80, 1),
            // The clock was wrong, now or before.
            (70, 0),
        ] {
            assert_eq!(count(&vars, at(minutes)).unwrap(), expected, "{minutes}");
        }
        for _ in 0..300 {
            count(&vars, at(71)).unwrap();
        }
        assert_eq!(count(&vars, at(71)).unwrap(), u8::MAX);
    }

    #[test]
    fn a_variable_of_somebody_else_counts_as_none() {
        let (_dir, vars) = fixture();
        for odd in [&[][..], &[3], b"some text", &[0x7f; 9]] {
            vars.write(NAME, VENDOR, NV_BS_RT, odd).unwrap();
            assert_eq!(count(&vars, Timestamp::UNIX_EPOCH).unwrap(), 0, "{odd:?}");
        }
    }
}
