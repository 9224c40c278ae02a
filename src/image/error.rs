//! Everything that can go wrong between an image's URL and a verified tree.

use std::io;

use thiserror::Error;

use super::checksum::Algorithm;

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
         put one there, as sha256sum prints it"
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
    /// After a broken connection the server started from byte 0 again.
    #[error(
        "GET {url}: broken off at byte {offset} and the server cannot continue there (no Range \
         support); the image has to be fetched again from the start"
    )]
    NoRanges { url: String, offset: u64 },
    /// The first bytes are not an lz4 frame.
    #[error("{url}: not lz4: it begins like {found}; expected an lz4 frame (`lz4 image.tar`)")]
    NotLz4 { url: String, found: String },
    /// The lz4 stream is damaged.
    #[error("the image's lz4 data is damaged after {at} bytes: {reason}")]
    Lz4 { at: u64, reason: String },
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
    /// The target directory cannot be used.
    #[error("target root {path}: {source}")]
    Root { path: String, source: io::Error },
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
        /// It came from the image cache, so the origin may be better.
        from_cache: bool,
        /// What was wrong with the content before the mismatch was known.
        symptom: Option<String>,
    },
    /// A worker thread could not be started, or it panicked.
    #[error("image pipeline: {0}")]
    Pipeline(String),
}

impl Error {
    /// The image came damaged from the cache: once the target is emptied, the same image
    /// is worth one more try with [`super::ImageSource::cache`] left out.
    #[must_use]
    pub fn retry_from_origin(&self) -> bool {
        matches!(
            self,
            Self::ChecksumMismatch {
                from_cache: true,
                ..
            }
        )
    }

    /// Damage that may come from the way here: only the checksum can tell.
    pub(super) fn is_damage(&self) -> bool {
        matches!(self, Self::Lz4 { .. } | Self::Tar { .. })
    }
}

fn of(total: Option<u64>) -> String {
    total
        .map(|total| format!(" of {total}"))
        .unwrap_or_default()
}
