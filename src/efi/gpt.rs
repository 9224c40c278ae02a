//! The partitions of the disks that are there already, read with mistrust: whoever used
//! the machine before wrote these tables.

use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use gptman::{GPTHeader, GPTPartitionEntry};
use uuid::{Uuid, uuid};

use super::Error;
use super::device_path::EspLocation;

/// Partition type of an EFI system partition (UEFI 2.10, table 5.7).
pub const ESP_TYPE: Uuid = uuid!("c12a7328-f81f-11d2-ba4b-00a0c93ec93b");

/// Most partition entries accepted in a table; the usual table has 128.
const MAX_ENTRIES: u32 = 1024;
/// The size of an entry, in bytes. Larger ones are legal, but nobody writes them, and
/// gptman panics over them (an assertion in its checksum).
const ENTRY_SIZE: u32 = 128;
/// No disk has more blocks (8 ZiB of 4096 bytes): keeps `block * size` from overflowing.
const MAX_LBA: u64 = 1 << 51;

/// A partition of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// The disk, `/dev/sda`.
    pub disk: PathBuf,
    pub location: EspLocation,
    pub type_guid: Uuid,
}

impl Partition {
    /// The partition's own device node, as the kernel names it: `/dev/sda1`, but
    /// `/dev/nvme0n1p1` where the disk's name ends in a digit (block/partitions/core.c).
    #[must_use]
    pub fn device(&self) -> PathBuf {
        let mut name = self.disk.clone().into_os_string();
        let digit = name
            .as_encoded_bytes()
            .last()
            .is_some_and(u8::is_ascii_digit);
        name.push(if digit { "p" } else { "" });
        name.push(self.location.number.to_string());
        name.into()
    }
}

/// The used partitions of a disk, or of a file that is a disk's image; none when it holds
/// no partition table.
///
/// # Errors
/// When the disk cannot be read, and when it has partition tables but no valid one.
pub fn partitions(disk: &Path) -> Result<Vec<Partition>, Error> {
    let mut file = File::open(disk).map_err(Error::io("open", disk))?;
    let end = file
        .seek(SeekFrom::End(0))
        .map_err(Error::io("find the size of", disk))?;
    let mut problem = None;
    for block in [512, 4096] {
        let last = (end / block).saturating_sub(1) * block;
        for header_at in [block, last] {
            match table_at(&mut file, block, header_at) {
                Ok(entries) => return Ok(used(disk, &entries)),
                Err(None) => {}
                Err(Some(why)) => problem = problem.or(Some(why)),
            }
        }
    }
    match problem {
        None => Ok(Vec::new()),
        Some(problem) => Err(Error::PartitionTable {
            disk: disk.to_owned(),
            problem,
        }),
    }
}

/// The entries of the table whose header is at byte `header_at`; `Err(None)` when there
/// is no header at all.
fn table_at<D: Read + Seek>(
    disk: &mut D,
    block: u64,
    header_at: u64,
) -> Result<Vec<GPTPartitionEntry>, Option<String>> {
    header_and_entries(disk, block, header_at).map(|(_, entries)| entries)
}

fn header_and_entries<D: Read + Seek>(
    disk: &mut D,
    block: u64,
    header_at: u64,
) -> Result<(GPTHeader, Vec<GPTPartitionEntry>), Option<String>> {
    let text = |error: gptman::Error| match error {
        gptman::Error::InvalidSignature => None,
        other => Some(format!("header at byte {header_at}: {other}")),
    };
    let mut signature = [0; 8];
    let found = disk
        .seek(SeekFrom::Start(header_at))
        .and_then(|_| disk.read_exact(&mut signature))
        .and_then(|()| disk.seek(SeekFrom::Start(header_at)));
    if found.is_err() || &signature != b"EFI PART" {
        return Err(None);
    }
    let header = GPTHeader::read_from(disk).map_err(text)?;
    let GPTHeader {
        number_of_partition_entries: entries,
        size_of_partition_entry: size,
        partition_entry_lba: lba,
        ..
    } = header;
    if entries > MAX_ENTRIES || size != ENTRY_SIZE || lba > MAX_LBA {
        return Err(Some(format!(
            "header at byte {header_at}: {entries} entries of {size} bytes at block {lba}; expected at most {MAX_ENTRIES} of {ENTRY_SIZE}"
        )));
    }
    let found = header.read_partitions(disk, block).map_err(text)?;
    Ok((header, found))
}

/// The disk that a disk image was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of a logical block.
    pub block: u64,
    /// Bytes, up to the end of the table's backup.
    pub size: u64,
}

/// What the partition table at the start of a disk image says of the whole, from its first
/// bytes (32 KiB hold the usual table).
///
/// # Errors
/// There is no table, or it makes no sense.
pub fn geometry(head: &[u8]) -> Result<Geometry, String> {
    for block in [512, 4096] {
        let (header, entries) = match header_and_entries(&mut Cursor::new(head), block, block) {
            Ok(found) => found,
            Err(None) => continue,
            Err(Some(why)) => return Err(why),
        };
        let last = header.backup_lba;
        // What gptman would refuse, or panic over, when the backup is moved: the disk is written by then.
        let table_size = u64::from(header.number_of_partition_entries) * u64::from(ENTRY_SIZE);
        let first = 2 + table_size.div_ceil(block);
        let mut spans: Vec<_> = entries
            .iter()
            .filter(|entry| entry.is_used())
            .map(|entry| (entry.starting_lba, entry.ending_lba))
            .collect();
        spans.sort_unstable();
        let is_inside = |&(start, end): &(u64, u64)| {
            first <= start && start <= end && end <= header.last_usable_lba
        };
        let is_sound = header.primary_lba == 1
            && header.partition_entry_lba == 2
            && header.number_of_partition_entries > 0
            && last <= MAX_LBA
            && header.last_usable_lba < last
            && spans.iter().all(is_inside)
            && spans.windows(2).all(|pair| pair[0].1 < pair[1].0)
            && entries
                .iter()
                .all(|entry| entry.starting_lba <= entry.ending_lba);
        if !is_sound {
            return Err(format!(
                "its partition table contradicts itself, or does not begin at block 2; the backup is at block {last}"
            ));
        }
        if let Some((first, second, guid)) = same_guid(&entries) {
            return Err(format!(
                "its partitions {first} and {second} have the same unique GUID {guid}; each needs its own"
            ));
        }
        return Ok(Geometry {
            block,
            size: (last + 1) * block,
        });
    }
    Err("there is no GUID partition table at its start".to_owned())
}

/// Two used entries that cannot be told apart: their numbers and the GUID of both.
fn same_guid(entries: &[GPTPartitionEntry]) -> Option<(u32, u32, Uuid)> {
    let mut guids: Vec<_> = (1..)
        .zip(entries)
        .filter(|(_, entry)| entry.is_used())
        .map(|(number, entry)| (entry.unique_partition_guid, number))
        .collect();
    guids.sort_unstable();
    guids
        .windows(2)
        .find(|pair| pair[0].0 == pair[1].0)
        .map(|pair| (pair[0].1, pair[1].1, Uuid::from_bytes_le(pair[0].0)))
}

fn used(disk: &Path, entries: &[GPTPartitionEntry]) -> Vec<Partition> {
    (1..)
        .zip(entries)
        .filter(|(_, entry)| entry.is_used())
        .filter_map(|(number, entry)| {
            Some(Partition {
                disk: disk.to_owned(),
                location: EspLocation {
                    number,
                    start_lba: entry.starting_lba,
                    size_lba: entry
                        .ending_lba
                        .checked_sub(entry.starting_lba)?
                        .checked_add(1)?,
                    guid: Uuid::from_bytes_le(entry.unique_partition_guid),
                },
                type_guid: Uuid::from_bytes_le(entry.partition_type_guid),
            })
        })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use gptman::GPT;

    use super::*;

    const LINUX: Uuid = uuid!("0fc63daf-8483-4772-8e79-3d69d8477de4");
    const BLOCKS: u64 = 4096;

    /// A disk image with an ESP (number 1) and a Linux partition (number 3).
    pub(crate) fn disk(path: &Path, block: u64, esp: Uuid) {
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .unwrap();
        file.set_len(BLOCKS * block).unwrap();
        let mut gpt = GPT::new_from(&mut file, block, [9; 16]).unwrap();
        let entry = |kind: Uuid, guid: Uuid, start, end| GPTPartitionEntry {
            partition_type_guid: kind.to_bytes_le(),
            unique_partition_guid: guid.to_bytes_le(),
            starting_lba: start,
            ending_lba: end,
            attribute_bits: 0,
            partition_name: "test".into(),
        };
        gpt[1] = entry(ESP_TYPE, esp, 64, 127);
        gpt[3] = entry(LINUX, Uuid::from_u128(3), 128, 200);
        gpt.write_into(&mut file).unwrap();
    }

    fn change(path: &Path, at: usize, bytes: &[u8], refresh_checksum: bool) {
        let mut image = fs::read(path).unwrap();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        if refresh_checksum {
            let mut header = [0; 92];
            header.copy_from_slice(&image[512..604]);
            header[16..20].fill(0);
            let sum = !header.iter().fold(u32::MAX, |sum, byte| {
                (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
                    (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg())
                })
            });
            image[528..532].copy_from_slice(&sum.to_le_bytes());
        }
        fs::write(path, image).unwrap();
    }

    #[test]
    fn partitions_keep_their_numbers_whatever_the_block_size() {
        let dir = tempfile::tempdir().unwrap();
        for block in [512, 4096] {
            let path = dir.path().join("disk");
            disk(&path, block, Uuid::from_u128(1));
            let found = partitions(&path).unwrap();
            assert_eq!(found.len(), 2);
            assert_eq!(
                found[0].location,
                EspLocation {
                    number: 1,
                    start_lba: 64,
                    size_lba: 64,
                    guid: Uuid::from_u128(1)
                }
            );
            assert_eq!(found[0].type_guid, ESP_TYPE);
            assert_eq!((found[1].location.number, found[1].type_guid), (3, LINUX));
        }
    }

    #[test]
    fn device_nodes_are_named_as_the_kernel_does() {
        let node = |disk: &str, number| {
            let location = EspLocation {
                number,
                start_lba: 0,
                size_lba: 1,
                guid: Uuid::nil(),
            };
            Partition {
                disk: disk.into(),
                location,
                type_guid: ESP_TYPE,
            }
            .device()
        };
        assert_eq!(node("/dev/sda", 1), Path::new("/dev/sda1"));
        assert_eq!(node("/dev/nvme0n1", 12), Path::new("/dev/nvme0n1p12"));
        assert_eq!(node("/dev/mmcblk0", 2), Path::new("/dev/mmcblk0p2"));
    }

    #[test]
    fn the_backup_table_stands_in_for_a_lost_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        disk(&path, 512, Uuid::from_u128(1));
        change(&path, 512, &[0; 512], false);
        assert_eq!(partitions(&path).unwrap().len(), 2);
        let last = usize::try_from((BLOCKS - 1) * 512).unwrap();
        change(&path, last, &[0; 512], false);
        assert_eq!(partitions(&path).unwrap(), []);
    }

    #[test]
    fn disks_without_a_table_have_no_partitions() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        for bytes in [vec![], vec![1; 100], vec![0xff; 9000]] {
            fs::write(&path, bytes).unwrap();
            assert_eq!(partitions(&path).unwrap(), []);
        }
        let missing = partitions(&dir.path().join("none")).unwrap_err();
        assert!(matches!(missing, Error::Io { .. }));
    }

    #[test]
    fn hostile_tables_are_refused_and_never_panic() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let last = usize::try_from((BLOCKS - 1) * 512).unwrap();
        // offset in the header, new bytes: entry count, entry size, where entries begin
        for (at, bytes) in [
            (80, &u32::MAX.to_le_bytes()[..]),
            (84, &64u32.to_le_bytes()),
            (84, &0u32.to_le_bytes()),
            (84, &256u32.to_le_bytes()),
            (72, &u64::MAX.to_le_bytes()),
            (72, &(1u64 << 50).to_le_bytes()),
        ] {
            disk(&path, 512, Uuid::from_u128(1));
            change(&path, last, &[0; 512], false);
            change(&path, 512 + at, bytes, true);
            let error = partitions(&path).unwrap_err();
            assert!(matches!(error, Error::PartitionTable { .. }), "{error}");
        }
        disk(&path, 512, Uuid::from_u128(1));
        change(&path, last, &[0; 512], false);
        change(&path, 512 + 80, &[1], false);
        let error = partitions(&path).unwrap_err().to_string();
        assert!(error.contains("header at byte 512"), "{error}");
    }

    #[test]
    fn an_image_says_how_large_its_disk_is() {
        let dir = tempfile::tempdir().unwrap();
        for block in [512, 4096] {
            let path = dir.path().join("disk");
            disk(&path, block, Uuid::from_u128(1));
            let image = fs::read(&path).unwrap();
            let expected = Geometry {
                block,
                size: BLOCKS * block,
            };
            assert_eq!(geometry(&image[..32 << 10]), Ok(expected));
            assert!(geometry(&image[..block as usize + 512]).is_err());
        }
        assert!(geometry(&[]).unwrap_err().contains("no GUID partition"));
        let path = dir.path().join("disk");
        disk(&path, 512, Uuid::from_u128(1));
        // A backup before the last partition's end, and one beyond all disks.
        for last in [150_u64, MAX_LBA + 1, u64::MAX] {
            change(&path, 512 + 32, &last.to_le_bytes(), true);
            let error = geometry(&fs::read(&path).unwrap()).unwrap_err();
            assert!(error.contains("contradicts itself"), "{error}");
        }
    }

    /// gptman would only refuse to move the backup, when the disk is written.
    #[test]
    fn an_image_with_one_guid_for_two_partitions_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        for block in [512, 4096] {
            // gptman would not write it either: changed while nobody checks.
            disk(&path, block, Uuid::from_u128(1));
            let mut file = File::options().read(true).write(true).open(&path).unwrap();
            let mut gpt = GPT::read_from(&mut file, block).unwrap();
            gpt[1].unique_partition_guid = gpt[3].unique_partition_guid;
            assert!(matches!(
                gpt.write_into(&mut file),
                Err(gptman::Error::ConflictPartitionGUID)
            ));
            let entries: Vec<_> = gpt.iter().map(|(_, entry)| entry.clone()).collect();
            gpt.header.write_into(&mut file, block, &entries).unwrap();
            let error = geometry(&fs::read(&path).unwrap()).unwrap_err();
            assert!(
                error.contains("partitions 1 and 3")
                    && error.contains(&Uuid::from_u128(3).to_string()),
                "{error}"
            );
            // Entries that are not used have no GUID to share.
            gpt[3].partition_type_guid = [0; 16];
            let entries: Vec<_> = gpt.iter().map(|(_, entry)| entry.clone()).collect();
            gpt.header.write_into(&mut file, block, &entries).unwrap();
            assert!(geometry(&fs::read(&path).unwrap()).is_ok());
        }
    }
}
