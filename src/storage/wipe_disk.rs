//! The wipe of one disk: the ladder is climbed down until a rung holds, then every mark is
//! removed, and both are read back.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use super::device::{self, failed};
use super::disks::Disk;
use super::drive::OpenDrive;
use super::ladder::{Facts, Ladder, Rung, ladder};
use super::old_table;
use super::signatures::{self, Kind};
use super::wipe::{Depth, DiskError, Failed, WipedDisk};
use crate::decide::Extent;
use crate::watchdog::Progress;

/// Sample blocks that prove an erase, spread over the disk.
const SAMPLES: u64 = 256;
const SAMPLE: usize = 4096;
const PATTERN: u8 = 0xa5;
const CHUNK: usize = 1 << 20;
/// Dirty pages that an overwrite may leave to the kernel at a time, in chunks.
const FLUSH_EVERY: u64 = 256;
/// The most bytes that marks are cleared in without a sign of life.
const STEP: u64 = CHUNK as u64 * FLUSH_EVERY;

/// A drive that can be told to erase itself; its data is read and written elsewhere.
pub(super) trait Drive {
    /// Brings it back from an erase that was cut.
    fn make_ready(&self) -> io::Result<()>;
    /// What it says it can.
    fn facts(&self) -> Facts;
    /// Takes one rung, and comes back when it is done.
    fn erase(&self, rung: Rung) -> io::Result<()>;
    /// A sign of life between slow commands.
    fn beat(&self) {}
}

/// Wipes one disk.
pub(super) fn wipe(
    disk: &Disk,
    extent: Extent,
    depth: Depth,
    progress: &Progress,
) -> Result<WipedDisk, DiskError> {
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
    let drive = OpenDrive {
        file: &file,
        disk,
        progress,
    };
    let done = wipe_open(&drive, &file, disk, &known, extent, depth)?;
    device::read_partitions_again(&file, disk)?;
    Ok(WipedDisk {
        disk: disk.clone(),
        rung: done.rung,
        failed: done.failed,
        bytes: done.bytes,
        verified: done.verified,
        took: started.elapsed(),
    })
}

/// What was done to an open disk.
#[derive(Debug)]
struct Done {
    rung: Rung,
    failed: Vec<Failed>,
    bytes: u64,
    verified: u64,
}

/// The wipe itself; a regular file will do for `file`.
fn wipe_open(
    drive: &impl Drive,
    file: &File,
    disk: &Disk,
    known: &[Range<u64>],
    extent: Extent,
    depth: Depth,
) -> Result<Done, DiskError> {
    let path = &disk.path;
    if let Err(error) = drive.make_ready() {
        tracing::warn!(disk = %path.display(), %error, "the drive was found locked, or in an erase, and cannot be brought back from that");
    }
    let mut partitions = old_table::partitions(file, disk.size).unwrap_or_else(|error| {
        tracing::warn!(disk = %path.display(), %error, "the old partition table cannot be read");
        Vec::new()
    });
    partitions.extend_from_slice(known);
    let (mut rung, mut tried, mut verified) = (Rung::Marks, Vec::new(), 0);
    if depth == Depth::Secure {
        let Ladder { rungs, left_out } = ladder(&drive.facts(), extent);
        for why in &left_out {
            tracing::info!(disk = %path.display(), "{why}");
        }
        let held = climb(drive, file, disk, &rungs, &mut tried);
        verified += held.map_or(0, |(_, samples)| samples);
        rung = match held {
            Some((rung, _)) => rung,
            None => {
                // What can be cleared is, before the disk is given up.
                if let Err(error) = clear_marks(drive, file, disk, &partitions, false) {
                    tracing::warn!("{error}");
                }
                return Err(DiskError::NoRung {
                    path: path.display().to_string(),
                    left_out,
                    failed: tried,
                });
            }
        };
    } else if depth == Depth::Quick
        && let Err(error) = drive.erase(Rung::Discard)
        && error.kind() != io::ErrorKind::Unsupported
    {
        tracing::info!(disk = %path.display(), %error, "the discard failed; marks are overwritten in any case");
    }
    let (written, read) = clear_marks(drive, file, disk, &partitions, depth != Depth::Marks)?;
    Ok(Done {
        rung,
        failed: tried,
        bytes: if rung == Rung::Marks {
            written
        } else {
            disk.size
        },
        verified: verified + read,
    })
}

/// Tries the rungs in order. Answers the one that held and how many samples prove it.
fn climb(
    drive: &impl Drive,
    file: &File,
    disk: &Disk,
    rungs: &[Rung],
    tried: &mut Vec<Failed>,
) -> Option<(Rung, u64)> {
    let samples = samples(disk.size);
    for rung in rungs {
        let result = stamp_or_revive(drive, file, &samples, *rung).and_then(|stamped| {
            drive.erase(*rung)?;
            device::flush(file)?;
            prove(file, &stamped, rung.leaves_zeros())?;
            Ok(stamped.len() as u64)
        });
        match result {
            Ok(proofs) => return Some((*rung, proofs)),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(error) => {
                let failed = Failed {
                    rung: *rung,
                    why: error.to_string(),
                };
                tracing::warn!(disk = %disk.path.display(), "{failed}");
                tried.push(failed);
            }
        }
    }
    None
}

/// Stamps. A disk that takes no writes may take them once it has erased itself; what it erased
/// unstamped proves nothing, so the rung is taken again after that.
fn stamp_or_revive(
    drive: &impl Drive,
    file: &File,
    samples: &[u64],
    rung: Rung,
) -> io::Result<Vec<u64>> {
    let refused = match stamp(drive, file, samples) {
        Ok(stamped) => return Ok(stamped),
        Err(error) => io::Error::other(format!("cannot write a test pattern: {error}")),
    };
    if !rung.is_the_drives_own() {
        return Err(refused);
    }
    tracing::warn!("{refused}; taking {rung} unproven first");
    drive.erase(rung)?;
    stamp(drive, file, samples).map_err(|error| {
        io::Error::other(format!(
            "cannot write a test pattern even after it: {error}"
        ))
    })
}

/// Writes the pattern to the samples. Answers those that hold it: a bad block is no sample,
/// but a disk that takes none of them is broken.
fn stamp(drive: &impl Drive, file: &File, samples: &[u64]) -> io::Result<Vec<u64>> {
    let all = samples
        .iter()
        .try_for_each(|offset| file.write_all_at(&[PATTERN; SAMPLE], *offset));
    if all.and_then(|()| file.sync_data()).is_ok() {
        return Ok(samples.to_vec());
    }
    let mut stamped = Vec::new();
    let mut first = None;
    for offset in samples {
        // A failing disk may try each of them for a minute.
        drive.beat();
        // Flushed one by one, for an error of write-back names no place.
        match file
            .write_all_at(&[PATTERN; SAMPLE], *offset)
            .and_then(|()| file.sync_data())
        {
            Ok(()) => stamped.push(*offset),
            Err(error) => first = first.or(Some(error)),
        }
    }
    match first {
        Some(error) if stamped.is_empty() => Err(error),
        _ => Ok(stamped),
    }
}

fn prove(file: &File, samples: &[u64], zeros: bool) -> io::Result<()> {
    for offset in samples {
        let mut block = [0; SAMPLE];
        file.read_exact_at(&mut block, *offset)?;
        // Random bytes of a new key repeat the pattern nowhere near as long.
        let is_clean = match zeros {
            true => block.iter().all(|byte| *byte == 0),
            false => !block.chunks_exact(16).any(|part| part == [PATTERN; 16]),
        };
        if !is_clean {
            return Err(io::Error::other(format!(
                "the disk said that it was done, but byte {offset} was not erased"
            )));
        }
    }
    Ok(())
}

/// Zeros every place of a mark, innermost first, so that a power cut leaves a table to find
/// the rest by, and reads all of it back. Answers bytes written and blocks read.
///
/// An old table may describe thousands of partitions, which a slow disk works on for longer than
/// anybody may be silent: each step is a sign of life, and leaves little to the kernel.
fn clear_marks(
    drive: &impl Drive,
    file: &File,
    disk: &Disk,
    partitions: &[Range<u64>],
    may_be_clean: bool,
) -> Result<(u64, u64), DiskError> {
    let path = &disk.path;
    let inner = old_table::places_in(partitions);
    let outer = signatures::places(&(0..disk.size), Kind::Disk);
    let (mut written, mut read) = (0, 0);
    for places in [&inner, &outer] {
        let mut dirty = 0;
        for place in steps(places) {
            drive.beat();
            // What an erase has cleared need not be written again.
            let clean = may_be_clean && matches!(first_nonzero(file, &place), Ok(None));
            if !clean {
                zero(file, &place).map_err(failed("write zeros to", path))?;
                written += place.end - place.start;
                dirty += place.end - place.start;
            }
            if dirty >= STEP {
                drive.beat();
                file.sync_data().map_err(failed("flush", path))?;
                dirty = 0;
            }
        }
        drive.beat();
        device::flush(file).map_err(failed("flush", path))?;
    }
    for place in steps(&inner).chain(steps(&outer)) {
        drive.beat();
        if let Some(offset) = first_nonzero(file, &place).map_err(failed("read back", path))? {
            return Err(DiskError::NotZero {
                path: path.display().to_string(),
                offset,
            });
        }
        read += (place.end - place.start).div_ceil(SAMPLE as u64);
    }
    for region in partitions.iter().chain([&(0..disk.size)]) {
        drive.beat();
        let found = signatures::find(file, region).map_err(failed("read back", path))?;
        if let Some(found) = found.into_iter().next() {
            return Err(DiskError::StillThere {
                path: path.display().to_string(),
                found,
            });
        }
    }
    Ok((written, read))
}

/// The places, cut where they are longer than one [`STEP`]: those of neighbours are merged.
fn steps(places: &[Range<u64>]) -> impl Iterator<Item = Range<u64>> {
    places.iter().flat_map(|place| {
        let end = place.end;
        (place.start..end)
            .step_by(STEP as usize)
            .map(move |start| start..end.min(start.saturating_add(STEP)))
    })
}

/// Writes zeros over everything, past places that cannot be written.
///
/// # Errors
/// How many places could not be written, and the first of them.
pub(super) fn overwrite(file: &File, size: u64, progress: &Progress) -> io::Result<()> {
    let chunk = CHUNK as u64;
    let mut bad: Vec<u64> = Vec::new();
    let mut first = None;
    for start in (0..size).step_by(CHUNK * FLUSH_EVERY as usize) {
        progress.beat();
        let end = size.min(start + chunk * FLUSH_EVERY);
        if zero(file, &(start..end))
            .and_then(|()| file.sync_data())
            .is_ok()
        {
            continue;
        }
        // Again in small steps: what can be erased is.
        for start in (start..end).step_by(CHUNK) {
            progress.beat();
            let place = start..end.min(start + chunk);
            if let Err(error) = zero(file, &place).and_then(|()| file.sync_data()) {
                bad.push(start);
                first = first.or(Some(error));
            }
        }
    }
    match (bad.first(), first) {
        (Some(at), Some(error)) => Err(io::Error::other(format!(
            "{} MiB could not be written, the first at byte {at}: {error}; all else was",
            bad.len()
        ))),
        _ => Ok(()),
    }
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

pub(super) fn zero(file: &File, range: &Range<u64>) -> io::Result<()> {
    let zeros = vec![0; CHUNK];
    let mut at = range.start;
    while at < range.end {
        let length = (range.end - at).min(CHUNK as u64) as usize;
        file.write_all_at(&zeros[..length], at)?;
        at += length as u64;
    }
    Ok(())
}

pub(super) fn first_nonzero(file: &File, range: &Range<u64>) -> io::Result<Option<u64>> {
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

#[cfg(test)]
#[path = "wipe_disk_tests.rs"]
mod tests;
