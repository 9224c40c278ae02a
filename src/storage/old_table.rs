//! The partitions that a disk's old table describes, read so that the marks inside them
//! can be removed before the table itself is.
//!
//! The kernel's own list is not enough: it ignores a backup GPT whose primary is broken.
//! The bytes are the last tenant's, so all counts are bounded and nothing is trusted.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::signatures::merge;

/// Entries looked at in one GPT; 128 is usual.
const MAX_GPT_ENTRIES: u64 = 1024;
/// Logical partitions looked at in one MBR chain.
const MAX_LOGICAL: usize = 128;
/// The one MBR entry of a GPT disk covers the whole disk and is no partition.
const PROTECTIVE: u8 = 0xee;
/// MBR sector addresses count 512-byte or 4096-byte blocks.
const BLOCK_SIZES: [u64; 2] = [512, 4096];

/// The regions of all partitions that a GPT (primary or backup, either block size) or an
/// MBR on `disk` of `size` bytes describes. Entries that leave the disk are cut or dropped.
///
/// # Errors
/// When the disk cannot be read.
pub fn partitions(disk: &File, size: u64) -> io::Result<Vec<Range<u64>>> {
    let mut found = Vec::new();
    for block in BLOCK_SIZES {
        for header in [Some(block), (size / block * block).checked_sub(block)] {
            if let Some(header) = header.filter(|header| header + block <= size) {
                gpt(disk, size, header, block, &mut found)?;
            }
        }
        mbr(disk, size, block, &mut found)?;
    }
    found.retain(|range| !range.is_empty());
    found.sort_by_key(|range| (range.start, range.end));
    found.dedup();
    Ok(found)
}

/// UEFI 2.10 §5.3: header at byte `header`, entries where it says.
fn gpt(
    disk: &File,
    size: u64,
    header: u64,
    block: u64,
    found: &mut Vec<Range<u64>>,
) -> io::Result<()> {
    let mut bytes = [0; 92];
    disk.read_exact_at(&mut bytes, header)?;
    if &bytes[..8] != b"EFI PART" {
        return Ok(());
    }
    let entries = u64_at(&bytes, 72).saturating_mul(block);
    let count = u64::from(u32_at(&bytes, 80)).min(MAX_GPT_ENTRIES);
    let length = u64::from(u32_at(&bytes, 84));
    if !(128..=4096).contains(&length) {
        return Ok(());
    }
    for index in 0..count {
        let at = entries.saturating_add(index * length);
        if at.saturating_add(128) > size {
            break;
        }
        let mut entry = [0; 48];
        disk.read_exact_at(&mut entry, at)?;
        if entry[..16] != [0; 16] {
            let start = u64_at(&entry, 32).saturating_mul(block);
            let end = u64_at(&entry, 40).saturating_add(1).saturating_mul(block);
            found.push(start.min(size)..end.min(size));
        }
    }
    Ok(())
}

/// Four primary entries, and the chain of an extended partition (types 05, 0f, 85).
fn mbr(disk: &File, size: u64, block: u64, found: &mut Vec<Range<u64>>) -> io::Result<()> {
    let Some(entries) = mbr_entries(disk, size, 0)? else {
        return Ok(());
    };
    for (kind, start, length) in entries {
        let start = start.saturating_mul(block);
        if length > 0 && kind != 0 && kind != PROTECTIVE {
            let end = start.saturating_add(length.saturating_mul(block));
            found.push(start.min(size)..end.min(size));
        }
        if is_extended(kind) {
            let mut record = start;
            for _ in 0..MAX_LOGICAL {
                let Some(entries) = mbr_entries(disk, size, record)? else {
                    break;
                };
                let (kind, first, length) = entries[0];
                if kind != 0 && length > 0 {
                    let begin = record.saturating_add(first.saturating_mul(block));
                    let end = begin.saturating_add(length.saturating_mul(block));
                    found.push(begin.min(size)..end.min(size));
                }
                let (kind, next, _) = entries[1];
                if !is_extended(kind) || next == 0 {
                    break;
                }
                record = start.saturating_add(next.saturating_mul(block));
            }
        }
    }
    Ok(())
}

fn is_extended(kind: u8) -> bool {
    matches!(kind, 0x05 | 0x0f | 0x85)
}

/// Type, start and length in blocks of the four entries of the record at byte `at`.
fn mbr_entries(disk: &File, size: u64, at: u64) -> io::Result<Option<[(u8, u64, u64); 4]>> {
    if at.saturating_add(512) > size {
        return Ok(None);
    }
    let mut sector = [0; 512];
    disk.read_exact_at(&mut sector, at)?;
    if sector[510..] != [0x55, 0xaa] {
        return Ok(None);
    }
    Ok(Some([0, 1, 2, 3].map(|index| {
        let entry = &sector[446 + index * 16..462 + index * 16];
        (entry[4], u32_at(entry, 8).into(), u32_at(entry, 12).into())
    })))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// Cuts the regions that a wipe has to treat as partitions out of what kernel and tables
/// say: overlapping ones are kept apart, since each may carry marks at its own ends.
#[must_use]
pub fn places_in(regions: &[Range<u64>]) -> Vec<Range<u64>> {
    merge(
        regions
            .iter()
            .flat_map(|region| {
                super::signatures::places(region, super::signatures::Kind::Partition)
            })
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 64 << 20;

    fn disk() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE).unwrap();
        file
    }

    fn gpt_disk(block: u64) -> File {
        let mut file = disk();
        let mut gpt = gptman::GPT::new_from(&mut file, block, [1; 16]).unwrap();
        gpt[3] = gptman::GPTPartitionEntry {
            partition_type_guid: [2; 16],
            unique_partition_guid: [3; 16],
            starting_lba: (1 << 20) / block,
            ending_lba: (5 << 20) / block - 1,
            attribute_bits: 0,
            partition_name: "x".into(),
        };
        gpt.write_into(&mut file).unwrap();
        file
    }

    #[test]
    fn gpt_of_either_block_size_from_either_end() {
        let expected = [1 << 20..5 << 20];
        for block in BLOCK_SIZES {
            let file = gpt_disk(block);
            assert_eq!(partitions(&file, SIZE).unwrap(), expected, "{block}");
            file.write_all_at(&[0; 8], block).unwrap();
            assert_eq!(
                partitions(&file, SIZE).unwrap(),
                expected,
                "{block}, backup"
            );
            file.write_all_at(&[0; 8], SIZE - block).unwrap();
            assert_eq!(partitions(&file, SIZE).unwrap(), [], "{block}, neither");
        }
    }

    #[test]
    fn a_lying_gpt_is_bounded() {
        let file = gpt_disk(512);
        file.write_all_at(&u32::MAX.to_le_bytes(), 512 + 80)
            .unwrap();
        file.write_all_at(&[0xff; 16], 2 * 512 + 3 * 128 + 32)
            .unwrap();
        file.write_all_at(&[0xff; 1], 2 * 512 + 3 * 128).unwrap();
        assert!(!partitions(&file, SIZE).unwrap().is_empty());
        file.write_all_at(&u64::MAX.to_le_bytes(), 512 + 72)
            .unwrap();
        file.write_all_at(&0_u32.to_le_bytes(), SIZE - 512 + 84)
            .unwrap();
        assert_eq!(partitions(&file, SIZE).unwrap(), []);
    }

    fn record(file: &File, at: u64, entries: &[(u8, u32, u32)]) {
        for (index, (kind, start, length)) in entries.iter().enumerate() {
            let mut entry = [0; 16];
            entry[4] = *kind;
            entry[8..12].copy_from_slice(&start.to_le_bytes());
            entry[12..].copy_from_slice(&length.to_le_bytes());
            file.write_all_at(&entry, at + 446 + index as u64 * 16)
                .unwrap();
        }
        file.write_all_at(&[0x55, 0xaa], at + 510).unwrap();
    }

    #[test]
    fn mbr_with_logical_partitions() {
        let file = disk();
        record(&file, 0, &[(0x83, 2048, 2048), (0x05, 8192, 65536)]);
        record(&file, 8192 * 512, &[(0x83, 64, 100), (0x05, 4096, 1000)]);
        record(
            &file,
            (8192 + 4096) * 512,
            &[(0x83, 64, 200), (0x05, 4096, 1000)],
        );
        let found = partitions(&file, SIZE).unwrap();
        for (start, length) in [(2048, 2048), (8192 + 64, 100), (8192 + 4096 + 64, 200)] {
            let expected = start * 512..(start + length) * 512;
            assert!(
                found.contains(&expected),
                "{expected:?} is not in {found:?}"
            );
        }
    }

    #[test]
    fn an_mbr_chain_in_a_circle_ends() {
        let file = disk();
        record(&file, 0, &[(0x05, 8, 100)]);
        record(&file, 8 * 512, &[(0x83, 1, 1), (0x05, 0, 1)]);
        record(&file, 8 * 4096, &[(0x83, u32::MAX, u32::MAX), (0x05, 8, 1)]);
        record(&file, 16 * 4096, &[(0x83, 1, 1), (0x05, 8, 1)]);
        assert!(partitions(&file, SIZE).unwrap().len() < 20);
        assert_eq!(partitions(&disk(), SIZE).unwrap(), []);
        let empty = tempfile::tempfile().unwrap();
        assert_eq!(partitions(&empty, 0).unwrap(), []);
    }
}
