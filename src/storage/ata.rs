//! ATA security erase: what IDENTIFY DEVICE says of it, and the commands, wrapped into SCSI's
//! ATA PASS-THROUGH (16).
//!
//! Numbers: ACS-4 (T13/BSR INCITS 529), SAT-4 12.2.2.

use std::time::Duration;

/// The user password that is set for the time of an erase. Fixed and documented, so that any
/// later boot, or anybody's hdparm, can unlock a drive whose erase was cut by a power failure.
pub const PASSWORD: &str = "metal-anvil";
/// Bytes of every data block here.
pub const SECTOR: usize = 512;
/// A drive's estimate is an estimate.
const GRACE: Duration = Duration::from_secs(1800);

/// What IDENTIFY DEVICE says about security (words 82, 89, 90, 128).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Security {
    pub is_supported: bool,
    /// A password is set.
    pub is_enabled: bool,
    pub is_locked: bool,
    /// The firmware has shut it until the next power-on.
    pub is_frozen: bool,
    /// Too many wrong passwords since power-on.
    pub is_exhausted: bool,
    pub has_enhanced: bool,
    /// How long an erase takes by the drive's own word; `None` when it does not say.
    pub takes: Option<Duration>,
    pub enhanced_takes: Option<Duration>,
}

impl Security {
    /// Reads IDENTIFY DEVICE data.
    #[must_use]
    pub fn parse(identify: &[u8; SECTOR]) -> Self {
        let word =
            |index: usize| u16::from_le_bytes([identify[index * 2], identify[index * 2 + 1]]);
        let status = word(128);
        let bit = |bit: u16| status >> bit & 1 == 1;
        Self {
            is_supported: word(82) & 2 != 0 && bit(0),
            is_enabled: bit(1),
            is_locked: bit(2),
            is_frozen: bit(3),
            is_exhausted: bit(4),
            has_enhanced: bit(5),
            takes: duration(word(89)),
            enhanced_takes: duration(word(90)),
        }
    }
}

/// Units of two minutes in 8 bits, or in 15 where the highest bit says so.
fn duration(word: u16) -> Option<Duration> {
    let units = match word >> 15 {
        0 => word & 0xff,
        _ => word & 0x7fff,
    };
    (units != 0).then(|| Duration::from_secs(u64::from(units) * 120))
}

/// How long an erase may take before it counts as failed.
#[must_use]
pub fn patience(estimate: Option<Duration>) -> Duration {
    estimate.unwrap_or(Duration::from_secs(12 * 3600)) * 2 + GRACE
}

/// The direction of a command's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer {
    None,
    /// One sector from the drive.
    In,
    /// One sector to the drive.
    Out,
}

/// A command of the security feature set, or what it needs around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Identify,
    SetPassword,
    Unlock,
    ErasePrepare,
    EraseUnit { enhanced: bool },
    DisablePassword,
}

impl Command {
    #[must_use]
    pub fn transfer(self) -> Transfer {
        match self {
            Self::Identify => Transfer::In,
            Self::ErasePrepare => Transfer::None,
            _ => Transfer::Out,
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Identify => 0xec,
            Self::SetPassword => 0xf1,
            Self::Unlock => 0xf2,
            Self::ErasePrepare => 0xf3,
            Self::EraseUnit { .. } => 0xf4,
            Self::DisablePassword => 0xf6,
        }
    }

    /// ATA PASS-THROUGH (16).
    #[must_use]
    pub fn cdb(self) -> [u8; 16] {
        let mut cdb = [0; 16];
        cdb[0] = 0x85;
        // Protocol in bits 4:1; then direction, unit and where the length stands.
        (cdb[1], cdb[2], cdb[6]) = match self.transfer() {
            Transfer::None => (3 << 1, 0, 0),
            Transfer::In => (4 << 1, 0b1110, 1),
            Transfer::Out => (5 << 1, 0b0110, 1),
        };
        cdb[14] = self.code();
        cdb
    }

    /// The sector to send: user password, high security (so that a master password could
    /// unlock too).
    #[must_use]
    pub fn data(self) -> [u8; SECTOR] {
        let mut data = [0; SECTOR];
        if let Self::EraseUnit { enhanced: true } = self {
            data[0] = 2;
        }
        if self.transfer() == Transfer::Out {
            data[2..2 + PASSWORD.len()].copy_from_slice(PASSWORD.as_bytes());
        }
        data
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Identify data with these words.
    pub fn identified(words: &[(usize, u16)]) -> Security {
        let mut identify = [0; SECTOR];
        for (index, word) in words {
            identify[index * 2..index * 2 + 2].copy_from_slice(&word.to_le_bytes());
        }
        Security::parse(&identify)
    }

    #[test]
    fn identify_data() {
        let ssd = identified(&[(82, 0x746b), (89, 1), (90, 4), (128, 0x21)]);
        assert_eq!(
            ssd,
            Security {
                is_supported: true,
                is_enabled: false,
                is_locked: false,
                is_frozen: false,
                is_exhausted: false,
                has_enhanced: true,
                takes: Some(Duration::from_secs(120)),
                enhanced_takes: Some(Duration::from_secs(480)),
            }
        );
        assert!(identified(&[(82, 2), (128, 0x29)]).is_frozen);
        let locked = identified(&[(82, 2), (128, 0x17)]);
        assert!(locked.is_locked && locked.is_enabled && locked.is_exhausted);
        // Long times have a bit of their own.
        assert_eq!(
            identified(&[(89, 0x8000 | 600)]).takes,
            Some(Duration::from_secs(72_000))
        );
        assert_eq!(identified(&[(89, 0)]).takes, None);
        assert!(!identified(&[(82, 0), (128, 1)]).is_supported);
        assert!(!identified(&[(82, 2), (128, 0)]).is_supported);
    }

    #[test]
    fn commands_byte_for_byte() {
        let table = [
            (
                Command::Identify,
                [0x85, 0x08, 0x0e, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0xec, 0],
            ),
            (
                Command::SetPassword,
                [0x85, 0x0a, 0x06, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0xf1, 0],
            ),
            (
                Command::Unlock,
                [0x85, 0x0a, 0x06, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0xf2, 0],
            ),
            (
                Command::ErasePrepare,
                [0x85, 0x06, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xf3, 0],
            ),
            (
                Command::EraseUnit { enhanced: true },
                [0x85, 0x0a, 0x06, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0xf4, 0],
            ),
            (
                Command::DisablePassword,
                [0x85, 0x0a, 0x06, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0xf6, 0],
            ),
        ];
        for (command, cdb) in table {
            assert_eq!(command.cdb(), cdb, "{command:?}");
        }
        let set = Command::SetPassword.data();
        assert_eq!(&set[..14], b"\0\0metal-anvil\0");
        assert!(set[13..].iter().all(|byte| *byte == 0));
        assert_eq!(
            Command::EraseUnit { enhanced: true }.data()[..4],
            *b"\x02\0me"
        );
        assert_eq!(
            Command::EraseUnit { enhanced: false }.data()[..4],
            *b"\0\0me"
        );
        assert_eq!(Command::ErasePrepare.data(), [0; SECTOR]);
    }

    #[test]
    fn patience_is_more_than_the_estimate() {
        assert_eq!(
            patience(Some(Duration::from_secs(120))),
            Duration::from_secs(240 + 1800)
        );
        assert_eq!(patience(None), Duration::from_secs(24 * 3600 + 1800));
    }
}
