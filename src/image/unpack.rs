//! The unpacker: from tar members to files, directories, links and devices.
//!
//! Every parent directory is looked up by the kernel below the target root with links
//! that leave the root refused ([`super::root::Links::Refuse`]); the last component of a
//! name is never followed. What was there before is removed first.

use std::fs::File;
use std::io::{self, BufRead, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, SFlag, fstat, futimens, makedev, mkdirat, mknodat};
use nix::sys::statvfs::fstatvfs;
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, linkat, symlinkat, syncfs, unlinkat};

use super::acl::{self, Accounts};
use super::archive::{Archive, Entry, Kind, MAX_PATH, shown};
use super::error::Error;
use super::metadata::{file_metadata, node_metadata, owner_mode_xattrs, time};
use super::pax::Acls;
use super::pipe::Stop;
use super::root::{Links, RootDir, create_new};
use super::small_files::SmallFiles;
use super::write_back::WriteBack;
use super::xattr;

/// More files than any image has; a bound on what hostile input can make us do.
const MAX_ENTRIES: u64 = 10_000_000;
/// `NAME_MAX` of `linux/limits.h`.
const MAX_NAME: usize = 255;
/// Memory for what is set at the end. Directories beyond it keep the time of the install.
const MAX_DEFERRED: usize = 24 * 1024 * 1024;

/// Counters that the progress display reads while the work goes on.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes of the image that came in.
    pub received: AtomicU64,
    /// Its whole length; 0 while it is not known.
    pub total: AtomicU64,
    /// Bytes of the tar stream unpacked.
    pub bytes: AtomicU64,
    /// Tar entries unpacked.
    pub entries: AtomicU64,
}

/// Unpacks the whole stream below `root` and flushes every file system written to.
///
/// # Errors
/// A damaged archive, a refused entry, or a failed system call.
pub fn unpack<R: BufRead>(source: R, root: &RootDir, counters: &Counters) -> Result<(), Stop> {
    let mut small_files = SmallFiles::start()?;
    let write_back = WriteBack::start()?;
    let mut nudged = 0;
    let mut unpacker = Unpacker {
        root,
        parent: None,
        file_systems: Vec::new(),
        directories: Vec::new(),
        acls: Vec::new(),
        deferred: 0,
    };
    let done = each(source, counters, |archive, entry| {
        if small_files.has_failed() {
            return Err(Stop::Below);
        }
        let at = archive.position();
        if at - nudged >= NUDGE_EVERY {
            nudged = at;
            write_back.nudge(&unpacker.file_systems);
        }
        unpacker
            .entry(archive, entry, &mut small_files)
            .map_err(|stop| numbers_for_full_disk(stop, unpacker.place(), archive.position()))
    });
    // Whatever went wrong, both threads have to end: their open files keep the target busy.
    // A small file that failed stands before whatever the unpacker came to.
    let done = small_files.finish().and(done);
    let done = done.and_then(|()| unpacker.set_deferred());
    let written = write_back.finish();
    done?;
    written.map_err(|errno| failed_at(root.path(), "write-back", errno))?;
    unpacker.flush()
}

/// Reads the whole stream as [`unpack`] would, and writes nothing.
///
/// # Errors
/// A damaged archive, or an entry that would be refused for its name.
pub fn check<R: BufRead>(source: R, counters: &Counters) -> Result<(), Stop> {
    each(source, counters, |_, entry| match clean(&entry.path) {
        Ok(_) => Ok(()),
        Err(reason) => Err(refused(&entry.path, reason)),
    })
}

fn each<R: BufRead>(
    source: R,
    counters: &Counters,
    mut work: impl FnMut(&mut Archive<R>, Entry) -> Result<(), Stop>,
) -> Result<(), Stop> {
    let mut archive = Archive::new(source);
    while let Some(entry) = archive.next_entry()? {
        if counters.entries.fetch_add(1, Ordering::Relaxed) >= MAX_ENTRIES {
            return Err(refused(
                &entry.path,
                format!("more than {MAX_ENTRIES} entries"),
            ));
        }
        work(&mut archive, entry)?;
        counters.bytes.store(archive.position(), Ordering::Relaxed);
    }
    counters.bytes.store(archive.position(), Ordering::Relaxed);
    Ok(())
}

struct Unpacker<'a> {
    root: &'a RootDir,
    /// The directory used last: entries come directory by directory.
    parent: Option<(PathBuf, Rc<OwnedFd>)>,
    /// One descriptor on each file system written to, for the flush at the end.
    file_systems: Vec<(u64, Arc<OwnedFd>)>,
    directories: Vec<Deferred>,
    /// ACLs name accounts, which the image lists somewhere in `/etc`.
    acls: Vec<(PathBuf, Acls)>,
    deferred: usize,
}

/// What can be set on a directory only after all that goes into it.
struct Deferred {
    path: PathBuf,
    mtime: (i64, u32),
    /// A default ACL would be inherited by what is unpacked after it.
    default_acl: Option<Vec<u8>>,
}

/// Bytes of the archive after which what was written is sent to the disk: with much memory
/// the kernel would begin only when all of it is there, and the last flush would wait for it.
const NUDGE_EVERY: u64 = 64 << 20;

const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";
const ACCESS_ACL: &[u8] = b"system.posix_acl_access";

impl Unpacker<'_> {
    fn entry<R: BufRead>(
        &mut self,
        archive: &mut Archive<R>,
        entry: Entry,
        small_files: &mut SmallFiles,
    ) -> Result<(), Stop> {
        let path = clean(&entry.path).map_err(|reason| refused(&entry.path, reason))?;
        self.defer_acls(&path, &entry)?;
        let Some(name) = path.file_name().map(PathBuf::from) else {
            if entry.kind != Kind::Directory {
                return Err(refused(
                    &entry.path,
                    "the root itself as something else than a directory",
                ));
            }
            let top = PathBuf::from(".");
            let parent = self.parent_of(Path::new(""), &entry)?;
            return self.directory(&parent, &top, path, entry);
        };
        let parent = self.parent_of(path.parent().unwrap_or(Path::new("")), &entry)?;
        match &entry.kind {
            Kind::Directory => {
                match mkdirat(&*parent, &name, Mode::from_bits_truncate(0o700)) {
                    Ok(()) => {}
                    Err(Errno::EEXIST) => self.keep_directory(&parent, &name, &entry)?,
                    Err(errno) => return Err(failed(&entry, "mkdir", errno)),
                }
                self.directory(&parent, &name, path, entry)
            }
            Kind::File { size, parts } => {
                let fd = self.replacing(&parent, &name, &entry, "open", || {
                    create_new(parent.as_fd(), &name, entry.mode & 0o777)
                })?;
                let mut file = File::from(fd);
                if SmallFiles::takes(&entry) {
                    return small_files.add(archive, file, *size, entry);
                }
                write_content(archive, &mut file, *size, parts, &entry)?;
                file_metadata(&file, &entry)
            }
            Kind::HardLink(target) => self.hard_link(&parent, &name, target, &path, &entry),
            Kind::Symlink(target) => {
                if target.is_empty() || target.len() >= MAX_PATH || target.contains(&0) {
                    return Err(refused(
                        &entry.path,
                        "a symbolic link with an impossible target",
                    ));
                }
                let target = Path::new(std::ffi::OsStr::from_bytes(target));
                self.replacing(&parent, &name, &entry, "symlink", || {
                    symlinkat(target, &*parent, &name)
                })?;
                node_metadata(&parent, &name, &entry, false)
            }
            Kind::Char(major, minor) => {
                let device = makedev(u64::from(*major), u64::from(*minor));
                self.node(&parent, &name, SFlag::S_IFCHR, device, &entry)
            }
            Kind::Block(major, minor) => {
                let device = makedev(u64::from(*major), u64::from(*minor));
                self.node(&parent, &name, SFlag::S_IFBLK, device, &entry)
            }
            Kind::Fifo => self.node(&parent, &name, SFlag::S_IFIFO, 0, &entry),
        }
    }

    /// Keeps the text ACLs for the end. With `--xattrs-include='*'` GNU tar stores an ACL a
    /// second time, in the kernel's own form, whose numbers need no account: that one counts.
    fn defer_acls(&mut self, path: &Path, entry: &Entry) -> Result<(), Stop> {
        let stored = |name: &[u8]| entry.xattrs.iter().any(|(known, _)| known == name);
        let acls = Acls {
            access: entry.acls.access.clone().filter(|_| !stored(ACCESS_ACL)),
            default: entry.acls.default.clone().filter(|_| !stored(DEFAULT_ACL)),
        };
        let texts = acls.access.iter().chain(&acls.default);
        let bytes: usize = texts.map(Vec::len).sum();
        if bytes == 0 {
            return Ok(());
        }
        self.deferred += bytes + path.as_os_str().len() + std::mem::size_of::<(PathBuf, Acls)>();
        if self.deferred > MAX_DEFERRED {
            return Err(refused(&entry.path, "too many ACLs"));
        }
        self.acls.push((path.to_owned(), acls));
        Ok(())
    }

    /// Where it is at work.
    fn place(&self) -> BorrowedFd<'_> {
        self.parent
            .as_ref()
            .map_or(self.root.as_fd(), |(_, fd)| fd.as_fd())
    }

    /// The opened parent directory; made when the archive does not list it.
    fn parent_of(&mut self, path: &Path, entry: &Entry) -> Result<Rc<OwnedFd>, Stop> {
        if let Some((known, fd)) = &self.parent
            && known == path
        {
            return Ok(Rc::clone(fd));
        }
        let fd = self
            .root
            .make_dirs(path, Links::Refuse)
            .map_err(|errno| match errno {
                Errno::EXDEV => refused(
                    &entry.path,
                    "its directory leaves the root through a symbolic link",
                ),
                Errno::ELOOP => refused(&entry.path, "its directory is a loop of symbolic links"),
                Errno::ENOTDIR => refused(&entry.path, "its directory is a file"),
                errno => failed(entry, "opening its directory", errno),
            })?;
        let fd = Rc::new(fd);
        let device = fstat(&*fd)
            .map_err(|errno| failed(entry, "stat", errno))?
            .st_dev;
        if !self.file_systems.iter().any(|(known, _)| *known == device) {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
            let readable = self.root.lookup(path, flags, Links::Refuse);
            let readable =
                readable.map_err(|errno| failed(entry, "opening its directory", errno))?;
            self.file_systems.push((device, Arc::new(readable)));
        }
        self.parent = Some((path.to_owned(), Rc::clone(&fd)));
        Ok(fd)
    }

    /// Runs `create`; when the name is taken, removes what is there and runs it once more.
    fn replacing<T>(
        &mut self,
        parent: &OwnedFd,
        name: &Path,
        entry: &Entry,
        operation: &'static str,
        create: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, Stop> {
        match create() {
            Err(Errno::EEXIST) => {}
            other => return other.map_err(|errno| failed(entry, operation, errno)),
        }
        self.remove(parent, name, entry)?;
        create().map_err(|errno| failed(entry, operation, errno))
    }

    fn remove(&mut self, parent: &OwnedFd, name: &Path, entry: &Entry) -> Result<(), Stop> {
        // The cached parent may have been reached through what goes away now.
        self.parent = None;
        match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::EISDIR) => unlinkat(parent, name, UnlinkatFlags::RemoveDir)
                .map_err(|errno| failed(entry, "replacing a directory", errno)),
            other => other.map_err(|errno| failed(entry, "unlink", errno)),
        }
    }

    /// A directory may exist already (a mount point, say); anything else makes way.
    fn keep_directory(&mut self, parent: &OwnedFd, name: &Path, entry: &Entry) -> Result<(), Stop> {
        let stat = nix::sys::stat::fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|errno| failed(entry, "stat", errno))?;
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR {
            return Ok(());
        }
        self.remove(parent, name, entry)?;
        mkdirat(parent, name, Mode::from_bits_truncate(0o700))
            .map_err(|errno| failed(entry, "mkdir", errno))
    }

    fn directory(
        &mut self,
        parent: &OwnedFd,
        name: &Path,
        path: PathBuf,
        entry: Entry,
    ) -> Result<(), Stop> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::openat(parent, name, flags, Mode::empty())
            .map_err(|errno| failed(&entry, "open", errno))?;
        let mut entry = entry;
        let acl = entry
            .xattrs
            .iter()
            .position(|(name, _)| name == DEFAULT_ACL);
        let default_acl = acl.map(|index| entry.xattrs.swap_remove(index).1);
        owner_mode_xattrs(&fd, &entry)?;
        let cost = path.as_os_str().len()
            + default_acl.as_ref().map_or(0, Vec::len)
            + std::mem::size_of::<Deferred>();
        if self.deferred + cost > MAX_DEFERRED {
            if default_acl.is_some() {
                return Err(refused(
                    &entry.path,
                    "too many directories with default ACLs",
                ));
            }
            return Ok(());
        }
        self.deferred += cost;
        self.directories.push(Deferred {
            path,
            mtime: entry.mtime,
            default_acl,
        });
        Ok(())
    }

    fn hard_link(
        &mut self,
        parent: &OwnedFd,
        name: &Path,
        target: &[u8],
        path: &Path,
        entry: &Entry,
    ) -> Result<(), Stop> {
        let target = clean(target).map_err(|reason| {
            refused(
                &entry.path,
                format!("a hard link to {}: {reason}", shown(target)),
            )
        })?;
        let Some(target_name) = target.file_name() else {
            return Err(refused(&entry.path, "a hard link to the root"));
        };
        if target == path {
            return Err(refused(&entry.path, "a hard link to itself"));
        }
        let above = target.parent().unwrap_or(Path::new(""));
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let from = self
            .root
            .lookup(above, flags, Links::Refuse)
            .map_err(|errno| match errno {
                Errno::EXDEV => refused(&entry.path, "a hard link whose target leaves the root"),
                errno => failed(entry, "opening the hard link's target", errno),
            })?;
        self.replacing(parent, name, entry, "link", || {
            linkat(&from, target_name, parent, name, AtFlags::empty())
        })
    }

    fn node(
        &mut self,
        parent: &OwnedFd,
        name: &Path,
        kind: SFlag,
        device: u64,
        entry: &Entry,
    ) -> Result<(), Stop> {
        let mode = Mode::from_bits_truncate(0o600);
        self.replacing(parent, name, entry, "mknod", || {
            mknodat(parent, name, kind, mode, device)
        })?;
        node_metadata(parent, name, entry, true)
    }

    /// ACLs and the times of directories.
    fn set_deferred(&self) -> Result<(), Stop> {
        if !self.acls.is_empty() {
            let accounts = Accounts::of(self.root);
            for (path, acls) in &self.acls {
                self.set_acls(path, acls, &accounts)?;
            }
        }
        for directory in &self.directories {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
            let fd = match self.root.lookup(&directory.path, flags, Links::Refuse) {
                Ok(fd) => fd,
                // A later entry replaced it by something else.
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV) => continue,
                Err(errno) => return Err(failed_at(&directory.path, "open", errno)),
            };
            if let Some(acl) = &directory.default_acl {
                xattr::set(&fd, DEFAULT_ACL, acl)
                    .map_err(|errno| failed_at(&directory.path, "setxattr", errno))?;
            }
            let (omit, mtime) = (TimeSpec::UTIME_OMIT, time(directory.mtime));
            futimens(&fd, &omit, &mtime)
                .map_err(|errno| failed_at(&directory.path, "utimens", errno))?;
        }
        Ok(())
    }

    /// Flushes, which reports what the disk could not take.
    fn flush(&self) -> Result<(), Stop> {
        for (_, fd) in &self.file_systems {
            syncfs(&**fd).map_err(|errno| failed_at(self.root.path(), "syncfs", errno))?;
        }
        Ok(())
    }

    fn set_acls(&self, path: &Path, acls: &Acls, accounts: &Accounts) -> Result<(), Stop> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
        let fd = match self.root.lookup(path, flags, Links::Refuse) {
            Ok(fd) => fd,
            // A later entry replaced it by something else.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV) => return Ok(()),
            Err(errno) => return Err(failed_at(path, "open", errno)),
        };
        // A descriptor that cannot read still has a name: no device is opened for its ACL.
        let node = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        for (name, text) in [(ACCESS_ACL, &acls.access), (DEFAULT_ACL, &acls.default)] {
            let Some(text) = text else { continue };
            let value = acl::encode(text, accounts)
                .map_err(|reason| refused(path.as_os_str().as_bytes(), reason))?;
            match xattr::set_followed(&node, name, &value) {
                Ok(()) => {}
                Err(Errno::EOPNOTSUPP) => {
                    tracing::warn!(path = %path.display(), "the file system does not take ACLs");
                }
                Err(errno) => return Err(failed_at(path, "setting an ACL", errno)),
            }
        }
        Ok(())
    }
}

fn write_content<R: BufRead>(
    archive: &mut Archive<R>,
    file: &mut File,
    size: u64,
    parts: &[(u64, u64)],
    entry: &Entry,
) -> Result<(), Stop> {
    let io = |operation| move |error: io::Error| write_error(&entry.path, operation, error);
    let mut end = 0;
    for &(offset, length) in parts {
        if offset != end {
            file.seek(SeekFrom::Start(offset)).map_err(io("seek"))?;
        }
        archive.content(length, |bytes| file.write_all(bytes).map_err(io("write")))?;
        end = offset + length;
    }
    if end != size {
        file.set_len(size).map_err(io("truncate"))?;
    }
    Ok(())
}

/// ENOSPC with what an operator needs to know about the file system of `place`; anything else as it is.
pub(super) fn numbers_for_full_disk(stop: Stop, place: BorrowedFd<'_>, unpacked: u64) -> Stop {
    let Stop::Failed(Error::Write {
        entry,
        operation,
        source,
    }) = &stop
    else {
        return stop;
    };
    let full = [Errno::ENOSPC as i32, Errno::EDQUOT as i32];
    if !source
        .raw_os_error()
        .is_some_and(|errno| full.contains(&errno))
    {
        return stop;
    }
    let Ok(now) = fstatvfs(place) else {
        return stop;
    };
    Stop::Failed(Error::DiskFull {
        entry: entry.clone(),
        operation,
        size: now.blocks() * now.fragment_size(),
        available: now.blocks_available() * now.fragment_size(),
        inodes: now.files(),
        free_inodes: now.files_available(),
        unpacked,
    })
}

/// A name from the archive as a path below the root: no `.`, no empty component.
///
/// # Errors
/// A sentence that says what is hostile about it.
pub fn clean(name: &[u8]) -> Result<PathBuf, String> {
    if name.is_empty() {
        return Err("an empty name".to_owned());
    }
    if name.len() >= MAX_PATH {
        return Err(format!("a name of {} bytes", name.len()));
    }
    if name.starts_with(b"/") {
        return Err("an absolute path; expected one relative to the root".to_owned());
    }
    if name.contains(&0) {
        return Err("a name with a zero byte".to_owned());
    }
    let mut path = PathBuf::new();
    for component in name.split(|&byte| byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err("a path with `..`".to_owned()),
            long if long.len() > MAX_NAME => {
                return Err(format!("a component of {} bytes", long.len()));
            }
            part => path.push(std::ffi::OsStr::from_bytes(part)),
        }
    }
    Ok(path)
}

fn refused(path: &[u8], reason: impl Into<String>) -> Stop {
    Stop::Failed(Error::Refused {
        entry: shown(path),
        reason: reason.into(),
    })
}

/// A system call on an entry that failed.
pub(super) fn failed(entry: &Entry, operation: &'static str, errno: Errno) -> Stop {
    write_error(&entry.path, operation, errno.into())
}

fn failed_at(path: &Path, operation: &'static str, errno: Errno) -> Stop {
    write_error(path.as_os_str().as_bytes(), operation, errno.into())
}

pub(super) fn write_error(path: &[u8], operation: &'static str, source: io::Error) -> Stop {
    Stop::Failed(Error::Write {
        entry: shown(path),
        operation,
        source,
    })
}
