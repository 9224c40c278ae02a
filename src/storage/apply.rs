//! Carries a plan out: partition tables, file systems, mounts.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use thiserror::Error;
use uuid::Uuid;

use super::plan::{Place, Plan, PlannedFilesystem, PlannedPartition};
use super::plan_checks::chooses_fat_size;
use super::superblock::{self, Family, fat_uuid};
use super::target::{EfiPartition, MountedFilesystem, Target, below, mount_one, unmount_one};
use super::tools::{self, Tools};
use super::{device, gpt, wipe};
use crate::control::api::{Format, GptType};

/// Why a plan could not be carried out. What was mounted has been unmounted.
#[derive(Debug, Error)]
pub enum ApplyError {
    #[error(transparent)]
    Device(#[from] device::Error),
    #[error(transparent)]
    Table(#[from] gpt::Error),
    #[error("cannot make a file system on {device}: {source}")]
    Make {
        device: PathBuf,
        source: tools::Error,
    },
    #[error("{device} has {size} bytes: too small or too large for swap")]
    SwapSize { device: PathBuf, size: u64 },
    #[error("{device} was formatted with UUID {expected}, but reads {found}")]
    NotMade {
        device: PathBuf,
        expected: String,
        found: String,
    },
    #[error(transparent)]
    Mount(#[from] super::target::Error),
    #[error("the plan refers to a partition that it does not have")]
    Plan,
}

/// Partitions, formats and mounts what the plan says; the target's `/` at `root`. Only
/// disks that the plan lists are written, and a plan lists only disks in scope.
///
/// tmpfs is not mounted: the image is to be unpacked onto the disk below it. File systems
/// of disks out of scope are not mounted either, since even a mount writes to them; they
/// are in fstab when they can be recognised, and are skipped with a warning otherwise.
///
/// # Errors
/// What failed on which device. Mounts made until then are undone.
pub fn apply(plan: &Plan, root: &Path, tools: &Tools) -> Result<Target, ApplyError> {
    let guids = write_tables(plan)?;
    let mut made = Vec::new();
    for filesystem in plan.filesystems() {
        made.extend(make(plan, filesystem, tools)?);
    }
    mount_all(&made, root)?;
    let root_uuid = made
        .first()
        .map(|root| root.uuid.clone())
        .unwrap_or_default();
    Ok(Target {
        root: root.to_path_buf(),
        root_uuid,
        filesystems: made,
        esp: esp(plan, &guids),
    })
}

/// New tables on all disks of the plan, and empty partitions behind their new nodes.
fn write_tables(plan: &Plan) -> Result<Vec<Vec<Uuid>>, ApplyError> {
    let mut guids = Vec::new();
    for planned in plan.disks() {
        let mut file = device::open_exclusive(&planned.disk)?;
        guids.push(gpt::write(&mut file, planned)?);
        device::read_partitions_again(&file, &planned.disk)?;
        drop(file);
        for partition in &planned.partitions {
            let file = device::open_partition(&partition.path, partition.size)?;
            wipe::clear_partition(&file, partition.size)
                .map_err(device::failed("clear", &partition.path))?;
        }
        tracing::info!(disk = %planned.disk, partitions = planned.partitions.len(), "partitioned");
    }
    Ok(guids)
}

/// Makes one file system, or looks up one that is kept; `None` when that is not there.
fn make(
    plan: &Plan,
    filesystem: &PlannedFilesystem,
    tools: &Tools,
) -> Result<Option<MountedFilesystem>, ApplyError> {
    let (device, uuid) = match &filesystem.place {
        Place::Memory => (None, String::new()),
        Place::Kept { path } => match kept_uuid(path, filesystem.format) {
            Ok(uuid) => (Some(path.clone()), uuid),
            Err(problem) => {
                tracing::warn!(device = %path.display(), path = filesystem.path, problem, "left out of fstab");
                return Ok(None);
            }
        },
        Place::New { disk, partition } => {
            let partitions = plan.disks().get(*disk).map(|disk| &disk.partitions);
            let partition = partitions
                .and_then(|partitions| partitions.get(*partition))
                .ok_or(ApplyError::Plan)?;
            let uuid = format(partition, filesystem, tools)?;
            tracing::info!(device = %partition.path.display(), %filesystem, %uuid, "formatted");
            (Some(partition.path.clone()), uuid)
        }
    };
    Ok(Some(MountedFilesystem {
        device,
        path: filesystem.path.clone(),
        format: filesystem.format,
        uuid,
        label: filesystem.label.clone(),
        options: filesystem.mount_options.clone(),
        mounted: matches!(filesystem.place, Place::New { .. }) && filesystem.format != Format::Swap,
    }))
}

fn kept_uuid(path: &Path, format: Format) -> Result<String, String> {
    let found = File::open(path)
        .and_then(|file| superblock::read(&file))
        .map_err(|error| error.to_string())?;
    match found {
        Some(found) if Some(found.family) == Family::of(format) => Ok(found.uuid),
        Some(found) => Err(format!("it carries {:?}, not {format:?}", found.family)),
        None => Err("no file system is recognised on it".to_owned()),
    }
}

/// Formats a partition and proves it by reading the UUID back.
fn format(
    partition: &PlannedPartition,
    filesystem: &PlannedFilesystem,
    tools: &Tools,
) -> Result<String, ApplyError> {
    let device = &partition.path;
    let uuid = Uuid::new_v4();
    let io_failed = |operation| device::failed(operation, device);
    let expected = match filesystem.format {
        Format::Swap => {
            let header = superblock::swap_header(partition.size, uuid, &filesystem.label)
                .ok_or_else(|| ApplyError::SwapSize {
                    device: device.clone(),
                    size: partition.size,
                })?;
            let file = device::open_partition(device, partition.size)?;
            file.write_all_at(&header, 0)
                .map_err(io_failed("write a swap header to"))?;
            uuid.to_string()
        }
        Format::Vfat => {
            let id = [1, 3, 5, 7].map(|index: usize| uuid.as_bytes()[index]);
            let arguments = vfat_arguments(filesystem, u32::from_le_bytes(id), device);
            run(&tools.mkfs_vfat, &arguments, tools, device)?;
            fat_uuid(id)
        }
        _ => {
            let arguments = ext_arguments(filesystem, uuid, device);
            run(&tools.mke2fs, &arguments, tools, device)?;
            uuid.to_string()
        }
    };
    let file = device::open_partition(device, partition.size)?;
    device::flush(&file).map_err(io_failed("flush"))?;
    let found = superblock::read(&file).map_err(io_failed("read back"))?;
    let is_made = found.as_ref().is_some_and(|found| {
        found.uuid == expected && Some(found.family) == Family::of(filesystem.format)
    });
    if is_made {
        Ok(expected)
    } else {
        Err(ApplyError::NotMade {
            device: device.clone(),
            expected,
            found: found.map_or_else(|| "nothing".to_owned(), |found| found.uuid),
        })
    }
}

/// mke2fs(8). Inode tables are zeroed by the kernel later, which is safe with the group
/// checksums of ext4 and has no effect on ext3; the journal is not, because a stale one
/// could be replayed. Nothing is discarded: the wipe has done that. Options of the layout
/// come last, so that they win.
fn ext_arguments(filesystem: &PlannedFilesystem, uuid: Uuid, device: &Path) -> Vec<String> {
    let name = super::target::type_name(filesystem.format);
    let uuid = uuid.to_string();
    let extended = "nodiscard,lazy_itable_init=1,lazy_journal_init=0";
    let mut arguments: Vec<String> = ["-F", "-q", "-t", name, "-U", &uuid, "-E", extended]
        .map(str::to_owned)
        .to_vec();
    if !filesystem.label.is_empty() {
        arguments.extend(["-L".to_owned(), filesystem.label.clone()]);
    }
    arguments.extend(filesystem.create_options.iter().cloned());
    arguments.push(device.to_string_lossy().into_owned());
    arguments
}

/// mkfs.fat(8). FAT32 whatever the size, as UEFI 2.10 §13.3 wants it of fixed disks.
fn vfat_arguments(filesystem: &PlannedFilesystem, id: u32, device: &Path) -> Vec<String> {
    let mut arguments = vec!["-i".to_owned(), format!("{id:08x}")];
    if !chooses_fat_size(&filesystem.create_options) {
        arguments.extend(["-F".to_owned(), "32".to_owned()]);
    }
    if !filesystem.label.is_empty() {
        arguments.extend(["-n".to_owned(), filesystem.label.clone()]);
    }
    arguments.extend(filesystem.create_options.iter().cloned());
    arguments.push(device.to_string_lossy().into_owned());
    arguments
}

fn run(
    program: &Path,
    arguments: &[String],
    tools: &Tools,
    device: &Path,
) -> Result<(), ApplyError> {
    tools::run(program, arguments, tools.deadline).map_err(|source| ApplyError::Make {
        device: device.to_path_buf(),
        source,
    })
}

/// Mounts what was made, `/` first, and makes the mount points of what is not mounted.
fn mount_all(made: &[MountedFilesystem], root: &Path) -> Result<(), ApplyError> {
    for (index, filesystem) in made.iter().enumerate() {
        if let Err(error) = mount_next(filesystem, root) {
            for mounted in made[..index].iter().rev().filter(|fs| fs.mounted) {
                if let Err(error) = unmount_one(&below(root, &mounted.path)) {
                    tracing::warn!(%error, "while undoing the mounts");
                }
            }
            return Err(error.into());
        }
    }
    Ok(())
}

fn mount_next(filesystem: &MountedFilesystem, root: &Path) -> Result<(), super::target::Error> {
    let at = below(root, &filesystem.path);
    match &filesystem.device {
        Some(device) if filesystem.mounted => {
            mount_one(device, &at, filesystem.format, &filesystem.options)
        }
        _ if filesystem.path.is_empty() => Ok(()),
        _ => std::fs::create_dir_all(&at).map_err(|source: io::Error| super::target::Error {
            operation: "make the mount point",
            what: at.display().to_string(),
            source,
        }),
    }
}

/// The partition mounted at `/boot/efi`, or else the first one of type EF00 with FAT on it.
fn esp(plan: &Plan, guids: &[Vec<Uuid>]) -> Option<EfiPartition> {
    let candidates = plan.filesystems().iter().filter_map(|filesystem| {
        let Place::New { disk, partition } = filesystem.place else {
            return None;
        };
        let planned = plan.disks().get(disk)?;
        let found = planned.partitions.get(partition)?;
        let is_esp = filesystem.format == Format::Vfat
            && (filesystem.path == "/boot/efi" || found.gpt_type == GptType::Boot);
        is_esp.then_some(EfiPartition {
            disk: planned.disk.path.clone(),
            number: found.number,
            start_lba: found.start_lba,
            size_lba: found.blocks,
            guid: *guids.get(disk)?.get(partition)?,
            logical_block_size: planned.disk.logical_block_size,
            path: filesystem.path.clone(),
        })
    });
    let candidates: Vec<_> = candidates.collect();
    let mounted = candidates.iter().find(|esp| esp.path == "/boot/efi");
    mounted.or(candidates.first()).cloned()
}
