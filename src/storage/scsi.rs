//! SCSI SANITIZE: whether a drive has it, the commands, and how far it is.
//!
//! Numbers: SBC-4 5.30, SPC-5 6.44 (REPORT SUPPORTED OPERATION CODES) and 4.4 (sense data).

/// Status of a command that another host's reservation keeps out (SAM-5 5.3.1).
pub const RESERVATION_CONFLICT: u8 = 0x18;

/// Bytes asked of REPORT SUPPORTED OPERATION CODES, and of REQUEST SENSE.
pub const REPORT_SIZE: usize = 20;
pub const SENSE_SIZE: usize = 252;

/// How SANITIZE erases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sanitize {
    Block,
    Crypto,
}

impl Sanitize {
    fn service_action(self) -> u8 {
        match self {
            Self::Block => 2,
            Self::Crypto => 3,
        }
    }

    /// Asks whether the drive has this SANITIZE: one command, with its service action.
    #[must_use]
    pub fn report_cdb(self) -> [u8; 12] {
        let size = REPORT_SIZE as u8;
        [
            0xa3,
            0x0c,
            2,
            0x48,
            0,
            self.service_action(),
            0,
            0,
            0,
            size,
            0,
            0,
        ]
    }

    /// SANITIZE that ends in the background (IMMED). AUSE stays clear: a failure must be seen.
    #[must_use]
    pub fn cdb(self) -> [u8; 10] {
        [0x48, 0x80 | self.service_action(), 0, 0, 0, 0, 0, 0, 0, 0]
    }
}

/// Whether the answer to [`Sanitize::report_cdb`] says yes, "as the standard says".
#[must_use]
pub fn is_supported(report: &[u8; REPORT_SIZE]) -> bool {
    report[1] & 7 == 3
}

/// REQUEST SENSE, fixed format.
#[must_use]
pub fn request_sense_cdb() -> [u8; 6] {
    [0x03, 0, 0, 0, SENSE_SIZE as u8, 0]
}

/// What sense data says about a sanitize.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Share done, of 65536.
    Running(u16),
    Failed,
    /// Nothing is going on.
    Idle,
}

/// Reads sense data of either format.
#[must_use]
pub fn progress(sense: &[u8; SENSE_SIZE]) -> Progress {
    let (code, indication) = match sense[0] & 0x7f {
        0x70 | 0x71 => ([sense[2] & 0xf, sense[12], sense[13]], &sense[15..18]),
        // The sense-key specific descriptor is the first, where a drive sends it at all.
        0x72 | 0x73 => ([sense[1] & 0xf, sense[2], sense[3]], &sense[12..15]),
        _ => return Progress::Idle,
    };
    let share = match *indication {
        [valid, high, low] if valid & 0x80 != 0 => u16::from_be_bytes([high, low]),
        _ => 0,
    };
    match code {
        [0 | 2, 0x04, 0x1b] => Progress::Running(share),
        [_, 0x31, 0x03] => Progress::Failed,
        _ => Progress::Idle,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_byte_for_byte() {
        assert_eq!(
            Sanitize::Block.report_cdb(),
            [0xa3, 0x0c, 2, 0x48, 0, 2, 0, 0, 0, 20, 0, 0]
        );
        assert_eq!(
            Sanitize::Crypto.report_cdb(),
            [0xa3, 0x0c, 2, 0x48, 0, 3, 0, 0, 0, 20, 0, 0]
        );
        assert_eq!(Sanitize::Block.cdb(), [0x48, 0x82, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Sanitize::Crypto.cdb(), [0x48, 0x83, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(request_sense_cdb(), [3, 0, 0, 0, 252, 0]);
    }

    #[test]
    fn support() {
        let report = |byte: u8| {
            let mut report = [0; REPORT_SIZE];
            report[1] = byte;
            is_supported(&report)
        };
        assert!(report(3) && report(0x83));
        // 0: no data, 1: not supported, 5: in a vendor's own way.
        assert!(!report(0) && !report(1) && !report(5));
    }

    #[test]
    fn sense_data() {
        let sense = |bytes: &[(usize, u8)]| {
            let mut sense = [0; SENSE_SIZE];
            for (at, byte) in bytes {
                sense[*at] = *byte;
            }
            progress(&sense)
        };
        let fixed = [
            (0, 0x70),
            (2, 2),
            (12, 4),
            (13, 0x1b),
            (15, 0x80),
            (16, 0x40),
        ];
        assert_eq!(sense(&fixed), Progress::Running(0x4000));
        let described = [
            (0, 0x72),
            (1, 2),
            (2, 4),
            (3, 0x1b),
            (7, 8),
            (8, 2),
            (9, 6),
            (12, 0x80),
            (13, 0x80),
        ];
        assert_eq!(sense(&described), Progress::Running(0x8000));
        assert_eq!(sense(&fixed[..4]), Progress::Running(0));
        assert_eq!(
            sense(&[(0, 0x70), (2, 3), (12, 0x31), (13, 3)]),
            Progress::Failed
        );
        assert_eq!(sense(&[(0, 0x70)]), Progress::Idle);
        assert_eq!(
            sense(&[(0, 0x70), (2, 2), (12, 4), (13, 1)]),
            Progress::Idle
        );
        assert_eq!(sense(&[]), Progress::Idle);
    }
}
