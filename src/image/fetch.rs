//! A download that survives broken connections, each byte delivered once.
//!
//! After a break the rest is asked for with Range and If-Range (RFC 9110 §13.1.5, §14). A
//! server that knows no ranges sends the file from its start again: what was delivered
//! already is skipped. Anything that is not this very file's rest is an error, because the
//! bytes before it are unpacked; what slips through is found by the checksum, which runs
//! over the bytes delivered.

use std::time::Duration;

use bytes::{Buf, Bytes};
use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderName,
    HeaderValue, IF_RANGE, LAST_MODIFIED, RANGE,
};
use reqwest::{Client, Response, StatusCode, Url};
use tokio::time::{sleep, timeout};

use super::error::Error;
use crate::control::error::is_passing_status;
pub use crate::control::http::shown as shown_url;
use crate::control::http::{BodyError, Failure, read_body_capped, retry_after};
use crate::control::line::Clients;
use crate::control::retry::{self, Backoff, Verdict};

/// Patience. Tests use less of it.
#[derive(Debug, Clone)]
pub struct Patience {
    /// Without a byte for so long, a connection counts as broken.
    pub stall: Duration,
    /// Attempts in a row that bring no byte.
    pub attempts: u32,
    /// Broken connections in one download.
    pub breaks: u32,
    /// Ceiling of the pause before the second attempt; it doubles up to `pause_max`.
    pub pause: Duration,
    pub pause_max: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            stall: Duration::from_secs(30),
            attempts: 8,
            breaks: 100,
            pause: Duration::from_millis(500),
            pause_max: Duration::from_secs(15),
        }
    }
}

impl Patience {
    /// The longest that a download may bring nothing before it is given up.
    #[must_use]
    pub fn longest(&self) -> Duration {
        // A server's own wish comes on top of each pause.
        self.attempts * (self.stall + self.pause_max + retry::LONGEST_RETRY_AFTER)
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(self.pause, self.pause_max)
    }
}

/// An attempt that brought no answer to go on with.
struct Failed {
    reason: String,
    /// Whether another one is worth it, and when.
    verdict: Verdict,
}

/// Sends one GET; the transport's failures and the server's passing ones are [`Failed`].
async fn get(
    client: Client,
    url: &Url,
    headers: HeaderMap,
    patience: &Patience,
) -> Result<Response, Failed> {
    let request = client
        .get(url.clone())
        .header(ACCEPT_ENCODING, "identity")
        .headers(headers)
        .send();
    let again = |reason, wish| Failed {
        reason,
        verdict: Verdict::Retry(wish),
    };
    let response = match timeout(patience.stall, request).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => {
            let failure = Failure::new(url, &error);
            let reason = failure.reason();
            return Err(if failure.is_passing() {
                again(reason, None)
            } else {
                Failed {
                    reason,
                    verdict: Verdict::GiveUp,
                }
            });
        }
        Err(_) => return Err(again(stalled(patience), None)),
    };
    let status = response.status();
    if is_passing_status(status.as_u16()) {
        let wish = retry_after(response.headers());
        return Err(again(format!("the server answered {status}"), wish));
    }
    Ok(response)
}

/// Sends a GET until there is an answer to go on with.
async fn get_patiently(
    clients: &dyn Clients,
    url: &Url,
    patience: &Patience,
) -> Result<Response, Error> {
    let mut backoff = patience.backoff();
    let mut attempts = 0;
    loop {
        let client = clients.client(attempts);
        let failed = match get(client, url, HeaderMap::new(), patience).await {
            Ok(response) => return Ok(response),
            Err(failed) => failed,
        };
        attempts += 1;
        let (Verdict::Retry(wish), true) = (failed.verdict, attempts < patience.attempts) else {
            return Err(Error::Request {
                url: shown_url(url),
                attempts,
                reason: failed.reason,
            });
        };
        tracing::warn!(
            url = shown_url(url),
            reason = failed.reason,
            "download: trying again"
        );
        sleep(backoff.next(wish)).await;
    }
}

/// Reads a small file: `None` when the server says that it does not exist (404, 410).
///
/// # Errors
/// Any other status, no answer, or more than `limit` bytes.
pub async fn small_file(
    clients: &dyn Clients,
    url: &Url,
    limit: usize,
    patience: &Patience,
) -> Result<Option<Vec<u8>>, Error> {
    let response = get_patiently(clients, url, patience).await?;
    match response.status() {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND | StatusCode::GONE => return Ok(None),
        status => {
            return Err(Error::Status {
                url: shown_url(url),
                status: status.as_u16(),
            });
        }
    }
    let answer = |reason: String| Error::Answer {
        url: shown_url(url),
        reason,
    };
    match timeout(patience.stall, read_body_capped(response, limit)).await {
        Ok(Ok(content)) => Ok(Some(content)),
        Ok(Err(BodyError::Http(error))) => Err(answer(Failure::new(url, &error).reason())),
        Ok(Err(error)) => Err(answer(error.to_string())),
        Err(_) => Err(answer(stalled(patience))),
    }
}

/// A file on its way here.
pub struct Download<'a> {
    clients: &'a dyn Clients,
    url: Url,
    patience: &'a Patience,
    response: Option<Response>,
    offset: u64,
    /// Bytes of the current answer that were delivered by an earlier one.
    skip: u64,
    total: Option<u64>,
    etag: Option<HeaderValue>,
    last_modified: Option<HeaderValue>,
    /// Attempts in a row that brought no byte.
    failures: u32,
    breaks: u32,
    backoff: Backoff,
}

impl<'a> Download<'a> {
    /// Asks for the file; returns once the server has begun to answer with it.
    pub async fn open(
        clients: &'a dyn Clients,
        url: Url,
        patience: &'a Patience,
    ) -> Result<Self, Error> {
        let response = get_patiently(clients, &url, patience).await?;
        if response.status() != StatusCode::OK {
            return Err(Error::Status {
                url: shown_url(&url),
                status: response.status().as_u16(),
            });
        }
        let headers = response.headers();
        if let Some(encoding) = headers.get(CONTENT_ENCODING)
            && encoding != "identity"
        {
            return Err(Error::Answer {
                url: shown_url(&url),
                reason: format!("content encoding {encoding:?}, expected none"),
            });
        }
        Ok(Self {
            clients,
            patience,
            offset: 0,
            skip: 0,
            total: length(headers),
            etag: headers.get(ETAG).cloned(),
            last_modified: headers.get(LAST_MODIFIED).cloned(),
            failures: 0,
            breaks: 0,
            backoff: patience.backoff(),
            response: Some(response),
            url,
        })
    }

    /// Bytes delivered so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The whole length, when the server told it.
    pub fn total(&self) -> Option<u64> {
        self.total
    }

    /// The URL for messages.
    pub fn shown(&self) -> String {
        shown_url(&self.url)
    }

    /// The next bytes; `None` at the end of a whole file.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let Some(response) = &mut self.response else {
                self.resume().await?;
                continue;
            };
            let why = match timeout(self.patience.stall, response.chunk()).await {
                Ok(Ok(Some(mut chunk))) => {
                    let known = self.skip.min(chunk.len() as u64);
                    self.skip -= known;
                    // At most the chunk's length, which is a usize.
                    chunk.advance(known as usize);
                    if chunk.is_empty() {
                        continue;
                    }
                    self.offset += chunk.len() as u64;
                    if self.total.is_some_and(|total| self.offset > total) {
                        return Err(self.changed("more bytes than announced"));
                    }
                    self.failures = 0;
                    self.backoff.reset();
                    return Ok(Some(chunk));
                }
                Ok(Ok(None)) if self.skip > 0 => {
                    return Err(self.changed("it is shorter than what came before"));
                }
                Ok(Ok(None)) if self.total.is_none_or(|total| total == self.offset) => {
                    return Ok(None);
                }
                Ok(Ok(None)) => "the body is shorter than announced (truncated)".to_owned(),
                Ok(Err(error)) => Failure::new(&self.url, &error).reason(),
                Err(_) => stalled(self.patience),
            };
            if self.total == Some(self.offset) {
                return Ok(None);
            }
            self.broken(why, Verdict::Retry(None)).await?;
        }
    }

    async fn broken(&mut self, reason: String, verdict: Verdict) -> Result<(), Error> {
        self.response = None;
        self.failures += 1;
        self.breaks += 1;
        let over = self.failures >= self.patience.attempts || self.breaks > self.patience.breaks;
        let (Verdict::Retry(wish), false) = (verdict, over) else {
            return Err(Error::Interrupted {
                url: self.shown(),
                offset: self.offset,
                total: self.total,
                reason,
            });
        };
        tracing::warn!(
            url = self.shown(),
            offset = self.offset,
            reason,
            "download broken off, resuming"
        );
        sleep(self.backoff.next(wish)).await;
        Ok(())
    }

    async fn resume(&mut self) -> Result<(), Error> {
        let client = self.clients.client(self.failures);
        let response = match get(client, &self.url, self.range(), self.patience).await {
            Ok(response) => response,
            Err(failed) => return self.broken(failed.reason, failed.verdict).await,
        };
        let headers = response.headers();
        self.skip = 0;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {}
            StatusCode::OK => {
                self.same_file(headers)?;
                if length(headers) != self.total {
                    return Err(self.changed("another length"));
                }
                self.skip = self.offset;
                self.response = Some(response);
                return Ok(());
            }
            StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::PRECONDITION_FAILED => {
                return Err(self.changed("the rest does not exist any more"));
            }
            status => {
                return Err(Error::Status {
                    url: self.shown(),
                    status: status.as_u16(),
                });
            }
        }
        self.same_file(headers)?;
        let range = headers.get(CONTENT_RANGE).and_then(|v| v.to_str().ok());
        let Some((start, end, total)) = range.and_then(content_range) else {
            return Err(Error::Answer {
                url: self.shown(),
                reason: format!("206 with the Content-Range {range:?}"),
            });
        };
        if start != self.offset {
            return Err(Error::Answer {
                url: self.shown(),
                reason: format!("asked for byte {} on, got byte {start} on", self.offset),
            });
        }
        let known = self.total.or(total);
        if known != total.or(known) || known.is_some_and(|known| end >= known) {
            return Err(self.changed("another length"));
        }
        self.total = known;
        self.response = Some(response);
        Ok(())
    }

    fn range(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if self.offset == 0 {
            return headers;
        }
        if let Ok(range) = HeaderValue::try_from(format!("bytes={}-", self.offset)) {
            headers.insert(RANGE, range);
        }
        // If-Range takes no weak ETag (RFC 9110 §13.1.5).
        let strong = self
            .etag
            .clone()
            .filter(|tag| !tag.as_bytes().starts_with(b"W/"));
        if let Some(validator) = strong.or_else(|| self.last_modified.clone()) {
            headers.insert(IF_RANGE, validator);
        }
        headers
    }

    fn same_file(&self, headers: &HeaderMap) -> Result<(), Error> {
        let differs = |name: &HeaderName, known: &Option<HeaderValue>| {
            known.is_some()
                && headers
                    .get(name)
                    .is_some_and(|now| Some(now) != known.as_ref())
        };
        if differs(&ETAG, &self.etag) {
            return Err(self.changed("another ETag"));
        }
        if differs(&LAST_MODIFIED, &self.last_modified) {
            return Err(self.changed("another Last-Modified"));
        }
        Ok(())
    }

    fn changed(&self, what: &str) -> Error {
        Error::Changed {
            url: self.shown(),
            offset: self.offset,
            what: what.to_owned(),
        }
    }
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// `bytes <start>-<end>/<total or *>`.
fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let (start, end) = (start.parse().ok()?, end.parse().ok()?);
    let total = match total {
        "*" => None,
        number => Some(number.parse().ok()?),
    };
    (start <= end).then_some((start, end, total))
}

fn stalled(patience: &Patience) -> String {
    format!("not a byte for {:?}", patience.stall)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, 9, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, 9, None)));
        for wrong in [
            "",
            "bytes */10",
            "bytes 9-5/10",
            "items 5-9/10",
            "bytes 5-9",
            "bytes 5-9/x",
        ] {
            assert_eq!(content_range(wrong), None, "{wrong:?}");
        }
    }

    /// A host that answers one address only, and two clients that take the other.
    #[tokio::test]
    async fn each_attempt_takes_the_client_of_its_time() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        struct Third([Client; 2]);
        impl Clients for Third {
            fn client(&self, failed: u32) -> Client {
                self.0[usize::from(failed == 2)].clone()
            }
        }
        let listener = tokio::net::TcpListener::bind("[::1]:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await.unwrap();
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
            stream.write_all(answer).await.unwrap();
        });
        let _ = rustls::crypto::ring::default_provider().install_default();
        let to = |address: &str| {
            let address = format!("{address}:0").parse().unwrap();
            let client = Client::builder().no_proxy().resolve("images.test", address);
            client.build().unwrap()
        };
        let patience = Patience {
            attempts: 3,
            pause: Duration::from_millis(1),
            ..Patience::default()
        };
        let url = Url::parse(&format!("http://images.test:{port}/a")).unwrap();
        let dead = to("127.0.0.1");
        let found = small_file(&dead, &url, 10, &patience).await;
        assert!(matches!(found, Err(Error::Request { attempts: 3, .. })));
        let clients = Third([dead, to("[::1]")]);
        let found = small_file(&clients, &url, 10, &patience).await.unwrap();
        assert_eq!(found.as_deref(), Some(&b"ok"[..]));
    }
}
