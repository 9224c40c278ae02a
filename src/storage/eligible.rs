//! Which disks may be erased at all (contracts.md §9, last paragraph).

use std::fmt;

use serde::Deserialize;
use thiserror::Error;

use super::disks::{DevId, Disk, Transport};

/// Disks that the partition's policy keeps out of every wipe and install. Entries are
/// compared without regard to case; a WWN with or without its `naa.`, `eui.` or `0x`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Exclusions {
    pub serials: Vec<String>,
    pub wwns: Vec<String>,
    /// Device nodes or kernel names: `/dev/sda` or `sda`.
    pub paths: Vec<String>,
}

/// An exclusion that no disk here could ever match: links are udev's, which does not run here.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "policy.exclude_disks names {0:?}; expected a serial, a WWN, or a kernel's path such as /dev/sda: \
     the links below /dev/disk do not exist here. Name the disk by its serial or WWN"
)]
pub struct UnknownLink(String);

impl Exclusions {
    /// An operator names a disk by whatever stands on its label: each entry may be any of the three.
    ///
    /// # Errors
    /// A path that is no device node of the kernel's: the disk that it means would be written.
    pub fn new(entries: &[String]) -> Result<Self, UnknownLink> {
        // Some serials have a slash, but none is like a path or names udev's directories.
        let is_link = |entry: &&String| {
            let entry = entry.trim();
            let below = entry.strip_prefix("/dev/").unwrap_or(entry);
            let is_path = entry.starts_with(['/', '.']) || entry.starts_with("dev/");
            (is_path && below.contains('/')) || (entry.contains("by-") && entry.contains('/'))
        };
        if let Some(link) = entries.iter().find(is_link) {
            return Err(UnknownLink(link.clone()));
        }
        Ok(Self {
            serials: entries.to_vec(),
            wwns: entries.to_vec(),
            paths: entries.to_vec(),
        })
    }
}

/// Why a disk is left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The machine was booted from it.
    BootMedium,
    /// USB: sticks, enclosures, and a BMC's virtual media.
    Usb,
    /// Its model names it as a BMC's virtual medium.
    VirtualMedia,
    /// The medium can be taken out.
    Removable,
    /// Write-protected.
    ReadOnly,
    /// Reached through a network, so other hosts may use it.
    Fabric(Transport),
    /// Policy names it by the value given.
    Excluded(String),
    /// A reservation is held on it, so another host uses it.
    Reserved,
    /// Another path to the disk named, which is in the list already.
    SecondPath(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BootMedium => f.write_str("the medium booted from"),
            Self::Usb => f.write_str("a USB disk"),
            Self::VirtualMedia => f.write_str("virtual media of the BMC"),
            Self::Removable => f.write_str("a removable medium"),
            Self::ReadOnly => f.write_str("read-only"),
            Self::Fabric(transport) => write!(f, "a fabric disk ({transport})"),
            Self::Excluded(by) => write!(f, "excluded by policy ({by})"),
            Self::Reserved => f.write_str("reserved by another host; free it there first"),
            Self::SecondPath(of) => write!(f, "a second path to {of}"),
        }
    }
}

/// The machine's disks, sorted into those that may be erased and those that may not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sorted {
    pub erasable: Vec<Disk>,
    pub left_alone: Vec<(Disk, Reason)>,
}

impl Sorted {
    /// Leaves those alone whose kernel names are in `held`: they are reserved.
    #[must_use]
    pub fn without_reserved(mut self, held: &[String]) -> Self {
        let (reserved, erasable) = self
            .erasable
            .into_iter()
            .partition(|disk| held.contains(&disk.name));
        self.erasable = erasable;
        let reserved: Vec<Disk> = reserved;
        self.left_alone
            .extend(reserved.into_iter().map(|disk| (disk, Reason::Reserved)));
        self
    }
}

/// Sorts `disks`. `boot_medium` is what the machine was booted from, each a disk or one of
/// its partitions, as kernel name, device node or `major:minor`.
#[must_use]
pub fn erasable<'m>(
    disks: Vec<Disk>,
    boot_medium: impl IntoIterator<Item = &'m str>,
    exclusions: &Exclusions,
) -> Sorted {
    let boot_medium: Vec<&str> = boot_medium.into_iter().collect();
    let on_their_own: Vec<Option<Reason>> = disks
        .iter()
        .map(|disk| {
            if boot_medium.iter().any(|medium| is_on(disk, medium)) {
                Some(Reason::BootMedium)
            } else {
                keep_out(disk, exclusions)
            }
        })
        .collect();
    let reasons: Vec<Option<Reason>> = (0..disks.len())
        .map(|this| {
            on_their_own[this]
                .clone()
                .or_else(|| second_path(&disks, &on_their_own, this))
        })
        .collect();
    let mut sorted = Sorted::default();
    for (disk, reason) in disks.into_iter().zip(reasons) {
        match reason {
            Some(reason) => sorted.left_alone.push((disk, reason)),
            None => sorted.erasable.push(disk),
        }
    }
    sorted
}

fn is_on(disk: &Disk, medium: &str) -> bool {
    let name = medium.strip_prefix("/dev/").unwrap_or(medium);
    let dev: Option<DevId> = medium.parse().ok();
    std::iter::once((&disk.name, disk.dev))
        .chain(disk.partitions.iter().map(|p| (&p.name, p.dev)))
        .any(|(its_name, its_dev)| its_name == name || Some(its_dev) == dev)
}

fn keep_out(disk: &Disk, exclusions: &Exclusions) -> Option<Reason> {
    if disk.transport == Transport::Usb {
        Some(Reason::Usb)
    } else if is_virtual_media(&disk.model) {
        Some(Reason::VirtualMedia)
    } else if disk.transport.is_fabric() {
        Some(Reason::Fabric(disk.transport))
    } else if let Some(by) = excluded_by(disk, exclusions) {
        Some(Reason::Excluded(by))
    } else if disk.removable {
        Some(Reason::Removable)
    } else if disk.read_only {
        Some(Reason::ReadOnly)
    } else {
        None
    }
}

/// Models under which BMCs show their virtual media when it is not over USB. A plain
/// "Virtual disk" is what hypervisors call the machine's real disk.
fn is_virtual_media(model: &str) -> bool {
    let model = model.to_ascii_lowercase();
    [
        "virtual floppy",
        "virtual hdisk",
        "virtual media",
        "virtual cd",
        "virtual usb",
    ]
    .iter()
    .any(|name| model.contains(name))
}

fn excluded_by(disk: &Disk, exclusions: &Exclusions) -> Option<String> {
    let same = |a: &str, b: &str| !a.trim().is_empty() && a.trim().eq_ignore_ascii_case(b);
    let path = disk.path.to_string_lossy();
    let by_serial = exclusions
        .serials
        .iter()
        .find(|entry| same(entry, &disk.serial));
    let by_wwn = || {
        exclusions
            .wwns
            .iter()
            .find(|entry| same(bare_wwn(entry), bare_wwn(&disk.wwn)))
    };
    let by_path = || {
        exclusions
            .paths
            .iter()
            .find(|entry| same(entry, &path) || same(entry, &disk.name))
    };
    by_serial
        .map(|serial| format!("serial {serial}"))
        .or_else(|| by_wwn().map(|wwn| format!("WWN {wwn}")))
        .or_else(|| by_path().map(|path| format!("path {path}")))
}

fn bare_wwn(wwn: &str) -> &str {
    let wwn = wwn.trim();
    // The last two as udev names links.
    ["naa.", "eui.", "uuid.", "0x", "wwn-0x", "nvme-eui."]
        .iter()
        .find_map(|prefix| {
            let head = wwn.get(..prefix.len())?;
            head.eq_ignore_ascii_case(prefix)
                .then(|| &wwn[prefix.len()..])
        })
        .unwrap_or(wwn)
}

/// A dual-ported drive shows up once for each path. WWN, serial number and size must all
/// agree: cheap drives share one of them, and a drive taken for a second path by mistake
/// would keep the last tenant's data. A path to a disk that is left alone is left alone.
fn second_path(disks: &[Disk], reasons: &[Option<Reason>], this: usize) -> Option<Reason> {
    let disk = &disks[this];
    if disk.wwn.is_empty() || disk.serial.is_empty() {
        return None;
    }
    let is_twin = |other: &Disk| {
        (&other.wwn, &other.serial, other.size) == (&disk.wwn, &disk.serial, disk.size)
    };
    disks
        .iter()
        .zip(reasons)
        .enumerate()
        .find(|(index, (other, reason))| {
            *index != this && is_twin(other) && (*index < this || reason.is_some())
        })
        .map(|(_, (other, _))| Reason::SecondPath(other.name.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::testing::disk;

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn a_link_that_would_protect_nothing_is_refused() {
        for right in ["S3/4X", "naa.5000c500a1b2c3d4", "/dev/sda", "nvme0n1", ""] {
            let exclusions = Exclusions::new(&strings(&[right])).unwrap();
            assert_eq!(exclusions.paths, [right]);
        }
        for wrong in [
            "/dev/disk/by-id/wwn-0x5000c500a1b2c3d4",
            " /dev/disk/by-path/x",
            "disk/by-id/wwn-0x5000c500a1b2c3d4",
            "by-path/pci-0000:00:1f.2-ata-1",
            "dev/sda",
            "./sda",
            "/sys/block/sda",
        ] {
            let error = Exclusions::new(&strings(&["S1", wrong])).unwrap_err();
            assert_eq!(error, UnknownLink(wrong.to_owned()));
        }
    }

    #[test]
    fn a_wwn_is_the_same_however_it_is_written() {
        for text in [
            "naa.5000c5",
            "0x5000c5",
            "wwn-0x5000c5",
            " NVME-EUI.5000c5",
            "5000c5 ",
        ] {
            assert_eq!(bare_wwn(text), "5000c5", "{text:?}");
        }
    }

    #[test]
    fn each_reason() {
        let exclusions = Exclusions {
            serials: strings(&["keep-1", " ", ""]),
            wwns: strings(&["0x5000C500A1B2C3D4"]),
            paths: strings(&["/dev/sdq", "sdr"]),
        };
        let excluded = |by: &str| Some(Reason::Excluded(by.into()));
        type Change = fn(&mut Disk);
        let table: [(Change, Option<Reason>); 14] = [
            (|_| {}, None),
            (|d| d.serial = String::new(), None),
            (|d| d.transport = Transport::Usb, Some(Reason::Usb)),
            (
                |d| d.model = "AMI Virtual HDisk0".into(),
                Some(Reason::VirtualMedia),
            ),
            (|d| d.model = "VMware Virtual disk".into(), None),
            (|d| d.removable = true, Some(Reason::Removable)),
            (|d| d.read_only = true, Some(Reason::ReadOnly)),
            (
                |d| d.transport = Transport::NvmeFabrics,
                Some(Reason::Fabric(Transport::NvmeFabrics)),
            ),
            (
                |d| d.transport = Transport::FibreChannel,
                Some(Reason::Fabric(Transport::FibreChannel)),
            ),
            (
                |d| d.transport = Transport::Iscsi,
                Some(Reason::Fabric(Transport::Iscsi)),
            ),
            (|d| d.serial = "KEEP-1".into(), excluded("serial keep-1")),
            (
                |d| d.wwn = "naa.5000c500a1b2c3d4".into(),
                excluded("WWN 0x5000C500A1B2C3D4"),
            ),
            (|d| d.path = "/dev/sdq".into(), excluded("path /dev/sdq")),
            (|d| d.name = "sdr".into(), excluded("path sdr")),
        ];
        for (index, (change, reason)) in table.into_iter().enumerate() {
            let mut disk = disk("sda", 1 << 30);
            change(&mut disk);
            let sorted = erasable(vec![disk], None, &exclusions);
            assert_eq!(
                sorted.left_alone.first().map(|(_, reason)| reason),
                reason.as_ref(),
                "{index}"
            );
            assert_eq!(
                sorted.erasable.len(),
                usize::from(reason.is_none()),
                "{index}"
            );
        }
    }

    #[test]
    fn the_boot_medium_by_any_of_its_names() {
        for medium in ["sda", "/dev/sda", "8:0", "sda1", "/dev/sda1", "8:1"] {
            let disks = vec![disk("sda", 1 << 30), disk("sdb", 1 << 30)];
            let sorted = erasable(disks, Some(medium), &Exclusions::default());
            assert_eq!(sorted.left_alone.len(), 1, "{medium}");
            assert_eq!(sorted.left_alone[0].0.name, "sda");
            assert_eq!(sorted.left_alone[0].1, Reason::BootMedium);
            assert_eq!(sorted.erasable[0].name, "sdb");
        }
        let sorted = erasable(vec![disk("sda", 1)], Some("sr0"), &Exclusions::default());
        assert_eq!(sorted.erasable.len(), 1);
        let disks = ["sda", "sdb", "sdc"].map(|name| disk(name, 1 << 30));
        let sorted = erasable(disks.to_vec(), ["sda1", "sdc"], &Exclusions::default());
        assert_eq!(sorted.left_alone.len(), 2);
        assert_eq!(sorted.erasable[0].name, "sdb");
    }

    #[test]
    fn a_reserved_disk_is_left_alone() {
        let disks = ["sda", "sdb"].map(|name| disk(name, 1 << 30));
        let sorted = erasable(disks.to_vec(), None, &Exclusions::default());
        let sorted = sorted.without_reserved(&["sdb".to_owned()]);
        assert_eq!(sorted.erasable.len(), 1);
        assert_eq!(sorted.erasable[0].name, "sda");
        assert_eq!(sorted.left_alone[0].0.name, "sdb");
        assert_eq!(sorted.left_alone[0].1, Reason::Reserved);
    }

    #[test]
    fn a_second_path_needs_all_of_wwn_serial_and_size() {
        let pair = |change: fn(&mut Disk)| {
            let mut a = disk("sda", 1 << 30);
            a.wwn = "naa.1".into();
            a.serial = "S".into();
            let mut b = a.clone();
            b.name = "sdb".into();
            change(&mut b);
            erasable(vec![a, b], None, &Exclusions::default()).left_alone
        };
        let alone = pair(|_| {});
        assert_eq!(alone[0].1, Reason::SecondPath("sda".into()));
        let alone = pair(|d| d.read_only = true);
        assert_eq!(alone[0].1, Reason::SecondPath("sdb".into()));
        assert_eq!(alone[1].1, Reason::ReadOnly);
        assert!(pair(|d| d.wwn = "naa.2".into()).is_empty());
        assert!(pair(|d| d.serial = "T".into()).is_empty());
        assert!(pair(|d| d.serial = String::new()).is_empty());
        assert!(pair(|d| d.size = 2).is_empty());
    }
}
