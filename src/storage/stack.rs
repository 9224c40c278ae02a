//! What stands on disks: arrays, device-mapper volumes, and whatever else holds them. It is
//! found by walking `holders` in sysfs and taken down from the top.
//!
//! Nothing assembles arrays or volumes at boot. What is found was left by an attempt of this
//! boot, or by an operator's hand; either way a disk can only be written below nothing.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::disks::{DevId, Disk};
use super::{device, lvm};

/// How many layers a stack may have, and devices in all.
const MAX_DEPTH: usize = 16;
const MAX_LAYERS: usize = 1024;
/// Probes hold a device for moments; there is no event for their end.
const SETTLE: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(20);

/// One device of a stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Kernel name.
    pub name: String,
    pub kind: Kind,
}

/// How a device is taken down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// An md array.
    Array,
    /// A device-mapper device, LVM's and all others, by its own name.
    Mapper(String),
    /// Neither of the two.
    Other,
}

/// Why a disk is still below something.
#[derive(Debug, Error)]
pub enum Error {
    #[error("cannot read {path}: {source}; expected sysfs")]
    Sysfs { path: PathBuf, source: io::Error },
    #[error("the stack on {disk} has more than {MAX_DEPTH} layers or {MAX_LAYERS} devices")]
    TooMuch { disk: PathBuf },
    #[error(
        "{name} stands on {disk} and on {other}, which must not be written; stop it by hand, or free the machine"
    )]
    Foreign {
        name: String,
        disk: PathBuf,
        other: String,
    },
    #[error("cannot stop {name}, which stands on {disk}: {source}; it is used by {by}")]
    Stop {
        name: String,
        disk: PathBuf,
        source: io::Error,
        by: String,
    },
    #[error(
        "{name} stands on {disk} and is neither an array nor a mapped device: it has to be stopped by hand"
    )]
    Unknown { name: String, disk: PathBuf },
}

/// Everything that stands on `disks`, each device before what it stands on.
///
/// # Errors
/// When sysfs cannot be read, is bottomless, or a device also stands on other disks.
pub fn on(sys: &Path, disks: &[Disk]) -> Result<Vec<Layer>, Error> {
    let mut found = Vec::new();
    let mut ours = BTreeSet::new();
    for disk in disks {
        let dir = sys.join("dev/block").join(disk.dev.to_string());
        // A disk that was pulled has nothing on it any more.
        if dir.exists() {
            ours.insert(disk.name.clone());
            visit(sys, &dir, disk, MAX_DEPTH, &mut found, &mut ours)?;
        }
    }
    for (layer, disk) in &found {
        for slave in names(&sys.join("block").join(&layer.name).join("slaves"))? {
            if !ours.contains(&slave) {
                return Err(Error::Foreign {
                    name: layer.name.clone(),
                    disk: disk.clone(),
                    other: slave,
                });
            }
        }
    }
    Ok(found.into_iter().map(|(layer, _)| layer).collect())
}

fn visit(
    sys: &Path,
    dir: &Path,
    disk: &Disk,
    depth: usize,
    found: &mut Vec<(Layer, PathBuf)>,
    ours: &mut BTreeSet<String>,
) -> Result<(), Error> {
    if depth == 0 || found.len() >= MAX_LAYERS {
        return Err(Error::TooMuch {
            disk: disk.path.clone(),
        });
    }
    let mut holders = names(&dir.join("holders"))?;
    for part in names(dir)? {
        if dir.join(&part).join("partition").exists() {
            holders.extend(names(&dir.join(&part).join("holders"))?);
            ours.insert(part);
        }
    }
    for holder in holders {
        if ours.contains(&holder) {
            continue;
        }
        let dir = sys.join("block").join(&holder);
        visit(sys, &dir, disk, depth - 1, found, ours)?;
        // A loop has put it there meanwhile.
        if ours.insert(holder.clone()) {
            let kind = match fs::read_to_string(dir.join("dm/name")) {
                Ok(name) => Kind::Mapper(name.trim_end().to_owned()),
                Err(_) if dir.join("md").exists() => Kind::Array,
                Err(_) => Kind::Other,
            };
            let layer = Layer { name: holder, kind };
            found.push((layer, disk.path.clone()));
        }
    }
    Ok(())
}

/// Names in a directory, sorted; none when it is not there.
fn names(dir: &Path) -> Result<Vec<String>, Error> {
    let failed = |source| Error::Sysfs {
        path: dir.to_path_buf(),
        source,
    };
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(
            entry
                .map_err(failed)?
                .file_name()
                .to_string_lossy()
                .into_owned(),
        );
    }
    names.sort();
    Ok(names)
}

/// Takes down everything that stands on `disks`, from the top. Data in flight is written
/// first: arrays end clean.
///
/// # Errors
/// When something is mounted, stands on other disks too, or does not end.
pub fn take_down(disks: &[Disk]) -> Result<(), Error> {
    let sys = Path::new("/sys");
    for layer in on(sys, disks)? {
        let disk = disks
            .first()
            .map(|disk| disk.path.clone())
            .unwrap_or_default();
        let stopped = match &layer.kind {
            Kind::Array => patiently(|| stop_array(sys, &layer.name)),
            Kind::Mapper(name) => patiently(|| remove_mapped(name)),
            Kind::Other => {
                return Err(Error::Unknown {
                    name: layer.name,
                    disk,
                });
            }
        };
        stopped.map_err(|source| Error::Stop {
            by: users(sys, &layer.name),
            name: layer.name.clone(),
            disk,
            source,
        })?;
        tracing::info!("{} was stopped", layer.name);
        wait_until_gone(&sys.join("block").join(&layer.name));
    }
    Ok(())
}

fn users(sys: &Path, name: &str) -> String {
    let dev = fs::read_to_string(sys.join("block").join(name).join("dev"));
    let dev = dev.ok().and_then(|dev| dev.trim().parse::<DevId>().ok());
    match dev {
        Some(dev) => device::users_of(sys, Path::new("/proc"), &[(name.to_owned(), dev)]),
        None => "another program".to_owned(),
    }
}

fn patiently(mut act: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let deadline = Instant::now() + SETTLE;
    loop {
        match act() {
            Err(error)
                if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline =>
            {
                std::thread::sleep(STEP);
            }
            other => return other,
        }
    }
}

/// The name of what was stopped may be given again only after the kernel has dropped it.
fn wait_until_gone(dir: &Path) {
    let deadline = Instant::now() + SETTLE;
    while dir.exists() && Instant::now() < deadline {
        std::thread::sleep(STEP);
    }
}

/// Kernel, `Documentation/admin-guide/md.rst`: `clear` stops the array.
fn stop_array(sys: &Path, name: &str) -> io::Result<()> {
    let state = sys.join("block").join(name).join("md/array_state");
    OpenOptions::new()
        .write(true)
        .open(state)?
        .write_all(b"clear")
}

/// Kernel, `include/uapi/linux/dm-ioctl.h`, `struct dm_ioctl`.
#[repr(C)]
struct DmIoctl {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    data: [u8; 7],
}

const DM_IOCTL_SIZE: u32 = 312;
const _: () = assert!(size_of::<DmIoctl>() == DM_IOCTL_SIZE as usize);

mod ioctl {
    nix::ioctl_readwrite!(dm_dev_remove, 0xfd, 4, super::DmIoctl);
}

fn remove_mapped(name: &str) -> io::Result<()> {
    let mut request = DmIoctl {
        version: [4, 0, 0],
        data_size: DM_IOCTL_SIZE,
        data_start: 0,
        target_count: 0,
        open_count: 0,
        flags: 0,
        event_nr: 0,
        padding: 0,
        dev: 0,
        name: [0; 128],
        uuid: [0; 129],
        data: [0; 7],
    };
    // One byte stays zero: the kernel wants the name to end.
    let length = name.len().min(request.name.len() - 1);
    request.name[..length].copy_from_slice(&name.as_bytes()[..length]);
    let control = File::open("/dev/mapper/control")?;
    // SAFETY: the kernel reads and writes `data_size` bytes of `request`, which is that long
    // and lives through the call.
    unsafe { ioctl::dm_dev_remove(control.as_raw_fd(), &raw mut request) }?;
    // No udev runs that would remove what LVM has put into /dev, and LVM takes a directory
    // there for a group that exists.
    remove_nodes(Path::new("/dev"), name)
}

fn remove_nodes(dev: &Path, name: &str) -> io::Result<()> {
    let tolerate = |result: io::Result<()>, kind| match result {
        Err(error) if error.kind() != kind => Err(error),
        _ => Ok(()),
    };
    let gone = io::ErrorKind::NotFound;
    tolerate(fs::remove_file(dev.join("mapper").join(name)), gone)?;
    let Some((group, volume)) = lvm::names_of(name) else {
        return Ok(());
    };
    let group = dev.join(group);
    let link = group.join(volume);
    if link.is_symlink() {
        tolerate(fs::remove_file(link), gone)?;
        tolerate(fs::remove_dir(group), io::ErrorKind::DirectoryNotEmpty)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::testing::disk;

    /// A sysfs in which `holders` are (what is held, who holds it).
    fn sysfs(holders: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let sys = root.path();
        for (name, dev, partitions) in [
            ("sda", "8:0", vec!["sda1", "sda2"]),
            ("sdb", "8:16", vec!["sdb1"]),
        ] {
            let dir = sys.join("block").join(name);
            fs::create_dir_all(dir.join("holders")).unwrap();
            fs::create_dir_all(sys.join("dev/block")).unwrap();
            std::os::unix::fs::symlink(&dir, sys.join("dev/block").join(dev)).unwrap();
            for partition in partitions {
                fs::create_dir_all(dir.join(partition).join("holders")).unwrap();
                fs::write(dir.join(partition).join("partition"), "1").unwrap();
            }
        }
        for (held, holder) in holders {
            let dir = sys.join("block").join(holder);
            fs::create_dir_all(dir.join("slaves").join(held)).unwrap();
            if let Some(number) = holder.strip_prefix("dm-") {
                fs::create_dir_all(dir.join("dm")).unwrap();
                fs::write(dir.join("dm/name"), format!("vg-lv{number}\n")).unwrap();
            } else if holder.starts_with("md") {
                fs::create_dir_all(dir.join("md")).unwrap();
            }
            let disk = held.trim_end_matches(|c: char| c.is_ascii_digit());
            let below = match disk {
                "sda" | "sdb" if disk != *held => sys.join("block").join(disk).join(held),
                _ => sys.join("block").join(held),
            };
            fs::create_dir_all(below.join("holders").join(holder)).unwrap();
        }
        root
    }

    fn names_on(holders: &[(&str, &str)], disks: &[&str]) -> Result<Vec<String>, String> {
        let root = sysfs(holders);
        let disks: Vec<_> = disks.iter().map(|name| disk(name, 1 << 30)).collect();
        on(root.path(), &disks)
            .map(|layers| layers.into_iter().map(|layer| layer.name).collect())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn what_stands_on_top_comes_first() {
        let stack = [
            ("sda1", "md0"),
            ("sdb1", "md0"),
            ("md0", "dm-0"),
            ("md0", "dm-1"),
            ("dm-0", "dm-2"),
            ("dm-1", "dm-2"),
            ("sda2", "md1"),
        ];
        let names = names_on(&stack, &["sda", "sdb"]).unwrap();
        assert_eq!(names, ["dm-2", "dm-0", "dm-1", "md0", "md1"]);
        assert!(names_on(&[], &["sda", "sdb"]).unwrap().is_empty());
        assert!(names_on(&stack, &["sdx"]).unwrap().is_empty());
    }

    #[test]
    fn kinds() {
        let root = sysfs(&[("sda1", "md0"), ("sda2", "dm-7"), ("sda", "bcache0")]);
        let layers = on(root.path(), &[disk("sda", 1 << 30)]).unwrap();
        let kinds: Vec<_> = layers.into_iter().map(|layer| layer.kind).collect();
        assert_eq!(
            kinds,
            [Kind::Other, Kind::Array, Kind::Mapper("vg-lv7".to_owned())]
        );
    }

    #[test]
    fn what_stands_on_other_disks_too_is_refused() {
        let error = names_on(&[("sda1", "md0"), ("sdb1", "md0")], &["sda"]).unwrap_err();
        assert_eq!(
            error,
            "md0 stands on /dev/sda and on sdb1, which must not be written; stop it by hand, or free the machine"
        );
    }

    #[test]
    fn what_lvm_put_into_dev_goes_too() {
        let root = tempfile::tempdir().unwrap();
        let dev = root.path();
        fs::create_dir_all(dev.join("mapper")).unwrap();
        fs::create_dir_all(dev.join("vg-a")).unwrap();
        for (node, volume) in [("vg--a-x", "x"), ("vg--a-y", "y")] {
            fs::write(dev.join("mapper").join(node), "").unwrap();
            std::os::unix::fs::symlink(
                dev.join("mapper").join(node),
                dev.join("vg-a").join(volume),
            )
            .unwrap();
        }
        remove_nodes(dev, "vg--a-x").unwrap();
        assert!(dev.join("vg-a/y").is_symlink() && !dev.join("vg-a/x").is_symlink());
        remove_nodes(dev, "vg--a-y").unwrap();
        assert!(!dev.join("vg-a").exists() && !dev.join("mapper/vg--a-y").exists());
        remove_nodes(dev, "vg--a-y").unwrap();
        remove_nodes(dev, "crypt").unwrap();
    }

    #[test]
    fn a_loop_ends() {
        let error = names_on(
            &[("sda1", "md0"), ("md0", "dm-0"), ("dm-0", "md0")],
            &["sda"],
        )
        .unwrap_err();
        assert!(error.contains("more than 16 layers"), "{error}");
    }
}
