//! Owner, mode, times and extended attributes of what was unpacked.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{
    FchmodatFlags, Mode, UtimensatFlags, fchmod, fchmodat, fstat, futimens, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat};

use super::archive::{Entry, shown};
use super::pipe::Stop;
use super::unpack::failed;
use super::xattr;

/// Permission bits with setuid, setgid and sticky.
const MODE_BITS: u32 = 0o7777;

/// Sets what is not yet as it should be; most files of an image are root's, as they were
/// made. Owner first: a change of owner takes setuid and capabilities away.
pub fn owner_mode_xattrs<F: AsFd>(fd: F, entry: &Entry) -> Result<(), Stop> {
    let now = fstat(&fd).map_err(|errno| failed(entry, "stat", errno))?;
    if (now.st_uid, now.st_gid) != (entry.uid, entry.gid) {
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        fchown(&fd, Some(uid), Some(gid)).map_err(|errno| failed(entry, "chown", errno))?;
    }
    // A change of owner only ever takes setuid and setgid bits, which a new file lacks.
    if now.st_mode & MODE_BITS != entry.mode {
        let mode = Mode::from_bits_truncate(entry.mode);
        fchmod(&fd, mode).map_err(|errno| failed(entry, "chmod", errno))?;
    }
    for (name, value) in &entry.xattrs {
        xattr_result(xattr::set(&fd, name, value), name, entry)?;
    }
    Ok(())
}

pub fn file_metadata(file: &File, entry: &Entry) -> Result<(), Stop> {
    owner_mode_xattrs(file, entry)?;
    futimens(file, &TimeSpec::UTIME_OMIT, &time(entry.mtime))
        .map_err(|errno| failed(entry, "utimens", errno))
}

/// For what cannot be opened: links and device nodes.
pub fn node_metadata(
    parent: &OwnedFd,
    name: &Path,
    entry: &Entry,
    has_mode: bool,
) -> Result<(), Stop> {
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    fchownat(
        parent,
        name,
        Some(uid),
        Some(gid),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )
    .map_err(|errno| failed(entry, "chown", errno))?;
    if has_mode {
        // The node was made a moment ago, so there is no link to follow.
        let mode = Mode::from_bits_truncate(entry.mode);
        fchmodat(parent, name, mode, FchmodatFlags::FollowSymlink)
            .map_err(|errno| failed(entry, "chmod", errno))?;
    }
    for (key, value) in &entry.xattrs {
        // There is no setxattrat(2) before Linux 6.13.
        let link = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd())).join(name);
        xattr_result(xattr::set_link(&link, key, value), key, entry)?;
    }
    let (omit, mtime) = (TimeSpec::UTIME_OMIT, time(entry.mtime));
    utimensat(parent, name, &omit, &mtime, UtimensatFlags::NoFollowSymlink)
        .map_err(|errno| failed(entry, "utimens", errno))
}

/// A file system without xattrs (vfat) is no reason to fail; a lost one is worth a line.
fn xattr_result(result: Result<(), Errno>, name: &[u8], entry: &Entry) -> Result<(), Stop> {
    match result {
        Err(Errno::EOPNOTSUPP) => {
            tracing::warn!(
                entry = shown(&entry.path),
                xattr = shown(name),
                "the file system does not take this extended attribute"
            );
            Ok(())
        }
        other => other.map_err(|errno| failed(entry, "setxattr", errno)),
    }
}

pub fn time((seconds, nanoseconds): (i64, u32)) -> TimeSpec {
    TimeSpec::new(seconds, i64::from(nanoseconds))
}
