//! How often in a row this machine has failed, in a variable of one byte: what lets it pause
//! for longer each time, so that a broken rack does not hammer its control plane.
//!
//! The count stops growing where the pause does, so a machine that fails for a week has
//! written [`MOST`] times.

use super::Error;
use super::journal::VENDOR;
use super::vars::{NV_BS_RT, Vars};

const NAME: &str = "MetalAnvilFailures";

/// The count that nothing counts beyond.
pub const MOST: u8 = 8;

/// Counts one more failure and answers how many there were before it.
///
/// # Errors
/// The firmware does not store it. The count before is lost with it.
pub fn count(vars: &Vars) -> Result<u8, Error> {
    // What cannot be understood is not ours: as good as none.
    let before = vars
        .read(NAME, VENDOR)?
        .and_then(|variable| <[u8; 1]>::try_from(variable.data).ok())
        .map_or(0, |[count]| count.min(MOST));
    vars.write(NAME, VENDOR, NV_BS_RT, &[(before + 1).min(MOST)])?;
    Ok(before)
}

/// Forgets the failures: the machine got where it should.
///
/// # Errors
/// What the firmware answers.
pub fn clear(vars: &Vars) -> Result<(), Error> {
    vars.delete(NAME, VENDOR).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::efi::vars::Written;
    use crate::efi::vars::tests::fixture;

    #[test]
    fn failures_are_counted_up_to_a_bound_and_forgotten_after_a_success() {
        let (_dir, vars) = fixture();
        clear(&vars).unwrap();
        let counted: Vec<u8> = (0..11).map(|_| count(&vars).unwrap()).collect();
        assert_eq!(counted, [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8]);
        // Nothing is written where nothing changes.
        let again = vars.write(NAME, VENDOR, NV_BS_RT, &[MOST]).unwrap();
        assert_eq!(again, Written::AlreadySo);
        clear(&vars).unwrap();
        assert_eq!(count(&vars).unwrap(), 0);
    }

    #[test]
    fn a_variable_of_somebody_else_counts_as_none() {
        let (_dir, vars) = fixture();
        for odd in [&[][..], &[3, 3], b"text"] {
            vars.write(NAME, VENDOR, NV_BS_RT, odd).unwrap();
            assert_eq!(count(&vars).unwrap(), 0, "{odd:?}");
        }
        vars.write(NAME, VENDOR, NV_BS_RT, &[255]).unwrap();
        assert_eq!(count(&vars).unwrap(), MOST);
    }
}
