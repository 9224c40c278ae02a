//! The target: the new system's file systems, mounted, and the fstab that says so.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use thiserror::Error;
use uuid::Uuid;

use super::disks::Disk;
use super::stack;
use crate::control::api::Format;

/// How long a process that was killed may keep a mount busy.
const UNMOUNT_WAIT: Duration = Duration::from_secs(10);
const UNMOUNT_STEP: Duration = Duration::from_millis(50);

/// A file system of the target, as fstab knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountedFilesystem {
    /// Its partition; `None` for tmpfs.
    pub device: Option<PathBuf>,
    /// Mount point in the target; empty for swap.
    pub path: String,
    pub format: Format,
    /// As fstab and `blkid` write it, `ABCD-1234` for FAT; empty for tmpfs, and for a kept
    /// volume, which goes by its name.
    pub uuid: String,
    pub label: String,
    /// Mount options of the layout, one each.
    pub options: Vec<String>,
    /// Whether it is mounted below the target's root now. Not so: swap, tmpfs, and file
    /// systems of disks that a re-install must not touch.
    pub mounted: bool,
}

/// The EFI system partition, with all that a boot entry needs to name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EfiPartition {
    /// The disk's node.
    pub disk: PathBuf,
    pub number: u32,
    /// In logical blocks.
    pub start_lba: u64,
    /// In logical blocks.
    pub size_lba: u64,
    /// `guid.to_bytes_le()` is its form on disk and in device paths.
    pub guid: Uuid,
    /// Bytes.
    pub logical_block_size: u32,
    /// Mount point in the target.
    pub path: String,
}

/// The target, mounted. Dropping it leaves everything mounted.
#[derive(Debug)]
pub struct Target {
    /// Where the target's `/` is mounted.
    pub root: PathBuf,
    /// UUID of the file system that is `/`.
    pub root_uuid: String,
    /// In mount order.
    pub filesystems: Vec<MountedFilesystem>,
    pub esp: Option<EfiPartition>,
    /// The other members, when the EFI system partition is mirrored: the same content, each
    /// with a boot entry of its own.
    pub esp_mirrors: Vec<EfiPartition>,
    /// Whether arrays were made.
    pub has_arrays: bool,
    /// What it stands on.
    pub disks: Vec<Disk>,
}

/// A mount, unmount or flush that failed.
#[derive(Debug, Error)]
pub enum Error {
    #[error("cannot {operation} {what}: {source}")]
    Io {
        operation: &'static str,
        what: String,
        source: io::Error,
    },
    #[error(transparent)]
    Stack(#[from] stack::Error),
}

impl Target {
    /// The target's `/etc/fstab` (fstab(5)): by UUID, checked first for `/`, second for
    /// the others, never for swap and tmpfs.
    #[must_use]
    pub fn fstab(&self) -> String {
        let mut lines =
            String::from("# <file system> <mount point> <type> <options> <dump> <pass>\n");
        for filesystem in &self.filesystems {
            let device = match filesystem.format {
                Format::Tmpfs => "tmpfs".to_owned(),
                _ => match &filesystem.device {
                    Some(device) if filesystem.uuid.is_empty() => escape(&device.to_string_lossy()),
                    _ => format!("UUID={}", filesystem.uuid),
                },
            };
            let (path, default, pass) = match (filesystem.format, filesystem.path.as_str()) {
                (Format::Swap, _) => ("none", "sw", 0),
                (Format::Tmpfs, path) => (path, "defaults", 0),
                (_, "/") => ("/", "defaults", 1),
                (_, path) => (path, "defaults", 2),
            };
            let options = if filesystem.options.is_empty() {
                default.to_owned()
            } else {
                filesystem.options.join(",")
            };
            lines.push_str(&format!(
                "{device} {} {} {} 0 {pass}\n",
                escape(path),
                type_name(filesystem.format),
                escape(&options)
            ));
        }
        lines
    }

    /// Writes everything back, unmounts it, innermost first, flushes the disks, and takes
    /// arrays and volumes down, so that the OS finds them clean.
    ///
    /// # Errors
    /// The first failure, also one of an earlier write that only shows now. The rest is
    /// unmounted all the same.
    pub fn unmount(self) -> Result<(), Error> {
        let mut first = Ok(());
        for filesystem in self.filesystems.iter().rev().filter(|fs| fs.mounted) {
            let result = unmount_one(&below(&self.root, &filesystem.path));
            let flushed = result.and_then(|()| match &filesystem.device {
                Some(device) => flush_device(device),
                None => Ok(()),
            });
            if let Err(error) = flushed {
                tracing::error!(%error, "the target is not cleanly unmounted");
                first = first.and(Err(error));
            }
        }
        let down = stack::take_down(&self.disks).map_err(Error::from);
        first.and(down)
    }
}

/// Where the target's `path` is below `root`.
pub(super) fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// The name of a format in fstab and mount(2).
pub(super) fn type_name(format: Format) -> &'static str {
    match format {
        Format::Vfat => "vfat",
        Format::Ext3 => "ext3",
        Format::Ext4 => "ext4",
        Format::Swap => "swap",
        Format::Tmpfs => "tmpfs",
        Format::None | Format::Unspecified => "none",
    }
}

/// fstab(5): blanks, newlines, backslashes and `#` at the start as octal.
fn escape(field: &str) -> String {
    field
        .chars()
        .map(|c| match c {
            ' ' => r"\040".to_owned(),
            '\t' => r"\011".to_owned(),
            '\n' => r"\012".to_owned(),
            '\\' => r"\134".to_owned(),
            '#' => r"\043".to_owned(),
            other => other.to_string(),
        })
        .collect()
}

/// What of a layout's mount options is used while the image is unpacked and the installer
/// runs: flags and data for mount(2). Left to fstab: options that only programs like
/// mount(8) and systemd understand, and `ro` and `noexec`, with which nothing could be
/// installed.
pub(super) fn install_options(options: &[String]) -> (MsFlags, String) {
    let mut flags = MsFlags::empty();
    let mut data = Vec::new();
    for option in options {
        let option = option.as_str();
        match option {
            "defaults" | "rw" | "ro" | "exec" | "noexec" | "suid" | "dev" | "async" | "atime"
            | "diratime" | "auto" | "noauto" | "user" | "nouser" | "users" | "owner" | "group"
            | "nofail" | "_netdev" => {}
            _ if option.starts_with("x-")
                || option.starts_with("X-")
                || option.starts_with("comment=") => {}
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "sync" => flags |= MsFlags::MS_SYNCHRONOUS,
            "dirsync" => flags |= MsFlags::MS_DIRSYNC,
            "noatime" => flags |= MsFlags::MS_NOATIME,
            "nodiratime" => flags |= MsFlags::MS_NODIRATIME,
            "relatime" => flags |= MsFlags::MS_RELATIME,
            "strictatime" => flags |= MsFlags::MS_STRICTATIME,
            "lazytime" => flags |= MsFlags::MS_LAZYTIME,
            other => data.push(other),
        }
    }
    (flags, data.join(","))
}

/// Mounts `device` at `at`, making the directory if it is not there.
pub(super) fn mount_one(
    device: &Path,
    at: &Path,
    format: Format,
    options: &[String],
) -> Result<(), Error> {
    std::fs::create_dir_all(at).map_err(|source| Error::Io {
        operation: "make the mount point",
        what: at.display().to_string(),
        source,
    })?;
    let (flags, data) = install_options(options);
    mount(
        Some(device),
        at,
        Some(type_name(format)),
        flags,
        Some(data.as_str()),
    )
    .map_err(|errno| Error::Io {
        operation: "mount",
        what: format!(
            "{} ({}, options {:?}) at {}",
            device.display(),
            type_name(format),
            options.join(","),
            at.display()
        ),
        source: errno.into(),
    })
}

/// Writes a file system back and unmounts it.
pub(super) fn unmount_one(at: &Path) -> Result<(), Error> {
    let failed = |operation| {
        move |source| Error::Io {
            operation,
            what: at.display().to_string(),
            source,
        }
    };
    // syncfs reports write-back errors since the mount; umount does not.
    let synced = File::open(at)
        .and_then(|root| nix::unistd::syncfs(&root).map_err(io::Error::from))
        .map_err(failed("write back"));
    let deadline = Instant::now() + UNMOUNT_WAIT;
    loop {
        match umount2(at, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => return synced,
            Err(Errno::EBUSY) if Instant::now() < deadline => std::thread::sleep(UNMOUNT_STEP),
            Err(errno) => return Err(failed("unmount")(errno.into())),
        }
    }
}

/// fsync on a block device also empties the drive's own write cache.
fn flush_device(device: &Path) -> Result<(), Error> {
    File::open(device)
        .and_then(|file| file.sync_all())
        .map_err(|source| Error::Io {
            operation: "flush",
            what: device.display().to_string(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filesystem(path: &str, format: Format, uuid: &str, options: &[&str]) -> MountedFilesystem {
        MountedFilesystem {
            device: None,
            path: path.into(),
            format,
            uuid: uuid.into(),
            label: String::new(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            mounted: false,
        }
    }

    #[test]
    fn fstab_lines() {
        let target = Target {
            root: "/mnt/root".into(),
            root_uuid: "r".into(),
            esp: None,
            esp_mirrors: vec![],
            has_arrays: false,
            disks: vec![],
            filesystems: vec![
                filesystem("/", Format::Ext4, "r", &[]),
                filesystem("/boot/efi", Format::Vfat, "ABCD-1234", &["umask=0077"]),
                filesystem("/srv/two words", Format::Ext3, "u", &["noatime", "x-a=b#c"]),
                filesystem("", Format::Swap, "s", &[]),
                filesystem("", Format::Swap, "t", &["discard", "pri=1"]),
                filesystem("/tmp", Format::Tmpfs, "", &["size=1G"]),
            ],
        };
        let expected = "# <file system> <mount point> <type> <options> <dump> <pass>
UUID=r / ext4 defaults 0 1
UUID=ABCD-1234 /boot/efi vfat umask=0077 0 2
UUID=u /srv/two\\040words ext3 noatime,x-a=b\\043c 0 2
UUID=s none swap sw 0 0
UUID=t none swap discard,pri=1 0 0
tmpfs /tmp tmpfs size=1G 0 0
";
        assert_eq!(target.fstab(), expected);
    }

    #[test]
    fn options_while_installing() {
        let options = [
            "ro",
            "noexec",
            "noatime",
            "nodev",
            "nosuid",
            "discard",
            "data=ordered",
            "nofail",
            "x-systemd.device-timeout=5",
            "_netdev",
        ]
        .map(str::to_owned);
        let (flags, data) = install_options(&options);
        assert_eq!(
            flags,
            MsFlags::MS_NOATIME | MsFlags::MS_NODEV | MsFlags::MS_NOSUID
        );
        assert_eq!(data, "discard,data=ordered");
        assert_eq!(install_options(&[]), (MsFlags::empty(), String::new()));
    }

    #[test]
    fn mount_points_stay_below_the_root() {
        let root = Path::new("/mnt/root");
        assert_eq!(below(root, "/"), Path::new("/mnt/root/"));
        assert_eq!(below(root, "/boot/efi"), Path::new("/mnt/root/boot/efi"));
    }
}
