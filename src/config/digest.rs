//! `boot/metal.config.sha256`: the digest of the region that holds `metal.config`.
//!
//! `scripts/iso-config` writes both into a finished ISO. A medium whose two do not fit together was
//! damaged, or half of it was changed; what it says about disks cannot be believed then.

use thiserror::Error;

use crate::image::checksum::{self, Algorithm, Hasher};

/// Why a `metal.config` is not what was put into the medium.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DigestError {
    #[error(
        "boot/metal.config.sha256 on the boot medium is not what sha256sum prints ({why}), so its boot/metal.config cannot be checked; \
         put it in again with scripts/iso-config, or write the medium anew"
    )]
    NoDigest { why: String },
    #[error(
        "boot/metal.config on the boot medium is damaged, or was changed without its digest: boot/metal.config.sha256 says {expected}, \
         its {bytes} bytes have {found}. Put it in again with scripts/iso-config, or write the medium anew; \
         with xorriso, remove boot/metal.config.sha256 when you replace boot/metal.config"
    )]
    Mismatch {
        expected: String,
        found: String,
        bytes: usize,
    },
}

/// Holds a `metal.config`, blanks included, against its digest as `sha256sum` prints it.
///
/// # Errors
/// They do not fit together, or the digest cannot be read.
pub fn check(config: &[u8], digest: &[u8]) -> Result<(), DigestError> {
    let expected = checksum::parse(digest, Algorithm::Sha256, "metal.config")
        .map_err(|why| DigestError::NoDigest { why })?;
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(config);
    let found = hasher.finish();
    if found == expected.hex {
        return Ok(());
    }
    Err(DigestError::Mismatch {
        expected: expected.hex,
        found,
        bytes: config.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file;
    use proptest::prelude::*;

    /// `sha256sum` over `{}` and a line feed.
    const OF_EMPTY: &str = "ca3d163bab055381827226140568f3bef7eaac187cebd76878e0b63e9e442356";

    #[test]
    fn a_digest_is_what_sha256sum_prints() {
        for line in [
            format!("{OF_EMPTY}  metal.config\n"),
            format!("{OF_EMPTY} *metal.config\n"),
            format!("{}\n", OF_EMPTY.to_uppercase()),
        ] {
            assert_eq!(check(b"{}\n", line.as_bytes()), Ok(()), "{line}");
        }
        for line in ["", "  metal.config\n", "ca3d  metal.config\n", "\0\0\0\0"] {
            let error = check(b"{}\n", line.as_bytes()).unwrap_err();
            assert!(
                matches!(error, DigestError::NoDigest { .. }),
                "{line}: {error}"
            );
        }
    }

    #[test]
    fn a_broken_file_is_named_with_both_digests() {
        let error = check(b"{}", format!("{OF_EMPTY}  metal.config\n").as_bytes()).unwrap_err();
        let text = error.to_string();
        for word in [OF_EMPTY, "44136fa3", "2 bytes", "scripts/iso-config"] {
            assert!(text.contains(word), "{word}: {text}");
        }
    }

    proptest! {
        /// One wrong bit anywhere, in the JSON or in the blanks behind it.
        #[test]
        fn no_bit_of_the_region_can_turn(at in 0..file::MAX_BYTES * 8) {
            let mut region = vec![b' '; file::MAX_BYTES];
            region[..2].copy_from_slice(b"{}");
            let mut hasher = Hasher::new(Algorithm::Sha256);
            hasher.update(&region);
            let line = format!("{}  metal.config\n", hasher.finish());
            prop_assert_eq!(check(&region, line.as_bytes()), Ok(()));
            region[at / 8] ^= 1 << (at % 8);
            prop_assert!(check(&region, line.as_bytes()).is_err());
        }

        #[test]
        fn any_bytes_are_judged(config in prop::collection::vec(any::<u8>(), 0..64), digest in prop::collection::vec(any::<u8>(), 0..128)) {
            prop_assert!(check(&config, &digest).is_err());
        }
    }
}
