//! The boot medium: which block device it is, and the `metal.config` on it.
//!
//! Told by its ISO 9660 volume id, not by its name: the same file is a CD on one BMC and
//! a USB disk on the next. Whatever carries it is never in a wipe's scope.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use thiserror::Error;

use super::digest::{self, DigestError};
use super::file::MAX_BYTES;

/// Where `metal.config` stands on the medium.
const CONFIG: &str = "boot/metal.config";
/// Its digest, on media that `scripts/iso-config` can write to.
const DIGEST: &str = "boot/metal.config.sha256";

/// A USB CD behind a BMC takes seconds to appear; virtual media over a WAN more.
const PATIENCE: Duration = Duration::from_secs(30);

/// Nothing tells a process without udev about block devices except a netlink socket that
/// has to be open before they appear; looking again this often costs less than that.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// ECMA-119 §8.4: the primary volume descriptor is sector 16; its identifier "CD001" stands
/// at byte 1 and the volume identifier, 32 bytes padded with blanks, at byte 40.
const DESCRIPTOR: u64 = 16 * 2048;

/// Why the medium or its `metal.config` could not be read.
#[derive(Debug, Error)]
pub enum MediumError {
    #[error(
        "no block device with the volume id {label:?}, which METAL_MEDIUM on the kernel command line names, appeared within {} s, \
         so its boot/metal.config and the disks that it excludes are unknown; nothing was written. \
         Connect the virtual medium again, or boot without METAL_MEDIUM",
        PATIENCE.as_secs()
    )]
    Missing { label: String },
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(transparent)]
    Digest(#[from] DigestError),
}

/// The medium that this boot came from.
#[derive(Debug, PartialEq, Eq)]
pub struct Medium {
    /// Kernel names that carry it: the disk and, on a USB stick, the partition too.
    pub names: Vec<String>,
    /// The bytes of `boot/metal.config`; `None` when it has none.
    pub config: Option<Vec<u8>>,
}

/// Waits for the medium with the given volume id and reads its `metal.config`.
///
/// # Errors
/// When it does not appear in time, cannot be mounted or read, or its `metal.config` does not fit
/// the digest beside it.
pub fn read(sys: &Path, dev: &Path, label: &str, mountpoint: &Path) -> Result<Medium, MediumError> {
    let deadline = Instant::now() + PATIENCE;
    let names = loop {
        let late = Instant::now() > deadline;
        let (kind, names) = carriers(sys, dev, label);
        if is_found(kind, late) {
            break names;
        }
        if late {
            return Err(MediumError::Missing {
                label: label.to_owned(),
            });
        }
        std::thread::sleep(LOOK_EVERY);
    };
    let device = dev.join(&names[0]);
    let config = read_config(&device, mountpoint)?;
    Ok(Medium { names, config })
}

/// Whether the best carrier so far is taken. The label is public, so a disk of the machine may
/// carry it too, and is there before a USB or CD drive: it has to wait for those to appear.
fn is_found(best: Option<Kind>, late: bool) -> bool {
    match best {
        Some(Kind::Cd | Kind::Removable) => true,
        Some(Kind::BuiltIn) => late,
        None => false,
    }
}

/// The most credible block devices that carry an ISO 9660 volume with this id: what they are,
/// and their kernel names.
fn carriers(sys: &Path, dev: &Path, label: &str) -> (Option<Kind>, Vec<String>) {
    let Ok(entries) = fs::read_dir(sys.join("class/block")) else {
        return (None, Vec::new());
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !name.starts_with("ram") && !name.starts_with("loop"))
        .filter(|name| {
            File::open(dev.join(name))
                .is_ok_and(|device| volume_id(&device).is_ok_and(|id| id == label))
        })
        .collect();
    names.sort();
    // A tenant may have written a volume of this name to a disk of the machine: what can be
    // taken out, as virtual media can, is believed before what is built in.
    let best = names.iter().map(|name| kind(sys, name)).min();
    names.retain(|name| Some(kind(sys, name)) == best);
    (best, names)
}

/// What a block device is, most credible as a boot medium first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Cd,
    Removable,
    BuiltIn,
}

fn kind(sys: &Path, name: &str) -> Kind {
    if name.starts_with("sr") {
        return Kind::Cd;
    }
    // The link leads through the buses, `…/usb2/2-1/…/block/sda/sda1`; `removable` is the disk's.
    let link = sys.join("class/block").join(name);
    let Ok(place) = fs::canonicalize(&link) else {
        return Kind::BuiltIn;
    };
    let on_usb = place
        .components()
        .any(|part| part.as_os_str().as_encoded_bytes().starts_with(b"usb"));
    let removable = [place.join("removable"), place.join("../removable")]
        .iter()
        .any(|file| fs::read_to_string(file).is_ok_and(|text| text.trim() == "1"));
    if on_usb || removable {
        Kind::Removable
    } else {
        Kind::BuiltIn
    }
}

/// The volume id of an ISO 9660 image.
fn volume_id(device: &File) -> io::Result<String> {
    let mut sector = [0; 2048];
    device.read_exact_at(&mut sector, DESCRIPTOR)?;
    if sector[0] != 1 || &sector[1..6] != b"CD001" {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(String::from_utf8_lossy(&sector[40..72])
        .trim_end()
        .to_owned())
}

fn read_config(device: &Path, mountpoint: &Path) -> Result<Option<Vec<u8>>, MediumError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| MediumError::Io {
            action,
            path,
            source,
        }
    };
    fs::create_dir_all(mountpoint).map_err(failed("create", mountpoint))?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID;
    mount(
        Some(device),
        mountpoint,
        Some("iso9660"),
        flags,
        None::<&str>,
    )
    .map_err(|errno| failed("mount", device)(errno.into()))?;
    let read = |name| {
        let path = mountpoint.join(name);
        read_if_there(&path).map_err(failed("read", &path))
    };
    let content = read(CONFIG).and_then(|config| Ok((config, read(DIGEST)?)));
    // The medium is not needed again: a BMC may take it away from here on.
    umount2(mountpoint, MntFlags::MNT_DETACH)
        .map_err(|errno| failed("unmount", mountpoint)(errno.into()))?;
    let (config, digest) = content?;
    if let Some(digest) = digest {
        digest::check(config.as_deref().unwrap_or_default(), &digest)?;
    }
    Ok(config)
}

/// A file's bytes, one more than a `metal.config` may have at most; `None` when there is none.
fn read_if_there(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut bytes = Vec::new();
    // One byte over the limit, so that the parser sees that it is too long.
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_medium_is_told_by_its_volume_id() {
        let dir = tempfile::tempdir().unwrap();
        let (sys, dev) = (dir.path().join("sys"), dir.path().join("dev"));
        for name in ["sda", "sda1", "sr0", "sdb"] {
            fs::create_dir_all(sys.join("class/block").join(name)).unwrap();
        }
        fs::create_dir_all(&dev).unwrap();
        let mut image = vec![0; DESCRIPTOR as usize + 2048];
        let at = DESCRIPTOR as usize;
        image[at] = 1;
        image[at + 1..at + 6].copy_from_slice(b"CD001");
        image[at + 40..at + 72].fill(b' ');
        image[at + 40..at + 52].copy_from_slice(b"METAL-HAMMER");
        for name in ["sda", "sda1"] {
            fs::write(dev.join(name), &image).unwrap();
        }
        fs::write(dev.join("sr0"), b"short").unwrap();
        fs::write(dev.join("sdb"), vec![0; image.len()]).unwrap();
        let found = |label| carriers(&sys, &dev, label);
        let (kind, names) = found("METAL-HAMMER");
        assert_eq!((kind, names.len()), (Some(Kind::BuiltIn), 2));
        assert_eq!(names, ["sda", "sda1"]);
        assert_eq!(found("OTHER"), (None, vec![]));
        // What can be taken out is believed before a disk that carries the same name.
        fs::write(dev.join("sdb"), &image).unwrap();
        fs::write(sys.join("class/block/sdb/removable"), "1\n").unwrap();
        let stick = (Some(Kind::Removable), vec!["sdb".to_owned()]);
        assert_eq!(found("METAL-HAMMER"), stick);
        fs::write(dev.join("sr0"), &image).unwrap();
        let cd = (Some(Kind::Cd), vec!["sr0".to_owned()]);
        assert_eq!(found("METAL-HAMMER"), cd);
    }

    #[test]
    fn a_built_in_disk_is_the_medium_only_when_nothing_better_came() {
        for (best, early, late) in [
            (None, false, false),
            (Some(Kind::BuiltIn), false, true),
            (Some(Kind::Removable), true, true),
            (Some(Kind::Cd), true, true),
        ] {
            assert_eq!(is_found(best, false), early, "{best:?}");
            assert_eq!(is_found(best, true), late, "{best:?}");
        }
    }
}
