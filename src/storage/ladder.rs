//! The wipe ladder: which ways of erasing a disk has, best first. A pure choice over what
//! the disk says of itself; each rung is proven after it was taken, never believed.

use std::fmt;

use super::ata::Security;
use super::nvme::Nvme;
use crate::decide::Extent;

/// One way of erasing a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rung {
    NvmeSanitizeCrypto,
    NvmeSanitizeBlock,
    NvmeFormatCrypto,
    NvmeFormatData,
    AtaEraseEnhanced,
    AtaErase,
    ScsiSanitizeCrypto,
    ScsiSanitizeBlock,
    /// BLKSECDISCARD: eMMC.
    SecureDiscard,
    /// BLKDISCARD: TRIM, UNMAP, Deallocate.
    Discard,
    /// BLKZEROOUT: the drive writes zeros, or the kernel does.
    ZeroOut,
    /// Zeros through the page cache, past places that cannot be written.
    Overwrite,
    /// Partition tables, superblocks and labels only.
    Marks,
}

impl Rung {
    /// Whether the disk has to read as zeros afterwards. A drive's own erase may leave
    /// anything, as long as it is not what was there.
    #[must_use]
    pub fn leaves_zeros(self) -> bool {
        matches!(self, Self::Discard | Self::ZeroOut | Self::Overwrite)
    }

    /// Whether the drive erases itself: it may do so even while it takes no writes, locked or
    /// after a failed Sanitize.
    #[must_use]
    pub fn is_the_drives_own(self) -> bool {
        matches!(
            self,
            Self::NvmeSanitizeCrypto
                | Self::NvmeSanitizeBlock
                | Self::NvmeFormatCrypto
                | Self::NvmeFormatData
                | Self::AtaEraseEnhanced
                | Self::AtaErase
                | Self::ScsiSanitizeCrypto
                | Self::ScsiSanitizeBlock
        )
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NvmeSanitizeCrypto => "NVMe Sanitize (crypto erase)",
            Self::NvmeSanitizeBlock => "NVMe Sanitize (block erase)",
            Self::NvmeFormatCrypto => "NVMe Format (crypto erase)",
            Self::NvmeFormatData => "NVMe Format (user data erase)",
            Self::AtaEraseEnhanced => "ATA enhanced security erase",
            Self::AtaErase => "ATA security erase",
            Self::ScsiSanitizeCrypto => "SCSI SANITIZE (crypto erase)",
            Self::ScsiSanitizeBlock => "SCSI SANITIZE (block erase)",
            Self::SecureDiscard => "secure discard",
            Self::Discard => "discard",
            Self::ZeroOut => "zero-out",
            Self::Overwrite => "overwrite",
            Self::Marks => "marks only",
        })
    }
}

/// What a disk says it can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Facts {
    pub nvme: Option<Nvme>,
    pub ata: Option<Security>,
    pub scsi_sanitize_crypto: bool,
    pub scsi_sanitize_block: bool,
}

/// The rungs to try, and why better ones are not among them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ladder {
    pub rungs: Vec<Rung>,
    pub left_out: Vec<&'static str>,
}

/// Chooses. A Sanitize reaches the whole NVM subsystem: only when every disk may be erased
/// and nothing else is on it. A Format reaches one namespace, or, where the controller says
/// so, all: then only if there is one.
#[must_use]
pub fn ladder(facts: &Facts, extent: Extent) -> Ladder {
    let mut ladder = Ladder::default();
    if let Some(nvme) = &facts.nvme {
        nvme_rungs(nvme, extent, &mut ladder);
    }
    if let Some(security) = &facts.ata {
        ata_rungs(security, &mut ladder);
    }
    let scsi = [
        (facts.scsi_sanitize_crypto, Rung::ScsiSanitizeCrypto),
        (facts.scsi_sanitize_block, Rung::ScsiSanitizeBlock),
    ];
    ladder
        .rungs
        .extend(scsi.iter().filter(|(has, _)| *has).map(|(_, rung)| *rung));
    ladder.rungs.extend([
        Rung::SecureDiscard,
        Rung::Discard,
        Rung::ZeroOut,
        Rung::Overwrite,
    ]);
    ladder
}

fn nvme_rungs(nvme: &Nvme, extent: Extent, ladder: &mut Ladder) {
    let sanitize = [
        (nvme.sanitize_crypto, Rung::NvmeSanitizeCrypto),
        (nvme.sanitize_block, Rung::NvmeSanitizeBlock),
    ];
    let format = [
        (nvme.format_crypto, Rung::NvmeFormatCrypto),
        (true, Rung::NvmeFormatData),
    ];
    let has = |rungs: &[(bool, Rung)]| -> Vec<Rung> {
        let had = rungs.iter().filter(|(has, _)| *has);
        had.map(|(_, rung)| *rung).collect()
    };
    let sanitize = has(&sanitize);
    match extent {
        _ if sanitize.is_empty() => {}
        Extent::EveryDisk if nvme.is_alone => ladder.rungs.extend(sanitize),
        Extent::EveryDisk => ladder
            .left_out
            .push("Sanitize would reach other namespaces or controllers"),
        Extent::RootDisks => ladder
            .left_out
            .push("Sanitize is never used when only the root's disks may be erased"),
    }
    if !nvme.can_format {
        ladder.left_out.push("the controller has no Format");
    } else if nvme.format_is_for_all && !nvme.is_alone {
        ladder.left_out.push("Format would reach other namespaces");
    } else {
        ladder.rungs.extend(has(&format));
    }
}

fn ata_rungs(security: &Security, ladder: &mut Ladder) {
    if !security.is_supported {
        ladder.left_out.push("the drive has no ATA security");
    } else if security.is_frozen {
        ladder.left_out.push("the firmware has frozen ATA security");
    } else if security.is_enabled {
        // Ours was taken off before this was asked.
        ladder
            .left_out
            .push("the drive has an ATA password that is not ours");
    } else {
        if security.has_enhanced {
            ladder.rungs.push(Rung::AtaEraseEnhanced);
        }
        ladder.rungs.push(Rung::AtaErase);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{ata, nvme};

    const GENERIC: [Rung; 4] = [
        Rung::SecureDiscard,
        Rung::Discard,
        Rung::ZeroOut,
        Rung::Overwrite,
    ];

    fn rungs(facts: &Facts, extent: Extent) -> (Vec<Rung>, usize) {
        let ladder = ladder(facts, extent);
        let (special, generic) = ladder.rungs.split_at(ladder.rungs.len() - GENERIC.len());
        assert_eq!(generic, GENERIC);
        (special.to_vec(), ladder.left_out.len())
    }

    #[test]
    fn nvme_drives() {
        use Extent::{EveryDisk, RootDisks};
        use Rung::*;
        let sanitize = [NvmeSanitizeCrypto, NvmeSanitizeBlock];
        let format = [NvmeFormatCrypto, NvmeFormatData];
        let all = [sanitize, format].concat();
        type Case<'c> = (u8, u8, u8, u8, &'c [u32], Extent, &'c [Rung], usize);
        // SANICAP, OACS, FNA, CMIC, active namespaces
        let table: [Case; 13] = [
            (3, 2, 4, 0, &[1], EveryDisk, &all, 0),
            (3, 2, 4, 0, &[1], RootDisks, &format, 1),
            (3, 2, 4, 0, &[1, 2], EveryDisk, &format, 1),
            (3, 2, 4, 2, &[1], EveryDisk, &format, 1),
            (
                2,
                2,
                0,
                0,
                &[1],
                EveryDisk,
                &[NvmeSanitizeBlock, NvmeFormatData],
                0,
            ),
            (1, 0, 0, 0, &[1], EveryDisk, &[NvmeSanitizeCrypto], 1),
            (4, 2, 0, 0, &[1], EveryDisk, &[NvmeFormatData], 0),
            (0, 2, 7, 0, &[1], RootDisks, &format, 0),
            (0, 2, 5, 0, &[1, 2], RootDisks, &[], 1),
            (0, 2, 6, 0, &[1, 2], EveryDisk, &[], 1),
            (0, 2, 4, 0, &[1, 2], RootDisks, &format, 0),
            (0, 0, 4, 0, &[1], EveryDisk, &[], 1),
            (3, 2, 7, 0, &[3, 1], RootDisks, &[], 2),
        ];
        for (index, (sanicap, oacs, fna, cmic, active, extent, expected, left_out)) in
            table.into_iter().enumerate()
        {
            let nvme = nvme::tests::identified(sanicap, oacs, fna, cmic, 0, 0, active);
            let facts = Facts {
                nvme: Some(nvme),
                ..Facts::default()
            };
            assert_eq!(
                rungs(&facts, extent),
                (expected.to_vec(), left_out),
                "{index}"
            );
        }
    }

    #[test]
    fn ata_and_scsi_drives() {
        type Case<'c> = (&'c [(usize, u16)], &'c [Rung]);
        let table: [Case; 5] = [
            (
                &[(82, 2), (128, 0x21)],
                &[Rung::AtaEraseEnhanced, Rung::AtaErase],
            ),
            (&[(82, 2), (128, 0x01)], &[Rung::AtaErase]),
            (&[(82, 2), (128, 0x29)], &[]),
            (&[(82, 2), (128, 0x27)], &[]),
            (&[(82, 0), (128, 0x00)], &[]),
        ];
        for (words, expected) in table {
            let facts = Facts {
                ata: Some(ata::tests::identified(words)),
                ..Facts::default()
            };
            let left_out = usize::from(expected.is_empty());
            assert_eq!(
                rungs(&facts, Extent::RootDisks),
                (expected.to_vec(), left_out),
                "{words:?}"
            );
        }
        let facts = Facts {
            scsi_sanitize_crypto: true,
            scsi_sanitize_block: true,
            ..Facts::default()
        };
        let scsi = vec![Rung::ScsiSanitizeCrypto, Rung::ScsiSanitizeBlock];
        assert_eq!(rungs(&facts, Extent::RootDisks), (scsi, 0));
        assert_eq!(rungs(&Facts::default(), Extent::EveryDisk), (vec![], 0));
    }
}
