//! The log of this boot on another host: batches, tried again until they arrive, from a thread of
//! its own that nothing waits for but the last flush.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::CONTENT_TYPE;
use secrecy::{ExposeSecret, SecretString};
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use tracing::Level;
use url::{Host, Url};
use uuid::Uuid;

use super::event::{Event, Line as LogLine, Origin};
use super::stream::{self, Queue, Record};
use super::{loki, syslog};
use crate::control::helper_answer::Logging;
use crate::control::http::{self, shown};
use crate::control::line::Line;
use crate::control::retry::Backoff;
use crate::control::text::{SHOWN_CHARS, printable};

/// Records that wait to be sent, each of a few kilobytes at most. What a kernel says until there is a
/// network has to fit.
const WAITING: usize = 4096;
/// Records in one batch: Loki takes 4 MiB by default.
const BATCH: usize = 500;
/// A batch waits for more so long.
const LINGER: Duration = Duration::from_secs(1);
/// One attempt.
const ATTEMPT: Duration = Duration::from_secs(10);
/// Pauses between attempts.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Ports that have none in the endpoint (RFC 5426 §3.3; IANA: syslog-conn).
const UDP_PORT: u16 = 514;
const TCP_PORT: u16 = 601;

/// What is kept for the remote log until it is known where that is.
static KEPT: Mutex<Option<Arc<Queue>>> = Mutex::new(None);

/// Begins to keep everything for a remote log.
pub fn keep() {
    let queue = Arc::new(Queue::new(WAITING, is_sent));
    stream::subscribe(&queue);
    *KEPT.lock().unwrap_or_else(PoisonError::into_inner) = Some(queue);
}

/// There is no remote log: nothing needs to be kept.
pub fn forget() {
    drop(kept());
}

fn kept() -> Option<Arc<Queue>> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Progress would drown the rest; the dashboard shows it.
fn is_sent(event: &Event) -> bool {
    !matches!(event, Event::Progress(_)) && event.as_line().is_some()
}

/// Whose log it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    pub machine: Uuid,
    /// May be empty.
    pub partition: String,
}

/// A line on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Nanoseconds since 1970, UTC.
    pub nanos: i128,
    pub level: Level,
    /// The kernel's, not the agent's.
    pub kernel: bool,
    pub text: String,
}

impl Entry {
    /// With its level, and the kernel's marked.
    #[must_use]
    pub fn line(&self) -> String {
        let who = if self.kernel { "kernel: " } else { "" };
        format!("{:>5} {who}{}", self.level.as_str(), self.text)
    }
}

/// Settings that name no log server.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    #[error("logging has no endpoint")]
    NoEndpoint,
    #[error("logging.endpoint {0:?} is no URL")]
    NoUrl(String),
    #[error("logging.endpoint is {0}; expected http:// or https:// for log_type loki")]
    NotHttp(String),
    #[error(
        "logging.endpoint is {0}; expected udp:// or tcp:// with an IPv6 address for log_type syslog"
    )]
    NotSyslog(String),
    #[error("logging.log_type is {0:?}; expected loki or syslog")]
    Unknown(String),
}

/// Where a log goes, and how.
#[derive(Debug)]
pub enum Target {
    Loki {
        url: Url,
        auth: Option<(String, SecretString)>,
    },
    Tcp(SocketAddr),
    Udp(SocketAddr),
}

impl Target {
    /// Reads `logging` of the settings.
    ///
    /// # Errors
    /// It names no server that logs could be sent to.
    pub fn new(logging: &Logging) -> Result<Self, ConfigError> {
        let endpoint = logging.endpoint.as_deref().ok_or(ConfigError::NoEndpoint)?;
        // A URL that cannot be read is not shown either: it may hold a password.
        let url = Url::parse(endpoint).map_err(|error| ConfigError::NoUrl(error.to_string()))?;
        match logging.log_type.as_deref().unwrap_or("loki") {
            "loki" if matches!(url.scheme(), "http" | "https") => {
                let auth = logging.basic_auth.as_ref().and_then(|auth| {
                    let password = auth.password.clone().unwrap_or_default();
                    auth.user.clone().map(|user| (user, password))
                });
                Ok(Self::Loki { url, auth })
            }
            "loki" => Err(ConfigError::NotHttp(shown(&url))),
            "syslog" => {
                // The host of a scheme that the URL standard does not know is a text.
                let host = url.host_str().map(Host::parse);
                let address = match host {
                    Some(Ok(Host::Ipv6(address))) => address,
                    _ => return Err(ConfigError::NotSyslog(shown(&url))),
                };
                let to = |port| SocketAddr::from((address, url.port().unwrap_or(port)));
                match url.scheme() {
                    "udp" => Ok(Self::Udp(to(UDP_PORT))),
                    "tcp" => Ok(Self::Tcp(to(TCP_PORT))),
                    _ => Err(ConfigError::NotSyslog(shown(&url))),
                }
            }
            other => Err(ConfigError::Unknown(printable(other, SHOWN_CHARS))),
        }
    }
}

/// Why a batch did not arrive.
#[derive(Debug, Error)]
enum SendError {
    #[error("{0}")]
    Passing(String),
    /// Another attempt would fare no better.
    #[error("{0}")]
    Refused(String),
}

/// A log server and what is known of the way to it.
pub struct Sink {
    target: Target,
    labels: Labels,
    /// Loki's HTTP client, which is replaced when another path takes over.
    line: Line,
    tcp: Option<TcpStream>,
    /// The time of the newest entry: no later one may be older.
    newest: i128,
    /// The last batch was refused, which has been told: telling it of each would make the next.
    refused: bool,
}

impl Sink {
    #[must_use]
    pub fn new(target: Target, labels: Labels, line: Line) -> Self {
        Self {
            target,
            labels,
            line,
            tcp: None,
            newest: 0,
            refused: false,
        }
    }

    /// Sends what was kept, and everything from now on, until the program ends.
    ///
    /// # Errors
    /// There is no thread for it.
    pub fn start(self) -> std::io::Result<()> {
        let Some(queue) = kept() else { return Ok(()) };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = std::thread::Builder::new().name("remote log".into());
        thread.spawn(move || self.run(&queue, &runtime)).map(drop)
    }

    fn run(mut self, queue: &Queue, runtime: &tokio::runtime::Runtime) {
        loop {
            let batch = queue.batch(BATCH, LINGER);
            let entries = self.entries(&batch, queue.dropped(), since_1970());
            self.deliver(queue, runtime, &entries);
            queue.settle(batch.len());
        }
    }

    /// Tries until the batch arrives or is refused. Trouble is told when it begins and when it is
    /// over, for what is told here is itself to be sent.
    fn deliver(&mut self, queue: &Queue, runtime: &tokio::runtime::Runtime, entries: &[Entry]) {
        let mut backoff = Backoff::new(PAUSE, LONGEST_PAUSE);
        let mut troubled = false;
        loop {
            match runtime.block_on(self.attempt(entries)) {
                Ok(()) => {
                    if troubled {
                        tracing::info!("the log server takes lines again");
                    }
                    self.refused = false;
                    return;
                }
                Err(SendError::Refused(why)) => {
                    if !std::mem::replace(&mut self.refused, true) {
                        let count = entries.len();
                        tracing::warn!("the log server refuses {count} lines for good: {why}");
                    }
                    return;
                }
                Err(SendError::Passing(why)) => {
                    if !troubled {
                        tracing::warn!("the log server takes no lines for now: {why}");
                    }
                    troubled = true;
                    queue.pause(backoff.next(None));
                }
            }
        }
    }

    /// The batch as lines with their time of day; `wall` is the time of day of the kernel's start.
    /// The clock may have been set after a line was told, so its time is only found now.
    fn entries(&mut self, batch: &[Arc<Record>], dropped: u64, wall: i128) -> Vec<Entry> {
        let mut batch: Vec<_> = batch.iter().collect();
        batch.sort_by_key(|record| record.at);
        let mut entries: Vec<Entry> = batch
            .into_iter()
            .filter_map(|record| {
                let (level, text) = record.event.as_line()?;
                let nanos = wall + i128::try_from(record.at.as_nanos()).unwrap_or_default();
                self.newest = nanos.max(self.newest + 1);
                Some(Entry {
                    nanos: self.newest,
                    level,
                    kernel: matches!(
                        record.event,
                        Event::Line(LogLine {
                            origin: Origin::Kernel { .. },
                            ..
                        })
                    ),
                    text,
                })
            })
            .collect();
        if dropped > 0 {
            self.newest += 1;
            entries.push(Entry {
                nanos: self.newest,
                level: Level::WARN,
                kernel: false,
                text: format!("{dropped} lines were too many for the log server"),
            });
        }
        entries
    }

    async fn attempt(&mut self, entries: &[Entry]) -> Result<(), SendError> {
        let sent = timeout(ATTEMPT, async {
            match &self.target {
                Target::Loki { url, auth } => {
                    push(
                        &self.line,
                        url,
                        auth.as_ref(),
                        loki::body(&self.labels, entries),
                    )
                    .await
                }
                Target::Udp(to) => datagrams(*to, &self.labels, entries).await,
                Target::Tcp(to) => {
                    let mut tcp = match self.tcp.take() {
                        Some(tcp) => tcp,
                        None => TcpStream::connect(to).await.map_err(|e| passing(*to, &e))?,
                    };
                    let messages = entries
                        .iter()
                        .flat_map(|e| syslog::messages(&self.labels, e));
                    let frames: String = messages.map(|m| syslog::counted(&m)).collect();
                    let written = tcp.write_all(frames.as_bytes()).await;
                    written.map_err(|error| passing(*to, &error))?;
                    self.tcp = Some(tcp);
                    Ok(())
                }
            }
        });
        let seconds = ATTEMPT.as_secs();
        let late = |_| SendError::Passing(format!("no answer within {seconds} s"));
        sent.await.map_err(late)?
    }
}

fn passing(to: SocketAddr, error: &std::io::Error) -> SendError {
    SendError::Passing(format!("{to}: {error}"))
}

async fn datagrams(to: SocketAddr, labels: &Labels, entries: &[Entry]) -> Result<(), SendError> {
    let wrong = |error: std::io::Error| passing(to, &error);
    let socket = UdpSocket::bind("[::]:0").await.map_err(wrong)?;
    for message in entries
        .iter()
        .flat_map(|entry| syslog::messages(labels, entry))
    {
        let bytes = syslog::datagram(&message);
        socket.send_to(bytes, to).await.map_err(wrong)?;
    }
    Ok(())
}

/// One push to Loki.
async fn push(
    line: &Line,
    url: &Url,
    auth: Option<&(String, SecretString)>,
    body: Vec<u8>,
) -> Result<(), SendError> {
    let mut request = line
        .client()
        .post(url.clone())
        .header(CONTENT_TYPE, "application/json")
        .body(body);
    if let Some((user, password)) = auth {
        request = request.basic_auth(user, Some(password.expose_secret()));
    }
    let response = request.send().await.map_err(|error| {
        let failure = http::Failure::new(url, &error);
        if failure.is_passing() {
            SendError::Passing(failure.to_string())
        } else {
            SendError::Refused(failure.to_string())
        }
    })?;
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let body = http::read_body_capped(response, http::ERROR_LIMIT).await;
    let text = body.map(|body| printable(&String::from_utf8_lossy(&body), SHOWN_CHARS));
    let why = format!(
        "{} answers {status}: {}",
        shown(url),
        text.unwrap_or_default()
    );
    if status.is_server_error() || status.as_u16() == 429 {
        Err(SendError::Passing(why))
    } else {
        Err(SendError::Refused(why))
    }
}

/// The time of day of the kernel's start, by the clock as it is now: nanoseconds since 1970.
fn since_1970() -> i128 {
    let now = jiff::Timestamp::now().as_nanosecond();
    now - i128::try_from(stream::now().as_nanos()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
