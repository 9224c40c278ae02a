//! From a layout to a plan: what will be written where, decided and checked before
//! anything is.

use std::path::{Path, PathBuf};

use thiserror::Error;

use super::disks::{Disk, partition_name};
use super::eligible::Sorted;
use super::plan_checks as checks;
use super::plan_devices::Devices;
use super::plan_stacks::{PlannedArray, PlannedGroup, PlannedVolume};
use super::scope::{ScopedDisks, UnusableDisk, find};
use super::{plan_filesystems, plan_stacks};
use crate::control::api::{FilesystemLayout, Format, GptType, LayoutDisk};
use crate::decide::Extent;

pub(super) const MIB: u64 = 1 << 20;
/// Entries of a GPT as every tool writes it, and their size (UEFI 2.10 §5.3).
const GPT_ENTRIES: u64 = 128;
const GPT_ENTRY: u64 = 128;
/// Larger optimal I/O sizes are what bridges invent (0xffff sectors), not stripes.
const MAX_ALIGNMENT: u64 = 64 * MIB;

/// What will be written, and what will stay as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub(super) layout: String,
    pub(super) extent: Extent,
    pub(super) disks: Vec<PlannedDisk>,
    pub(super) arrays: Vec<PlannedArray>,
    pub(super) groups: Vec<PlannedGroup>,
    pub(super) volumes: Vec<PlannedVolume>,
    pub(super) filesystems: Vec<PlannedFilesystem>,
    pub(super) warnings: Vec<String>,
}

impl Plan {
    /// The disks that are written, none of them outside the scope.
    #[must_use]
    pub fn disks(&self) -> &[PlannedDisk] {
        &self.disks
    }

    /// The arrays, each after those it stands on.
    #[must_use]
    pub fn arrays(&self) -> &[PlannedArray] {
        &self.arrays
    }

    #[must_use]
    pub fn groups(&self) -> &[PlannedGroup] {
        &self.groups
    }

    /// The logical volumes: what takes the rest of a group comes last in it.
    #[must_use]
    pub fn volumes(&self) -> &[PlannedVolume] {
        &self.volumes
    }

    /// Where the device node of `base` is.
    #[must_use]
    pub fn node(&self, base: Base) -> Option<&Path> {
        match base {
            Base::Disk(disk) => self.disks.get(disk).map(|found| found.disk.path.as_path()),
            Base::Partition { .. } => self.partition(base).map(|(_, found)| found.path.as_path()),
            Base::Array(array) => self.arrays.get(array).map(|found| found.node.as_path()),
            Base::Volume(volume) => self.volumes.get(volume).map(|found| found.node.as_path()),
        }
    }

    /// The partition that `base` is, with its disk.
    #[must_use]
    pub fn partition(&self, base: Base) -> Option<(&PlannedDisk, &PlannedPartition)> {
        let Base::Partition { disk, partition } = base else {
            return None;
        };
        let disk = self.disks.get(disk)?;
        Some((disk, disk.partitions.get(partition)?))
    }

    /// Bytes of `base`; of an array and of what stands on one the least that it will have.
    #[must_use]
    pub fn size(&self, base: Base) -> u64 {
        match base {
            Base::Disk(disk) => self.disks.get(disk).map(|found| found.disk.size),
            Base::Partition { .. } => self.partition(base).map(|(_, found)| found.size),
            Base::Array(array) => self.arrays.get(array).map(|found| found.size),
            Base::Volume(volume) => self.volumes.get(volume).map(|found| found.size),
        }
        .unwrap_or(0)
    }

    /// The file systems: `/` first, then by depth of the mount point, then swap.
    #[must_use]
    pub fn filesystems(&self) -> &[PlannedFilesystem] {
        &self.filesystems
    }

    /// What is odd but no reason to stop.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// A disk that gets a new GPT, or is used whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedDisk {
    pub disk: Disk,
    /// By number, which is the order on the disk as well. None: the disk is used whole, by
    /// an array, a volume group or a file system.
    pub partitions: Vec<PlannedPartition>,
}

/// A partition to be made, in units of the disk's logical blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedPartition {
    pub number: u32,
    pub label: String,
    pub gpt_type: GptType,
    pub start_lba: u64,
    pub blocks: u64,
    /// Bytes.
    pub size: u64,
    /// Its node.
    pub path: PathBuf,
}

/// A device that a plan makes: indices into its lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// A whole disk.
    Disk(usize),
    Partition {
        disk: usize,
        partition: usize,
    },
    Array(usize),
    Volume(usize),
}

/// A device on disks that are not in scope: never written, not even assembled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// A partition or a whole disk.
    Partition(PathBuf),
    /// An array, by its name in the layout and its members.
    Array { name: String, members: Vec<PathBuf> },
    /// A logical volume, or anything on a kept array, by the node that the OS will give it.
    Volume(PathBuf),
}

/// Where a file system is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On a device that is made.
    New(Base),
    /// On what is kept: not even mounted.
    Kept(Kept),
    /// tmpfs: on no device.
    Memory,
}

/// A file system to be made, or kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedFilesystem {
    pub place: Place,
    pub format: Format,
    /// Mount point without a trailing slash; empty for swap.
    pub path: String,
    pub label: String,
    /// One option each.
    pub mount_options: Vec<String>,
    pub create_options: Vec<String>,
}

/// Why there is no plan. Nothing was written.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("layout {layout:?}: {problem}")]
pub struct PlanError {
    pub layout: String,
    pub problem: Problem,
}

/// What is wrong with a layout on this machine.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Problem {
    #[error(transparent)]
    Disk(#[from] UnusableDisk),
    #[error("disk {device} is listed twice")]
    DiskTwice { device: String },
    #[error("disk {device}: partition number {number} is out of range; expected 1 to 128")]
    Number { device: String, number: u32 },
    #[error("disk {device}: partition number {number} is used twice")]
    NumberTwice { device: String, number: u32 },
    #[error(
        "partition {partition} takes the rest of the disk (size 0), but others follow it; only the last one may"
    )]
    RestNotLast { partition: String },
    #[error("partition {partition}: {problem}")]
    Label { partition: String, problem: String },
    #[error(
        "partition {partition} needs {needed} MiB, but {available} of the {usable} MiB of {device} are left"
    )]
    TooSmall {
        partition: String,
        device: String,
        needed: u64,
        available: u64,
        usable: u64,
    },
    #[error("array {name}: {problem}")]
    Array { name: String, problem: String },
    #[error("volume group {name:?}: {problem}")]
    Group { name: String, problem: String },
    #[error("logical volume {name}: {problem}")]
    Volume { name: String, problem: String },
    #[error("file system {name}: {problem}")]
    Filesystem { name: String, problem: String },
    #[error("no file system is mounted at /; expected exactly one")]
    NoRoot,
}

/// Makes the plan for `layout` on this machine's disks. Disks of the layout outside the
/// scope of a root-only install are left as they are; their file systems go to fstab.
///
/// # Errors
/// When the layout contradicts itself, does not fit, names a disk that is not there or
/// must not be written, or asks for what this version cannot do.
pub fn plan(
    layout: &FilesystemLayout,
    sorted: &Sorted,
    scoped: &ScopedDisks,
) -> Result<Plan, PlanError> {
    make(layout, sorted, scoped).map_err(|problem| PlanError {
        layout: layout.id.clone(),
        problem,
    })
}

fn make(layout: &FilesystemLayout, sorted: &Sorted, scoped: &ScopedDisks) -> Result<Plan, Problem> {
    let mut plan = Plan {
        layout: layout.id.clone(),
        extent: scoped.extent(),
        disks: Vec::new(),
        arrays: Vec::new(),
        groups: Vec::new(),
        volumes: Vec::new(),
        filesystems: Vec::new(),
        warnings: Vec::new(),
    };
    let mut devices = Devices::default();
    for (index, of_layout) in layout.disks.iter().enumerate() {
        let device = &of_layout.device;
        let earlier = &layout.disks[..index];
        if earlier.iter().any(|other| other.device == *device) {
            return Err(Problem::DiskTwice {
                device: device.clone(),
            });
        }
        check_partitions(of_layout)?;
        match in_scope(device, sorted, scoped)? {
            InScope::Yes(disk) if of_layout.partitions.is_empty() && !is_used(layout, device) => {
                plan.warnings.push(format!(
                    "{}: the layout gives it no partitions; nothing is written to it",
                    disk.path.display()
                ));
            }
            InScope::Yes(disk) => {
                let planned = place_partitions(of_layout, disk)?;
                devices.add_disk(plan.disks.len(), &planned);
                plan.disks.push(planned);
            }
            InScope::No { present } => devices.add_kept(of_layout, present),
        }
    }
    plan_stacks::place(layout, &mut devices, &mut plan)?;
    plan_filesystems::place(layout, &mut devices, &mut plan)?;
    match plan.filesystems.first() {
        Some(PlannedFilesystem {
            path,
            format: Format::Ext3 | Format::Ext4,
            place: Place::New(_),
            ..
        }) if path == "/" => {}
        Some(root) if root.path == "/" => {
            return Err(Problem::Filesystem {
                name: "/".into(),
                problem: "the root must be ext3 or ext4 on a device that is made".into(),
            });
        }
        _ => return Err(Problem::NoRoot),
    }
    plan_filesystems::check_esp(&mut plan)?;
    Ok(plan)
}

/// Whether anything of the layout stands on `device` itself.
fn is_used(layout: &FilesystemLayout, device: &str) -> bool {
    let raid = layout.raid.iter().flat_map(|raid| &raid.devices);
    let groups = layout.volume_groups.iter().flat_map(|group| &group.devices);
    let filesystems = layout.filesystems.iter();
    let with_content = filesystems.filter(|fs| !matches!(fs.format, Format::None | Format::Tmpfs));
    raid.chain(groups)
        .chain(with_content.map(|fs| &fs.device))
        .any(|used| used == device)
}

enum InScope<'d> {
    Yes(&'d Disk),
    /// Out of the scope of a root-only install.
    No {
        present: bool,
    },
}

fn in_scope<'d>(
    device: &str,
    sorted: &'d Sorted,
    scoped: &ScopedDisks,
) -> Result<InScope<'d>, Problem> {
    match (find(sorted, device), scoped.extent()) {
        (Ok(disk), _) if scoped.contains(disk) => Ok(InScope::Yes(disk)),
        (Ok(_), Extent::RootDisks) | (Err(UnusableDisk::LeftAlone { .. }), Extent::RootDisks) => {
            Ok(InScope::No { present: true })
        }
        (Err(UnusableDisk::Missing { .. }), Extent::RootDisks) => {
            Ok(InScope::No { present: false })
        }
        (Err(error), _) => Err(error.into()),
        // Every erasable disk is in the scope of a whole machine, unless it was made from
        // another list: then the disk is not there as far as this install is concerned.
        (Ok(_), Extent::EveryDisk) => Err(Problem::Disk(UnusableDisk::Missing {
            device: device.to_owned(),
            present: "other disks in scope".to_owned(),
        })),
    }
}

fn check_partitions(disk: &LayoutDisk) -> Result<(), Problem> {
    let mut numbers = std::collections::BTreeSet::new();
    for partition in &disk.partitions {
        let number = partition.number;
        let device = || disk.device.clone();
        if !(1..=GPT_ENTRIES).contains(&u64::from(number)) {
            return Err(Problem::Number {
                device: device(),
                number,
            });
        }
        if !numbers.insert(number) {
            return Err(Problem::NumberTwice {
                device: device(),
                number,
            });
        }
        checks::gpt_label(&partition.label).map_err(|problem| Problem::Label {
            partition: partition_name(&disk.device, number),
            problem,
        })?;
    }
    let last = numbers.last().copied();
    let rest = disk
        .partitions
        .iter()
        .find(|p| p.size == 0 && Some(p.number) != last);
    match rest {
        Some(partition) => Err(Problem::RestNotLast {
            partition: partition_name(&disk.device, partition.number),
        }),
        None => Ok(()),
    }
}

/// The grid that partitions start on, in MiB: one, which suits every block, page and
/// usual stripe, or the disk's optimal I/O size where that is a larger multiple.
fn alignment(disk: &Disk) -> u64 {
    let optimal = disk.optimal_io_size;
    if optimal > MIB && optimal.is_multiple_of(MIB) && optimal <= MAX_ALIGNMENT {
        optimal / MIB
    } else {
        1
    }
}

/// Lays the partitions out in the order of their numbers, sizes in whole MiB. The table is
/// in front of the first.
fn place_partitions(of_layout: &LayoutDisk, disk: &Disk) -> Result<PlannedDisk, Problem> {
    let block = u64::from(disk.logical_block_size);
    let backup_blocks = 1 + (GPT_ENTRIES * GPT_ENTRY).div_ceil(block);
    let end = (disk.size / block).saturating_sub(backup_blocks) * block / MIB;
    let align = alignment(disk);
    let usable = end.saturating_sub(align);
    let mut partitions: Vec<_> = of_layout.partitions.iter().collect();
    partitions.sort_by_key(|partition| partition.number);
    let mut start = align;
    let mut planned = Vec::new();
    for partition in partitions {
        let available = end.saturating_sub(start);
        let size = match partition.size {
            0 => available,
            size => size,
        };
        if size == 0 || size > available {
            return Err(Problem::TooSmall {
                partition: partition_name(&of_layout.device, partition.number),
                device: disk.to_string(),
                needed: size.max(1),
                available,
                usable,
            });
        }
        planned.push(PlannedPartition {
            number: partition.number,
            label: partition.label.clone(),
            gpt_type: partition.gpt_type,
            start_lba: start * (MIB / block),
            blocks: size * (MIB / block),
            size: size * MIB,
            path: disk.partition_path(partition.number),
        });
        start = (start + size).next_multiple_of(align);
    }
    Ok(PlannedDisk {
        disk: disk.clone(),
        partitions: planned,
    })
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "plan_stack_tests.rs"]
mod stack_tests;
