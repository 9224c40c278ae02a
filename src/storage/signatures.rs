//! Where partition tables, file systems, arrays and volumes leave their marks, so that
//! a wipe can remove them and a check can find them.
//!
//! Offsets and magic numbers are those of the formats' own headers; each line names its
//! source. "Region" is a disk or one of its partitions.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Marks at both ends of a disk lie within this many bytes.
const DISK_ENDS: u64 = 16 << 20;
/// Marks at the start of a partition: LUKS2's last secondary header begins at 4 MiB and
/// is as long.
const PARTITION_HEAD: u64 = 10 << 20;
/// Marks at the end of a partition: ZFS' two labels need 512 KiB, DDF's tail 128 KiB.
const PARTITION_TAIL: u64 = 2 << 20;
/// Granularity of what is written: the page cache reads what is smaller, which fails on
/// a bad sector that a whole write would heal.
const GRAIN: u64 = 4096;
/// btrfs keeps copies of its superblock at 64 MiB and 256 GiB (kernel,
/// `fs/btrfs/disk-io.h`, `btrfs_sb_offset`).
const BTRFS_COPIES: [u64; 2] = [64 << 20, 256 << 30];
const BTRFS_SUPERBLOCK: u64 = 4096;

/// A mark that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What it belongs to.
    pub name: &'static str,
    /// Bytes from the start of the disk.
    pub offset: u64,
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at byte {}", self.name, self.offset)
    }
}

/// Which part of a disk is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Disk,
    Partition,
}

/// The byte ranges that have to be zeroed to remove every known mark from `region`,
/// merged, in order, aligned outwards to 4 KiB but never beyond the region.
#[must_use]
pub fn places(region: &Range<u64>, kind: Kind) -> Vec<Range<u64>> {
    let (head, tail) = match kind {
        Kind::Disk => (DISK_ENDS, DISK_ENDS),
        Kind::Partition => (PARTITION_HEAD, PARTITION_TAIL),
    };
    let mut places = vec![
        region.start..region.start.saturating_add(head),
        region.end.saturating_sub(tail)..region.end,
    ];
    places.extend(BTRFS_COPIES.map(|copy| {
        let start = region.start.saturating_add(copy);
        start..start.saturating_add(BTRFS_SUPERBLOCK)
    }));
    let clamped = places.into_iter().map(|place| {
        let start = place.start / GRAIN * GRAIN;
        let end = place.end.div_ceil(GRAIN).saturating_mul(GRAIN);
        start.max(region.start)..end.min(region.end)
    });
    merge(clamped.collect())
}

/// Sorts ranges and joins those that touch; drops empty ones.
#[must_use]
pub fn merge(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// Where a mark is, in bytes.
#[derive(Clone, Copy)]
enum At {
    /// From the start of the region.
    Start(u64),
    /// Before the end of the region.
    End(u64),
    /// Before the region's end rounded down to a multiple of the first number.
    AlignedEnd(u64, u64),
}

const MD_MAGIC: &[u8] = &[0xfc, 0x4e, 0x2b, 0xa9];
const MD_MAGIC_BIG_ENDIAN: &[u8] = &[0xa9, 0x2b, 0x4e, 0xfc];
const BCACHE_MAGIC: &[u8] = &[
    0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81,
];
const BCACHEFS_MAGIC: &[u8] = &[
    0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9, 0xd9, 0x6a, 0x60, 0xcf, 0x80, 0x3d, 0xf7, 0xef,
];

const MARKS: &[(&str, At, &[u8])] = &[
    // UEFI 2.10 §5.3.2; the primary header is in block 1, the backup in the last one.
    ("GPT", At::Start(512), b"EFI PART"),
    ("GPT", At::Start(4096), b"EFI PART"),
    ("backup GPT", At::End(512), b"EFI PART"),
    ("backup GPT", At::End(4096), b"EFI PART"),
    // UEFI 2.10 §5.2.1; FAT boot sectors end the same way.
    ("MBR or FAT boot sector", At::Start(510), &[0x55, 0xaa]),
    // Kernel, include/uapi/linux/raid/md_p.h. 1.1 at the start, 1.2 at 4 KiB, 1.0 8 KiB
    // before the end on a 4 KiB boundary, 0.90 in the last whole 64 KiB.
    ("md 1.1", At::Start(0), MD_MAGIC),
    ("md 1.2", At::Start(4096), MD_MAGIC),
    ("md 1.0", At::AlignedEnd(4096, 8192), MD_MAGIC),
    ("md 0.90", At::AlignedEnd(65536, 65536), MD_MAGIC),
    ("md 0.90", At::AlignedEnd(65536, 65536), MD_MAGIC_BIG_ENDIAN),
    // SNIA DDF 2.0 §5.5: anchor header in the last block.
    ("DDF RAID", At::End(512), &[0xde, 0x11, 0xde, 0x11]),
    // mdadm, super-intel.c: the last but one block.
    ("Intel RAID", At::End(1024), b"Intel Raid ISM Cfg Sig. "),
    // LVM2, lib/label/label.h: any of the first four 512-byte sectors.
    ("LVM", At::Start(0), b"LABELONE"),
    ("LVM", At::Start(512), b"LABELONE"),
    ("LVM", At::Start(1024), b"LABELONE"),
    ("LVM", At::Start(1536), b"LABELONE"),
    // Kernel, fs/ext4/ext4.h (s_magic), fs/xfs/libxfs/xfs_format.h,
    // include/uapi/linux/btrfs_tree.h, include/linux/f2fs_fs.h.
    ("ext2/3/4", At::Start(0x438), &[0x53, 0xef]),
    ("XFS", At::Start(0), b"XFSB"),
    ("btrfs", At::Start(0x1_0040), b"_BHRfS_M"),
    ("btrfs copy", At::Start((64 << 20) + 0x40), b"_BHRfS_M"),
    ("btrfs copy", At::Start((256 << 30) + 0x40), b"_BHRfS_M"),
    ("F2FS", At::Start(1024), &[0x10, 0x20, 0xf5, 0xf2]),
    // Kernel, include/linux/swap.h: in the last ten bytes of the first page.
    ("swap", At::Start(4086), b"SWAPSPACE2"),
    ("swap", At::Start(65526), b"SWAPSPACE2"),
    ("swap", At::Start(4086), b"SWAP-SPACE"),
    // LUKS1 and LUKS2 on-disk format specifications; the secondary LUKS2 header may be
    // at any of these offsets.
    ("LUKS", At::Start(0), b"LUKS\xba\xbe"),
    ("LUKS2 secondary", At::Start(0x4000), b"SKUL\xba\xbe"),
    ("LUKS2 secondary", At::Start(0x8000), b"SKUL\xba\xbe"),
    ("LUKS2 secondary", At::Start(0x1_0000), b"SKUL\xba\xbe"),
    ("LUKS2 secondary", At::Start(0x2_0000), b"SKUL\xba\xbe"),
    ("LUKS2 secondary", At::Start(0x4_0000), b"SKUL\xba\xbe"),
    ("LUKS2 secondary", At::Start(0x8_0000), b"SKUL\xba\xbe"),
    ("LUKS2 secondary", At::Start(0x10_0000), b"SKUL\xba\xbe"),
    ("LUKS2 secondary", At::Start(0x20_0000), b"SKUL\xba\xbe"),
    ("LUKS2 secondary", At::Start(0x40_0000), b"SKUL\xba\xbe"),
    // Kernel, drivers/md/bcache/bcache_ondisk.h; bcachefs, bcachefs_format.h.
    ("bcache", At::Start(4096 + 24), BCACHE_MAGIC),
    ("bcachefs", At::Start(4096 + 24), BCACHEFS_MAGIC),
    // ECMA-119 §8.1.2 and ECMA-167 2/9.1: sector 16.
    ("ISO 9660", At::Start(32769), b"CD001"),
    ("UDF", At::Start(32769), b"BEA01"),
    // Boot sectors of FAT, NTFS and exFAT name themselves.
    ("FAT", At::Start(54), b"FAT1"),
    ("FAT", At::Start(82), b"FAT32"),
    ("NTFS", At::Start(3), b"NTFS    "),
    ("exFAT", At::Start(3), b"EXFAT   "),
    ("JFS", At::Start(0x8000), b"JFS1"),
    ("ReiserFS", At::Start(0x1_0034), b"ReIsEr"),
    ("squashfs", At::Start(0), b"hsqs"),
    ("Ceph BlueStore", At::Start(0), b"bluestore block device"),
];

/// OpenZFS, `include/sys/uberblock_impl.h` and `vdev_impl.h`: two labels of 256 KiB at
/// each end; the second half of a label is a ring of uberblocks.
const ZFS_LABEL: u64 = 256 << 10;
const ZFS_UBERBLOCK_MAGIC: [u8; 8] = 0x00ba_b10c_u64.to_le_bytes();
const ZFS_UBERBLOCK_SLOT: usize = 1024;

/// Looks for every known mark in `region` of `device`.
///
/// # Errors
/// When the device cannot be read.
pub fn find(device: &File, region: &Range<u64>) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    let size = region.end.saturating_sub(region.start);
    for (name, at, magic) in MARKS {
        let offset = match *at {
            At::Start(offset) => Some(offset),
            At::End(before) => size.checked_sub(before),
            At::AlignedEnd(grain, before) => (size / grain * grain).checked_sub(before),
        };
        let Some(offset) = offset.filter(|offset| offset + magic.len() as u64 <= size) else {
            continue;
        };
        let mut bytes = [0; 32];
        let bytes = &mut bytes[..magic.len()];
        device.read_exact_at(bytes, region.start + offset)?;
        if bytes == *magic {
            found.push(Found {
                name,
                offset: region.start + offset,
            });
        }
    }
    let aligned = size / ZFS_LABEL * ZFS_LABEL;
    let labels = [
        Some(0),
        Some(ZFS_LABEL),
        aligned.checked_sub(2 * ZFS_LABEL),
        aligned.checked_sub(ZFS_LABEL),
    ];
    for label in labels.into_iter().flatten() {
        if label + ZFS_LABEL <= size && is_zfs_label(device, region.start + label)? {
            found.push(Found {
                name: "ZFS label",
                offset: region.start + label,
            });
        }
    }
    Ok(found)
}

fn is_zfs_label(device: &File, offset: u64) -> io::Result<bool> {
    let mut ring = vec![0; (ZFS_LABEL / 2) as usize];
    device.read_exact_at(&mut ring, offset + ZFS_LABEL / 2)?;
    Ok(ring.chunks(ZFS_UBERBLOCK_SLOT).any(|slot| {
        let mut magic = [0; 8];
        magic.copy_from_slice(&slot[..8]);
        let mut swapped = magic;
        swapped.reverse();
        magic == ZFS_UBERBLOCK_MAGIC || swapped == ZFS_UBERBLOCK_MAGIC
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn places_cover_both_ends_and_the_copies_of_btrfs() {
        let gib = 1 << 30;
        assert_eq!(
            places(&(0..gib + 512), Kind::Disk),
            [
                0..16 * MIB,
                64 * MIB..64 * MIB + 4096,
                gib - 16 * MIB..gib + 512
            ]
        );
        assert_eq!(
            places(&(MIB..MIB + 300 * gib), Kind::Partition),
            [
                MIB..11 * MIB,
                65 * MIB..65 * MIB + 4096,
                MIB + 256 * gib..MIB + 256 * gib + 4096,
                300 * gib - MIB..300 * gib + MIB
            ]
        );
        assert_eq!(places(&(0..20 * MIB), Kind::Disk), [0..20 * MIB]);
        assert_eq!(places(&(512..1024), Kind::Partition), [512..1024]);
        assert_eq!(
            places(&(u64::MAX - 5..u64::MAX), Kind::Disk),
            [u64::MAX - 5..u64::MAX]
        );
        assert_eq!(places(&(7..7), Kind::Disk), []);
    }

    /// Every mark that can be found lies in a place that is zeroed.
    #[test]
    fn every_mark_is_found_at_its_place_and_the_place_is_wiped() {
        for size in [600 * MIB, 600 * MIB + 17 * 512, 300 << 30] {
            let region = MIB..MIB + size;
            let partition = places(&region, Kind::Partition);
            for (name, at, magic) in MARKS {
                let offset = region.start
                    + match *at {
                        At::Start(offset) => offset,
                        At::End(before) => size - before,
                        At::AlignedEnd(grain, before) => size / grain * grain - before,
                    };
                let end = offset + magic.len() as u64;
                if end > region.end {
                    continue;
                }
                let file = tempfile::tempfile().unwrap();
                file.set_len(region.end + MIB).unwrap();
                file.write_all_at(magic, offset).unwrap();
                let found = find(&file, &region).unwrap();
                let expected = Found { name, offset };
                assert!(found.contains(&expected), "{expected} of {size}: {found:?}");
                assert!(
                    partition
                        .iter()
                        .any(|place| place.start <= offset && end <= place.end),
                    "{expected} of {size} is not in {partition:?}"
                );
            }
            let file = tempfile::tempfile().unwrap();
            file.set_len(region.end + MIB).unwrap();
            assert_eq!(find(&file, &region).unwrap(), []);
        }
    }

    #[test]
    fn zfs_labels_of_either_byte_order() {
        let size = 64 * MIB + 512;
        for magic in [ZFS_UBERBLOCK_MAGIC, 0x00ba_b10c_u64.to_be_bytes()] {
            for label in [0, ZFS_LABEL, 64 * MIB - 2 * ZFS_LABEL, 64 * MIB - ZFS_LABEL] {
                let file = tempfile::tempfile().unwrap();
                file.set_len(size).unwrap();
                file.write_all_at(&magic, label + ZFS_LABEL / 2 + 5 * 1024)
                    .unwrap();
                let expected = Found {
                    name: "ZFS label",
                    offset: label,
                };
                assert_eq!(find(&file, &(0..size)).unwrap(), [expected]);
            }
        }
    }

    #[test]
    fn tiny_regions_are_read_within_their_bounds() {
        let file = tempfile::tempfile().unwrap();
        for size in [0, 1, 511, 512, 513, 4096, 8192, 65536] {
            file.set_len(size).unwrap();
            assert_eq!(find(&file, &(0..size)).unwrap(), [], "{size}");
        }
    }
}
