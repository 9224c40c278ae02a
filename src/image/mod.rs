//! An image from its URL to a verified tree, in one pass and in bounded memory.
//!
//! ```text
//! download (async, resumes) -> hash -> lz4 -> unpack        one thread each, bounded channels
//! ```
//!
//! Nothing is stored on the way. The tree counts only once the digest of every byte that
//! came in equals the checksum beside the image: a [`VerifiedImage`] is the proof, it is
//! made nowhere else, and without one there is neither a boot entry nor a kexec.

pub mod archive;
mod checksum;
mod decode;
mod error;
pub(crate) mod fetch;
mod pax;
mod pipe;
pub mod root;
mod unpack;
mod xattr;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::{Client, Url};
use tokio::sync::{mpsc, oneshot};

use checksum::Expected;
pub use checksum::{Algorithm, Hasher};
pub use error::Error;
use fetch::Download;
pub use fetch::{Patience, shown_url};
use pipe::{Part, PipeReader, Stop};
use root::RootDir;
use unpack::Counters;

/// Places in each channel. A network chunk is at most some 400 kB (hyper's read buffer),
/// a decoded buffer 256 kB, so everything under way stays below 12 MiB.
const CHANNEL: usize = 8;
/// At most this often is progress told.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// Where an image is.
#[derive(Debug, Clone)]
pub struct ImageSource {
    /// The image as the allocation names it.
    pub url: Url,
    /// The partition's image cache: scheme and authority (and a path in front) that replace
    /// those of `url`. The original is tried when the cache cannot begin to answer.
    pub cache: Option<Url>,
}

/// How far an install has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Bytes of the image that came in.
    pub downloaded: u64,
    /// Its whole length, when the server told it.
    pub total: Option<u64>,
    /// Bytes of the tar stream unpacked.
    pub unpacked: u64,
    /// Tar entries unpacked.
    pub entries: u64,
}

impl fmt::Display for VerifiedImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Progress {
            downloaded,
            unpacked,
            entries,
            ..
        } = self.progress;
        write!(
            f,
            "image verified: {} {} over {downloaded} bytes, {entries} entries, {unpacked} bytes unpacked",
            self.algorithm, self.digest
        )
    }
}

/// The proof that a tree was unpacked from bytes that match their checksum, and flushed to disk.
#[derive(Debug)]
pub struct VerifiedImage {
    url: String,
    algorithm: Algorithm,
    digest: String,
    progress: Progress,
}

impl VerifiedImage {
    /// A proof of nothing, for tests of what demands one.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        Self {
            url: "http://test.invalid/".to_owned(),
            algorithm: Algorithm::Sha256,
            digest: String::new(),
            progress: Progress::default(),
        }
    }

    /// Where it came from, without user info and query.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Which checksum was compared.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The digest of the image, lower-case hexadecimal.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// What was downloaded and unpacked.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress
    }
}

/// Looks whether an image can be had: its checksum is there and makes sense, its download
/// begins, and what begins is lz4. Nothing is written, and only the first bytes are read.
///
/// # Errors
/// See [`Error`].
pub async fn probe(client: &Client, source: &ImageSource) -> Result<(), Error> {
    let patience = Patience::default();
    let (_, mut download, _) = choose(client, source, &patience).await?;
    let mut head = Vec::new();
    while head.len() < decode::PEEK {
        match download.next().await? {
            Some(chunk) => head.extend_from_slice(&chunk),
            None => break,
        }
    }
    head.truncate(decode::PEEK);
    decode::check_magic(&head, &download.shown())
}

/// Streams an image into the directory `root`.
///
/// # Errors
/// See [`Error`]. After an error the tree is in an unknown state and must not be booted.
pub async fn install(
    client: &Client,
    source: &ImageSource,
    root: &Path,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<VerifiedImage, Error> {
    install_patiently(client, source, root, progress, &Patience::default()).await
}

async fn install_patiently(
    client: &Client,
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
    let (expected, download, from_cache) = choose(client, source, patience).await?;
    run(expected, download, directory, progress, from_cache).await
}

/// Begins the download at the cache, or where that does not help, at the origin; true when
/// it is the cache.
async fn choose<'a>(
    client: &'a Client,
    source: &ImageSource,
    patience: &'a Patience,
) -> Result<(Expected, Download<'a>, bool), Error> {
    check_url(&source.url)?;
    if let Some(cache) = &source.cache {
        match open_cached(client, &source.url, cache, patience).await {
            Ok((expected, download)) => return Ok((expected, download, true)),
            Err(error) => {
                tracing::warn!(%error, "the image cache does not help, trying the origin");
            }
        }
    }
    let (expected, download) = open(client, &source.url, patience).await?;
    Ok((expected, download, false))
}

async fn open_cached<'a>(
    client: &'a Client,
    url: &Url,
    cache: &Url,
    patience: &'a Patience,
) -> Result<(Expected, Download<'a>), Error> {
    check_url(cache)?;
    let mut cached = cache.clone();
    let path = format!("{}{}", cache.path().trim_end_matches('/'), url.path());
    cached.set_path(&path);
    cached.set_query(url.query());
    open(client, &cached, patience).await
}

/// The checksum first: an image without one is not even asked for.
async fn open<'a>(
    client: &'a Client,
    url: &Url,
    patience: &'a Patience,
) -> Result<(Expected, Download<'a>), Error> {
    let expected = expected(client, url, patience).await?;
    let download = Download::open(client, url.clone(), patience).await?;
    tracing::info!(
        url = download.shown(),
        bytes = download.total(),
        checksum = %expected.algorithm,
        "image: download begins"
    );
    Ok((expected, download))
}

/// The strongest checksum that exists beside the image.
async fn expected(client: &Client, url: &Url, patience: &Patience) -> Result<Expected, Error> {
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

/// Runs the pipeline and puts the outcomes of its stages together.
async fn run(
    expected: Expected,
    mut download: Download<'_>,
    root: RootDir,
    progress: &(dyn Fn(Progress) + Send + Sync),
    from_cache: bool,
) -> Result<VerifiedImage, Error> {
    let counters = Arc::new(Counters::default());
    let url = download.shown();
    let (sender, stages) = spawn(&expected, url.clone(), root, &counters)?;
    let told = |download: &Download<'_>| Progress {
        downloaded: download.offset(),
        total: download.total(),
        unpacked: counters.bytes.load(Ordering::Relaxed),
        entries: counters.entries.load(Ordering::Relaxed),
    };
    let fed = feed(&mut download, sender, &|download| progress(told(download))).await;
    let (digest, cause) = stages.join().await?;
    progress(told(&download));

    let mismatch = |got: String, symptom: Option<String>| Error::ChecksumMismatch {
        url: url.clone(),
        algorithm: expected.algorithm,
        expected: expected.hex.clone(),
        got,
        from_cache,
        symptom,
    };
    match (cause, fed, digest) {
        (Some(error), _, Ok(got)) if error.is_damage() && got != expected.hex => {
            Err(mismatch(got, Some(error.to_string())))
        }
        (Some(error), _, _) => Err(error),
        (None, Err(Stop::Failed(error)), _) => Err(error),
        (None, Ok(()), Ok(got)) if got != expected.hex => Err(mismatch(got, None)),
        (None, Ok(()), Ok(got)) => Ok(VerifiedImage {
            url,
            algorithm: expected.algorithm,
            digest: got,
            progress: told(&download),
        }),
        (None, fed, digest) => Err(Error::Pipeline(format!(
            "stopped without a cause (download {fed:?}, digest {digest:?})"
        ))),
    }
}

/// Feeds the hash thread until the download ends or nobody listens any more.
async fn feed(
    download: &mut Download<'_>,
    sender: mpsc::Sender<Part<Bytes>>,
    progress: &(dyn Fn(&Download<'_>) + Send + Sync),
) -> Result<(), Stop> {
    let mut told = Instant::now();
    while let Some(chunk) = download.next().await? {
        if sender.send(Part::Data(chunk)).await.is_err() {
            return Err(Stop::Below);
        }
        if told.elapsed() >= PROGRESS_EVERY {
            progress(download);
            told = Instant::now();
        }
    }
    sender.send(Part::End).await.map_err(|_| Stop::Below)
}

/// The outcomes of the three threads, as they come in.
struct Stages {
    digest: oneshot::Receiver<Result<String, Stop>>,
    decoded: oneshot::Receiver<Result<(), Stop>>,
    unpacked: oneshot::Receiver<Result<(), Stop>>,
}

impl Stages {
    /// The digest, and the cause of the failure that is furthest down the pipe.
    async fn join(self) -> Result<(Result<String, Stop>, Option<Error>), Error> {
        let died = |_| Error::Pipeline("a worker thread panicked".to_owned());
        let digest = self.digest.await.map_err(died)?;
        let decoded = self.decoded.await.map_err(died)?;
        let unpacked = self.unpacked.await.map_err(died)?;
        let cause = [unpacked, decoded]
            .into_iter()
            .find_map(|stage| match stage {
                Err(Stop::Failed(error)) => Some(error),
                _ => None,
            });
        Ok((digest, cause))
    }
}

/// Starts hash, decode and unpack threads; the sender is the pipeline's mouth.
fn spawn(
    expected: &Expected,
    url: String,
    root: RootDir,
    counters: &Arc<Counters>,
) -> Result<(mpsc::Sender<Part<Bytes>>, Stages), Error> {
    let (network, from_network) = mpsc::channel(CHANNEL);
    let (hashed, to_decode) = sync_channel(CHANNEL);
    let (decoded, to_unpack) = sync_channel(CHANNEL);
    let (spent, recycled) = sync_channel(CHANNEL);
    // Damaged content is hashed to its end all the same: only the digest can tell whether
    // it was damaged on the way here or is published like that.
    let hash_on = Arc::new(AtomicBool::new(false));
    let hasher = Hasher::new(expected.algorithm);

    let flag = Arc::clone(&hash_on);
    let digest = stage("image-hash", move || {
        hash(from_network, hashed, hasher, &flag)
    })?;
    let flag = Arc::clone(&hash_on);
    let decoding = stage("image-lz4", move || {
        let mut source = PipeReader::new(to_decode, None);
        let result = decode::decode(&mut source, &url, |buffer: Vec<u8>| {
            decoded.send(Part::Data(buffer)).map_err(|_| Stop::Below)?;
            Ok(recycled.try_recv().unwrap_or_default())
        });
        let result = result.and_then(|_| decoded.send(Part::End).map_err(|_| Stop::Below));
        // Before the reader is dropped, and with it everything upstream is told to stop.
        note_damage(&result, &flag);
        result
    })?;
    let counters = Arc::clone(counters);
    let unpacked = stage("image-unpack", move || {
        let mut source = PipeReader::new(to_unpack, Some(spent));
        let result = unpack::unpack(&mut source, &root, &counters);
        note_damage(&result, &hash_on);
        result
    })?;
    Ok((
        network,
        Stages {
            digest,
            decoded: decoding,
            unpacked,
        },
    ))
}

fn note_damage<T>(result: &Result<T, Stop>, hash_on: &AtomicBool) {
    if let Err(Stop::Failed(error)) = result
        && error.is_damage()
    {
        hash_on.store(true, Ordering::SeqCst);
    }
}

fn stage<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<oneshot::Receiver<T>, Error> {
    let (done, outcome) = oneshot::channel();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            // The receiver is gone when the install was given up; then nobody asks.
            let _ = done.send(work());
        })
        .map_err(|error| Error::Pipeline(format!("starting the thread {name}: {error}")))?;
    Ok(outcome)
}

fn hash(
    mut parts: mpsc::Receiver<Part<Bytes>>,
    next: std::sync::mpsc::SyncSender<Part<Bytes>>,
    mut hasher: Hasher,
    hash_on: &AtomicBool,
) -> Result<String, Stop> {
    let mut next = Some(next);
    loop {
        let part = parts.blocking_recv().ok_or(Stop::Above)?;
        if let Part::Data(bytes) = &part {
            hasher.update(bytes);
        }
        let ended = matches!(part, Part::End);
        if let Some(sender) = &next
            && sender.send(part).is_err()
        {
            if !hash_on.load(Ordering::SeqCst) {
                return Err(Stop::Below);
            }
            next = None;
        }
        if ended {
            return Ok(hasher.finish());
        }
    }
}
