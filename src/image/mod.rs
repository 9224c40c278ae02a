//! An image from its URL to a verified tree, in one pass and in bounded memory.
//!
//! ```text
//! download (async, resumes) -> hash -> decode -> unpack -> small files
//!                                                       -> write-back
//!                                                one thread each, bounded channels
//! ```
//!
//! Nothing is stored on the way. The tree counts only once the download had its announced
//! length, the packed stream and the archive came to their own ends, the digest of every
//! byte that came in equals the checksum beside the image, and the disk has taken it all: a
//! [`VerifiedImage`] is the proof, it is made nowhere else, and without one there is neither
//! a boot entry nor a kexec.

mod acl;
pub mod archive;
pub(crate) mod checksum;
mod decode;
mod disk;
mod error;
pub(crate) mod fetch;
mod metadata;
mod pax;
mod pipe;
mod pipeline;
mod progress;
pub mod root;
mod small_files;
mod unpack;
mod write_back;
mod xattr;

#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use reqwest::Url;

use checksum::Expected;
pub use checksum::{Algorithm, Hasher};
pub use decode::Format;
pub use disk::{DiskTarget, is_disk_image};
pub use error::Error;
use fetch::Download;
pub use fetch::{Patience, shown_url};
use pipe::Stop;
use pipeline::Work;
pub use progress::Progress;
use root::RootDir;

use crate::control::line::Clients;

/// What an image may unpack to where nothing else is said: a decompression bomb has to end.
pub const DEFAULT_LIMIT: u64 = 256 << 30;

/// Where an image is, and what is accepted.
#[derive(Debug, Clone)]
pub struct ImageSource {
    /// The image as the allocation names it.
    pub url: Url,
    /// The partition's image cache: scheme and authority (and a path in front) that replace
    /// those of `url`. The original is tried when the cache cannot begin to answer, and where
    /// [`Self::leave_cache`] is asked, also when what it answers turns out to be no good.
    pub cache: Option<Url>,
    /// An image with no checksum beside it is taken all the same, but only from `url`: a cache
    /// may lack a checksum that the original has.
    pub without_checksum: bool,
    /// Bytes that it may unpack to.
    pub limit: u64,
}

impl ImageSource {
    /// An image that has to have a checksum, with no cache before it.
    #[must_use]
    pub fn new(url: Url) -> Self {
        Self {
            url,
            cache: None,
            without_checksum: false,
            limit: DEFAULT_LIMIT,
        }
    }

    /// Whether another try may end better than in `error`: the cache was to blame, and is out
    /// of use from now on, so that there is only one. The target has to be emptied before.
    #[must_use]
    pub fn leave_cache(&mut self, error: &Error) -> bool {
        let leave = error.retry_from_origin() && self.cache.take().is_some();
        if leave {
            tracing::warn!("{error}; once more from the origin");
        }
        leave
    }
}

/// What came through the pipeline, all of it and unharmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Where it came from, without user info and query.
    pub url: String,
    /// Whose digest this is.
    pub algorithm: Algorithm,
    /// Of every byte that came in, lower-case hexadecimal.
    pub digest: String,
    /// Whether there was a checksum to hold against it.
    pub compared: bool,
    /// What was downloaded and unpacked.
    pub progress: Progress,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Progress {
            downloaded,
            unpacked,
            entries,
            ..
        } = self.progress;
        let verdict = match self.compared {
            true => "image verified",
            false => "image whole, but there was NO CHECKSUM to verify it with",
        };
        write!(
            f,
            "{verdict}: {} {} over {downloaded} bytes, {entries} entries, {unpacked} bytes unpacked",
            self.algorithm, self.digest
        )
    }
}

/// The proof that a tree was unpacked from the bytes that it should be, and flushed to disk.
#[derive(Debug)]
pub struct VerifiedImage(Summary);

impl VerifiedImage {
    /// A proof of nothing, for tests of what demands one.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        Self(Summary {
            url: "http://test.invalid/".to_owned(),
            algorithm: Algorithm::Sha256,
            digest: String::new(),
            compared: true,
            progress: Progress::default(),
        })
    }

    /// What was verified.
    #[must_use]
    pub fn summary(&self) -> &Summary {
        &self.0
    }
}

/// Looks whether an image can be had: its checksum is there and makes sense, its download
/// begins, and what begins can be unpacked. Nothing is written, and only the first bytes are read.
/// The origin counts where the cache has something else.
///
/// # Errors
/// See [`Error`].
pub async fn probe(client: &dyn Clients, source: &ImageSource) -> Result<(), Error> {
    let check = |head: &[u8], url: &str| {
        decode::check_magic(&head[..head.len().min(decode::PEEK)], url, false)
    };
    probe_head(client, source, decode::PEEK, &check).await
}

/// As [`probe`], for a disk image and the disk that it is for: it has to be one, for the
/// disk's blocks, and no larger. `size` and `block` in bytes, of the disk at `path`.
///
/// # Errors
/// See [`Error`].
pub async fn probe_disk(
    client: &dyn Clients,
    source: &ImageSource,
    path: &str,
    size: u64,
    block: u64,
) -> Result<(), Error> {
    let check = |head: &[u8], url: &str| {
        decode::check_magic(&head[..head.len().min(decode::PEEK)], url, true)?;
        let mut start = None;
        let stopped = decode::decode(head, url, source.limit, |buffer| {
            start = Some(buffer);
            Err(Stop::Below)
        });
        match (start, stopped) {
            (Some(start), _) => disk::fits(&start, path, size, block).map(drop),
            // Less than a buffer came out of what was read: the install itself will tell.
            (None, _) => Ok(()),
        }
    };
    probe_head(client, source, PACKED_HEAD, &check).await
}

/// What is downloaded of a disk image to see its partition table: one block of lz4, the
/// greatest of all that can be its first, has 4 MiB.
const PACKED_HEAD: usize = 5 << 20;

/// Judges the first bytes of an image that came from this URL.
type CheckHead<'a> = dyn Fn(&[u8], &str) -> Result<(), Error> + Send + Sync + 'a;

/// Looks at the first bytes of an image, some more than `count` or all. What the cache has is
/// no reason against an image that the origin has in order.
async fn probe_head(
    client: &dyn Clients,
    source: &ImageSource,
    count: usize,
    check: &CheckHead<'_>,
) -> Result<(), Error> {
    let patience = Patience::default();
    let mut source = source.clone();
    loop {
        let Begun {
            mut download,
            from_cache,
            ..
        } = choose(client, &source, &patience).await?;
        let checked = match begin(&mut download, count).await {
            Ok(head) => check(&head, &download.shown()),
            Err(error) => Err(error),
        };
        match checked {
            Err(error) if from_cache => {
                let error = error.of_cache();
                if !source.leave_cache(&error) {
                    return Err(error);
                }
            }
            done => return done,
        }
    }
}

async fn begin(download: &mut Download<'_>, count: usize) -> Result<Vec<u8>, Error> {
    let mut head = Vec::new();
    while head.len() < count {
        match download.next().await? {
            Some(chunk) => head.extend_from_slice(&chunk),
            None => break,
        }
    }
    Ok(head)
}

/// Streams an image into the directory `root`.
///
/// # Errors
/// See [`Error`]. After an error the tree is in an unknown state and must not be booted.
pub async fn install(
    client: &dyn Clients,
    source: &ImageSource,
    root: &Path,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<VerifiedImage, Error> {
    install_patiently(client, source, root, progress, &Patience::default()).await
}

/// Streams a disk image onto a disk, whose first MiB, with the partition table, is written
/// once all the rest is there and verified. Answers the disk too.
///
/// # Errors
/// See [`Error`]. After an error the disk has no partition table at its start.
pub async fn install_disk(
    client: &dyn Clients,
    source: &ImageSource,
    disk: DiskTarget,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<(VerifiedImage, File), Error> {
    let patience = Patience::default();
    let begun = choose(client, source, &patience).await?;
    let disk = Arc::new(disk);
    let work = Work::WriteDisk(Arc::clone(&disk));
    let summary = pipeline::run(begun, work, source.limit, progress).await?;
    let written = Arc::into_inner(disk)
        .ok_or_else(|| Error::Pipeline("a worker thread still has the disk".to_owned()))?;
    let committed = tokio::task::spawn_blocking(|| written.commit()).await;
    let file = committed.map_err(|error| Error::Pipeline(format!("the last write: {error}")))??;
    Ok((VerifiedImage(summary), file))
}

/// Downloads an image and looks whether all of it is in order, and unpacks it nowhere.
///
/// # Errors
/// See [`Error`].
pub async fn verify(
    client: &dyn Clients,
    source: &ImageSource,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Summary, Error> {
    let patience = Patience::default();
    let begun = choose(client, source, &patience).await?;
    let work = match is_disk_image(source.url.path()) {
        true => Work::CheckDisk,
        false => Work::Check,
    };
    pipeline::run(begun, work, source.limit, progress).await
}

async fn install_patiently(
    client: &dyn Clients,
    source: &ImageSource,
    root: &Path,
    progress: &(dyn Fn(Progress) + Send + Sync),
    patience: &Patience,
) -> Result<VerifiedImage, Error> {
    let root_error = |source| Error::Root {
        path: root.display().to_string(),
        source,
    };
    let directory = RootDir::open(root).map_err(root_error)?;
    let begun = choose(client, source, patience).await?;
    let work = Work::Unpack(directory);
    let summary = pipeline::run(begun, work, source.limit, progress).await?;
    Ok(VerifiedImage(summary))
}

/// A download that has begun to come, and what is known about it.
struct Begun<'a> {
    /// `None`: there is nothing to compare with.
    expected: Option<Expected>,
    download: Download<'a>,
    from_cache: bool,
}

/// Begins the download at the cache, or where that does not help, at the origin.
async fn choose<'a>(
    client: &'a dyn Clients,
    source: &ImageSource,
    patience: &'a Patience,
) -> Result<Begun<'a>, Error> {
    check_url(&source.url)?;
    if let Some(cache) = &source.cache {
        match open_cached(client, source, cache, patience).await {
            Ok(begun) => return Ok(begun),
            Err(error) => {
                tracing::warn!(%error, "the image cache does not help, trying the origin");
            }
        }
    }
    open(client, &source.url, source.without_checksum, patience).await
}

async fn open_cached<'a>(
    client: &'a dyn Clients,
    source: &ImageSource,
    cache: &Url,
    patience: &'a Patience,
) -> Result<Begun<'a>, Error> {
    check_url(cache)?;
    let url = &source.url;
    let mut cached = cache.clone();
    let path = format!("{}{}", cache.path().trim_end_matches('/'), url.path());
    cached.set_path(&path);
    cached.set_query(url.query());
    let begun = open(client, &cached, false, patience).await?;
    Ok(Begun {
        from_cache: true,
        ..begun
    })
}

/// The checksum first: an image that lacks one, and may not, is not even asked for.
async fn open<'a>(
    client: &'a dyn Clients,
    url: &Url,
    without_checksum: bool,
    patience: &'a Patience,
) -> Result<Begun<'a>, Error> {
    let expected = match expected(client, url, patience).await {
        Err(Error::NoChecksum { url }) if without_checksum => {
            tracing::warn!(url, "image: NO CHECKSUM beside it, as the policy allows");
            None
        }
        other => Some(other?),
    };
    let download = Download::open(client, url.clone(), patience).await?;
    tracing::info!(
        url = download.shown(),
        bytes = download.total(),
        checksum = expected
            .as_ref()
            .map(|expected| tracing::field::display(expected.algorithm)),
        "image: download begins"
    );
    Ok(Begun {
        expected,
        download,
        from_cache: false,
    })
}

/// The strongest checksum that exists beside the image.
async fn expected(client: &dyn Clients, url: &Url, patience: &Patience) -> Result<Expected, Error> {
    let name = url.path().rsplit('/').next().unwrap_or_default();
    for algorithm in Algorithm::STRONGEST_FIRST {
        let mut beside = url.clone();
        beside.set_path(&format!("{}{}", url.path(), algorithm.suffix()));
        let file = fetch::small_file(client, &beside, checksum::MAX_FILE, patience).await?;
        if let Some(content) = file {
            return checksum::parse(&content, algorithm, name).map_err(|reason| {
                Error::ChecksumFile {
                    url: shown_url(&beside),
                    algorithm,
                    reason,
                }
            });
        }
    }
    Err(Error::NoChecksum {
        url: shown_url(url),
    })
}

fn check_url(url: &Url) -> Result<(), Error> {
    let reason = if !matches!(url.scheme(), "http" | "https") {
        "the scheme is not http or https"
    } else if url.host().is_none() {
        "there is no host"
    } else {
        return Ok(());
    };
    Err(Error::Url {
        url: shown_url(url),
        reason: reason.to_owned(),
    })
}
