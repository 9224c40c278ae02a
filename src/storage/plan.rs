//! From a layout to a plan: what will be written where, decided and checked before
//! anything is.

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

use super::disks::{Disk, partition_name};
use super::eligible::Sorted;
use super::plan_checks as checks;
use super::scope::{ScopedDisks, UnusableDisk, find};
use crate::control::api::{Filesystem, FilesystemLayout, Format, GptType, LayoutDisk};
use crate::decide::Extent;

pub(super) const MIB: u64 = 1 << 20;
/// Entries of a GPT as every tool writes it, and their size (UEFI 2.10 §5.3).
const GPT_ENTRIES: u64 = 128;
const GPT_ENTRY: u64 = 128;
/// A FAT32 file system needs 65525 clusters of at least 512 bytes, and its tables.
const MIN_FAT32_MIB: u64 = 33;

/// What will be written, and what will stay as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    layout: String,
    extent: Extent,
    disks: Vec<PlannedDisk>,
    filesystems: Vec<PlannedFilesystem>,
    warnings: Vec<String>,
}

impl Plan {
    /// The disks that get a new partition table, none of them outside the scope.
    #[must_use]
    pub fn disks(&self) -> &[PlannedDisk] {
        &self.disks
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

/// A disk that gets a new GPT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedDisk {
    pub disk: Disk,
    /// By number, which is the order on the disk as well.
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

/// Where a file system is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On a partition that is made; indices into the plan's disks and their partitions.
    New { disk: usize, partition: usize },
    /// On a partition of a disk that is not in scope: never written, not even mounted.
    Kept { path: PathBuf },
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
    #[error("{0} are not supported yet by this version")]
    NotSupported(&'static str),
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
    if !layout.raid.is_empty() {
        return Err(Problem::NotSupported("RAID arrays"));
    }
    if !layout.volume_groups.is_empty() || !layout.logical_volumes.is_empty() {
        return Err(Problem::NotSupported("LVM volumes"));
    }
    let mut plan = Plan {
        layout: layout.id.clone(),
        extent: scoped.extent(),
        disks: Vec::new(),
        filesystems: Vec::new(),
        warnings: Vec::new(),
    };
    // Partitions of disks out of scope: node, type, and whether the disk is there at all.
    let mut kept: Vec<(String, GptType, bool)> = Vec::new();
    for (index, of_layout) in layout.disks.iter().enumerate() {
        let earlier = &layout.disks[..index];
        if earlier.iter().any(|other| other.device == of_layout.device) {
            return Err(Problem::DiskTwice {
                device: of_layout.device.clone(),
            });
        }
        check_partitions(of_layout)?;
        match in_scope(&of_layout.device, sorted, scoped)? {
            InScope::Yes(disk) if of_layout.partitions.is_empty() => {
                plan.warnings.push(format!(
                    "{}: the layout gives it no partitions; nothing is written to it",
                    disk.path.display()
                ));
            }
            InScope::Yes(disk) => plan.disks.push(place_partitions(of_layout, disk)?),
            InScope::No { present } => kept.extend(of_layout.partitions.iter().map(|partition| {
                let name = partition_name(&of_layout.device, partition.number);
                (name, partition.gpt_type, present)
            })),
        }
    }
    for (index, filesystem) in layout.filesystems.iter().enumerate() {
        let name = name_of(filesystem);
        let wrong = |problem: String| Problem::Filesystem {
            name: name.clone(),
            problem,
        };
        let earlier = &layout.filesystems[..index];
        if filesystem.format != Format::Tmpfs
            && earlier
                .iter()
                .any(|other| other.device == filesystem.device)
        {
            return Err(wrong("its device has another file system already".into()));
        }
        if let Some(planned) = place_filesystem(filesystem, &kept, &mut plan).map_err(&wrong)? {
            let is_taken = |other: &PlannedFilesystem| other.path == planned.path;
            if !planned.path.is_empty() && plan.filesystems.iter().any(is_taken) {
                return Err(wrong("its mount point is used twice".into()));
            }
            plan.filesystems.push(planned);
        }
    }
    plan.filesystems.sort_by_key(order);
    match plan.filesystems.first() {
        Some(PlannedFilesystem {
            path,
            format: Format::Ext3 | Format::Ext4,
            place: Place::New { .. },
            ..
        }) if path == "/" => {}
        Some(root) if root.path == "/" => {
            return Err(Problem::Filesystem {
                name: "/".into(),
                problem: "the root must be ext3 or ext4 on a partition that is made".into(),
            });
        }
        _ => return Err(Problem::NoRoot),
    }
    warn_about_esp(&mut plan);
    Ok(plan)
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

/// Lays the partitions out in the order of their numbers. The first MiB holds the table;
/// starts and sizes are whole MiB, which suits every block, page and stripe size in use.
fn place_partitions(of_layout: &LayoutDisk, disk: &Disk) -> Result<PlannedDisk, Problem> {
    let block = u64::from(disk.logical_block_size);
    let backup_blocks = 1 + (GPT_ENTRIES * GPT_ENTRY).div_ceil(block);
    let end = (disk.size / block).saturating_sub(backup_blocks) * block / MIB;
    let usable = end.saturating_sub(1);
    let mut partitions: Vec<_> = of_layout.partitions.iter().collect();
    partitions.sort_by_key(|partition| partition.number);
    let mut start = 1;
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
        start += size;
    }
    Ok(PlannedDisk {
        disk: disk.clone(),
        partitions: planned,
    })
}

/// `None` for what is neither made nor mentioned in fstab.
fn place_filesystem(
    filesystem: &Filesystem,
    kept: &[(String, GptType, bool)],
    plan: &mut Plan,
) -> Result<Option<PlannedFilesystem>, String> {
    let format = filesystem.format;
    let path = match format {
        Format::Unspecified => return Err("its format is missing or not known".into()),
        Format::None | Format::Swap => {
            if !matches!(filesystem.path.as_str(), "" | "none" | "swap") {
                return Err(format!(
                    "a mount point needs another format than {format:?}"
                ));
            }
            String::new()
        }
        Format::Vfat | Format::Ext3 | Format::Ext4 | Format::Tmpfs => {
            checks::mount_point(&filesystem.path)?
        }
    };
    checks::filesystem_label(format, &filesystem.label)?;
    checks::create_options(format, &filesystem.create_options)?;
    let mount_options = checks::mount_options(&filesystem.mount_options)?;
    if format == Format::Swap && !filesystem.create_options.is_empty() {
        let name = &filesystem.device;
        plan.warnings
            .push(format!("{name}: create options of swap are ignored"));
    }
    let place = if format == Format::Tmpfs {
        Place::Memory
    } else {
        let (place, gpt_type) = match partition_of(&filesystem.device, plan) {
            Some(found) => found,
            None => match kept.iter().find(|(name, ..)| *name == filesystem.device) {
                Some((_, _, false)) => {
                    plan.warnings.push(format!(
                        "{} is skipped: its disk is not there",
                        name_of(filesystem)
                    ));
                    return Ok(None);
                }
                Some((name, gpt_type, true)) => (
                    Place::Kept {
                        path: PathBuf::from(name),
                    },
                    *gpt_type,
                ),
                None => return Err("no partition of the layout's disks has this name".into()),
            },
        };
        if matches!(gpt_type, GptType::LinuxRaid | GptType::LinuxLvm) && format != Format::None {
            return Err(format!("its partition is of type {gpt_type:?}"));
        }
        place
    };
    if format == Format::None {
        return Ok(None);
    }
    Ok(Some(PlannedFilesystem {
        place,
        format,
        path,
        label: filesystem.label.clone(),
        mount_options,
        create_options: filesystem.create_options.clone(),
    }))
}

fn partition_of(device: &str, plan: &Plan) -> Option<(Place, GptType)> {
    plan.disks.iter().enumerate().find_map(|(disk, planned)| {
        let mut partitions = planned.partitions.iter();
        let partition = partitions.position(|p| p.path.as_os_str() == device)?;
        let gpt_type = planned.partitions[partition].gpt_type;
        Some((Place::New { disk, partition }, gpt_type))
    })
}

fn name_of(filesystem: &Filesystem) -> String {
    match (filesystem.device.as_str(), filesystem.path.as_str()) {
        (device, "") => device.to_owned(),
        ("", path) => path.to_owned(),
        (device, path) => format!("{device} at {path}"),
    }
}

/// Mount points by depth and name, then swap, then tmpfs.
fn order(filesystem: &PlannedFilesystem) -> (u8, usize, String) {
    let class = match filesystem.format {
        Format::Swap => 1,
        Format::Tmpfs => 2,
        _ => 0,
    };
    let depth = filesystem
        .path
        .split('/')
        .filter(|name| !name.is_empty())
        .count();
    (class, depth, filesystem.path.clone())
}

fn warn_about_esp(plan: &mut Plan) {
    let warning = match plan.filesystems.iter().find(|fs| fs.path == "/boot/efi") {
        None => Some("no file system is mounted at /boot/efi: the machine can only be booted over the network or by this medium".to_owned()),
        Some(esp) => match esp.place {
            Place::New { disk, partition } => {
                let partition = &plan.disks[disk].partitions[partition];
                let name = partition.path.display();
                if partition.gpt_type != GptType::Boot {
                    Some(format!("{name} is mounted at /boot/efi, but is not of type GPT_TYPE_BOOT: firmware may not find it"))
                } else if esp.format != Format::Vfat {
                    Some(format!("{name} is mounted at /boot/efi, but is not FAT: firmware cannot read it"))
                } else if partition.size / MIB < MIN_FAT32_MIB {
                    Some(format!("{name} has {} MiB: too small for a FAT32 that every firmware reads", partition.size / MIB))
                } else {
                    None
                }
            }
            Place::Kept { .. } | Place::Memory => None,
        },
    };
    plan.warnings.extend(warning);
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "layout {:?}, scope {}", self.layout, self.extent)?;
        for (index, planned) in self.disks.iter().enumerate() {
            writeln!(f, "{}: new GPT", planned.disk)?;
            for (number, partition) in planned.partitions.iter().enumerate() {
                let place = Place::New {
                    disk: index,
                    partition: number,
                };
                write!(
                    f,
                    "  {} {:?} {:?} at block {}, {} MiB",
                    partition.path.display(),
                    partition.label,
                    partition.gpt_type,
                    partition.start_lba,
                    partition.size / MIB
                )?;
                match self.filesystems.iter().find(|fs| fs.place == place) {
                    Some(filesystem) => writeln!(f, ": {filesystem}")?,
                    None => writeln!(f, ": no file system")?,
                }
            }
        }
        for filesystem in &self.filesystems {
            match &filesystem.place {
                Place::Kept { path } => {
                    writeln!(f, "{}: kept as it is: {filesystem}", path.display())?;
                }
                Place::Memory => writeln!(f, "memory: {filesystem}")?,
                Place::New { .. } => {}
            }
        }
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        Ok(())
    }
}

impl fmt::Display for PlannedFilesystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", super::target::type_name(self.format))?;
        if !self.path.is_empty() {
            write!(f, " at {}", self.path)?;
        }
        if !self.mount_options.is_empty() {
            write!(f, " ({})", self.mount_options.join(","))?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
