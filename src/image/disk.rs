//! Writing a disk image: the decoded stream is the disk, byte for byte.
//!
//! The first MiB, with the partition table, is kept back until the whole image is verified:
//! until then the firmware finds nothing to boot. Runs of zeros are told to the disk as such
//! (BLKZEROOUT), which costs nothing where it can do that by itself, and is right whatever
//! was there before.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::checksum::{Algorithm, Hasher};
use super::error::Error;
use super::pipe::{Stop, is_cut_off};
use super::unpack::Counters;
use crate::efi::gpt::{Geometry, geometry};
use crate::storage::device;

/// What is written last, in bytes.
const HEAD: usize = 1 << 20;
/// Read, and looked at, at a time.
const CHUNK: usize = 1 << 20;
/// Fewer zeros than these are written like anything else; a multiple of every block size.
const RUN: usize = 64 << 10;
/// One such command at most covers this much.
const ZEROS: u64 = 1 << 30;
/// Chunks that are read back, spread over what was written.
const SAMPLES: usize = 64;

/// The last part of a URL that names a disk image ends like this, packed or not.
const SUFFIX: &str = ".raw";
const PACKED: [&str; 4] = [".zst", ".lz4", ".gz", ".xz"];

/// Whether a URL's path names a disk image: `….raw`, or that with the suffix of a packer.
/// Whoever publishes the image says it, so that it is known before the first write.
#[must_use]
pub fn is_disk_image(path: &str) -> bool {
    let packed = PACKED.iter().find_map(|suffix| path.strip_suffix(suffix));
    packed.unwrap_or(path).ends_with(SUFFIX)
}

/// The disk that an image is written to, opened for nobody else.
pub struct DiskTarget {
    file: File,
    path: String,
    /// Bytes.
    size: u64,
    /// Bytes of a logical block; 0: a file, which has none.
    block: u64,
    /// What was kept back.
    head: Mutex<Vec<u8>>,
}

impl fmt::Debug for DiskTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.path, self.size)
    }
}

impl DiskTarget {
    /// `size` and `block` in bytes; a `block` of 0 fits every image.
    #[must_use]
    pub fn new(file: File, path: &str, size: u64, block: u64) -> Self {
        Self {
            file,
            path: path.to_owned(),
            size,
            block,
            head: Mutex::default(),
        }
    }

    /// Puts the kept first MiB in place, which makes the disk one, and answers the disk.
    ///
    /// # Errors
    /// The disk does not take it, or reads differently.
    pub(super) fn commit(self) -> Result<File, Error> {
        let head = self.head.into_inner();
        let head = head.unwrap_or_else(PoisonError::into_inner);
        let failed = |operation| failed(&self.path, operation);
        self.file
            .write_all_at(&head, 0)
            .map_err(failed("writing the first MiB"))?;
        device::flush(&self.file).map_err(failed("flushing"))?;
        let mut found = vec![0; head.len()];
        self.file
            .read_exact_at(&mut found, 0)
            .map_err(failed("reading back"))?;
        if found == head {
            return Ok(self.file);
        }
        Err(Error::NotKept {
            path: self.path,
            at: 0,
        })
    }
}

/// Whether the image that begins with `head` fits a disk.
///
/// # Errors
/// It is no disk image, for other blocks, or larger than the disk.
pub(super) fn fits(head: &[u8], path: &str, size: u64, block: u64) -> Result<Geometry, Error> {
    let image = geometry(head).map_err(|reason| Error::DiskImage { at: 0, reason })?;
    if block != 0 && image.block != block {
        return Err(Error::Blocks {
            image: image.block,
            path: path.to_owned(),
            disk: block,
        });
    }
    if image.size > size {
        return Err(too_small(image.size, path, size));
    }
    Ok(image)
}

fn too_small(image: u64, path: &str, disk: u64) -> Error {
    Error::DiskTooSmall {
        image,
        path: path.to_owned(),
        disk,
    }
}

/// Writes all of `source` but its first MiB, flushes it and reads samples of it back.
///
/// # Errors
/// An image that is none or does not fit, before the first write; a failed system call.
pub(super) fn write<R: BufRead>(
    source: R,
    disk: &DiskTarget,
    counters: &Counters,
) -> Result<(), Stop> {
    let mut source = source;
    let head = next(&mut source, 0, HEAD)?;
    let image = fits(&head, &disk.path, disk.size, disk.block)?;
    let mut at = head.len() as u64;
    let mut writer = Writer {
        disk,
        zeros: 0..at,
        samples: Samples::default(),
    };
    // An old table goes first: from here until the head is written nothing can be booted.
    writer.clear()?;
    device::flush(&disk.file).map_err(failed(&disk.path, "flushing"))?;
    writer.zeros = at..at;
    *disk.head.lock().unwrap_or_else(PoisonError::into_inner) = head;
    loop {
        let chunk = next(&mut source, at, CHUNK)?;
        if chunk.is_empty() {
            break;
        }
        let end = at + chunk.len() as u64;
        if end > disk.size {
            return Err(too_small(end, &disk.path, disk.size).into());
        }
        writer.put(at, &chunk)?;
        at = end;
        counters.bytes.store(at, Ordering::Relaxed);
    }
    if at < image.size {
        let reason = format!(
            "its partition table is that of a disk of {} bytes",
            image.size
        );
        return Err(Error::DiskImage { at, reason }.into());
    }
    writer.finish()
}

/// Reads the whole stream as [`write`] would, and writes nothing.
///
/// # Errors
/// It is no disk image, or not all of one.
pub(super) fn check<R: BufRead>(mut source: R, counters: &Counters) -> Result<(), Stop> {
    let head = next(&mut source, 0, HEAD)?;
    let image = fits(&head, "", u64::MAX, 0)?;
    let mut at = head.len() as u64;
    loop {
        counters.bytes.store(at, Ordering::Relaxed);
        let chunk = next(&mut source, at, CHUNK)?;
        if chunk.is_empty() {
            break;
        }
        at += chunk.len() as u64;
    }
    if at < image.size {
        let reason = format!(
            "its partition table is that of a disk of {} bytes",
            image.size
        );
        return Err(Error::DiskImage { at, reason }.into());
    }
    Ok(())
}

/// The next `count` bytes, fewer at the end of the stream.
fn next<R: BufRead>(source: &mut R, at: u64, count: usize) -> Result<Vec<u8>, Stop> {
    let mut bytes = Vec::with_capacity(count);
    match source.take(count as u64).read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(error) if is_cut_off(&error) => Err(Stop::Above),
        Err(error) => Err(Stop::Failed(Error::DiskImage {
            at,
            reason: error.to_string(),
        })),
    }
}

fn failed(path: &str, operation: &'static str) -> impl Fn(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Disk {
        path: path.clone(),
        operation,
        source,
    }
}

struct Writer<'d> {
    disk: &'d DiskTarget,
    /// Zeros that are still to be told to the disk.
    zeros: Range<u64>,
    samples: Samples,
}

impl Writer<'_> {
    fn put(&mut self, at: u64, chunk: &[u8]) -> Result<(), Error> {
        self.samples.take(at, chunk);
        let mut at = at;
        for run in chunk.chunk_by_zeros() {
            let end = at + run.len() as u64;
            if is_zero(run) {
                if self.zeros.end != at || end - self.zeros.start > ZEROS {
                    self.clear()?;
                    self.zeros = at..at;
                }
                self.zeros.end = end;
            } else {
                let written = self.disk.file.write_all_at(run, at);
                written.map_err(failed(&self.disk.path, "writing"))?;
            }
            at = end;
        }
        Ok(())
    }

    fn clear(&mut self) -> Result<(), Error> {
        let (file, range) = (&self.disk.file, self.zeros.clone());
        let cleared = match device::zero_range(file, range.clone()) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => write_zeros(file, range),
            cleared => cleared,
        };
        cleared.map_err(failed(&self.disk.path, "clearing"))
    }

    fn finish(mut self) -> Result<(), Stop> {
        self.clear()?;
        let failed = |operation| failed(&self.disk.path, operation);
        device::flush(&self.disk.file).map_err(failed("flushing"))?;
        for (at, length, digest) in &self.samples.taken {
            let mut found = vec![0; *length];
            let read = self.disk.file.read_exact_at(&mut found, *at);
            read.map_err(failed("reading back"))?;
            if digest_of(&found) != *digest {
                return Err(Stop::Failed(Error::NotKept {
                    path: self.disk.path.clone(),
                    at: *at,
                }));
            }
        }
        Ok(())
    }
}

/// A file has no such command; nor has a range that is not made of blocks.
fn write_zeros(file: &File, mut range: Range<u64>) -> io::Result<()> {
    let zeros = vec![0; CHUNK];
    while !range.is_empty() {
        let count = (range.end - range.start).min(zeros.len() as u64);
        file.write_all_at(&zeros[..count as usize], range.start)?;
        range.start += count;
    }
    Ok(())
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// Cutting a chunk where zeros begin and end.
trait ChunkByZeros {
    fn chunk_by_zeros(&self) -> impl Iterator<Item = &[u8]>;
}

impl ChunkByZeros for [u8] {
    fn chunk_by_zeros(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self;
        std::iter::from_fn(move || {
            let first = rest.chunks(RUN).next().map(is_zero)?;
            let alike = rest.chunks(RUN).take_while(|run| is_zero(run) == first);
            let length = alike.map(<[u8]>::len).sum();
            let (run, after) = rest.split_at(length);
            rest = after;
            Some(run)
        })
    }
}

/// Digests of some chunks: every one at first, then every second, every fourth, and so on, so
/// that they stay few and spread over all that was written.
#[derive(Default)]
struct Samples {
    seen: usize,
    /// Every how many chunks, as a power of two.
    stride: u32,
    taken: Vec<(u64, usize, String)>,
}

impl Samples {
    fn take(&mut self, at: u64, chunk: &[u8]) {
        if self.seen.is_multiple_of(1 << self.stride) {
            self.taken.push((at, chunk.len(), digest_of(chunk)));
        }
        self.seen += 1;
        if self.taken.len() > SAMPLES {
            let mut is_kept = false;
            self.taken.retain(|_| {
                is_kept = !is_kept;
                is_kept
            });
            self.stride += 1;
        }
    }
}

fn digest_of(bytes: &[u8]) -> String {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(bytes);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use uuid::Uuid;

    use super::*;
    use crate::efi::gpt::tests::disk;

    /// A disk image of `size` bytes with a table, some data behind the first MiB, and zeros.
    fn image(size: usize, block: u64) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        disk(&path, block, Uuid::from_u128(1));
        let mut bytes = std::fs::read(&path).unwrap();
        let whole = bytes.len();
        bytes.resize(size.max(whole), 0);
        for at in (HEAD + 3 * RUN..bytes.len()).step_by(700_001) {
            bytes[at] = at as u8 | 1;
        }
        bytes
    }

    fn target(size: u64) -> (DiskTarget, tempfile::NamedTempFile) {
        let file = tempfile::NamedTempFile::new().unwrap();
        // What was there before must not shine through.
        std::fs::write(file.path(), vec![0xaa; size as usize]).unwrap();
        (
            DiskTarget::new(file.reopen().unwrap(), "/dev/x", size, 0),
            file,
        )
    }

    fn error_of(outcome: Result<(), Stop>) -> String {
        match outcome {
            Err(Stop::Failed(error)) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_disk_is_the_image_and_its_table_comes_last() {
        let image = image(9 << 20, 512);
        let (target, file) = target(10 << 20);
        write(Cursor::new(&image), &target, &Counters::default()).unwrap();
        let before = std::fs::read(file.path()).unwrap();
        assert!(before[..HEAD].iter().all(|byte| *byte == 0));
        target.commit().unwrap();
        let after = std::fs::read(file.path()).unwrap();
        assert!(after[..image.len()] == image);
        assert!(after[image.len()..].iter().all(|byte| *byte == 0xaa));
    }

    #[test]
    fn what_does_not_fit_is_refused_before_the_first_write() {
        let small = image(2 << 20, 512);
        let large = image(0, 4096);
        for (image, size, block, expected) in [
            (&small, 1 << 20, 512, "has 1048576 bytes"),
            (
                &small,
                4 << 20,
                4096,
                "made for disks with blocks of 512 bytes",
            ),
            (
                &large,
                32 << 20,
                512,
                "made for disks with blocks of 4096 bytes",
            ),
            (&vec![0; 2 << 20], 4 << 20, 512, "no GUID partition table"),
            (&vec![], 4 << 20, 512, "no GUID partition table"),
        ] {
            let (mut target, file) = target(size);
            target.block = block;
            let error = error_of(write(Cursor::new(image), &target, &Counters::default()));
            assert!(error.contains(expected), "{error}");
            let left = std::fs::read(file.path()).unwrap();
            assert!(left.iter().all(|byte| *byte == 0xaa), "{expected}");
        }
    }

    #[test]
    fn an_image_that_is_cut_or_too_long_is_an_error() {
        let image = image(0, 4096);
        let cut = &image[..image.len() - 4096];
        let counters = Counters::default();
        for outcome in [
            write(Cursor::new(cut), &target(32 << 20).0, &counters),
            check(Cursor::new(cut), &counters),
        ] {
            let error = error_of(outcome);
            assert!(error.contains("a disk of 16777216 bytes"), "{error}");
        }
        check(Cursor::new(&image), &counters).unwrap();
        let mut long = image.clone();
        long.resize(20 << 20, 1);
        let outcome = write(Cursor::new(long), &target(18 << 20).0, &counters);
        let error = error_of(outcome);
        assert!(error.contains("has 18874368 bytes"), "{error}");
    }

    #[test]
    fn names_of_disk_images() {
        for (path, expected) in [
            ("/debian/img.raw", true),
            ("/debian/img.raw.zst", true),
            ("/img.raw.lz4", true),
            ("/img.raw.gz", true),
            ("/img.raw.xz", true),
            ("/img.tar.zst", false),
            ("/img.raw.tar.zst", false),
            ("/raw", false),
            ("/img.raw/img.tar", false),
            ("/img.raw.bz2", false),
            ("", false),
        ] {
            assert_eq!(is_disk_image(path), expected, "{path}");
        }
    }

    #[test]
    fn samples_stay_few_and_reach_to_the_end() {
        let mut samples = Samples::default();
        for chunk in 0..10_000 {
            samples.take(chunk, b"x");
        }
        assert!(samples.taken.len() <= SAMPLES && samples.taken.len() > SAMPLES / 4);
        assert!(samples.taken.iter().any(|(at, ..)| *at > 9_700));
    }

    #[test]
    fn a_disk_that_does_not_keep_a_sample_is_an_error() {
        let image = image(9 << 20, 512);
        let (target, file) = target(10 << 20);
        let mut writer = Writer {
            disk: &target,
            zeros: 0..0,
            samples: Samples::default(),
        };
        let place = 3 << 20;
        writer.put(place, &image[3 << 20..4 << 20]).unwrap();
        file.reopen()
            .unwrap()
            .write_all_at(b"!", place + 5)
            .unwrap();
        let error = error_of(writer.finish());
        assert!(error.contains("at byte 3145728"), "{error}");
    }
}
