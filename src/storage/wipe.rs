//! Wiping: what was on the disks is gone afterwards, and that was checked.
//!
//! [`Depth::Secure`] takes the first rung of the ladder that holds: before each the disk gets
//! a pattern in sample blocks all over it, and after it that pattern must be gone, whatever
//! the disk says. [`Depth::Quick`] discards without asking for proof. All depths write zeros
//! over both ends and over every place where a known format leaves a mark, on the disk and in
//! each old partition, and read back what was cleared from the device, not from the cache.

use std::fmt;
use std::fs::File;
use std::io;
use std::thread;
use std::time::Duration;

use thiserror::Error;

use super::device::{self, failed};
use super::disks::Disk;
pub use super::ladder::Rung;
use super::scope::ScopedDisks;
use super::signatures::{self, Found, Kind};
use super::stack;
use super::wipe_disk::{self, first_nonzero, zero};
use crate::watchdog::Progress;

/// The longest that a disk at work may show no progress: some discard for minutes.
pub(super) const SILENCE: Duration = Duration::from_secs(600);

/// How thorough a wipe is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Partition tables, superblocks and labels only: enough that nothing boots or assembles.
    Marks,
    /// The same, and the disk is told that it may forget the rest.
    Quick,
    /// Everything, proven.
    Secure,
}

/// A rung that did not hold, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    pub rung: Rung,
    pub why: String,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rung, self.why)
    }
}

/// A disk that was wiped, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WipedDisk {
    pub disk: Disk,
    /// What held.
    pub rung: Rung,
    /// Better rungs that did not.
    pub failed: Vec<Failed>,
    /// Bytes erased, or overwritten.
    pub bytes: u64,
    /// Blocks of 4 KiB that were read back from the device.
    pub verified: u64,
    pub took: Duration,
}

impl fmt::Display for WipedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}, {} MiB in {:.1} s, {} blocks read back and clean",
            self.disk.path.display(),
            self.rung,
            self.bytes >> 20,
            self.took.as_secs_f64(),
            self.verified
        )?;
        if self.failed.is_empty() {
            Ok(())
        } else {
            write!(f, "; before that {}", reasons(&self.failed))
        }
    }
}

/// Why one disk could not be wiped.
#[derive(Debug, Error)]
pub enum DiskError {
    #[error(transparent)]
    Device(#[from] device::Error),
    #[error("{path}: not zero at byte {offset} after zeros were written there")]
    NotZero { path: String, offset: u64 },
    #[error("{path}: {found} is still there after the wipe")]
    StillThere { path: String, found: Found },
    /// What keeps the drive from erasing itself comes first: it is most often why the rest fails
    /// too, and the end of a long message is cut off on its way.
    #[error("{path}: nothing erases it: {}{}", left_out.iter().map(|why| format!("{why}; ")).collect::<String>(), reasons(failed))]
    NoRung {
        path: String,
        /// Why better rungs were not tried.
        left_out: Vec<&'static str>,
        failed: Vec<Failed>,
    },
    #[error("{path}: the thread that wiped it could not run: {problem}")]
    Thread { path: String, problem: String },
}

/// At least one disk could not be wiped. All of them were tried.
#[derive(Debug, Error)]
#[error("{} of {} disks could not be wiped: {}; replace the disk, exclude it (policy.exclude_disks), or go on without it (policy.wipe_failures)", failed.len(), failed.len() + wiped.len(), list(failed))]
pub struct WipeError {
    pub wiped: Vec<WipedDisk>,
    pub failed: Vec<DiskError>,
}

fn list(errors: &[impl fmt::Display]) -> String {
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

/// Why rungs did not hold; a reason that several share is said once.
fn reasons(failed: &[Failed]) -> String {
    let mut shared: Vec<(&str, Vec<String>)> = Vec::new();
    for Failed { rung, why } in failed {
        match shared.iter_mut().find(|(reason, _)| reason == why) {
            Some((_, rungs)) => rungs.push(rung.to_string()),
            None => shared.push((why, vec![rung.to_string()])),
        }
    }
    let texts: Vec<String> = shared
        .iter()
        .map(|(why, rungs)| format!("{}: {why}", rungs.join(", ")))
        .collect();
    texts.join("; ")
}

/// Wipes every disk in scope, all at the same time. What stands on them is taken down first.
/// Each disk gives signs of life of its own, so that one that hangs is not covered by others.
///
/// # Errors
/// When a disk is in use, cannot be read or written, or is not clean afterwards. The
/// others have been wiped then.
pub fn wipe(
    scoped: &ScopedDisks,
    depth: Depth,
    progress: &Progress,
) -> Result<Vec<WipedDisk>, WipeError> {
    progress.begin(SILENCE);
    if let Err(error) = stack::take_down(scoped.disks()) {
        // The disks below it are found busy, and named with their users.
        tracing::warn!("{error}");
    }
    let extent = scoped.extent();
    let results: Vec<Result<WipedDisk, DiskError>> = thread::scope(|threads| {
        let started: Vec<_> = scoped
            .disks()
            .iter()
            .map(|disk| {
                let builder = thread::Builder::new().name(format!("wipe-{}", disk.name));
                let own = progress.part(SILENCE);
                let work = move || wipe_disk::wipe(disk, extent, depth, &own);
                (disk, builder.spawn_scoped(threads, work))
            })
            .collect();
        let lost = |disk: &Disk, problem: String| DiskError::Thread {
            path: disk.path.display().to_string(),
            problem,
        };
        started
            .into_iter()
            .map(|(disk, thread)| match thread {
                Ok(thread) => thread
                    .join()
                    .unwrap_or_else(|_| Err(lost(disk, "it panicked".to_owned()))),
                Err(error) => Err(lost(disk, error.to_string())),
            })
            .collect()
    });
    let mut wiped = Vec::new();
    let mut failed = Vec::new();
    for result in results {
        match result {
            Ok(disk) => wiped.push(disk),
            Err(error) => failed.push(error),
        }
    }
    if failed.is_empty() {
        Ok(wiped)
    } else {
        Err(WipeError { wiped, failed })
    }
}

/// A disk that carries something although it should be empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirty {
    pub disk: Disk,
    pub found: Vec<Found>,
}

impl fmt::Display for Dirty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found: Vec<String> = self.found.iter().map(ToString::to_string).collect();
        write!(
            f,
            "{} carries {}",
            self.disk.path.display(),
            found.join(", ")
        )
    }
}

/// Looks whether the disks in scope are as a wipe left them. Writes nothing.
///
/// # Errors
/// When a disk cannot be read.
pub fn quick_check(scoped: &ScopedDisks) -> Result<Vec<Dirty>, device::Error> {
    let checked = scoped.disks().iter().map(check_disk);
    checked.filter_map(Result::transpose).collect()
}

fn check_disk(disk: &Disk) -> Result<Option<Dirty>, device::Error> {
    let file = device::open_to_read(disk)?;
    let found = signatures::find(&file, &(0..disk.size)).map_err(failed("read", &disk.path))?;
    Ok((!found.is_empty()).then(|| Dirty {
        disk: disk.clone(),
        found,
    }))
}

/// The disks in scope that are not known to be as a wipe left them: they carry something, or
/// cannot be read, as a drive that a cut erase left locked. Writes nothing.
#[must_use]
pub fn not_known_empty(scoped: &ScopedDisks) -> ScopedDisks {
    scoped.only(|disk| match check_disk(disk) {
        Ok(None) => false,
        Ok(Some(dirty)) => {
            tracing::warn!("{dirty}");
            true
        }
        Err(error) => {
            tracing::warn!("{error}");
            true
        }
    })
}

/// Removes every mark from a partition that was just made: an older table may have had a
/// partition at the same place, and its superblock would come back to life.
///
/// # Errors
/// When the partition cannot be written.
pub(super) fn clear_partition(file: &File, size: u64) -> io::Result<()> {
    for place in signatures::places(&(0..size), Kind::Partition) {
        if first_nonzero(file, &place)?.is_some() {
            zero(file, &place)?;
        }
    }
    device::flush(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::storage::testing::disk;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_new_partition_is_cleared_of_what_was_there() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 * MIB).unwrap();
        file.write_all_at(b"LABELONE", 512).unwrap();
        file.write_all_at(b"EFI PART", 64 * MIB - 512).unwrap();
        clear_partition(&file, 64 * MIB).unwrap();
        assert_eq!(signatures::find(&file, &(0..64 * MIB)).unwrap(), []);
    }

    #[test]
    fn a_report_names_what_held_and_what_did_not() {
        let failed = Failed {
            rung: Rung::Discard,
            why: "it kept its data".into(),
        };
        let wiped = WipedDisk {
            disk: disk("sda", 5 * MIB),
            rung: Rung::ZeroOut,
            failed: vec![failed.clone()],
            bytes: 5 * MIB,
            verified: 7,
            took: Duration::from_millis(1500),
        };
        assert_eq!(
            wiped.to_string(),
            "/dev/sda: zero-out, 5 MiB in 1.5 s, 7 blocks read back and clean; before that discard: it kept its data"
        );
        let error = WipeError {
            wiped: vec![wiped],
            failed: vec![DiskError::NoRung {
                path: "/dev/sdb".into(),
                left_out: vec![],
                failed: vec![failed],
            }],
        };
        let text = error.to_string();
        assert!(
            text.starts_with("1 of 2 disks could not be wiped: /dev/sdb: nothing erases it: discard: it kept its data; replace"),
            "{text}"
        );
    }

    #[test]
    fn every_failed_disk_is_named() {
        let missing = |name: &str| {
            let mut disk = disk(name, MIB);
            disk.path = format!("/nonexistent/{name}").into();
            disk
        };
        let sorted = crate::storage::eligible::Sorted {
            erasable: vec![missing("sda"), missing("sdb")],
            left_alone: vec![],
        };
        let scope = crate::storage::testing::every_disk();
        let scoped = crate::storage::scope::disks_in_scope(&scope, &sorted, None).unwrap();
        // What cannot be read is not taken for empty.
        assert!(quick_check(&scoped).is_err());
        assert_eq!(not_known_empty(&scoped), scoped);
        let one = scoped.only(|disk| disk.name == "sdb");
        assert_eq!((one.disks().len(), one.extent()), (1, scoped.extent()));
        assert_eq!(one.disks()[0].name, "sdb");
        let error = wipe(&scoped, Depth::Quick, &Progress::unwatched()).unwrap_err();
        let text = error.to_string();
        assert_eq!((error.wiped.len(), error.failed.len()), (0, 2));
        assert!(
            text.contains("/nonexistent/sda") && text.contains("/nonexistent/sdb"),
            "{text}"
        );
    }
}
