//! Block devices: opened for oneself, discarded, flushed, their partitions read again.
//! One system call each, and errors that say what failed on what.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use thiserror::Error;

use super::disks::{DevId, Disk};
use crate::watchdog::Progress;

/// Discarded with one call, so that a huge disk does not spend minutes in one ioctl.
const DISCARD_STEP: u64 = 64 << 30;
/// The same for zeros that have to be written.
const ZERO_STEP: u64 = 1 << 30;
/// How long the kernel may take to let go of old partitions and to show new ones. Probes
/// of other programs hold a device for milliseconds; there is no event for their end.
const SETTLE: Duration = Duration::from_secs(10);
const SETTLE_STEP: Duration = Duration::from_millis(20);

/// Kernel, `include/uapi/linux/fs.h`.
mod ioctl {
    nix::ioctl_none!(blkrrpart, 0x12, 95);
    nix::ioctl_none!(blkflsbuf, 0x12, 97);
    nix::ioctl_read!(blkgetsize64, 0x12, 114, libc::size_t);
    nix::ioctl_write_ptr_bad!(blkdiscard, nix::request_code_none!(0x12, 119), [u64; 2]);
    nix::ioctl_write_ptr_bad!(blksecdiscard, nix::request_code_none!(0x12, 125), [u64; 2]);
    nix::ioctl_write_ptr_bad!(blkzeroout, nix::request_code_none!(0x12, 127), [u64; 2]);
}

/// What went wrong with a device.
#[derive(Debug, Error)]
pub enum Error {
    #[error("cannot {operation} {path}: {source}")]
    Io {
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{path} is in use by {by}; it has to be stopped before the disk can be written")]
    Busy { path: PathBuf, by: String },
    #[error("{path} is not the disk that was found: {problem}")]
    Changed { path: PathBuf, problem: String },
    #[error("the kernel did not show {path} within {} s", SETTLE.as_secs())]
    NoNode { path: PathBuf },
}

/// Names the operation and the device of an I/O error.
pub(super) fn failed(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io {
        operation,
        path: path.clone(),
        source,
    }
}

/// Opens a whole disk for reading and writing, and nobody else: a disk that is mounted,
/// swapped to, or part of an array or volume group is an error that names its user.
///
/// # Errors
/// As said, and when the node is not the device that was discovered.
pub fn open_exclusive(disk: &Disk) -> Result<File, Error> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_EXCL)
        .open(&disk.path);
    let file = opened.map_err(|source| {
        if source.raw_os_error() == Some(libc::EBUSY) {
            Error::Busy {
                path: disk.path.clone(),
                by: users(Path::new("/sys"), Path::new("/proc"), disk),
            }
        } else {
            failed("open", &disk.path)(source)
        }
    })?;
    same_disk(&file, disk)?;
    Ok(file)
}

/// Opens a whole disk for reading.
///
/// # Errors
/// When it cannot be opened or is not the device that was discovered.
pub fn open_to_read(disk: &Disk) -> Result<File, Error> {
    let file = File::open(&disk.path).map_err(failed("open", &disk.path))?;
    same_disk(&file, disk)?;
    Ok(file)
}

/// Names move between devices when one is unplugged; what is written must be the device
/// whose identity was checked.
fn same_disk(file: &File, disk: &Disk) -> Result<(), Error> {
    let dev = device_number(file, &disk.path)?;
    let size = size(file, &disk.path)?;
    let problem = if dev != Some(disk.dev) {
        format!("it is device {dev:?}, not {}", disk.dev)
    } else if size != disk.size {
        format!("it has {size} bytes, not {}", disk.size)
    } else {
        return Ok(());
    };
    Err(Error::Changed {
        path: disk.path.clone(),
        problem,
    })
}

fn device_number(file: &File, path: &Path) -> Result<Option<DevId>, Error> {
    let metadata = file.metadata().map_err(failed("examine", path))?;
    let rdev = metadata.rdev();
    Ok(metadata.file_type().is_block_device().then(|| DevId {
        major: libc::major(rdev),
        minor: libc::minor(rdev),
    }))
}

/// Size of a block device in bytes.
///
/// # Errors
/// When the kernel does not tell.
pub fn size(file: &File, path: &Path) -> Result<u64, Error> {
    let mut bytes: libc::size_t = 0;
    // SAFETY: the kernel writes one u64 to `bytes`, which lives through the call; size_t
    // is 64 bits wide on the targets that this package builds for.
    unsafe { ioctl::blkgetsize64(file.as_raw_fd(), &raw mut bytes) }
        .map_err(|errno| failed("learn the size of", path)(errno.into()))?;
    Ok(bytes as u64)
}

/// Tells the device that nothing on it is needed any more.
///
/// # Errors
/// `Unsupported` when it cannot discard; else what failed.
pub fn discard(file: &File, size: u64, progress: &Progress) -> io::Result<()> {
    // SAFETY: the kernel reads two u64 from `range`, which lives through the call.
    in_steps(0..size, DISCARD_STEP, &|| progress.beat(), |range| unsafe {
        ioctl::blkdiscard(file.as_raw_fd(), range)
    })
}

/// The same, and no copy that the device may have made stays.
///
/// # Errors
/// `Unsupported` when it cannot do that; else what failed.
pub fn secure_discard(file: &File, size: u64, progress: &Progress) -> io::Result<()> {
    // SAFETY: as in `discard`.
    in_steps(0..size, DISCARD_STEP, &|| progress.beat(), |range| unsafe {
        ioctl::blksecdiscard(file.as_raw_fd(), range)
    })
}

/// Writes zeros: by the device's own command, or by the kernel.
///
/// # Errors
/// What failed.
pub fn zero_out(file: &File, size: u64, progress: &Progress) -> io::Result<()> {
    zero(file, 0..size, &|| progress.beat())
}

/// The same for a short part of the device, in bytes.
///
/// # Errors
/// `Unsupported` for what is no block device, or not made of its blocks; else what failed.
pub fn zero_range(file: &File, range: Range<u64>) -> io::Result<()> {
    zero(file, range, &|| ())
}

fn zero(file: &File, range: Range<u64>, beat: &dyn Fn()) -> io::Result<()> {
    // SAFETY: as in `discard`.
    in_steps(range, ZERO_STEP, beat, |range| unsafe {
        ioctl::blkzeroout(file.as_raw_fd(), range)
    })
}

fn in_steps(
    whole: Range<u64>,
    step: u64,
    beat: &dyn Fn(),
    act: impl Fn(&[u64; 2]) -> nix::Result<libc::c_int>,
) -> io::Result<()> {
    let mut start = whole.start;
    while start < whole.end {
        beat();
        let range = [start, step.min(whole.end - start)];
        match act(&range) {
            Ok(_) => start += range[1],
            Err(Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::EINVAL) => {
                return Err(io::ErrorKind::Unsupported.into());
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Writes dirty pages and drops the cache, so that the next read comes from the device.
/// A regular file is only synchronised.
///
/// # Errors
/// Also when an earlier write could not be written back.
pub fn flush(file: &File) -> io::Result<()> {
    file.sync_all()?;
    // SAFETY: BLKFLSBUF takes no argument.
    match unsafe { ioctl::blkflsbuf(file.as_raw_fd()) } {
        Ok(_) | Err(Errno::ENOTTY) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Makes the kernel read the partition table again; tried anew while the disk is busy.
///
/// # Errors
/// When it stays busy, or the kernel refuses.
pub fn read_partitions_again(file: &File, disk: &Disk) -> Result<(), Error> {
    let deadline = Instant::now() + SETTLE;
    loop {
        // SAFETY: BLKRRPART takes no argument.
        match unsafe { ioctl::blkrrpart(file.as_raw_fd()) } {
            Ok(_) => return Ok(()),
            Err(Errno::EBUSY) if Instant::now() < deadline => std::thread::sleep(SETTLE_STEP),
            Err(Errno::EBUSY) => {
                return Err(Error::Busy {
                    path: disk.path.clone(),
                    by: users(Path::new("/sys"), Path::new("/proc"), disk),
                });
            }
            Err(errno) => {
                return Err(failed("read the new partition table of", &disk.path)(
                    errno.into(),
                ));
            }
        }
    }
}

/// Waits for the node of a partition and opens it, for oneself alone.
///
/// # Errors
/// When it does not come, or is not `size` bytes long: then it is another partition.
pub fn open_partition(path: &Path, size_expected: u64) -> Result<File, Error> {
    let (file, size) = open_new(path)?;
    if size == size_expected {
        Ok(file)
    } else {
        Err(Error::Changed {
            path: path.to_path_buf(),
            problem: format!("it has {size} bytes, not {size_expected}"),
        })
    }
}

/// Waits for the node of a block device that was just made, and opens it for oneself
/// alone. Answers its size in bytes too.
///
/// # Errors
/// When it does not come, or is no block device.
pub fn open_new(path: &Path) -> Result<(File, u64), Error> {
    let deadline = Instant::now() + SETTLE;
    let file = loop {
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_EXCL)
            .open(path);
        match opened {
            Ok(file) => break file,
            Err(error) => {
                let worth_waiting = matches!(
                    error.raw_os_error(),
                    Some(libc::ENOENT | libc::ENXIO | libc::ENODEV | libc::EBUSY)
                );
                if !worth_waiting {
                    return Err(failed("open", path)(error));
                }
                if Instant::now() >= deadline {
                    return Err(Error::NoNode {
                        path: path.to_path_buf(),
                    });
                }
                std::thread::sleep(SETTLE_STEP);
            }
        }
    };
    if device_number(&file, path)?.is_none() {
        return Err(Error::Changed {
            path: path.to_path_buf(),
            problem: "it is not a block device".to_owned(),
        });
    }
    let size = size(&file, path)?;
    Ok((file, size))
}

/// Who uses a disk or its partitions.
fn users(sys: &Path, proc: &Path, disk: &Disk) -> String {
    let mut devices = vec![(disk.name.clone(), disk.dev)];
    devices.extend(disk.partitions.iter().map(|p| (p.name.clone(), p.dev)));
    users_of(sys, proc, &devices)
}

/// Who uses block devices: holders of sysfs (md, dm, bcache), mounts, swap.
pub(super) fn users_of(sys: &Path, proc: &Path, devices: &[(String, DevId)]) -> String {
    let mounts = fs::read_to_string(proc.join("self/mountinfo")).unwrap_or_default();
    let swaps = fs::read_to_string(proc.join("swaps")).unwrap_or_default();
    let mut users = Vec::new();
    for (name, dev) in devices {
        let holders = sys.join("dev/block").join(dev.to_string()).join("holders");
        for holder in fs::read_dir(holders).into_iter().flatten().flatten() {
            users.push(format!(
                "{} (on {name})",
                holder.file_name().to_string_lossy()
            ));
        }
        for line in mounts.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            if let [_, _, its_dev, _, path, ..] = fields[..]
                && its_dev == dev.to_string()
            {
                users.push(format!("the mount {path} (of {name})"));
            }
        }
        if swaps
            .lines()
            .any(|line| line.split_whitespace().next() == Some(&format!("/dev/{name}")))
        {
            users.push(format!("swap (on {name})"));
        }
    }
    if users.is_empty() {
        "another program".to_owned()
    } else {
        users.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::testing::disk;

    #[test]
    fn users_are_named() {
        let root = tempfile::tempdir().unwrap();
        let (sys, proc) = (root.path().join("sys"), root.path().join("proc"));
        let disk = disk("sda", 1 << 30);
        assert_eq!(users(&sys, &proc, &disk), "another program");
        for holder in ["dev/block/8:1/holders/md127", "dev/block/8:0/holders/dm-3"] {
            fs::create_dir_all(sys.join(holder)).unwrap();
        }
        fs::create_dir_all(proc.join("self")).unwrap();
        fs::write(
            proc.join("self/mountinfo"),
            "22 1 8:1 / /mnt rw - ext4 /dev/sda1 rw\n23 1 8:17 / /other rw - ext4 /dev/sdb1 rw\nx\n",
        )
        .unwrap();
        fs::write(
            proc.join("swaps"),
            "Filename Type\n/dev/sda1 partition 1 0 -2\n",
        )
        .unwrap();
        assert_eq!(
            users(&sys, &proc, &disk),
            "dm-3 (on sda), md127 (on sda1), the mount /mnt (of sda1), swap (on sda1)"
        );
    }

    #[test]
    fn a_file_is_not_the_disk() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut disk = disk("sda", 1 << 30);
        disk.path = file.path().to_path_buf();
        assert!(open_exclusive(&disk).is_err());
        disk.path = "/nonexistent/sda".into();
        let error = open_exclusive(&disk).unwrap_err().to_string();
        assert!(error.contains("cannot open /nonexistent/sda"), "{error}");
    }

    #[test]
    fn a_file_cannot_discard_and_can_be_flushed() {
        let file = tempfile::tempfile().unwrap();
        for act in [discard, secure_discard, zero_out] {
            let error = act(&file, 4096, &Progress::unwatched()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        }
        flush(&file).unwrap();
    }
}
