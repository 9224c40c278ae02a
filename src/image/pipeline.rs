//! The threads between a download and its outcome, and the channels between them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, interval_at};

use super::checksum::{Algorithm, Hasher};
use super::disk::{self, DiskTarget};
use super::error::Error;
use super::fetch::Download;
use super::pipe::{self, Part, PipeReader, Stop};
use super::progress::Progress;
use super::root::RootDir;
use super::unpack::{self, Counters};
use super::{Begun, Summary, decode};

/// Places in each channel. A network chunk is at most some 400 kB (hyper's read buffer),
/// a decoded buffer 512 kB, so everything under way stays below 9 MiB.
const CHANNEL: usize = 4;
/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// What becomes of the decoded stream.
pub enum Work {
    Unpack(RootDir),
    Check,
    WriteDisk(Arc<DiskTarget>),
    CheckDisk,
}

/// Runs the pipeline. An error that another source may not have says that the cache is to blame.
pub async fn run(
    begun: Begun<'_>,
    work: Work,
    limit: u64,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Summary, Error> {
    let from_cache = begun.from_cache;
    match run_stages(begun, work, limit, progress).await {
        Err(error) if from_cache => Err(error.of_cache()),
        done => done,
    }
}

/// Runs the stages and puts their outcomes together.
async fn run_stages(
    begun: Begun<'_>,
    work: Work,
    limit: u64,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Summary, Error> {
    let Begun {
        expected,
        mut download,
        ..
    } = begun;
    // Without a checksum a digest is computed for the log all the same.
    let algorithm = expected
        .as_ref()
        .map_or(Algorithm::Sha256, |expected| expected.algorithm);
    let counters = Arc::new(Counters::default());
    let url = download.shown();
    let (sender, stages) = spawn(Hasher::new(algorithm), url.clone(), work, limit, &counters)?;
    let start = Instant::now();
    let told = || Progress {
        downloaded: counters.received.load(Ordering::Relaxed),
        total: Some(counters.total.load(Ordering::Relaxed)).filter(|total| *total > 0),
        unpacked: counters.bytes.load(Ordering::Relaxed),
        entries: counters.entries.load(Ordering::Relaxed),
        took: start.elapsed(),
    };
    let ticks = async {
        let mut ticks = interval_at(start + PROGRESS_EVERY, PROGRESS_EVERY);
        loop {
            ticks.tick().await;
            progress(told());
        }
    };
    let work = async {
        let fed = feed(&mut download, sender, &counters).await;
        stages
            .join()
            .await
            .map(|(digest, cause)| (fed, digest, cause))
    };
    let (fed, digest, cause) = tokio::select! {
        done = work => done?,
        never = ticks => never,
    };
    let last = told();
    progress(last);

    let differs = |got: &str| {
        expected
            .as_ref()
            .is_some_and(|expected| expected.hex != got)
    };
    let mismatch = |got: String, symptom: Option<String>| Error::ChecksumMismatch {
        url: url.clone(),
        algorithm,
        expected: expected
            .as_ref()
            .map(|expected| expected.hex.clone())
            .unwrap_or_default(),
        got,
        symptom,
    };
    match (cause, fed, digest) {
        (Some(error), _, Ok(got)) if error.is_damage() && differs(&got) => {
            Err(mismatch(got, Some(error.to_string())))
        }
        (Some(error), _, _) => Err(error),
        (None, Err(Stop::Failed(error)), _) => Err(error),
        (None, Ok(()), Ok(got)) if differs(&got) => Err(mismatch(got, None)),
        (None, Ok(()), Ok(got)) => Ok(Summary {
            url,
            algorithm,
            digest: got,
            compared: expected.is_some(),
            progress: last,
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
    counters: &Counters,
) -> Result<(), Stop> {
    loop {
        let chunk = download.next().await?;
        let total = download.total().unwrap_or_default();
        counters.total.store(total, Ordering::Relaxed);
        counters
            .received
            .store(download.offset(), Ordering::Relaxed);
        let Some(chunk) = chunk else { break };
        if sender.send(Part::Data(chunk)).await.is_err() {
            return Err(Stop::Below);
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
    hasher: Hasher,
    url: String,
    work: Work,
    limit: u64,
    counters: &Arc<Counters>,
) -> Result<(mpsc::Sender<Part<Bytes>>, Stages), Error> {
    let (network, from_network) = mpsc::channel(CHANNEL);
    let (hashed, to_decode) = sync_channel(CHANNEL);
    let (decoded, to_unpack) = sync_channel(CHANNEL);
    let (spent, recycled) = sync_channel(CHANNEL);
    // Damaged content is hashed to its end all the same: only the digest can tell whether
    // it was damaged on the way here or is published like that.
    let hash_on = Arc::new(AtomicBool::new(false));

    let flag = Arc::clone(&hash_on);
    let digest = stage("image-hash", move || {
        hash(from_network, hashed, hasher, &flag)
    })?;
    let flag = Arc::clone(&hash_on);
    let decoding = stage("image-decode", move || {
        let mut source = PipeReader::new(to_decode, None);
        let result = decode::decode(&mut source, &url, limit, |buffer: Vec<u8>| {
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
        let result = match &work {
            Work::Unpack(root) => unpack::unpack(&mut source, root, &counters),
            Work::Check => unpack::check(&mut source, &counters),
            Work::WriteDisk(target) => disk::write(&mut source, target, &counters),
            Work::CheckDisk => disk::check(&mut source, &counters),
        };
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
    pipe::start(name, move || {
        // The receiver is gone when the install was given up; then nobody asks.
        let _ = done.send(work());
    })?;
    Ok(outcome)
}

fn hash(
    mut parts: mpsc::Receiver<Part<Bytes>>,
    next: SyncSender<Part<Bytes>>,
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
