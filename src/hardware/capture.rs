//! Copies what the inventory reads, and nothing else, into a tree that
//! [`Roots::recorded`](super::Roots::recorded) takes for a machine.
//!
//! Only the files named here are read: identities of hardware, no address but MACs, no
//! command line, no content of any disk.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use thiserror::Error;

use super::ask::Question;
use super::{Roots, disk, nic, read_bytes};

/// Where the answers of devices go, beside `sys` and `proc`.
pub const ANSWERS: &str = "ask";

/// The largest file that is copied: an SMBIOS table.
const MAX_FILE: u64 = 1 << 20;
/// The largest of procfs: 8192 processors.
const MAX_PROC_FILE: u64 = 16 << 20;
/// A machine with 768 threads and 64 disks has some 10,000.
const MAX_FILES: usize = 100_000;
/// Links on the way to a file; the kernel itself follows 40.
const MAX_LINKS: usize = 40;

/// What the inventory reads below `/sys`; `*` is any one name.
const FILES: [&str; 77] = [
    "class/dmi/id/bios_date",
    "class/dmi/id/bios_vendor",
    "class/dmi/id/bios_version",
    "class/dmi/id/board_name",
    "class/dmi/id/board_serial",
    "class/dmi/id/board_vendor",
    "class/dmi/id/chassis_serial",
    "class/dmi/id/chassis_vendor",
    "class/dmi/id/chassis_version",
    "class/dmi/id/product_name",
    "class/dmi/id/product_serial",
    "class/dmi/id/product_sku",
    "class/dmi/id/product_uuid",
    "class/dmi/id/sys_vendor",
    "firmware/dmi/tables/DMI",
    "firmware/dmi/tables/smbios_entry_point",
    "firmware/efi/fw_platform_size",
    "firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c",
    "devices/system/cpu/online",
    "devices/system/cpu/present",
    "devices/system/cpu/*/topology/core_cpus_list",
    "devices/system/cpu/*/topology/thread_siblings_list",
    "devices/system/memory/block_size_bytes",
    "devices/system/memory/*/state",
    "devices/system/node/*/cpulist",
    "devices/system/node/*/meminfo",
    "class/tpm/*/tpm_version_major",
    "class/tpm/*/pcr-sha1/0",
    "class/tpm/*/pcr-sha256/0",
    "class/tpm/*/pcr-sha384/0",
    "class/tpm/*/pcr-sha512/0",
    "class/tpm/*/pcr-sm3_256/0",
    "bus/pci/devices/*/class",
    "bus/pci/devices/*/device",
    "bus/pci/devices/*/driver",
    "bus/pci/devices/*/physfn",
    "bus/pci/devices/*/vendor",
    "class/net/*/address",
    "class/net/*/device/device",
    "class/net/*/device/driver",
    "class/net/*/device/physfn",
    "class/net/*/device/subsystem",
    "class/net/*/device/vendor",
    "class/net/*/device/../manufacturer",
    "class/net/*/device/../product",
    "class/net/*/speed",
    "class/net/*/type",
    "block/*/dev",
    "block/*/size",
    "block/*/ro",
    "block/*/removable",
    "block/*/hidden",
    "block/*/serial",
    "block/*/wwid",
    "block/*/queue/logical_block_size",
    "block/*/queue/physical_block_size",
    "block/*/queue/rotational",
    "block/*/device/type",
    "block/*/device/scsi_level",
    "block/*/device/vendor",
    "block/*/device/model",
    "block/*/device/name",
    "block/*/device/rev",
    "block/*/device/firmware_rev",
    "block/*/device/serial",
    "block/*/device/wwid",
    "block/*/device/vpd_pg80",
    "block/*/device/../../../../serial",
    "block/*/device/transport",
    "block/*/device/*/transport",
    "block/*/loop/backing_file",
    "block/*/*/partition",
    "block/*/*/dev",
    "block/*/*/start",
    "block/*/*/size",
    "block/*/dm/name",
    "block/*/md/level",
];

const PROC_FILES: [&str; 2] = ["cpuinfo", "meminfo"];

/// Why there is no recording.
#[derive(Debug, Error)]
pub enum Error {
    #[error("{} is not empty; name a directory that is, or one that does not exist", path.display())]
    NotEmpty { path: PathBuf },
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("more than {MAX_FILES} files; this is no machine that could be recorded")]
    TooMany,
    #[error(transparent)]
    Inventory(#[from] super::Error),
}

/// Records the machine at `roots` into `to` and answers how many files it took. What a
/// machine lacks, or does not let us read, the recording lacks.
///
/// # Errors
/// When `to` is not empty or cannot be written, and when links or disks cannot be listed.
pub fn capture(roots: &Roots, to: &Path) -> Result<usize, Error> {
    if fs::read_dir(to).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::NotEmpty { path: to.into() });
    }
    let mut copy = Copy {
        from: &roots.sys,
        to: to.join("sys"),
        written: BTreeSet::new(),
    };
    for pattern in FILES {
        for path in expand(&roots.sys, pattern) {
            copy.path(&path)?;
        }
    }
    let mut files = copy.written.len();
    for name in PROC_FILES {
        if let Ok(bytes) = read_bytes(&roots.proc.join(name), MAX_PROC_FILE) {
            write(&to.join("proc").join(name), &bytes)?;
            files += 1;
        }
    }
    for question in questions(roots)? {
        if let Some(answer) = roots.ask.ask(&question) {
            write(&to.join(ANSWERS).join(question.file()), &answer)?;
            files += 1;
        }
    }
    Ok(files)
}

/// All that the inventory asks.
fn questions(roots: &Roots) -> Result<Vec<Question>, super::Error> {
    let mut questions = disk::questions(roots)?;
    for port in nic::ports(roots)? {
        questions.push(Question::PermanentMac(port.name.clone()));
        questions.push(Question::DriverInfo(port.name));
    }
    Ok(questions)
}

/// The paths below `root` that fit `pattern`, relative to it.
fn expand(root: &Path, pattern: &str) -> Vec<PathBuf> {
    let mut paths = vec![PathBuf::new()];
    for part in pattern.split('/') {
        if part != "*" {
            paths.iter_mut().for_each(|path| path.push(part));
            continue;
        }
        paths = paths
            .iter()
            .flat_map(|path| {
                let entries = fs::read_dir(root.join(path)).into_iter().flatten();
                entries.flatten().map(|entry| path.join(entry.file_name()))
            })
            .take(MAX_FILES)
            .collect();
    }
    paths
}

struct Copy<'a> {
    from: &'a Path,
    to: PathBuf,
    /// Relative to both.
    written: BTreeSet<PathBuf>,
}

impl Copy<'_> {
    /// Copies a file with every link on its way as that link. A path that does not exist,
    /// cannot be read or leads out of the tree is no file of this machine.
    fn path(&mut self, path: &Path) -> Result<(), Error> {
        let mut rest: Vec<PathBuf> = parts(path);
        let (mut done, mut links) = (PathBuf::new(), 0);
        while let Some(part) = rest.pop() {
            if part == Path::new("..") {
                done.pop();
                continue;
            }
            let here = done.join(&part);
            let Ok(target) = fs::read_link(self.from.join(&here)) else {
                done = here;
                continue;
            };
            links += 1;
            if target.is_absolute() || links > MAX_LINKS {
                return Ok(());
            }
            self.link(&here, &target)?;
            // What a last link leads to is of no interest, only its name.
            if rest.is_empty() {
                return Ok(());
            }
            rest.extend(parts(&target));
        }
        self.file(&done)
    }

    fn file(&mut self, path: &Path) -> Result<(), Error> {
        let from = self.from.join(path);
        if !from.is_file() || self.written.contains(path) {
            return Ok(());
        }
        let Ok(bytes) = read_bytes(&from, MAX_FILE) else {
            return Ok(());
        };
        self.note(path)?;
        write(&self.to.join(path), &bytes)
    }

    fn link(&mut self, path: &Path, target: &Path) -> Result<(), Error> {
        if self.written.contains(path) {
            return Ok(());
        }
        self.note(path)?;
        let to = self.to.join(path);
        directory(&to)?;
        std::os::unix::fs::symlink(target, &to).map_err(|source| Error::Write { path: to, source })
    }

    fn note(&mut self, path: &Path) -> Result<(), Error> {
        if self.written.len() >= MAX_FILES {
            return Err(Error::TooMany);
        }
        self.written.insert(path.into());
        Ok(())
    }
}

/// The names of a path, last first: a stack of what is still to be walked.
fn parts(path: &Path) -> Vec<PathBuf> {
    path.components()
        .rev()
        .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir))
        .map(|part| PathBuf::from(part.as_os_str()))
        .collect()
}

fn directory(path: &Path) -> Result<(), Error> {
    let directory = path.parent().unwrap_or(path);
    fs::create_dir_all(directory).map_err(|source| Error::Write {
        path: directory.into(),
        source,
    })
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    directory(path)?;
    fs::write(path, bytes).map_err(|source| Error::Write {
        path: path.into(),
        source,
    })
}
