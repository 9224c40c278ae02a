//! Arrays, volume groups and logical volumes of a plan.

use std::path::PathBuf;

use super::lvm::{self, Kind};
use super::md::{self, Level, Metadata};
use super::plan::{Base, Kept, MIB, Plan, Problem};
use super::plan_devices::{Devices, What};
use crate::control::api::{FilesystemLayout, Format, GptType, LogicalVolume, Raid, VolumeGroup};

/// What a layout may have of each kind; far more than a machine has disks.
const MAX_STACKED: usize = 256;
/// Numbers for arrays that have a name instead, counted downwards as mdadm does.
const FIRST_FREE_NUMBER: u32 = 127;
/// Where LVM's data starts on a partition, its default; an array's stripes may move it.
const LVM_START: u64 = MIB;
const LVM_START_ON_ARRAY: u64 = 4 * MIB;
/// Members of unequal size are worth a warning beyond this share.
const TOLERATED_PERCENT: u64 = 1;

/// An array to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedArray {
    /// As the layout calls it.
    pub name: String,
    /// Its node during the install.
    pub node: PathBuf,
    pub level: Level,
    pub metadata: Metadata,
    /// Spares last.
    pub members: Vec<Base>,
    pub spares: usize,
    /// For `mdadm --create`, one word each, checked.
    pub create_options: Vec<String>,
    /// Bytes, at least.
    pub size: u64,
}

/// A volume group to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedGroup {
    pub name: String,
    pub members: Vec<Base>,
    pub tags: Vec<String>,
}

/// A logical volume to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedVolume {
    /// Index of its group.
    pub group: usize,
    pub name: String,
    pub node: PathBuf,
    pub kind: Kind,
    /// Extents; `None`: all that are left.
    pub extents: Option<u64>,
    /// Bytes, at least.
    pub size: u64,
}

/// Places arrays, then groups, then volumes.
pub(super) fn place(
    layout: &FilesystemLayout,
    devices: &mut Devices,
    plan: &mut Plan,
) -> Result<(), Problem> {
    for raid in &layout.raid {
        place_array(raid, layout, devices, plan).map_err(|problem| Problem::Array {
            name: raid.array_name.chars().take(100).collect(),
            problem,
        })?;
    }
    let mut groups = Groups::default();
    for group in &layout.volume_groups {
        place_group(group, devices, plan, &mut groups).map_err(|problem| Problem::Group {
            name: group.name.chars().take(100).collect(),
            problem,
        })?;
    }
    // What takes the rest of a group comes after all that says a size.
    let (rest, sized): (Vec<_>, Vec<_>) = layout
        .logical_volumes
        .iter()
        .partition(|volume| volume.size == 0);
    for volume in sized.into_iter().chain(rest) {
        place_volume(volume, devices, plan, &mut groups).map_err(|problem| Problem::Volume {
            name: format!("{}/{}", volume.volume_group, volume.name)
                .chars()
                .take(200)
                .collect(),
            problem,
        })?;
    }
    Ok(())
}

/// What the members of a stack are: all made, or all kept.
enum Members {
    New(Vec<Base>),
    Kept(Vec<Kept>),
    Absent,
}

fn take_members(names: &[String], user: &str, devices: &mut Devices) -> Result<Members, String> {
    if names.is_empty() || names.len() > MAX_STACKED {
        return Err(format!(
            "it has {} members; expected 1 to {MAX_STACKED}",
            names.len()
        ));
    }
    let (mut new, mut kept, mut absent) = (Vec::new(), Vec::new(), 0);
    for name in names {
        devices.take(name, user)?;
        match devices.get(name)?.0 {
            What::New(base) => new.push(*base),
            What::Kept(what) => kept.push(what.clone()),
            What::Absent => absent += 1,
        }
    }
    match (new.len(), kept.len(), absent) {
        (_, 0, 0) => Ok(Members::New(new)),
        (0, _, 0) => Ok(Members::Kept(kept)),
        (0, ..) => Ok(Members::Absent),
        _ => Err(format!(
            "{} of its {} members are on disks that carry the root and are made anew, the others on disks that must be left alone; a re-install would break it. Free the machine and allocate it anew",
            new.len(),
            names.len()
        )),
    }
}

fn place_array(
    raid: &Raid,
    layout: &FilesystemLayout,
    devices: &mut Devices,
    plan: &mut Plan,
) -> Result<(), String> {
    let level = Level::parse(&raid.level)?;
    let said = md::options(&raid.create_options)?;
    let name = md::name(&raid.array_name)?;
    let spares = usize::try_from(raid.spares)
        .ok()
        .filter(|spares| *spares == 0 || level == Level::Mirror)
        .ok_or_else(|| format!("it has {} spares; expected none for RAID 0", raid.spares))?;
    if raid.devices.len() < spares + 2 {
        return Err(format!(
            "it has {} members, {spares} of them spares; expected two active ones at least",
            raid.devices.len()
        ));
    }
    for member in &raid.devices {
        if let Ok((_, Some(found @ (GptType::Linux | GptType::LinuxLvm)))) = devices.get(member) {
            plan.warnings.push(format!(
                "{member} is a member of {}, but of type {found:?}: expected LinuxRaid",
                raid.array_name
            ));
        }
    }
    let what = match take_members(&raid.devices, &raid.array_name, devices)? {
        Members::Absent => What::Absent,
        Members::Kept(kept) => {
            let paths = kept.into_iter().map(|kept| match kept {
                Kept::Partition(path) => Some(path),
                Kept::Array { .. } | Kept::Volume(_) => None,
            });
            match paths.collect() {
                Some(members) => What::Kept(Kept::Array {
                    name: raid.array_name.clone(),
                    members,
                }),
                None => What::Kept(Kept::Volume(PathBuf::from(&raid.array_name))),
            }
        }
        Members::New(members) => {
            let sizes: Vec<u64> = members.iter().map(|member| plan.size(*member)).collect();
            let size = md::least_size(level, &sizes);
            if size == 0 {
                return Err("its members are too small for an array".into());
            }
            warn_about_members(&raid.array_name, level, &members, &sizes, plan);
            // Firmware reads a mirrored EFI system partition only if nothing is before the data.
            let is_for_firmware = layout
                .filesystems
                .iter()
                .any(|fs| fs.device == raid.array_name && fs.format == Format::Vfat);
            let default = match is_for_firmware && level == Level::Mirror {
                true => Metadata::V1End,
                false => Metadata::V1Offset,
            };
            let node = match name {
                md::Name::Number(_) => PathBuf::from(&raid.array_name),
                md::Name::Text(_) => free_node(layout, plan),
            };
            plan.arrays.push(PlannedArray {
                name: raid.array_name.clone(),
                node,
                level,
                metadata: said.metadata.unwrap_or(default),
                members,
                spares,
                create_options: raid.create_options.clone(),
                size,
            });
            What::New(Base::Array(plan.arrays.len() - 1))
        }
    };
    if devices.add(vec![raid.array_name.clone()], what) {
        Ok(())
    } else {
        Err("its name is used twice".into())
    }
}

/// A node for an array with a name, that no other array of the layout has.
fn free_node(layout: &FilesystemLayout, plan: &Plan) -> PathBuf {
    let numbers = (0..=FIRST_FREE_NUMBER).rev();
    let mut nodes = numbers.map(|number| format!("/dev/md{number}"));
    let is_free = |node: &String| {
        layout.raid.iter().all(|raid| raid.array_name != *node)
            && plan
                .arrays
                .iter()
                .all(|array| array.node.as_os_str() != node.as_str())
    };
    nodes
        .find(is_free)
        .unwrap_or_else(|| "/dev/md128".to_owned())
        .into()
}

fn warn_about_members(name: &str, level: Level, members: &[Base], sizes: &[u64], plan: &mut Plan) {
    let (least, most) = (
        sizes.iter().copied().min().unwrap_or(0),
        sizes.iter().copied().max().unwrap_or(0),
    );
    if most - least > least / 100 * TOLERATED_PERCENT {
        let consequence = match level {
            Level::Mirror => "what is beyond the smallest is not used",
            Level::Stripe => "what is beyond the smallest is striped over fewer disks",
        };
        plan.warnings.push(format!(
            "{name}: its members have {} to {} MiB; {consequence}",
            least / MIB,
            most / MIB
        ));
    }
    let disks: Vec<usize> = members
        .iter()
        .filter_map(|member| match member {
            Base::Disk(disk) | Base::Partition { disk, .. } => Some(*disk),
            Base::Array(_) | Base::Volume(_) => None,
        })
        .collect();
    let shared = disks
        .iter()
        .enumerate()
        .find(|(index, disk)| disks[..*index].contains(disk));
    if let Some((_, disk)) = shared {
        plan.warnings.push(format!(
            "{name}: two of its members are on {}; the array does not survive that disk",
            plan.disks[*disk].disk.path.display()
        ));
    }
    let block = |disk: &usize| plan.disks[*disk].disk.logical_block_size;
    if disks.iter().any(|disk| block(disk) != block(&disks[0])) {
        plan.warnings.push(format!(
            "{name}: its disks differ in block size; the array has the largest"
        ));
    }
}

/// The groups, as far as volumes care.
#[derive(Default)]
struct Groups(Vec<Group>);

struct Group {
    name: String,
    what: GroupKind,
    has_rest: bool,
}

enum GroupKind {
    /// Index in the plan, and free extents of each member.
    New {
        index: usize,
        free: Vec<u64>,
    },
    Kept,
    Absent,
}

fn place_group(
    group: &VolumeGroup,
    devices: &mut Devices,
    plan: &mut Plan,
    groups: &mut Groups,
) -> Result<(), String> {
    lvm::name(&group.name)?;
    lvm::tags(&group.tags)?;
    if groups.0.iter().any(|other| other.name == group.name) {
        return Err("its name is used twice".into());
    }
    for member in &group.devices {
        if let Ok((_, Some(found))) = devices.get(member)
            && found != GptType::LinuxLvm
        {
            plan.warnings.push(format!(
                "{member} is a member of group {:?}, but of type {found:?}: expected LinuxLvm",
                group.name
            ));
        }
    }
    let what = match take_members(&group.devices, &format!("group {}", group.name), devices)? {
        Members::Absent => GroupKind::Absent,
        Members::Kept(_) => GroupKind::Kept,
        Members::New(members) => {
            let free = members.iter().map(|member| {
                let start = match member {
                    Base::Array(_) => LVM_START_ON_ARRAY,
                    _ => LVM_START,
                };
                lvm::extents(plan.size(*member), start)
            });
            let free: Vec<u64> = free.collect();
            if free.contains(&0) {
                return Err("a member of it is too small; expected 5 MiB at least".into());
            }
            plan.groups.push(PlannedGroup {
                name: group.name.clone(),
                members,
                tags: group.tags.clone(),
            });
            GroupKind::New {
                index: plan.groups.len() - 1,
                free,
            }
        }
    };
    groups.0.push(Group {
        name: group.name.clone(),
        what,
        has_rest: false,
    });
    Ok(())
}

fn place_volume(
    volume: &LogicalVolume,
    devices: &mut Devices,
    plan: &mut Plan,
    groups: &mut Groups,
) -> Result<(), String> {
    lvm::name(&volume.name)?;
    let kind = Kind::parse(&volume.lvm_type)?;
    if plan.volumes.len() >= MAX_STACKED {
        return Err(format!("there are more than {MAX_STACKED} volumes"));
    }
    let group = groups
        .0
        .iter_mut()
        .find(|group| group.name == volume.volume_group)
        .ok_or("its volume group is not defined")?;
    if volume.size == 0 && std::mem::replace(&mut group.has_rest, true) {
        return Err("it takes the rest of its group (size 0), and so does another volume".into());
    }
    let node = lvm::node(&volume.volume_group, &volume.name);
    let short = PathBuf::from(format!("/dev/{}/{}", volume.volume_group, volume.name));
    let what = match &mut group.what {
        GroupKind::Absent => What::Absent,
        GroupKind::Kept => What::Kept(Kept::Volume(node.clone())),
        GroupKind::New { index, free } => {
            let wanted = match volume.size {
                0 => None,
                mib => Some(mib.div_ceil(lvm::EXTENT / MIB)),
            };
            if kind == Kind::Mirror && free.len() < 2 {
                return Err("it is mirrored, but its group has one member only".into());
            }
            let extents = lvm::allocate(free, kind, wanted).map_err(|available| {
                format!(
                    "it needs {} MiB, but as {} volume its group has room for {} MiB",
                    volume.size.max(1),
                    kind.name(),
                    available * (lvm::EXTENT / MIB)
                )
            })?;
            plan.volumes.push(PlannedVolume {
                group: *index,
                name: volume.name.clone(),
                node: node.clone(),
                kind,
                extents: wanted,
                size: extents * lvm::EXTENT,
            });
            What::New(Base::Volume(plan.volumes.len() - 1))
        }
    };
    let names = [node, short].map(|path| path.to_string_lossy().into_owned());
    if devices.add(names.to_vec(), what) {
        Ok(())
    } else {
        Err("its name is used twice".into())
    }
}
