//! The file systems of a plan: what goes where, in which order, and whether firmware can
//! read what it has to.

use super::md::Level;
use super::plan::{Base, Kept, MIB, Place, Plan, PlannedFilesystem, Problem};
use super::plan_checks as checks;
use super::plan_devices::{Devices, What};
use crate::control::api::{Filesystem, FilesystemLayout, Format, GptType};

/// A FAT32 file system has at least so many clusters (Microsoft FAT specification, §3.5), each
/// a block or more, and two tables of four bytes for each.
const MIN_FAT32_CLUSTERS: u64 = 65525;

/// Places every file system of the layout and sorts them into mount order.
pub(super) fn place(
    layout: &FilesystemLayout,
    devices: &mut Devices,
    plan: &mut Plan,
) -> Result<(), Problem> {
    for filesystem in &layout.filesystems {
        let name = name_of(filesystem);
        let wrong = |problem: String| Problem::Filesystem {
            name: name.clone(),
            problem,
        };
        if let Some(planned) = place_one(filesystem, devices, plan).map_err(&wrong)? {
            let is_taken = |other: &PlannedFilesystem| other.path == planned.path;
            if !planned.path.is_empty() && plan.filesystems.iter().any(is_taken) {
                return Err(wrong("its mount point is used twice".into()));
            }
            plan.filesystems.push(planned);
        }
    }
    plan.filesystems.sort_by_key(order);
    Ok(())
}

/// `None` for what is neither made nor mentioned in fstab.
fn place_one(
    filesystem: &Filesystem,
    devices: &mut Devices,
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
    let mut mount_options = checks::mount_options(&filesystem.mount_options)?;
    if format == Format::Swap && !filesystem.create_options.is_empty() {
        let name = &filesystem.device;
        plan.warnings
            .push(format!("{name}: create options of swap are ignored"));
    }
    let place = if format == Format::Tmpfs {
        Place::Memory
    } else {
        let (what, gpt_type) = devices.get(&filesystem.device)?;
        let what = what.clone();
        if format == Format::None {
            return Ok(None);
        }
        if matches!(gpt_type, Some(GptType::LinuxRaid | GptType::LinuxLvm)) {
            return Err(format!(
                "its partition is of type {:?}",
                gpt_type.unwrap_or_default()
            ));
        }
        devices.take(&filesystem.device, "another file system")?;
        match what {
            What::New(base) => Place::New(base),
            What::Kept(kept) => {
                // Nothing was read from a kept volume: the OS must come up without it.
                if matches!(kept, Kept::Volume(_)) && !mount_options.iter().any(|o| o == "nofail") {
                    if mount_options.is_empty() {
                        let default = if format == Format::Swap {
                            "sw"
                        } else {
                            "defaults"
                        };
                        mount_options.push(default.to_owned());
                    }
                    mount_options.push("nofail".to_owned());
                }
                Place::Kept(kept)
            }
            What::Absent => {
                plan.warnings.push(format!(
                    "{} is skipped: a disk of it is not there",
                    name_of(filesystem)
                ));
                return Ok(None);
            }
        }
    };
    Ok(Some(PlannedFilesystem {
        place,
        format,
        path,
        label: filesystem.label.clone(),
        mount_options,
        create_options: filesystem.create_options.clone(),
    }))
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

/// Firmware reads plain FAT and knows neither arrays nor volumes. A mirror whose metadata
/// is behind the data looks like plain FAT to it.
pub(super) fn check_esp(plan: &mut Plan) -> Result<(), Problem> {
    let Some(esp) = plan.filesystems.iter().find(|fs| fs.path == "/boot/efi") else {
        plan.warnings.push("no file system is mounted at /boot/efi: the machine can only be booted over the network or by this medium".to_owned());
        return Ok(());
    };
    let Place::New(base) = esp.place else {
        return Ok(());
    };
    let wrong = |problem: String| {
        Err(Problem::Filesystem {
            name: "/boot/efi".into(),
            problem,
        })
    };
    let members = match base {
        Base::Disk(_) => return wrong("firmware wants a partition, not a whole disk".into()),
        Base::Volume(_) => return wrong("firmware cannot read logical volumes".into()),
        Base::Partition { .. } => vec![base],
        Base::Array(index) => {
            let array = &plan.arrays[index];
            if array.level != Level::Mirror {
                return wrong(format!("firmware cannot read {} of level 0", array.name));
            }
            if !array.metadata.is_at_the_end() {
                return wrong(format!(
                    "firmware cannot read the members of {}, whose metadata {} is in front of the data; expected --metadata=1.0, which is the default here",
                    array.name, array.metadata
                ));
            }
            let members = &array.members[..array.members.len() - array.spares];
            if members.iter().any(|m| plan.partition(*m).is_none()) {
                return wrong(format!(
                    "firmware wants partitions, but {} has a member that is none",
                    array.name
                ));
            }
            members.to_vec()
        }
    };
    let partitions: Vec<_> = members.iter().filter_map(|m| plan.partition(*m)).collect();
    if let [(first, _), others @ ..] = &partitions[..]
        && others
            .iter()
            .any(|(disk, _)| disk.disk.logical_block_size != first.disk.logical_block_size)
    {
        return wrong("its mirrored disks differ in block size, so that firmware could read FAT on one kind only".into());
    }
    let node = plan.node(base).unwrap_or_else(|| std::path::Path::new(""));
    let mib = plan.size(base) / MIB;
    let block = partitions
        .first()
        .map_or(512, |(disk, _)| u64::from(disk.disk.logical_block_size));
    let least = (MIN_FAT32_CLUSTERS * (block + 8)).div_ceil(MIB);
    let odd = partitions
        .iter()
        .find(|(_, partition)| partition.gpt_type != GptType::Boot);
    let warning = if let Some((_, partition)) = odd {
        let name = partition.path.display();
        Some(format!(
            "{name} is mounted at /boot/efi, but is not of type GPT_TYPE_BOOT: firmware may not find it"
        ))
    } else if esp.format != Format::Vfat {
        Some(format!(
            "{} is mounted at /boot/efi, but is not FAT: firmware cannot read it",
            node.display()
        ))
    } else if mib < least {
        Some(format!(
            "{} has {mib} MiB: too small for a FAT32 that every firmware reads; expected {least} MiB",
            node.display()
        ))
    } else {
        None
    };
    plan.warnings.extend(warning);
    Ok(())
}
