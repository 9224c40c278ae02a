//! A disk that a disk image was written to: its table is fitted to the disk, its file systems
//! are found and mounted.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::apply::ApplyError;
use super::disks::Disk;
use super::superblock::{self, Family};
use super::target::{EfiPartition, MountedFilesystem, Target, below, mount_one, unmount_one};
use super::{device, gpt};
use crate::control::api::Format;
use crate::efi::gpt::Partition;
use crate::image::root::{Links, RootDir};

/// Where the EFI system partition is mounted in a root.
const ESP: &str = "/boot/efi";

/// Moves the table's backup to the end of the disk and makes the kernel read the table.
///
/// # Errors
/// What failed on the disk.
pub fn settle(file: &mut File, disk: &Disk) -> Result<(), ApplyError> {
    gpt::move_backup(file, disk)?;
    device::read_partitions_again(file, disk)?;
    Ok(())
}

/// Mounts what the image brought at `root`: its root file system with the EFI system partition
/// in it, or, where no root is found, that partition alone; then the UUID of the root is empty.
///
/// A root is an ext file system with `/etc` and `/sbin` or `/usr/sbin`; the largest counts.
///
/// # Errors
/// A mount that failed.
pub fn mount(
    disk: &Disk,
    partitions: &[Partition],
    esp: &Partition,
    root: &Path,
) -> Result<Target, ApplyError> {
    let mut filesystems = Vec::new();
    let mut others: Vec<_> = partitions.iter().filter(|it| *it != esp).collect();
    others.sort_by_key(|partition| std::cmp::Reverse(partition.location.size_lba));
    let mut root_uuid = String::new();
    for partition in others {
        let device = node(disk, partition)?;
        let Some(uuid) = mount_if_root(&device, root)? else {
            continue;
        };
        filesystems.push(mounted(device, "/", Format::Ext4, &uuid));
        root_uuid = uuid;
        break;
    }
    let esp_device = node(disk, esp)?;
    let path = if root_uuid.is_empty() { "/" } else { ESP };
    if let Err(error) = mount_esp(&esp_device, root, path) {
        if !root_uuid.is_empty()
            && let Err(error) = unmount_one(root)
        {
            tracing::warn!(%error, "while undoing the mounts");
        }
        return Err(error);
    }
    filesystems.push(mounted(esp_device, path, Format::Vfat, ""));
    Ok(Target {
        root: root.to_path_buf(),
        root_uuid,
        filesystems,
        esp: Some(EfiPartition {
            disk: disk.path.clone(),
            number: esp.location.number,
            start_lba: esp.location.start_lba,
            size_lba: esp.location.size_lba,
            guid: esp.location.guid,
            logical_block_size: disk.logical_block_size,
            path: path.to_owned(),
        }),
        esp_mirrors: Vec::new(),
        has_arrays: false,
        disks: vec![disk.clone()],
    })
}

fn mount_esp(device: &Path, root: &Path, path: &str) -> Result<(), ApplyError> {
    fs::create_dir_all(root).map_err(device::failed("make", root))?;
    // Links of the image must not lead the mount out of it.
    RootDir::open(root)
        .and_then(|root| Ok(root.make_dirs(Path::new(path), Links::Refuse)?))
        .map_err(device::failed("make the mount point /boot/efi below", root))?;
    Ok(mount_one(device, &below(root, path), Format::Vfat, &[])?)
}

fn mounted(device: PathBuf, path: &str, format: Format, uuid: &str) -> MountedFilesystem {
    MountedFilesystem {
        device: Some(device),
        path: path.to_owned(),
        format,
        uuid: uuid.to_owned(),
        label: String::new(),
        options: Vec::new(),
        mounted: true,
    }
}

/// The node of a partition, once the kernel shows it.
fn node(disk: &Disk, partition: &Partition) -> Result<PathBuf, device::Error> {
    let path = partition.device();
    let size = partition.location.size_lba * u64::from(disk.logical_block_size);
    device::open_partition(&path, size).map(|_| path)
}

/// Mounts `device` at `at` if it is a root, and answers its UUID.
fn mount_if_root(device: &Path, at: &Path) -> Result<Option<String>, ApplyError> {
    let found = File::open(device).and_then(|file| superblock::read(&file));
    let found = found.map_err(device::failed("read", device))?;
    let Some(found) = found.filter(|found| Some(found.family) == Family::of(Format::Ext4)) else {
        return Ok(None);
    };
    if let Err(error) = mount_one(device, at, Format::Ext4, &[]) {
        tracing::warn!("{error}: left out while looking for the image's root");
        return Ok(None);
    }
    let has = |name: &str| fs::symlink_metadata(at.join(name)).is_ok();
    if has("etc") && (has("sbin") || has("usr/sbin")) {
        return Ok(Some(found.uuid));
    }
    unmount_one(at)?;
    Ok(None)
}
