//! Which disks a [`WipeScope`] reaches.
//!
//! [`ScopedDisks`] is the only thing that wipe, plan and apply accept for writing, and
//! [`disks_in_scope`] is the only thing that makes one: it needs a scope, which only
//! `decide` makes, and disks that `eligible` found erasable.

use std::collections::BTreeSet;
use std::path::Path;

use thiserror::Error;

use super::disks::{Disk, partition_name};
use super::eligible::{Reason, Sorted};
use crate::control::api::{FilesystemLayout, Format};
use crate::decide::{Extent, WipeScope};

/// How many layers (volume on array on partition on disk) a layout may stack.
const MAX_DEPTH: usize = 8;

/// Disks that may be written, and how far the right goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScopedDisks {
    extent: Extent,
    disks: Vec<Disk>,
}

impl ScopedDisks {
    #[must_use]
    pub fn extent(&self) -> Extent {
        self.extent
    }

    #[must_use]
    pub fn disks(&self) -> &[Disk] {
        &self.disks
    }

    /// Fewer of the same disks.
    #[must_use]
    pub fn only(&self, mut wanted: impl FnMut(&Disk) -> bool) -> Self {
        let disks = self.disks.iter().filter(|disk| wanted(disk)).cloned();
        Self {
            extent: self.extent,
            disks: disks.collect(),
        }
    }

    #[must_use]
    pub fn contains(&self, disk: &Disk) -> bool {
        self.disks.iter().any(|scoped| scoped.dev == disk.dev)
    }
}

/// Why the disks in scope cannot be told. Nothing was written.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Error {
    #[error("only the root disk may be written, but there is no layout to tell which it is")]
    NoLayout,
    #[error("layout {layout:?}: {count} file systems are mounted at {path}; expected exactly one")]
    NotOne {
        layout: String,
        path: &'static str,
        count: usize,
    },
    #[error(
        "layout {layout:?}: cannot tell which disk {device:?} is on: {problem}; expected a partition of one of the layout's disks, a RAID array, a logical volume, or a disk itself"
    )]
    Untold {
        layout: String,
        device: String,
        problem: &'static str,
    },
    #[error("layout {layout:?}: {source}")]
    Disk {
        layout: String,
        source: UnusableDisk,
    },
}

/// A disk that the layout names and that must not, or cannot, be written.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum UnusableDisk {
    #[error(
        "{device:?} is not a kernel device name; expected for example /dev/sda (links below /dev/disk do not exist during the install)"
    )]
    NotAKernelName { device: String },
    #[error("there is no disk {device}; this machine has {present}")]
    Missing { device: String, present: String },
    #[error("{device} must not be written: it is {reason}")]
    LeftAlone { device: String, reason: Reason },
}

/// The disks that `scope` reaches.
///
/// [`Extent::EveryDisk`] reaches every erasable disk, [`Extent::RootDisks`] exactly those of
/// [`root_disks`].
///
/// # Errors
/// As [`root_disks`].
pub fn disks_in_scope(
    scope: &WipeScope,
    sorted: &Sorted,
    layout: Option<&FilesystemLayout>,
) -> Result<ScopedDisks, Error> {
    let extent = scope.extent();
    let disks = match extent {
        Extent::EveryDisk => sorted.erasable.clone(),
        Extent::RootDisks => root_disks(sorted, layout.ok_or(Error::NoLayout)?)?,
    };
    Ok(ScopedDisks { extent, disks })
}

/// The disks under the layout's `/` and `/boot/efi`, through partitions, arrays and volumes.
///
/// # Errors
/// When they cannot be told without doubt, or one of them is missing or not erasable.
pub fn root_disks(sorted: &Sorted, layout: &FilesystemLayout) -> Result<Vec<Disk>, Error> {
    let mut names = BTreeSet::new();
    for (path, required) in [("/", true), ("/boot/efi", false)] {
        let at_path: Vec<_> = layout
            .filesystems
            .iter()
            .filter(|fs| !matches!(fs.format, Format::Swap | Format::Tmpfs))
            .filter(|fs| !fs.path.is_empty() && Path::new(&fs.path) == Path::new(path))
            .collect();
        match at_path[..] {
            [] if !required => {}
            [filesystem] => names.extend(disks_under(layout, &filesystem.device, MAX_DEPTH)?),
            _ => {
                return Err(Error::NotOne {
                    layout: layout.id.clone(),
                    path,
                    count: at_path.len(),
                });
            }
        }
    }
    names
        .iter()
        .map(|device| {
            find(sorted, device).cloned().map_err(|source| Error::Disk {
                layout: layout.id.clone(),
                source,
            })
        })
        .collect()
}

/// The disks, as the layout names them, that carry `device`.
fn disks_under(
    layout: &FilesystemLayout,
    device: &str,
    depth: usize,
) -> Result<BTreeSet<String>, Error> {
    let untold = |problem| Error::Untold {
        layout: layout.id.clone(),
        device: device.to_owned(),
        problem,
    };
    if depth == 0 {
        return Err(untold("it is stacked too deep, or on itself"));
    }
    // Each entry: the devices one layer below.
    let mut found: Vec<Vec<String>> = Vec::new();
    let mut on_disk = Vec::new();
    for disk in &layout.disks {
        let partitions = disk.partitions.iter();
        let is_it = partitions
            .map(|partition| partition_name(&disk.device, partition.number))
            .chain([disk.device.clone()])
            .filter(|name| name == device);
        on_disk.extend(is_it.map(|_| disk.device.clone()));
    }
    for raid in &layout.raid {
        if raid.array_name == device {
            found.push(raid.devices.clone());
        }
    }
    for volume in &layout.logical_volumes {
        let names = [
            format!("/dev/{}/{}", volume.volume_group, volume.name),
            format!(
                "/dev/mapper/{}-{}",
                volume.volume_group.replace('-', "--"),
                volume.name.replace('-', "--")
            ),
        ];
        if names.iter().any(|name| name == device) {
            let groups = layout.volume_groups.iter();
            let group: Vec<_> = groups.filter(|g| g.name == volume.volume_group).collect();
            match group[..] {
                [group] => found.push(group.devices.clone()),
                _ => return Err(untold("its volume group is not defined exactly once")),
            }
        }
    }
    match (&on_disk[..], &found[..]) {
        ([disk], []) => Ok(BTreeSet::from([disk.clone()])),
        ([], [below]) if below.is_empty() => Err(untold("it has no members")),
        ([], [below]) => {
            let mut disks = BTreeSet::new();
            for member in below {
                disks.extend(disks_under(layout, member, depth - 1)?);
            }
            Ok(disks)
        }
        ([], []) => Err(untold("the layout does not define it")),
        _ => Err(untold("the layout defines it more than once")),
    }
}

/// The erasable disk that a layout calls `device`.
///
/// # Errors
/// When it is no kernel name, is not there, or is left alone.
pub(super) fn find<'d>(sorted: &'d Sorted, device: &str) -> Result<&'d Disk, UnusableDisk> {
    let name = device.strip_prefix("/dev/").unwrap_or("");
    if name.is_empty() || name.contains('/') || name.contains("..") {
        return Err(UnusableDisk::NotAKernelName {
            device: device.to_owned(),
        });
    }
    if let Some(disk) = sorted.erasable.iter().find(|disk| disk.name == name) {
        return Ok(disk);
    }
    match sorted.left_alone.iter().find(|(disk, _)| disk.name == name) {
        Some((_, reason)) => Err(UnusableDisk::LeftAlone {
            device: device.to_owned(),
            reason: reason.clone(),
        }),
        None => Err(UnusableDisk::Missing {
            device: device.to_owned(),
            present: present(sorted),
        }),
    }
}

fn present(sorted: &Sorted) -> String {
    let erasable = sorted.erasable.iter().map(ToString::to_string);
    let left_alone = sorted
        .left_alone
        .iter()
        .map(|(disk, reason)| format!("{disk} [{reason}]"));
    let all: Vec<String> = erasable.chain(left_alone).collect();
    if all.is_empty() {
        "no disks at all".to_owned()
    } else {
        all.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::{GptType, LogicalVolume, Raid, VolumeGroup};
    use crate::storage::testing::{
        disk, every_disk, filesystem, layout, partition, root_disks as root_scope,
    };

    fn machine() -> Sorted {
        let mut usb = disk("sdu", 1 << 30);
        usb.transport = super::super::disks::Transport::Usb;
        Sorted {
            erasable: ["sda", "sdb", "sdc"]
                .map(|name| disk(name, 100 << 30))
                .to_vec(),
            left_alone: vec![(usb, Reason::Usb)],
        }
    }

    fn names(scoped: &ScopedDisks) -> Vec<&str> {
        scoped.disks().iter().map(|disk| &*disk.name).collect()
    }

    fn root_of(layout: &FilesystemLayout) -> Result<Vec<String>, String> {
        disks_in_scope(&root_scope(), &machine(), Some(layout))
            .map(|scoped| names(&scoped).into_iter().map(str::to_owned).collect())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn every_disk_is_every_erasable_disk() {
        let scoped = disks_in_scope(&every_disk(), &machine(), None).unwrap();
        assert_eq!(names(&scoped), ["sda", "sdb", "sdc"]);
        assert_eq!(scoped.extent(), Extent::EveryDisk);
    }

    #[test]
    fn the_root_disk_alone() {
        assert_eq!(root_of(&layout()).unwrap(), ["sda"]);
        let mut split = layout();
        split.filesystems[2].device = "/dev/sdb1".into();
        assert_eq!(root_of(&split).unwrap(), ["sda", "sdb"]);
        let mut no_esp = layout();
        no_esp.filesystems.remove(2);
        assert_eq!(root_of(&no_esp).unwrap(), ["sda"]);
        // Neither is a root, whatever stands there.
        for (device, format) in [("tmpfs", Format::Tmpfs), ("/dev/sdb1", Format::Swap)] {
            let mut odd = layout();
            odd.filesystems.push(filesystem(device, format, "/"));
            assert_eq!(root_of(&odd).unwrap(), ["sda"], "{device}");
        }
    }

    #[test]
    fn fewer_disks_are_no_wider_a_right() {
        for (scope, extent) in [
            (root_scope(), Extent::RootDisks),
            (every_disk(), Extent::EveryDisk),
        ] {
            let scoped = disks_in_scope(&scope, &machine(), Some(&layout())).unwrap();
            let fewer = scoped.only(|disk| disk.name == "sda");
            assert_eq!((fewer.extent(), &*names(&fewer)), (extent, &["sda"][..]));
        }
    }

    #[test]
    fn through_volumes_on_arrays() {
        let mut stacked = layout();
        stacked.disks[1]
            .partitions
            .push(partition(3, "r", 0, GptType::LinuxRaid));
        stacked.raid.push(Raid {
            array_name: "/dev/md1".into(),
            devices: vec!["/dev/sda3".into(), "/dev/sdb3".into()],
            ..Raid::default()
        });
        stacked.volume_groups.push(VolumeGroup {
            name: "vg-a".into(),
            devices: vec!["/dev/md1".into()],
            tags: vec![],
        });
        stacked.logical_volumes.push(LogicalVolume {
            name: "root".into(),
            volume_group: "vg-a".into(),
            ..LogicalVolume::default()
        });
        for device in ["/dev/vg-a/root", "/dev/mapper/vg--a-root"] {
            stacked.filesystems[3].device = device.into();
            assert_eq!(root_of(&stacked).unwrap(), ["sda", "sdb"], "{device}");
        }
        stacked.raid[0].devices = vec!["/dev/md1".into()];
        assert!(root_of(&stacked).unwrap_err().contains("stacked too deep"));
        stacked.raid[0].devices = vec![];
        assert!(root_of(&stacked).unwrap_err().contains("no members"));
        stacked.volume_groups.push(stacked.volume_groups[0].clone());
        assert!(
            root_of(&stacked)
                .unwrap_err()
                .contains("not defined exactly once")
        );
    }

    #[test]
    fn doubt_is_an_error() {
        type Change = fn(&mut FilesystemLayout);
        let table: [(Change, &str); 8] = [
            (
                |l| l.filesystems[3].path = "/x".into(),
                "0 file systems are mounted at /",
            ),
            (
                |l| l.filesystems[1].path = "//".into(),
                "2 file systems are mounted at /",
            ),
            (
                |l| l.filesystems[1].path = "/boot/efi/".into(),
                "2 file systems are mounted at /boot/efi",
            ),
            (
                |l| l.filesystems[3].device = "/dev/sda9".into(),
                "does not define it",
            ),
            (
                |l| l.disks[0].partitions[2].number = 2,
                "defines it more than once",
            ),
            (
                |l| {
                    l.disks[0].device = "/dev/disk/by-id/x".into();
                    l.filesystems[3].device = "/dev/disk/by-id/x2".into();
                    l.filesystems.remove(2);
                },
                "not a kernel device name",
            ),
            (
                |l| {
                    l.disks[0].device = "/dev/sdu".into();
                    l.filesystems[3].device = "/dev/sdu2".into();
                    l.filesystems.remove(2);
                },
                "/dev/sdu must not be written: it is a USB disk",
            ),
            (
                |l| {
                    l.disks[0].device = "/dev/sdx".into();
                    l.filesystems[3].device = "/dev/sdx2".into();
                    l.filesystems.remove(2);
                },
                "there is no disk /dev/sdx; this machine has /dev/sda (SATA TEST",
            ),
        ];
        for (index, (change, expected)) in table.into_iter().enumerate() {
            let mut changed = layout();
            change(&mut changed);
            let error = root_of(&changed).unwrap_err();
            assert!(error.contains(expected), "{index}: {error}");
            assert!(error.contains("two-disks"), "{index}: {error}");
        }
        let error = disks_in_scope(&root_scope(), &machine(), None).unwrap_err();
        assert_eq!(error, Error::NoLayout);
        let mut array_twice = layout();
        array_twice.filesystems = vec![filesystem("/dev/md1", Format::Ext4, "/")];
        for _ in 0..2 {
            array_twice.raid.push(Raid {
                array_name: "/dev/md1".into(),
                devices: vec!["/dev/sda1".into()],
                ..Raid::default()
            });
        }
        assert!(
            root_of(&array_twice)
                .unwrap_err()
                .contains("more than once")
        );
    }
}
