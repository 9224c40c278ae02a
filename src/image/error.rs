//! Everything that can go wrong between an image's URL and a verified tree.

use std::io;

use nix::errno::Errno;
use thiserror::Error;

use super::checksum::Algorithm;
use super::decode::Format;

/// Why an image was not installed. URLs are shown without user info and query.
#[derive(Debug, Error)]
pub enum Error {
    /// The URL is not one that an image can be fetched from.
    #[error("image URL {url:?}: {reason}; expected http:// or https:// with a host and a path")]
    Url { url: String, reason: String },
    /// No answer, in spite of retries.
    #[error("GET {url}: no answer after {attempts} attempts: {reason}")]
    Request {
        url: String,
        attempts: u32,
        reason: String,
    },
    /// An answer other than the content.
    #[error("GET {url}: the server answered {status}, expected 200")]
    Status { url: String, status: u16 },
    /// An answer whose headers make no sense.
    #[error("GET {url}: {reason}")]
    Answer { url: String, reason: String },
    /// No checksum file exists beside the image.
    #[error(
        "{url}: no checksum beside the image (.sha512, .sha256 and .md5 are all 404 or 410); \
         put one there, as sha256sum prints it, or set policy.image_without_checksum"
    )]
    NoChecksum { url: String },
    /// The checksum file is not one.
    #[error("{url}: not a {algorithm} checksum: {reason}; expected `<hex>  <name>`")]
    ChecksumFile {
        url: String,
        algorithm: Algorithm,
        reason: String,
    },
    /// The connection broke too often.
    #[error("GET {url}: broken off at byte {offset}{} and not resumed: {reason}", of(*.total))]
    Interrupted {
        url: String,
        offset: u64,
        total: Option<u64>,
        reason: String,
    },
    /// After a broken connection the server had another file.
    #[error(
        "GET {url}: the image changed on the server while downloading (byte {offset}: {what}); \
         it has to be fetched again from the start"
    )]
    Changed {
        url: String,
        offset: u64,
        what: String,
    },
    /// The first bytes are of no format that can be unpacked.
    #[error(
        "{url}: not an image: it begins like {found}; expected a tar archive, or a disk image \
         called *.raw*, plain or packed with lz4, zstd, gzip or xz"
    )]
    Format { url: String, found: String },
    /// The packed stream is damaged.
    #[error("the image's {format} data is damaged after {at} unpacked bytes: {reason}")]
    Damaged {
        format: Format,
        at: u64,
        reason: String,
    },
    /// There is more in it than is accepted.
    #[error(
        "the image unpacks to more than {} GiB; if that is what it should be, raise \
         policy.image_max_gib", limit >> 30
    )]
    TooLarge { limit: u64 },
    /// The tar stream is damaged, or has an entry that cannot be unpacked faithfully.
    #[error("the image's tar archive at byte {at}: {reason}")]
    Tar { at: u64, reason: String },
    /// An entry that no honest image has.
    #[error("refused tar entry {entry}: {reason}")]
    Refused { entry: String, reason: String },
    /// A system call on the target failed.
    #[error("unpacking {entry}: {operation} failed: {source}")]
    Write {
        entry: String,
        operation: &'static str,
        source: io::Error,
    },
    /// A file system of the target has no room left.
    #[error(
        "unpacking {entry}: {operation} failed: no space left: of {size} bytes {available} are \
         free, of {inodes} inodes {free_inodes}; {unpacked} bytes of the image were unpacked \
         until then. Give the layout a larger partition, or use a smaller image"
    )]
    DiskFull {
        entry: String,
        operation: &'static str,
        size: u64,
        available: u64,
        inodes: u64,
        free_inodes: u64,
        unpacked: u64,
    },
    /// The target directory cannot be used.
    #[error("target root {path}: {source}")]
    Root { path: String, source: io::Error },
    /// What should be a disk image is none, or not all of one.
    #[error("the disk image at byte {at}: {reason}")]
    DiskImage { at: u64, reason: String },
    /// A disk image has the block size of its disk in all its numbers.
    #[error(
        "the disk image was made for disks with blocks of {image} bytes, those of {path} have {disk}"
    )]
    Blocks { image: u64, path: String, disk: u64 },
    /// The disk image has no room.
    #[error("the disk image needs {image} bytes, {path} has {disk} bytes")]
    DiskTooSmall { image: u64, path: String, disk: u64 },
    /// A system call on the disk failed.
    #[error("{operation} {path} failed: {source}")]
    Disk {
        path: String,
        operation: &'static str,
        source: io::Error,
    },
    /// The disk has not got what was written to it.
    #[error("{path} reads differently from what was written at byte {at}: the disk is failing")]
    NotKept { path: String, at: u64 },
    /// The bytes are not those that the checksum was made for.
    #[error(
        "{url}: {algorithm} mismatch: expected {expected}, got {got}{}",
        symptom.as_ref().map(|s| format!(" (first seen as: {s})")).unwrap_or_default()
    )]
    ChecksumMismatch {
        url: String,
        algorithm: Algorithm,
        expected: String,
        got: String,
        /// What was wrong with the content before the mismatch was known.
        symptom: Option<String>,
    },
    /// A worker thread could not be started, or it panicked.
    #[error("image pipeline: {0}")]
    Pipeline(String),
    /// The download or its content was to blame, and it came from the image cache: the origin
    /// may be better.
    #[error("from the image cache: {0}")]
    FromCache(Box<Error>),
}

impl Error {
    /// The cache is to blame: once the target is emptied, the same image is worth one more
    /// try with [`super::ImageSource::cache`] left out.
    pub(super) fn retry_from_origin(&self) -> bool {
        matches!(self, Self::FromCache(_))
    }

    /// Says that it was the cache that answered, where that matters: a full or failing disk
    /// is no better with another source.
    pub(super) fn of_cache(self) -> Self {
        match self.is_of_source() {
            true => Self::FromCache(Box::new(self)),
            false => self,
        }
    }

    /// Whether the download or what came with it is to blame, and not the target. What matches
    /// the cache's own checksum counts too: a cache may keep an older image with its checksum.
    fn is_of_source(&self) -> bool {
        match self {
            Self::Url { .. } | Self::Request { .. } | Self::Status { .. } => true,
            Self::Answer { .. } | Self::Interrupted { .. } | Self::Changed { .. } => true,
            Self::NoChecksum { .. } | Self::ChecksumFile { .. } => true,
            Self::ChecksumMismatch { .. } | Self::Format { .. } | Self::Blocks { .. } => true,
            other => other.is_damage(),
        }
    }

    /// What may come from damage on the way here: only the checksum can tell. A flipped bit
    /// in a name makes an entry that is refused, or a link to nothing.
    pub(super) fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } | Self::TooLarge { .. } | Self::Tar { .. } => true,
            Self::DiskImage { .. } | Self::DiskTooSmall { .. } => true,
            Self::Refused { .. } => true,
            Self::Write { source, .. } => {
                let errno = source.raw_os_error().map(Errno::from_raw);
                !matches!(
                    errno,
                    Some(Errno::EIO | Errno::EROFS | Errno::ENOMEM | Errno::EDQUOT)
                )
            }
            _ => false,
        }
    }
}

fn of(total: Option<u64>) -> String {
    total
        .map(|total| format!(" of {total}"))
        .unwrap_or_default()
}
