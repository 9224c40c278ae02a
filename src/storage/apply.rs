//! Carries a plan out: partition tables, arrays, volumes, file systems, mounts.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use thiserror::Error;
use uuid::Uuid;

use super::plan::{Base, Kept, Place, Plan, PlannedFilesystem};
use super::plan_checks::chooses_fat_size;
use super::superblock::{self, Family, fat_uuid};
use super::target::{EfiPartition, MountedFilesystem, Target, below, mount_one, unmount_one};
use super::tools::{self, Tools};
use super::{apply_stacks, device, gpt, md, stack, wipe};
use crate::control::api::{Format, GptType};

/// Why a plan could not be carried out. What was mounted has been unmounted.
#[derive(Debug, Error)]
pub enum ApplyError {
    #[error(transparent)]
    Device(#[from] device::Error),
    #[error(transparent)]
    Table(#[from] gpt::Error),
    #[error(transparent)]
    Stack(#[from] stack::Error),
    #[error("cannot make {what}: {source}")]
    Stacked { what: String, source: tools::Error },
    #[error("cannot make {what}: {problem}")]
    NoRoom { what: String, problem: String },
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

/// Partitions, stacks, formats and mounts what the plan says; the target's `/` at `root`. Only
/// disks that the plan lists are written, and a plan lists only disks in scope.
///
/// tmpfs is not mounted: the image is to be unpacked onto the disk below it. File systems
/// of disks out of scope are not mounted either, since even a mount writes to them; they
/// are in fstab when they can be recognised, and are skipped with a warning otherwise.
///
/// # Errors
/// What failed on which device. Mounts made until then are undone.
pub fn apply(plan: &Plan, root: &Path, tools: &Tools) -> Result<Target, ApplyError> {
    let disks: Vec<_> = plan
        .disks()
        .iter()
        .map(|planned| planned.disk.clone())
        .collect();
    stack::take_down(&disks)?;
    let guids = write_tables(plan)?;
    apply_stacks::make(plan, tools)?;
    let mut made = Vec::new();
    for filesystem in plan.filesystems() {
        made.extend(make(plan, filesystem, tools)?);
    }
    mount_all(&made, root)?;
    let root_uuid = made
        .first()
        .map(|root| root.uuid.clone())
        .unwrap_or_default();
    let mut esps = esps(plan, &guids).into_iter();
    Ok(Target {
        root: root.to_path_buf(),
        root_uuid,
        filesystems: made,
        esp: esps.next(),
        esp_mirrors: esps.collect(),
        has_arrays: !plan.arrays().is_empty(),
        disks,
    })
}

/// New tables on all disks of the plan, and empty partitions behind their new nodes.
fn write_tables(plan: &Plan) -> Result<Vec<Vec<Uuid>>, ApplyError> {
    let mut guids = Vec::new();
    for planned in plan.disks() {
        let mut file = device::open_exclusive(&planned.disk)?;
        if planned.partitions.is_empty() {
            wipe::clear_partition(&file, planned.disk.size)
                .map_err(device::failed("clear", &planned.disk.path))?;
            guids.push(Vec::new());
            continue;
        }
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
        // Known by its name only, which is the same in every OS.
        Place::Kept(Kept::Volume(node)) => (Some(node.clone()), String::new()),
        Place::Kept(kept) => match kept_uuid(kept, filesystem.format) {
            Ok((path, uuid)) => (Some(path), uuid),
            Err(problem) => {
                tracing::warn!(device = %kept, path = filesystem.path, problem, "left out of fstab");
                return Ok(None);
            }
        },
        Place::New(base) => {
            let node = plan.node(*base).ok_or(ApplyError::Plan)?;
            let size = match base {
                Base::Partition { .. } => Some(plan.size(*base)),
                _ => None,
            };
            let uuid = format(node, size, filesystem, tools)?;
            tracing::info!(device = %node.display(), %filesystem, %uuid, "formatted");
            (Some(node.to_path_buf()), uuid)
        }
    };
    Ok(Some(MountedFilesystem {
        device,
        path: filesystem.path.clone(),
        format: filesystem.format,
        uuid,
        label: filesystem.label.clone(),
        options: filesystem.mount_options.clone(),
        mounted: matches!(filesystem.place, Place::New(_)) && filesystem.format != Format::Swap,
    }))
}

/// The UUID of a file system that is kept, and where it was read. An array is not assembled
/// for that, since its members would be written: a member that has its start is read.
fn kept_uuid(kept: &Kept, format: Format) -> Result<(PathBuf, String), String> {
    let members = match kept {
        Kept::Partition(path) => std::slice::from_ref(path),
        Kept::Array { members, .. } => members,
        Kept::Volume(_) => return Err("it is known by its name only".to_owned()),
    };
    let mut problem = "no file system is recognised on it".to_owned();
    for path in members {
        let found = File::open(path).and_then(|file| match kept {
            Kept::Array { .. } => {
                let size = device::size(&file, path).map_err(io::Error::other)?;
                let data = md::data_on(&file, size)?;
                data.map_or(Ok(None), |data| superblock::read_at(&file, data))
            }
            Kept::Partition(_) | Kept::Volume(_) => superblock::read(&file),
        });
        match found {
            Ok(Some(found)) if Some(found.family) == Family::of(format) => {
                return Ok((path.clone(), found.uuid));
            }
            Ok(Some(found)) => problem = format!("it carries {:?}, not {format:?}", found.family),
            Ok(None) => {}
            Err(error) => problem = error.to_string(),
        }
    }
    Err(problem)
}

/// Formats a device and proves it by reading the UUID back. `size` is what it must have,
/// where that is known before it is made.
fn format(
    device: &Path,
    size: Option<u64>,
    filesystem: &PlannedFilesystem,
    tools: &Tools,
) -> Result<String, ApplyError> {
    let open = || match size {
        Some(size) => device::open_partition(device, size).map(|file| (file, size)),
        None => device::open_new(device),
    };
    let uuid = Uuid::new_v4();
    let io_failed = |operation| device::failed(operation, device);
    let expected = match filesystem.format {
        Format::Swap => {
            let (file, size) = open()?;
            let header =
                superblock::swap_header(size, uuid, &filesystem.label).ok_or_else(|| {
                    ApplyError::SwapSize {
                        device: device.to_path_buf(),
                        size,
                    }
                })?;
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
    let (file, _) = open()?;
    device::flush(&file).map_err(io_failed("flush"))?;
    let found = superblock::read(&file).map_err(io_failed("read back"))?;
    let is_made = found.as_ref().is_some_and(|found| {
        found.uuid == expected && Some(found.family) == Family::of(filesystem.format)
    });
    if is_made {
        Ok(expected)
    } else {
        Err(ApplyError::NotMade {
            device: device.to_path_buf(),
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

/// mkfs.fat(8). FAT32 whatever the size, as UEFI 2.10 §13.3 wants it of fixed disks. `-I`: an
/// array is no partition, and that is meant.
fn vfat_arguments(filesystem: &PlannedFilesystem, id: u32, device: &Path) -> Vec<String> {
    let mut arguments = vec!["-I".to_owned(), "-i".to_owned(), format!("{id:08x}")];
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
    match tools::run(program, arguments, tools.deadline) {
        Ok(_) => Ok(()),
        Err(source) => Err(ApplyError::Make {
            device: device.to_path_buf(),
            source,
        }),
    }
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
        _ => std::fs::create_dir_all(&at).map_err(|source: io::Error| super::target::Error::Io {
            operation: "make the mount point",
            what: at.display().to_string(),
            source,
        }),
    }
}

/// The partition mounted at `/boot/efi`, or else the first one of type EF00 with FAT on it;
/// every active member where it is an array.
fn esps(plan: &Plan, guids: &[Vec<Uuid>]) -> Vec<EfiPartition> {
    let candidates = plan.filesystems().iter().filter_map(|filesystem| {
        let Place::New(base) = filesystem.place else {
            return None;
        };
        let members = match base {
            Base::Array(array) => {
                let array = plan.arrays().get(array)?;
                array.members.get(..array.members.len() - array.spares)?
            }
            _ => &[base],
        };
        let is_boot = |member: &Base| {
            let partition = plan.partition(*member);
            partition.is_some_and(|(_, found)| found.gpt_type == GptType::Boot)
        };
        let is_esp = filesystem.format == Format::Vfat
            && (filesystem.path == "/boot/efi" || members.iter().all(is_boot));
        let partitions = members.iter().filter_map(|member| {
            let Base::Partition { disk, partition } = *member else {
                return None;
            };
            let (planned, found) = plan.partition(*member)?;
            Some(EfiPartition {
                disk: planned.disk.path.clone(),
                number: found.number,
                start_lba: found.start_lba,
                size_lba: found.blocks,
                guid: *guids.get(disk)?.get(partition)?,
                logical_block_size: planned.disk.logical_block_size,
                path: filesystem.path.clone(),
            })
        });
        is_esp.then(|| partitions.collect::<Vec<_>>())
    });
    let mut candidates: Vec<_> = candidates.filter(|found| !found.is_empty()).collect();
    let mounted = candidates
        .iter()
        .position(|found| found[0].path == "/boot/efi");
    if candidates.is_empty() {
        Vec::new()
    } else {
        candidates.swap_remove(mounted.unwrap_or(0))
    }
}
