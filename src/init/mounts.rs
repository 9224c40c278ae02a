//! The kernel's own file systems, mounted before anything else happens.

use std::fs;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use thiserror::Error;

/// A kernel file system that the agent cannot work without.
#[derive(Debug, Error)]
#[error(
    "cannot mount {fstype} on {target}: {source}; the kernel lacks an option of docs/kernel.md"
)]
pub struct MountError {
    fstype: &'static str,
    target: &'static str,
    source: io::Error,
}

/// One line of the mount table.
struct Mount {
    fstype: &'static str,
    target: &'static str,
    flags: MsFlags,
    data: Option<&'static str>,
    /// Absence is no failure: a machine that was not booted by UEFI has no efivarfs.
    optional: bool,
}

const NO_EXEC: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

const TABLE: &[Mount] = &[
    Mount {
        fstype: "proc",
        target: "/proc",
        flags: NO_EXEC,
        data: None,
        optional: false,
    },
    Mount {
        fstype: "sysfs",
        target: "/sys",
        flags: NO_EXEC,
        data: None,
        optional: false,
    },
    Mount {
        fstype: "devtmpfs",
        target: "/dev",
        flags: MsFlags::MS_NOSUID,
        data: Some("mode=0755"),
        optional: false,
    },
    Mount {
        fstype: "devpts",
        target: "/dev/pts",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        data: Some("mode=0620,ptmxmode=0666"),
        optional: true,
    },
    Mount {
        fstype: "tmpfs",
        target: "/run",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        data: Some("mode=0755"),
        optional: false,
    },
    Mount {
        fstype: "tmpfs",
        target: "/tmp",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        data: Some("mode=1777"),
        optional: false,
    },
    Mount {
        fstype: "efivarfs",
        target: "/sys/firmware/efi/efivars",
        flags: NO_EXEC,
        data: None,
        optional: true,
    },
];

/// Mounts them all. What is mounted already stays as it is.
///
/// # Errors
/// When the kernel refuses one that is not optional.
pub fn mount_all() -> Result<(), MountError> {
    for entry in TABLE {
        match mount_one(entry) {
            Err(error) if !entry.optional => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn mount_one(entry: &Mount) -> Result<(), MountError> {
    // sysfs makes its own directories and refuses others; what is missing there shows at mount.
    if !Path::new(entry.target).is_dir() {
        let _ = fs::create_dir_all(entry.target);
    }
    let result = mount(
        Some(entry.fstype),
        entry.target,
        Some(entry.fstype),
        entry.flags,
        entry.data,
    );
    match result {
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(errno) => Err(MountError {
            fstype: entry.fstype,
            target: entry.target,
            source: errno.into(),
        }),
    }
}
