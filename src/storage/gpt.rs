//! Writes a planned partition table and reads it back.

use std::fs::File;

use gptman::{GPT, GPTPartitionEntry};
use thiserror::Error;
use uuid::{Uuid, uuid};

use super::device::{self, failed};
use super::disks::Disk;
use super::plan::{MIB, PlannedDisk};
use crate::control::api::GptType;

/// UEFI 2.10 §5.3.3 and the Discoverable Partitions Specification; sgdisk's codes EF00,
/// 8300, FD00 and 8E00.
fn type_guid(gpt_type: GptType) -> Uuid {
    match gpt_type {
        GptType::Boot => uuid!("c12a7328-f81f-11d2-ba4b-00a0c93ec93b"),
        GptType::Linux | GptType::Unspecified => uuid!("0fc63daf-8483-4772-8e79-3d69d8477de4"),
        GptType::LinuxRaid => uuid!("a19d880f-05fc-4d3b-a006-743f0f84911e"),
        GptType::LinuxLvm => uuid!("e6d6d379-f507-44c2-a23c-238f2a3df928"),
    }
}

/// Why a partition table could not be written.
#[derive(Debug, Error)]
pub enum Error {
    #[error("cannot {operation} the partition table of {disk}: {source}")]
    Table {
        operation: &'static str,
        disk: String,
        source: gptman::Error,
    },
    #[error("the partition table of {disk} reads differently from what was written")]
    Different { disk: String },
    #[error(transparent)]
    Device(#[from] device::Error),
}

/// Writes protective MBR, GPT and backup GPT, flushes, and reads both back from the
/// device. Returns the new GUIDs of the partitions, in the plan's order.
///
/// # Errors
/// When the device fails or does not keep what was written.
pub fn write(file: &mut File, planned: &PlannedDisk) -> Result<Vec<Uuid>, Error> {
    let disk = &planned.disk;
    let block = u64::from(disk.logical_block_size);
    let table = |operation| {
        move |source| Error::Table {
            operation,
            disk: planned.disk.path.display().to_string(),
            source,
        }
    };
    let mut gpt =
        GPT::new_from(file, block, Uuid::new_v4().to_bytes_le()).map_err(table("lay out"))?;
    gpt.align = MIB / block;
    let mut guids = Vec::new();
    for partition in &planned.partitions {
        let guid = Uuid::new_v4();
        gpt[partition.number] = GPTPartitionEntry {
            partition_type_guid: type_guid(partition.gpt_type).to_bytes_le(),
            unique_partition_guid: guid.to_bytes_le(),
            starting_lba: partition.start_lba,
            ending_lba: partition.start_lba + partition.blocks - 1,
            attribute_bits: 0,
            partition_name: partition.label.as_str().into(),
        };
        guids.push(guid);
    }
    GPT::write_protective_mbr_into(file, block).map_err(table("write the protective MBR of"))?;
    gpt.write_into(file).map_err(table("write"))?;
    check_written(file, disk, &gpt)?;
    Ok(guids)
}

/// Moves the backup of a table, which came with a disk image, to the end of the disk, and lets
/// the space until there be used. The table must have passed [`crate::efi::gpt::geometry`].
///
/// # Errors
/// When there is no table, or the device fails or does not keep what was written.
pub fn move_backup(file: &mut File, disk: &Disk) -> Result<(), Error> {
    let block = u64::from(disk.logical_block_size);
    let table = |operation| {
        move |source| Error::Table {
            operation,
            disk: disk.path.display().to_string(),
            source,
        }
    };
    let mut gpt = GPT::read_from(file, block).map_err(table("read"))?;
    gpt.header
        .update_from(file, block)
        .map_err(table("enlarge"))?;
    GPT::write_protective_mbr_into(file, block).map_err(table("write the protective MBR of"))?;
    gpt.write_into(file).map_err(table("write"))?;
    check_written(file, disk, &gpt)
}

fn check_written(file: &mut File, disk: &Disk, gpt: &GPT) -> Result<(), Error> {
    device::flush(file).map_err(failed("flush", &disk.path))?;
    let table = |source| Error::Table {
        operation: "read back",
        disk: disk.path.display().to_string(),
        source,
    };
    let read_back = GPT::read_from(file, gpt.sector_size).map_err(table)?;
    let is_same = read_back.header == gpt.header
        && read_back.header.is_primary()
        && gpt.iter().eq(read_back.iter());
    if is_same {
        Ok(())
    } else {
        Err(Error::Different {
            disk: disk.path.display().to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::storage::plan::PlannedPartition;
    use crate::storage::testing::disk;

    fn planned(size: u64, block: u32) -> PlannedDisk {
        let mut disk = disk("sda", size);
        disk.logical_block_size = block;
        let per_mib = MIB / u64::from(block);
        let partition = |number, gpt_type, start: u64, mib: u64| PlannedPartition {
            number,
            label: format!("label-{number}"),
            gpt_type,
            start_lba: start * per_mib,
            blocks: mib * per_mib,
            size: mib * MIB,
            path: disk.partition_path(number),
        };
        let partitions = vec![
            partition(1, GptType::Boot, 1, 10),
            partition(2, GptType::LinuxRaid, 11, 20),
            partition(128, GptType::LinuxLvm, 31, size / MIB - 32),
        ];
        PlannedDisk { disk, partitions }
    }

    fn file(size: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        file
    }

    #[test]
    fn tables_of_both_block_sizes() {
        for block in [512, 4096] {
            for size in [100 * MIB, 100 * MIB + 4096] {
                let planned = planned(size, block);
                let mut file = file(size);
                let guids = write(&mut file, &planned).unwrap();
                assert_eq!(guids.len(), 3);
                // The backup alone tells the same.
                file.write_all_at(&[0; 8], block.into()).unwrap();
                let gpt = GPT::read_from(&mut file, block.into()).unwrap();
                assert!(gpt.is_backup());
                let raid = &gpt[2];
                assert_eq!(raid.unique_partition_guid, guids[1].to_bytes_le());
                assert_eq!(raid.starting_lba, 11 * MIB / u64::from(block));
                assert_eq!(raid.size().unwrap() * u64::from(block), 20 * MIB);
                assert_eq!(raid.partition_name.as_str(), "label-2");
                assert_eq!(
                    raid.partition_type_guid,
                    uuid!("a19d880f-05fc-4d3b-a006-743f0f84911e").to_bytes_le()
                );
                let mut mbr = [0; 2];
                file.read_exact_at(&mut mbr, 510).unwrap();
                assert_eq!(mbr, [0x55, 0xaa]);
            }
        }
    }

    #[test]
    fn a_table_that_does_not_fit_is_an_error() {
        let planned = planned(100 * MIB, 512);
        let error = write(&mut file(50 * MIB), &planned)
            .unwrap_err()
            .to_string();
        assert!(error.contains("/dev/sda"), "{error}");
    }

    #[test]
    fn a_backup_is_moved_to_the_end_of_a_larger_disk() {
        for block in [512, 4096] {
            let image = planned(100 * MIB, block);
            let mut file = file(100 * MIB);
            write(&mut file, &image).unwrap();
            file.set_len(150 * MIB).unwrap();
            let mut larger = image.disk.clone();
            larger.size = 150 * MIB;
            move_backup(&mut file, &larger).unwrap();
            // The backup alone tells the same, and that there is more room now.
            file.write_all_at(&[0; 8], block.into()).unwrap();
            let gpt = GPT::read_from(&mut file, block.into()).unwrap();
            assert!(gpt.is_backup());
            assert_eq!(gpt.header.primary_lba, 150 * MIB / u64::from(block) - 1);
            assert!(gpt.header.last_usable_lba > 149 * MIB / u64::from(block));
            assert_eq!(gpt[2].partition_name.as_str(), "label-2");
            file.write_all_at(&[0; 8], 150 * MIB - u64::from(block))
                .unwrap();
            assert!(move_backup(&mut file, &larger).is_err());
        }
    }
}
