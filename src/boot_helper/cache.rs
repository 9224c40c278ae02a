//! A pull-through cache of images, and of the installer: each is fetched once from its origin,
//! whoever asks, and kept only when its checksum was right.
//!
//! A file is known by its path **and** its checksum: an image's stands beside it at the origin
//! now, so one that was published anew under the old name is another file here; the
//! installer's is configured. What cannot be kept (no checksum, no length, no room) is a
//! redirect to the origin.

use std::collections::HashMap;
use std::fs::{File, FileTimes};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use axum::body::Body;
use axum::http::header::LOCATION;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};
use url::Url;

use super::files::{self, About, Ask, Wanted};
use super::metrics::Metrics;
use crate::control::http::shown;
use crate::image::checksum::{self, Expected};
use crate::image::fetch::{Download, Patience, small_file};
use crate::image::{Algorithm, Hasher};

/// Downloads at once; more are redirects.
const FLIGHTS: usize = 8;
/// Bytes of a file that are read at once.
const CHUNK: usize = 256 << 10;
/// Pieces between network and disk.
const PIECES: usize = 8;
/// Ending of a file that is not complete.
const PART: &str = ".part";

/// How far a download has come.
#[derive(Debug, Clone)]
enum Flight {
    /// The origin has not answered yet.
    Asking,
    /// So many of so many bytes are in the file.
    Flying {
        file: Arc<File>,
        total: u64,
        bytes: u64,
    },
    /// All of it is there and right.
    Landed { file: Arc<File>, total: u64 },
    /// There will be no file.
    Failed,
}

/// The cache.
#[derive(Debug)]
pub struct Cache {
    directory: PathBuf,
    /// Bytes, of complete files and of those under way.
    limit: u64,
    /// Where images come from; `None`: no image is served.
    origin: Option<Url>,
    client: reqwest::Client,
    patience: Patience,
    metrics: Arc<Metrics>,
    flights: Mutex<HashMap<String, watch::Receiver<Flight>>>,
    /// Held while room is made, with the bytes that flights will need.
    reserved: tokio::sync::Mutex<u64>,
}

impl Cache {
    /// A cache in `directory` of what is at `origin`. Unfinished files of an earlier run go.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn open(
        directory: PathBuf,
        limit: u64,
        origin: Option<Url>,
        client: reqwest::Client,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        for entry in std::fs::read_dir(&directory)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if name.is_some_and(|name| name.strip_suffix(PART).is_some_and(is_ours)) {
                std::fs::remove_file(&path)?;
            }
        }
        let held = files_in(&directory)?.iter().map(|file| file.length).sum();
        metrics.cache_bytes.set(held);
        Ok(Self {
            directory,
            limit,
            origin,
            client,
            patience: Patience::default(),
            metrics,
            flights: Mutex::default(),
            reserved: tokio::sync::Mutex::new(0),
        })
    }

    /// Whether there is an origin of images.
    #[must_use]
    pub fn has_images(&self) -> bool {
        self.origin.is_some()
    }

    /// Answers a request for what is at `path` below the origin.
    pub async fn serve(self: Arc<Self>, path: &str, ask: Ask<'_>) -> Response {
        if ask.method != Method::GET && ask.method != Method::HEAD {
            return files::not_allowed();
        }
        let Some(url) = self.url(path) else {
            return StatusCode::NOT_FOUND.into_response();
        };
        let is_sum = Algorithm::STRONGEST_FIRST
            .iter()
            .any(|algorithm| path.ends_with(algorithm.suffix()));
        if is_sum {
            return self.sum(&url).await;
        }
        let expected = match self.expected(&url).await {
            Ok(Some(expected)) => expected,
            Ok(None) => return redirect(&url),
            Err(error) => {
                warn!("image cache: {error}");
                return redirect(&url);
            }
        };
        self.give(name_of(path, &expected), &url, expected, &ask)
            .await
    }

    /// Answers a request for what is at `url` and has this digest.
    pub async fn serve_known(
        self: Arc<Self>,
        url: &Url,
        expected: Expected,
        ask: Ask<'_>,
    ) -> Response {
        if ask.method != Method::GET && ask.method != Method::HEAD {
            return files::not_allowed();
        }
        self.give(name_of(url.as_str(), &expected), url, expected, &ask)
            .await
    }

    /// The file from the disk, or as it comes from `url`.
    async fn give(
        self: Arc<Self>,
        name: String,
        url: &Url,
        expected: Expected,
        ask: &Ask<'_>,
    ) -> Response {
        let tag = format!("\"{}-{}\"", expected.algorithm, expected.hex);
        let stored = self.directory.join(&name);
        let opened = tokio::task::spawn_blocking(move || open_used(&stored)).await;
        if let Ok(Ok((file, length))) = opened {
            self.metrics.cache_hits.add(1);
            let flight = Flight::Landed {
                file: Arc::new(file),
                total: length,
            };
            let (_, flight) = watch::channel(flight);
            return send(flight, tag, ask, url).await;
        }
        match self.join(name, url, expected) {
            Some(flight) => send(flight, tag, ask, url).await,
            None => redirect(url),
        }
    }

    fn url(&self, path: &str) -> Option<Url> {
        files::below(path)?;
        let mut url = self.origin.clone()?;
        url.set_path(&format!("{}/{path}", url.path().trim_end_matches('/')));
        Some(url)
    }

    /// A checksum file: small, and only worth something while it is fresh.
    async fn sum(&self, url: &Url) -> Response {
        match small_file(&self.client, url, checksum::MAX_FILE, &self.patience).await {
            Ok(Some(bytes)) => bytes.into_response(),
            Ok(None) => StatusCode::NOT_FOUND.into_response(),
            Err(error) => {
                warn!("image cache: {error}");
                redirect(url)
            }
        }
    }

    /// The strongest checksum that stands beside the image.
    async fn expected(&self, url: &Url) -> Result<Option<Expected>, String> {
        let name = url.path().rsplit('/').next().unwrap_or_default();
        for algorithm in Algorithm::STRONGEST_FIRST {
            let mut beside = url.clone();
            beside.set_path(&format!("{}{}", url.path(), algorithm.suffix()));
            let found = small_file(&self.client, &beside, checksum::MAX_FILE, &self.patience);
            if let Some(bytes) = found.await.map_err(|error| error.to_string())? {
                let expected = checksum::parse(&bytes, algorithm, name)
                    .map_err(|reason| format!("{}: {reason}", shown(&beside)))?;
                return Ok(Some(expected));
            }
        }
        Ok(None)
    }

    /// The download of this file: the one under way, or a new one; `None` when there are
    /// enough.
    fn join(
        self: Arc<Self>,
        name: String,
        url: &Url,
        expected: Expected,
    ) -> Option<watch::Receiver<Flight>> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(&name) {
            return Some(flight.clone());
        }
        if flights.len() >= FLIGHTS {
            return None;
        }
        self.metrics.cache_misses.add(1);
        let (progress, flight) = watch::channel(Flight::Asking);
        flights.insert(name.clone(), flight.clone());
        drop(flights);
        let url = url.clone();
        // It flies to its end even when the machine that asked for it is gone.
        tokio::spawn(async move {
            let outcome = self.fly(&name, &url, expected, &progress).await;
            if let Err(reason) = outcome {
                warn!("image cache: {}: {reason}", shown(&url));
                let part = self.directory.join(format!("{name}{PART}"));
                if let Err(error) = std::fs::remove_file(&part)
                    && error.kind() != io::ErrorKind::NotFound
                {
                    warn!("image cache: cannot remove {}: {error}", part.display());
                }
                progress.send_replace(Flight::Failed);
            }
            let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
            flights.remove(&name);
        });
        Some(flight)
    }

    async fn fly(
        &self,
        name: &str,
        url: &Url,
        expected: Expected,
        progress: &watch::Sender<Flight>,
    ) -> Result<(), String> {
        let mut download = Download::open(&self.client, url.clone(), &self.patience)
            .await
            .map_err(|error| error.to_string())?;
        let total = download.total().ok_or("the origin tells no length")?;
        self.reserve(total).await?;
        let outcome = self.store(name, &mut download, total, expected, progress);
        let outcome = outcome.await;
        let mut reserved = self.reserved.lock().await;
        *reserved = reserved.saturating_sub(total);
        drop(reserved);
        let held = files_in(&self.directory).unwrap_or_default();
        self.metrics
            .cache_bytes
            .set(held.iter().map(|file| file.length).sum());
        if outcome.is_ok() {
            info!("image cache: {} is here, {total} bytes", shown(url));
        }
        outcome
    }

    async fn store(
        &self,
        name: &str,
        download: &mut Download<'_>,
        total: u64,
        expected: Expected,
        progress: &watch::Sender<Flight>,
    ) -> Result<(), String> {
        let part = self.directory.join(format!("{name}{PART}"));
        let wrong = |error: io::Error| format!("{}: {error}", part.display());
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&part)
            .map_err(wrong)?;
        let file = Arc::new(file);
        let flying = |bytes| Flight::Flying {
            file: file.clone(),
            total,
            bytes,
        };
        progress.send_replace(flying(0));
        let (pieces, received) = mpsc::channel(PIECES);
        let writer = {
            let (file, progress) = (file.clone(), progress.clone());
            tokio::task::spawn_blocking(move || {
                write(&file, received, expected.algorithm, &progress)
            })
        };
        while let Some(piece) = download.next().await.map_err(|error| error.to_string())? {
            if pieces.send(piece).await.is_err() {
                break; // the writer says why
            }
        }
        drop(pieces);
        let digest = writer
            .await
            .map_err(|error| error.to_string())?
            .map_err(wrong)?;
        if digest != expected.hex {
            let algorithm = expected.algorithm;
            return Err(format!(
                "its {algorithm} is {digest}, expected {}",
                expected.hex
            ));
        }
        std::fs::rename(&part, self.directory.join(name)).map_err(wrong)?;
        progress.send_replace(Flight::Landed {
            file: file.clone(),
            total,
        });
        Ok(())
    }

    /// Makes room for `total` bytes: what was used longest ago goes.
    async fn reserve(&self, total: u64) -> Result<(), String> {
        let mut reserved = self.reserved.lock().await;
        let mut files = files_in(&self.directory)
            .map_err(|error| format!("{}: {error}", self.directory.display()))?;
        files.sort_by_key(|file| file.used);
        let mut held: u64 = files.iter().map(|file| file.length).sum();
        let mut oldest = files.into_iter();
        let too_large = || format!("{total} bytes do not fit into --cache-size");
        // What never fits must not drive out what does.
        if reserved.saturating_add(total) > self.limit {
            return Err(too_large());
        }
        while held.saturating_add(*reserved).saturating_add(total) > self.limit {
            let Some(file) = oldest.next() else {
                return Err(too_large());
            };
            std::fs::remove_file(&file.path)
                .map_err(|error| format!("{}: {error}", file.path.display()))?;
            held -= file.length;
        }
        *reserved += total;
        Ok(())
    }
}

/// Puts the pieces into the file and tells how far it is; answers their digest.
fn write(
    mut file: &File,
    mut pieces: mpsc::Receiver<Bytes>,
    algorithm: Algorithm,
    progress: &watch::Sender<Flight>,
) -> io::Result<String> {
    let mut hasher = Hasher::new(algorithm);
    while let Some(piece) = pieces.blocking_recv() {
        file.write_all(&piece)?;
        hasher.update(&piece);
        progress.send_modify(|flight| {
            if let Flight::Flying { bytes, .. } = flight {
                *bytes += piece.len() as u64;
            }
        });
    }
    file.sync_all()?;
    Ok(hasher.finish())
}

/// A complete file, marked as used now.
fn open_used(path: &Path) -> io::Result<(File, u64)> {
    let file = File::open(path)?;
    file.set_times(FileTimes::new().set_accessed(SystemTime::now()))?;
    let length = file.metadata()?.len();
    Ok((file, length))
}

struct Stored {
    path: PathBuf,
    length: u64,
    used: SystemTime,
}

/// The complete files of this cache.
fn files_in(directory: &Path) -> io::Result<Vec<Stored>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if !entry.file_name().to_str().is_some_and(is_ours) {
            continue;
        }
        let metadata = entry.metadata()?;
        files.push(Stored {
            path: entry.path(),
            length: metadata.len(),
            used: metadata.accessed()?,
        });
    }
    Ok(files)
}

/// The name of a file that holds this path's content with this digest.
fn name_of(path: &str, expected: &Expected) -> String {
    let key = format!("{path}\0{}\0{}", expected.algorithm, expected.hex);
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(key.as_bytes());
    hasher.finish()
}

fn is_ours(name: &str) -> bool {
    name.len() == 2 * Sha256::output_size() && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn redirect(url: &Url) -> Response {
    let Ok(to) = HeaderValue::from_str(url.as_str()) else {
        return StatusCode::BAD_GATEWAY.into_response();
    };
    (StatusCode::TEMPORARY_REDIRECT, [(LOCATION, to)]).into_response()
}

/// Answers from a file that may still be growing.
async fn send(
    mut flight: watch::Receiver<Flight>,
    tag: String,
    ask: &Ask<'_>,
    url: &Url,
) -> Response {
    let state = flight
        .wait_for(|flight| !matches!(flight, Flight::Asking))
        .await
        .map(|state| state.clone());
    let total = match state {
        Ok(Flight::Flying { total, .. } | Flight::Landed { total, .. }) => total,
        _ => return redirect(url),
    };
    let body = |wanted: Wanted| growing(flight, wanted.first, wanted.first + wanted.length);
    About::tagged(total, tag).answer(ask, body)
}

/// The bytes from `from` up to `end`, as they come. The last one of a file waits for the
/// verdict on all of it: nobody gets a whole file that is not right.
fn growing(flight: watch::Receiver<Flight>, from: u64, end: u64) -> Body {
    Body::from_stream(stream::try_unfold(
        (flight, from),
        move |(mut flight, at)| async move {
            if at >= end {
                return Ok::<_, io::Error>(None);
            }
            let broken = || io::Error::other("the download into the cache failed");
            let state =
                flight.wait_for(|flight| ready(flight, at) || matches!(flight, Flight::Failed));
            let (file, until) = match &*state.await.map_err(|_| broken())? {
                Flight::Flying { file, total, bytes } => {
                    (file.clone(), (*bytes).min(total.saturating_sub(1)))
                }
                Flight::Landed { file, total } => (file.clone(), *total),
                Flight::Asking | Flight::Failed => return Err(broken()),
            };
            let length = until.min(end).saturating_sub(at).min(CHUNK as u64);
            let mut chunk = vec![0; usize::try_from(length).unwrap_or(CHUNK)];
            let read = tokio::task::spawn_blocking(move || {
                file.read_exact_at(&mut chunk, at)?;
                Ok::<_, io::Error>(chunk)
            });
            let chunk = Bytes::from(read.await.map_err(io::Error::other)??);
            Ok(Some((chunk, (flight, at + length))))
        },
    ))
}

/// Whether the byte at `at` may be sent.
fn ready(flight: &Flight, at: u64) -> bool {
    match flight {
        Flight::Flying { total, bytes, .. } => at < (*bytes).min(total.saturating_sub(1)),
        Flight::Landed { .. } => true,
        Flight::Asking | Flight::Failed => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::control::http::{Trust, download_client};

    fn cache(limit: u64) -> (tempfile::TempDir, Arc<Cache>) {
        let dir = tempfile::tempdir().unwrap();
        let origin = "http://origin.example/base".parse().ok();
        let client = download_client(Trust::Public).unwrap();
        let metrics = Arc::new(Metrics::default());
        let cache = Cache::open(dir.path().into(), limit, origin, client, metrics).unwrap();
        (dir, Arc::new(cache))
    }

    fn expected() -> Expected {
        Expected {
            algorithm: Algorithm::Sha256,
            hex: "0".repeat(64),
        }
    }

    #[tokio::test]
    async fn downloads_under_way_count_and_the_oldest_file_goes() {
        let (dir, cache) = cache(100);
        for (name, age) in [("a", 60), ("b", 30)] {
            let file = File::create(dir.path().join(name.repeat(64))).unwrap();
            (&file).write_all(&[7; 40]).unwrap();
            let used = SystemTime::now() - Duration::from_secs(age);
            file.set_times(FileTimes::new().set_accessed(used)).unwrap();
        }
        std::fs::write(dir.path().join("somebody-elses"), [7; 500]).unwrap();
        let held = || -> Vec<PathBuf> {
            let files = files_in(dir.path()).unwrap().into_iter();
            files.map(|file| file.path).collect()
        };
        cache.reserve(20).await.unwrap();
        assert_eq!(held().len(), 2);
        // What can never fit drives nothing out.
        let error = cache.reserve(81).await.unwrap_err();
        assert_eq!(error, "81 bytes do not fit into --cache-size");
        assert!(cache.reserve(u64::MAX).await.is_err());
        assert_eq!(held().len(), 2);
        cache.reserve(20).await.unwrap();
        assert_eq!(held(), [dir.path().join("b".repeat(64))]);
        assert!(dir.path().join("somebody-elses").exists());
    }

    #[tokio::test]
    async fn a_download_is_shared_and_there_are_few_at_once() {
        let (_dir, cache) = cache(100);
        let url: Url = "http://origin.example/base/img".parse().unwrap();
        let (_progress, flight) = watch::channel(Flight::Asking);
        for number in 0..FLIGHTS {
            let mut flights = cache.flights.lock().unwrap();
            flights.insert(number.to_string(), flight.clone());
        }
        let join = |name: &str| cache.clone().join(name.to_owned(), &url, expected());
        assert!(join("0").is_some(), "it is under way");
        assert!(join("one more").is_none());
        assert_eq!(cache.flights.lock().unwrap().len(), FLIGHTS);
    }

    #[test]
    fn nothing_above_the_origin_is_asked_for() {
        let (_dir, cache) = cache(100);
        for (path, expected) in [
            ("os/img", Some("http://origin.example/base/os/img")),
            ("../os/img", None),
            ("os/%2e%2e/%2e%2e/x", None),
            (".hidden", None),
            ("", None),
        ] {
            let url = cache.url(path).map(String::from);
            assert_eq!(url.as_deref(), expected, "{path}");
        }
    }
}
