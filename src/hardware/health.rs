//! What disks say of their state, from the bytes that they answer.

use super::types::Health;

/// Bits of an NVMe drive's Critical Warning (NVMe base specification 2.0, figure 207).
const NVME_WARNINGS: [&str; 6] = [
    "spare blocks are used up",
    "temperature out of range",
    "reliability degraded",
    "read-only",
    "backup of volatile memory failed",
    "persistent memory unreliable",
];

/// An NVMe SMART / Health Information log of 512 bytes.
pub(super) fn nvme(log: &[u8]) -> Option<Health> {
    let wide = |at: usize| {
        let bytes: [u8; 16] = log.get(at..at + 16)?.try_into().ok()?;
        // 128 bits that no drive fills.
        u64::try_from(u128::from_le_bytes(bytes)).ok()
    };
    let &[critical, low, high, _, _, used, ..] = log else {
        return None;
    };
    let kelvin = i32::from(u16::from_le_bytes([low, high]));
    let warnings: Vec<String> = NVME_WARNINGS
        .iter()
        .enumerate()
        .filter(|(bit, _)| critical & (1 << bit) != 0)
        .map(|(_, text)| (*text).to_owned())
        .collect();
    Some(Health {
        good: critical == 0,
        warnings,
        temperature: (kelvin > 0).then_some(kelvin - 273),
        percent_used: Some(u32::from(used)),
        power_on_hours: wide(128),
        media_errors: wide(160),
    })
}

/// The registers after SMART RETURN STATUS: LBA mid and high are 4F C2 when all is well,
/// F4 2C when a threshold was exceeded (ACS-3 §7.48.8). They come as an ATA Status Return
/// descriptor or in fixed-format sense (SAT-3 §12.2.2.6 and .7).
pub(super) fn ata(sense: &[u8]) -> Option<Health> {
    let registers = match sense.first()? & 0x7f {
        0x72 => {
            let descriptor = sense.get(8..22).filter(|it| it[..2] == [0x09, 0x0c])?;
            [descriptor[9], descriptor[11]]
        }
        0x70 => [*sense.get(10)?, *sense.get(11)?],
        _ => return None,
    };
    match registers {
        [0x4f, 0xc2] => Some(Health {
            good: true,
            ..Health::default()
        }),
        [0xf4, 0x2c] => Some(Health {
            warnings: vec!["SMART threshold exceeded".into()],
            ..Health::default()
        }),
        _ => None,
    }
}

/// The Informational Exceptions log page: additional sense code and qualifier of what is
/// wrong, then the temperature (SPC-5 §7.3.10).
pub(super) fn scsi(page: &[u8]) -> Option<Health> {
    const PAGE: u8 = 0x2f;
    /// Without a temperature.
    const NONE: u8 = 0xff;
    let &[code, _, _, _, 0, 0, _, length, asc, ascq, ref rest @ ..] = page else {
        return None;
    };
    if code & 0x3f != PAGE || length < 2 {
        return None;
    }
    let temperature = rest
        .first()
        .filter(|degrees| length >= 3 && **degrees != NONE && **degrees != 0);
    let warnings = (asc != 0).then(|| format!("sense code {asc:02x}/{ascq:02x}"));
    Some(Health {
        good: asc == 0,
        warnings: warnings.into_iter().collect(),
        temperature: temperature.map(|degrees| i32::from(*degrees)),
        ..Health::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_nvme_log() {
        let mut log = [0; 512];
        log[1..3].copy_from_slice(&(273u16 + 41).to_le_bytes());
        log[5] = 3;
        log[128] = 200;
        log[129] = 1;
        log[160] = 7;
        let health = nvme(&log).unwrap();
        let expected = Health {
            good: true,
            warnings: vec![],
            temperature: Some(41),
            percent_used: Some(3),
            power_on_hours: Some(456),
            media_errors: Some(7),
        };
        assert_eq!(health, expected);
        log[0] = 0b1001;
        log[143] = 1;
        let health = nvme(&log).unwrap();
        assert!(!health.good);
        assert_eq!(health.warnings, ["spare blocks are used up", "read-only"]);
        assert_eq!(health.power_on_hours, None);
        assert_eq!(nvme(&log[..5]), None);
        assert_eq!(nvme(&log[..8]).unwrap().media_errors, None);
    }

    #[test]
    fn ata_registers_in_both_formats() {
        let descriptor = |mid, high| {
            let mut sense = vec![0x72, 1, 0, 0x1d, 0, 0, 0, 14, 0x09, 0x0c];
            sense.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, mid, 0, high, 0, 0x50]);
            sense
        };
        let fixed = |mid, high| vec![0x70, 0, 1, 0, 0x50, 0, 0, 10, 0, 0, mid, high];
        for (sense, good) in [
            (descriptor(0x4f, 0xc2), Some(true)),
            (descriptor(0xf4, 0x2c), Some(false)),
            (descriptor(0, 0), None),
            (fixed(0x4f, 0xc2), Some(true)),
            (fixed(0xf4, 0x2c), Some(false)),
            (vec![0x72, 1, 0, 0x1d], None),
            (vec![], None),
        ] {
            assert_eq!(ata(&sense).map(|it| it.good), good, "{sense:x?}");
        }
    }

    #[test]
    fn scsi_informational_exceptions() {
        let good = scsi(&[0x2f, 0, 0, 8, 0, 0, 3, 4, 0, 0, 33, 0]).unwrap();
        assert_eq!((good.good, good.temperature), (true, Some(33)));
        let bad = scsi(&[0x2f, 0, 0, 8, 0, 0, 3, 4, 0x5d, 0x10, 0xff, 0]).unwrap();
        assert_eq!((bad.good, bad.temperature), (false, None));
        assert_eq!(bad.warnings, ["sense code 5d/10"]);
        assert_eq!(scsi(&[0; 64]), None);
        assert_eq!(scsi(&[0x2f, 0, 0]), None);
    }
}
