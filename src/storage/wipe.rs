//! Wiping: what was on the disk is gone afterwards, and that was checked.
//!
//! [`Depth::Full`] discards the whole disk and proves it: a pattern is written to sample
//! blocks all over the disk before, and must read as zeros after. A disk that cannot
//! discard, or whose discard does not give zeros, gets what [`Depth::Quick`] does: zeros
//! over both ends and over every place where a known format leaves a mark, on the disk and
//! in each old partition, innermost first, so that a power cut leaves a table to find the
//! rest by. Either way what was cleared is read back from the device, not from the cache.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::device::{self, failed};
use super::disks::Disk;
use super::old_table;
use super::scope::ScopedDisks;
use super::signatures::{self, Found, Kind};
use super::stack;

/// Sample blocks that prove a discard, spread over the disk.
const SAMPLES: u64 = 256;
const SAMPLE: usize = 4096;
const PATTERN: u8 = 0xa5;
const CHUNK: usize = 1 << 20;

/// How thorough a wipe is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Partition tables, superblocks and labels only.
    Quick,
    /// Everything, as far as the disk can.
    Full,
}

/// What a wipe did to a disk in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// The whole disk was discarded and reads as zeros.
    Discard,
    /// Ends and marks were overwritten with zeros; other data may still be there.
    Signatures,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Discard => "discarded whole",
            Self::Signatures => "signatures zeroed",
        })
    }
}

/// A disk that was wiped, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WipedDisk {
    pub disk: Disk,
    pub method: Method,
    /// Bytes discarded, or overwritten.
    pub bytes: u64,
    /// Blocks of 4 KiB that were read back from the device and found zero.
    pub verified: u64,
    pub took: Duration,
}

impl fmt::Display for WipedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}, {} MiB in {:.1} s, {} blocks read back as zeros",
            self.disk.path.display(),
            self.method,
            self.bytes >> 20,
            self.took.as_secs_f64(),
            self.verified
        )
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
    #[error("{path}: the thread that wiped it could not run: {problem}")]
    Thread { path: String, problem: String },
}

/// At least one disk could not be wiped. All of them were tried.
#[derive(Debug, Error)]
#[error("{} of {tried} disks could not be wiped: {}", failed.len(), list(failed))]
pub struct WipeError {
    pub tried: usize,
    pub failed: Vec<DiskError>,
}

fn list(errors: &[DiskError]) -> String {
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

/// Wipes every disk in scope, all at the same time.
///
/// # Errors
/// When a disk is in use, cannot be read or written, or is not clean afterwards. The
/// others have been wiped then.
pub fn wipe(scoped: &ScopedDisks, depth: Depth) -> Result<Vec<WipedDisk>, WipeError> {
    if let Err(error) = stack::take_down(scoped.disks()) {
        // The disks below it are found busy, and named with their users.
        tracing::warn!("{error}");
    }
    let results: Vec<Result<WipedDisk, DiskError>> = thread::scope(|threads| {
        let started: Vec<_> = scoped
            .disks()
            .iter()
            .map(|disk| {
                let builder = thread::Builder::new().name(format!("wipe-{}", disk.name));
                (
                    disk,
                    builder.spawn_scoped(threads, move || wipe_disk(disk, depth)),
                )
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
    let tried = results.len();
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
        Err(WipeError { tried, failed })
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
    let mut dirty = Vec::new();
    for disk in scoped.disks() {
        let file = device::open_to_read(disk)?;
        let found = signatures::find(&file, &(0..disk.size)).map_err(failed("read", &disk.path))?;
        if !found.is_empty() {
            dirty.push(Dirty {
                disk: disk.clone(),
                found,
            });
        }
    }
    Ok(dirty)
}

fn wipe_disk(disk: &Disk, depth: Depth) -> Result<WipedDisk, DiskError> {
    let started = Instant::now();
    let file = device::open_exclusive(disk)?;
    let known: Vec<Range<u64>> = disk
        .partitions
        .iter()
        .map(|partition| {
            let start = partition.start.min(disk.size);
            start
                ..partition
                    .start
                    .saturating_add(partition.size)
                    .min(disk.size)
        })
        .collect();
    let (method, bytes, verified) = wipe_open(&file, disk, &known, depth, || {
        device::discard(&file, disk.size)
    })?;
    device::read_partitions_again(&file, disk)?;
    Ok(WipedDisk {
        disk: disk.clone(),
        method,
        bytes,
        verified,
        took: started.elapsed(),
    })
}

/// The wipe itself; a regular file will do for `file`.
fn wipe_open(
    file: &File,
    disk: &Disk,
    known: &[Range<u64>],
    depth: Depth,
    discard: impl FnOnce() -> io::Result<bool>,
) -> Result<(Method, u64, u64), DiskError> {
    let path = &disk.path;
    let mut partitions = old_table::partitions(file, disk.size).map_err(failed("read", path))?;
    partitions.extend_from_slice(known);
    let inner = old_table::places_in(&partitions);
    let outer = signatures::places(&(0..disk.size), Kind::Disk);
    let mut verified = 0;
    let mut method = Method::Signatures;
    if depth == Depth::Full {
        let samples = samples(disk.size);
        if discard_is_proven(file, disk, &samples, discard)? {
            method = Method::Discard;
            verified += samples.len() as u64;
        }
    }
    let mut bytes = 0;
    for places in [&inner, &outer] {
        for place in places.iter() {
            // What a discard has cleared need not be written again.
            let clean = method == Method::Discard
                && first_nonzero(file, place)
                    .map_err(failed("read", path))?
                    .is_none();
            if !clean {
                zero(file, place).map_err(failed("write zeros to", path))?;
                bytes += place.end - place.start;
            }
        }
        device::flush(file).map_err(failed("flush", path))?;
    }
    for place in inner.iter().chain(&outer) {
        if let Some(offset) = first_nonzero(file, place).map_err(failed("read back", path))? {
            return Err(DiskError::NotZero {
                path: path.display().to_string(),
                offset,
            });
        }
        verified += (place.end - place.start).div_ceil(SAMPLE as u64);
    }
    for region in partitions.iter().chain([&(0..disk.size)]) {
        let found = signatures::find(file, region).map_err(failed("read back", path))?;
        if let Some(found) = found.into_iter().next() {
            return Err(DiskError::StillThere {
                path: path.display().to_string(),
                found,
            });
        }
    }
    if method == Method::Discard {
        bytes = disk.size;
    }
    Ok((method, bytes, verified))
}

/// Writes a pattern to the samples, discards, and looks whether they read as zeros. If
/// they do not, the pattern is removed again.
fn discard_is_proven(
    file: &File,
    disk: &Disk,
    samples: &[u64],
    discard: impl FnOnce() -> io::Result<bool>,
) -> Result<bool, DiskError> {
    let path = &disk.path;
    for offset in samples {
        file.write_all_at(&[PATTERN; SAMPLE], *offset)
            .map_err(failed("write a test pattern to", path))?;
    }
    device::flush(file).map_err(failed("flush", path))?;
    let discarded = discard().unwrap_or_else(|error| {
        tracing::warn!(disk = %path.display(), %error, "discard failed; falling back to zeros over the signatures");
        false
    });
    device::flush(file).map_err(failed("flush", path))?;
    let mut proven = discarded;
    for offset in samples {
        let block = *offset..offset + SAMPLE as u64;
        if first_nonzero(file, &block)
            .map_err(failed("read back", path))?
            .is_some()
        {
            proven = false;
            zero(file, &block).map_err(failed("write zeros to", path))?;
        }
    }
    if discarded && !proven {
        tracing::warn!(disk = %path.display(), "the disk accepted a discard and kept its data");
    }
    device::flush(file).map_err(failed("flush", path))?;
    Ok(proven)
}

/// One block in each of [`SAMPLES`] equal stretches, at a place that nobody can guess.
fn samples(size: u64) -> Vec<u64> {
    let block = SAMPLE as u64;
    let blocks = size / block;
    let count = SAMPLES.min(blocks);
    let stretch = blocks.checked_div(count).unwrap_or(0);
    (0..count)
        .map(|index| (index * stretch + rand::random::<u64>() % stretch.max(1)) * block)
        .collect()
}

fn zero(file: &File, range: &Range<u64>) -> io::Result<()> {
    let zeros = vec![0; CHUNK];
    let mut at = range.start;
    while at < range.end {
        let length = (range.end - at).min(CHUNK as u64) as usize;
        file.write_all_at(&zeros[..length], at)?;
        at += length as u64;
    }
    Ok(())
}

fn first_nonzero(file: &File, range: &Range<u64>) -> io::Result<Option<u64>> {
    let zeros = vec![0; CHUNK];
    let mut bytes = vec![0; CHUNK];
    let mut at = range.start;
    while at < range.end {
        let length = (range.end - at).min(CHUNK as u64) as usize;
        file.read_exact_at(&mut bytes[..length], at)?;
        if bytes[..length] != zeros[..length] {
            let index = bytes[..length].iter().position(|byte| *byte != 0);
            return Ok(index.map(|index| at + index as u64));
        }
        at += length as u64;
    }
    Ok(None)
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
// Lists of regions with one region in them are what is meant.
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;
    use crate::storage::testing::disk;

    const MIB: u64 = 1 << 20;
    const SIZE: u64 = 300 * MIB;

    /// A disk with a GPT of one partition at 100 MiB, marks in it, and data in the middle.
    fn used() -> (File, Disk) {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(SIZE).unwrap();
        let mut gpt = gptman::GPT::new_from(&mut file, 512, [1; 16]).unwrap();
        gpt[1] = gptman::GPTPartitionEntry {
            partition_type_guid: [2; 16],
            unique_partition_guid: [3; 16],
            starting_lba: 100 * MIB / 512,
            ending_lba: 200 * MIB / 512 - 1,
            attribute_bits: 0,
            partition_name: "old".into(),
        };
        gptman::GPT::write_protective_mbr_into(&mut file, 512).unwrap();
        gpt.write_into(&mut file).unwrap();
        file.write_all_at(b"LUKS\xba\xbe", 100 * MIB).unwrap();
        file.write_all_at(b"SKUL\xba\xbe", 100 * MIB + 0x40_0000)
            .unwrap();
        file.write_all_at(&[b's'; 1 << 20], 150 * MIB).unwrap();
        let mut disk = disk("sda", SIZE);
        disk.partitions.clear();
        (file, disk)
    }

    fn byte(file: &File, at: u64) -> u8 {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        byte[0]
    }

    fn clear_all(file: &File) -> io::Result<bool> {
        zero(file, &(0..SIZE))?;
        Ok(true)
    }

    #[test]
    fn quick_removes_marks_and_nothing_else() {
        let (file, disk) = used();
        assert!(!signatures::find(&file, &(0..SIZE)).unwrap().is_empty());
        let unused = || -> io::Result<bool> { panic!("quick does not discard") };
        let (method, bytes, verified) = wipe_open(&file, &disk, &[], Depth::Quick, unused).unwrap();
        assert_eq!(method, Method::Signatures);
        assert_eq!(verified, bytes / 4096);
        assert_eq!(signatures::find(&file, &(0..SIZE)).unwrap(), []);
        assert_eq!(
            signatures::find(&file, &(100 * MIB..200 * MIB)).unwrap(),
            []
        );
        assert_eq!(byte(&file, 150 * MIB), b's');
    }

    #[test]
    fn a_partition_only_the_kernel_knows_is_cleared_too() {
        let (file, disk) = used();
        file.write_all_at(b"LUKS\xba\xbe", 220 * MIB).unwrap();
        let known = [220 * MIB..230 * MIB];
        wipe_open(&file, &disk, &known, Depth::Quick, || Ok(false)).unwrap();
        assert_eq!(byte(&file, 220 * MIB), 0);
    }

    #[test]
    fn a_discard_that_zeroes_is_believed() {
        let (file, disk) = used();
        let (method, bytes, verified) =
            wipe_open(&file, &disk, &[], Depth::Full, || clear_all(&file)).unwrap();
        assert_eq!((method, bytes), (Method::Discard, SIZE));
        assert!(verified > SAMPLES);
        assert_eq!(first_nonzero(&file, &(0..SIZE)).unwrap(), None);
    }

    #[test]
    fn a_discard_that_leaves_the_ends_is_completed() {
        let (file, disk) = used();
        let partial = || {
            clear_all(&file)?;
            file.write_all_at(b"left", SIZE - 4)?;
            Ok(true)
        };
        let (method, _, _) = wipe_open(&file, &disk, &[], Depth::Full, partial).unwrap();
        assert_eq!(method, Method::Discard);
        assert_eq!(byte(&file, SIZE - 4), 0);
    }

    #[test]
    fn a_discard_that_lies_or_fails_is_found_out() {
        type Lie = fn() -> io::Result<bool>;
        let lies: [Lie; 3] = [
            || Ok(true),
            || Ok(false),
            || Err(io::Error::from_raw_os_error(libc::EIO)),
        ];
        for lie in lies {
            let (file, disk) = used();
            let (method, bytes, _) = wipe_open(&file, &disk, &[], Depth::Full, lie).unwrap();
            assert_eq!(method, Method::Signatures);
            assert!(bytes < SIZE);
            assert_eq!(signatures::find(&file, &(0..SIZE)).unwrap(), []);
            // A sample may have hit the data, but not all of it.
            let data = 150 * MIB..151 * MIB;
            assert!(first_nonzero(&file, &data).unwrap().is_some());
            // The test pattern is gone again.
            let mut rest = vec![0; (50 * MIB) as usize];
            file.read_exact_at(&mut rest, 20 * MIB).unwrap();
            assert!(!rest.contains(&PATTERN));
        }
    }

    #[test]
    fn a_disk_that_refuses_writes_is_an_error() {
        let (file, disk) = used();
        let read_only = File::open(format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&file)
        ))
        .unwrap();
        for depth in [Depth::Quick, Depth::Full] {
            let error = wipe_open(&read_only, &disk, &[], depth, || Ok(true)).unwrap_err();
            assert!(error.to_string().contains("/dev/sda"), "{error}");
        }
    }

    #[test]
    fn samples_are_spread_and_inside() {
        for size in [0, 1, 4096, 4097, 1 << 20, 1 << 40] {
            let samples = samples(size);
            assert_eq!(samples.len() as u64, (size / 4096).min(SAMPLES));
            assert!(samples.is_sorted_by(|a, b| a < b));
            assert!(samples.iter().all(|at| at + 4096 <= size && at % 4096 == 0));
        }
    }

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
    fn every_failed_disk_is_named() {
        let missing = |name: &str| {
            let mut disk = disk(name, SIZE);
            disk.path = format!("/nonexistent/{name}").into();
            disk
        };
        let sorted = crate::storage::eligible::Sorted {
            erasable: vec![missing("sda"), missing("sdb")],
            left_alone: vec![],
        };
        let scope = crate::storage::testing::every_disk();
        let scoped = crate::storage::scope::disks_in_scope(&scope, &sorted, None).unwrap();
        let error = wipe(&scoped, Depth::Quick).unwrap_err();
        let text = error.to_string();
        assert_eq!((error.tried, error.failed.len()), (2, 2));
        assert!(
            text.contains("/nonexistent/sda") && text.contains("/nonexistent/sdb"),
            "{text}"
        );
    }
}
