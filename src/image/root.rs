//! A directory tree that belongs to somebody else.
//!
//! The target root is filled from an image that nobody here has read, so a path in it may
//! run through any symbolic link. Every look-up below goes through `openat2(2)` with one
//! directory descriptor, and the kernel itself guarantees that it stays in the tree; no
//! check on path strings could (openat2(2), `linux/openat2.h`, since Linux 5.6).

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, renameat};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// What a symbolic link that points out of the tree means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// The look-up fails with `EXDEV`; absolute links too. For unpacking.
    Refuse,
    /// `/` and `..` stop at the tree's root, as inside a chroot. For files of an installed system.
    Contain,
}

/// How often a look-up is repeated when the kernel reports a concurrent rename or mount.
const RACES: usize = 16;

/// A tree and the descriptor through which all of it is reached.
#[derive(Debug)]
pub struct RootDir {
    fd: OwnedFd,
    path: PathBuf,
}

impl RootDir {
    /// Opens the directory at `path`; its own last component may not be a link.
    ///
    /// # Errors
    /// The path does not exist or is not a directory.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::open(path, flags, Mode::empty())?;
        Ok(Self {
            fd,
            path: path.to_owned(),
        })
    }

    /// Where the tree is, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `openat2` below the root. An empty path or `/` is the root itself.
    ///
    /// # Errors
    /// The kernel's errno; `EXDEV` when the path leaves the tree.
    pub fn lookup(&self, path: &Path, flags: OFlag, links: Links) -> Result<OwnedFd, Errno> {
        let path = relative(path);
        let stay = match links {
            Links::Refuse => ResolveFlag::RESOLVE_BENEATH,
            Links::Contain => ResolveFlag::RESOLVE_IN_ROOT,
        };
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(stay | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        for _ in 1..RACES {
            match openat2(&self.fd, path, how) {
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                other => return other,
            }
        }
        openat2(&self.fd, path, how)
    }

    /// Opens a directory, making it and its parents (mode 0755) where they are missing.
    ///
    /// # Errors
    /// The kernel's errno; `ENOENT` when a link on the way leads nowhere.
    pub fn make_dirs(&self, path: &Path, links: Links) -> Result<OwnedFd, Errno> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let components: Vec<_> = relative(path).components().collect();
        let first = |count: usize| components[..count].iter().collect::<PathBuf>();
        // From the end: most of a path is there already.
        let mut there = components.len();
        let mut directory = loop {
            match self.lookup(&first(there), flags, links) {
                Err(Errno::ENOENT) if there > 0 => there -= 1,
                other => break other?,
            }
        };
        for (index, name) in components.iter().enumerate().skip(there) {
            let mode = Mode::from_bits_truncate(0o755);
            match mkdirat(&directory, name.as_os_str(), mode) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno),
            }
            directory = self.lookup(&first(index + 1), flags, links)?;
        }
        Ok(directory)
    }

    /// Reads a regular file of at most `limit` bytes.
    ///
    /// # Errors
    /// It is missing, not a regular file, or longer than `limit` (`InvalidData`).
    pub fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let file = self.open_file(path)?;
        let mut bytes = Vec::new();
        file.take(limit + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("longer than {limit} bytes"),
            ));
        }
        Ok(bytes)
    }

    /// Opens a regular file for reading, links contained in the tree.
    ///
    /// # Errors
    /// It is missing or not a regular file.
    pub fn open_file(&self, path: &Path) -> io::Result<File> {
        // O_NONBLOCK: a fifo put where a file is expected must not hold up the boot.
        let fd = self.lookup(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK, Links::Contain)?;
        let kind = SFlag::from_bits_truncate(fstat(&fd)?.st_mode) & SFlag::S_IFMT;
        if kind != SFlag::S_IFREG {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            ));
        }
        Ok(File::from(fd))
    }

    /// Puts a file in place in one step: what was there before (a link, too) is replaced.
    /// Parents are made. `mode` does not depend on the umask.
    ///
    /// # Errors
    /// Any of the system calls failed.
    pub fn write(&self, path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
        let mut staged = self.stage(path, mode)?;
        staged.file().write_all(content)?;
        staged.commit()
    }

    /// Begins a file that appears under `path` only when it is committed.
    ///
    /// # Errors
    /// Any of the system calls failed.
    pub fn stage(&self, path: &Path, mode: u32) -> io::Result<Staged> {
        let path = relative(path);
        let name = path
            .file_name()
            .ok_or_else(|| io::Error::from(Errno::EISDIR))?;
        let parent = self.make_dirs(path.parent().unwrap_or(Path::new("")), Links::Contain)?;
        let mut temporary = OsString::from(".");
        temporary.push(name);
        temporary.push(".metal-anvil");
        match unlinkat(&parent, temporary.as_os_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        let file = File::from(create_new(parent.as_fd(), Path::new(&temporary), 0o600)?);
        fchmod(&file, Mode::from_bits_truncate(mode))?;
        Ok(Staged {
            parent,
            temporary: PathBuf::from(temporary),
            name: PathBuf::from(name),
            file,
            committed: false,
        })
    }

    /// Removes a file or link; that it does not exist is fine.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        let path = relative(path);
        let name = path
            .file_name()
            .ok_or_else(|| io::Error::from(Errno::EISDIR))?;
        let above = path.parent().unwrap_or(Path::new(""));
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let removed = self
            .lookup(above, flags, Links::Contain)
            .and_then(|parent| unlinkat(&parent, name, UnlinkatFlags::NoRemoveDir));
        match removed {
            Ok(()) | Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The names in a directory; none when it does not exist.
    ///
    /// # Errors
    /// It cannot be read, or holds more than `limit` names.
    pub fn names(&self, path: &Path, limit: usize) -> io::Result<Vec<OsString>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let fd = match self.lookup(path, flags, Links::Contain) {
            Ok(fd) => fd,
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(Vec::new()),
            Err(errno) => return Err(errno.into()),
        };
        let mut names = Vec::new();
        for entry in nix::dir::Dir::from_fd(fd)?.iter() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            if names.len() == limit {
                return Err(io::Error::other(format!("more than {limit} entries")));
            }
            names.push(OsStr::from_bytes(name).to_owned());
        }
        Ok(names)
    }

    /// The mode of what a path leads to, links contained; `None` when there is nothing.
    ///
    /// # Errors
    /// The kernel's errno, other than "not found".
    pub fn mode(&self, path: &Path) -> io::Result<Option<u32>> {
        match self.lookup(path, OFlag::O_PATH, Links::Contain) {
            Ok(fd) => Ok(Some(fstat(&fd)?.st_mode)),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Whether the path's last component is itself a symbolic link.
    ///
    /// # Errors
    /// The kernel's errno, other than "not found".
    pub fn is_symlink(&self, path: &Path) -> io::Result<bool> {
        let path = relative(path);
        let Some(name) = path.file_name() else {
            return Ok(false);
        };
        let parent = path.parent().unwrap_or(Path::new(""));
        let parent = match self.lookup(parent, OFlag::O_PATH | OFlag::O_DIRECTORY, Links::Contain) {
            Ok(fd) => fd,
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        };
        match fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => {
                Ok(SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFLNK)
            }
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for RootDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A file on its way into the tree; dropped without [`Staged::commit`] it leaves no trace.
#[derive(Debug)]
pub struct Staged {
    parent: OwnedFd,
    temporary: PathBuf,
    name: PathBuf,
    file: File,
    committed: bool,
}

impl Staged {
    /// Where the content is written.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// The rename failed.
    pub fn commit(mut self) -> io::Result<()> {
        renameat(&self.parent, &self.temporary, &self.parent, &self.name)?;
        self.committed = true;
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing more can be done about a left-over than to try; the name says whose it is.
            let _ = unlinkat(&self.parent, &self.temporary, UnlinkatFlags::NoRemoveDir);
        }
    }
}

/// Creates a file that must not exist yet; the umask counts.
pub(super) fn create_new(parent: BorrowedFd<'_>, name: &Path, mode: u32) -> Result<OwnedFd, Errno> {
    let flags =
        OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(parent, name, flags, Mode::from_bits_truncate(mode))
}

/// The path without leading slashes; `.` for the root.
fn relative(path: &Path) -> &Path {
    let mut bytes = path.as_os_str().as_bytes();
    while let Some(rest) = bytes.strip_prefix(b"/") {
        bytes = rest;
    }
    if bytes.is_empty() {
        return Path::new(".");
    }
    Path::new(OsStr::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn tree() -> (tempfile::TempDir, RootDir) {
        let outer = tempfile::tempdir().unwrap();
        let path = outer.path().join("root");
        std::fs::create_dir(&path).unwrap();
        let root = RootDir::open(&path).unwrap();
        (outer, root)
    }

    #[test]
    fn a_link_out_of_the_tree_is_refused_or_contained() {
        let (outer, root) = tree();
        std::fs::write(outer.path().join("secret"), "outside").unwrap();
        symlink("../secret", root.path().join("up")).unwrap();
        symlink("/secret", root.path().join("absolute")).unwrap();
        for link in ["up", "absolute"] {
            let refused = root.lookup(Path::new(link), OFlag::O_RDONLY, Links::Refuse);
            assert_eq!(refused.unwrap_err(), Errno::EXDEV, "{link}");
            let contained = root.read(Path::new(link), 100).unwrap_err();
            assert_eq!(contained.kind(), io::ErrorKind::NotFound, "{link}");
        }
        std::fs::write(root.path().join("secret"), "inside").unwrap();
        assert_eq!(root.read(Path::new("/up"), 100).unwrap(), b"inside");
    }

    #[test]
    fn a_written_file_replaces_a_link_and_has_its_mode() {
        let (outer, root) = tree();
        std::fs::write(outer.path().join("victim"), "untouched").unwrap();
        std::fs::create_dir_all(root.path().join("var/metal")).unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        symlink("/var/metal", root.path().join("etc/metal")).unwrap();
        symlink("../../../victim", root.path().join("var/metal/userdata")).unwrap();
        root.write(Path::new("/etc/metal/userdata"), b"x", 0o600)
            .unwrap();
        assert_eq!(
            std::fs::read(outer.path().join("victim")).unwrap(),
            b"untouched"
        );
        let written = root.path().join("var/metal/userdata");
        let metadata = std::fs::symlink_metadata(&written).unwrap();
        assert!(metadata.is_file());
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
        assert_eq!(
            std::fs::read_dir(root.path().join("var/metal"))
                .unwrap()
                .count(),
            1
        );
    }

    #[test]
    fn parents_are_made_inside_the_tree_only() {
        let (outer, root) = tree();
        symlink("../elsewhere", root.path().join("out")).unwrap();
        assert_eq!(
            root.make_dirs(Path::new("out/a"), Links::Refuse)
                .unwrap_err(),
            Errno::EXDEV
        );
        root.make_dirs(Path::new("a/b/c"), Links::Refuse).unwrap();
        assert!(root.path().join("a/b/c").is_dir());
        assert!(!outer.path().join("elsewhere").exists());
    }

    #[test]
    fn a_dropped_stage_leaves_nothing() {
        let (_outer, root) = tree();
        let staged = root.stage(Path::new("file"), 0o644).unwrap();
        drop(staged);
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn reading_is_bounded_and_never_waits_for_a_fifo() {
        let (_outer, root) = tree();
        std::fs::write(root.path().join("big"), [0; 11]).unwrap();
        let long = root.read(Path::new("big"), 10).unwrap_err();
        assert_eq!(long.kind(), io::ErrorKind::InvalidData);
        nix::unistd::mkfifo(&root.path().join("fifo"), Mode::from_bits_truncate(0o600)).unwrap();
        let fifo = root.read(Path::new("fifo"), 10).unwrap_err();
        assert_eq!(fifo.kind(), io::ErrorKind::InvalidInput);
    }
}
