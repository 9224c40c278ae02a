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
use tokio::time::timeout;

use super::error::Error;

/// Patience. Tests use less of it.
#[derive(Debug, Clone)]
pub struct Patience {
    /// Without a byte for so long, a connection counts as broken.
    pub stall: Duration,
    /// Attempts in a row that bring no byte.
    pub attempts: u32,
    /// Broken connections in one download.
    pub breaks: u32,
    /// Pause before the second attempt; it doubles up to `pause_max`.
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
    /// Waits before attempt number `failures + 1`: half the pause is left to chance, so that
    /// machines that were cut off together do not come back together.
    async fn wait(&self, failures: u32) {
        let full = self
            .pause
            .saturating_mul(1 << failures.saturating_sub(1).min(16))
            .min(self.pause_max);
        let share = rand::random_range(0.5..1.0);
        tokio::time::sleep(full.mul_f64(share)).await;
    }
}

/// The URL without what may be secret in it (user info, query), for logs and errors.
#[must_use]
pub fn shown_url(url: &Url) -> String {
    let mut url = url.clone();
    // These fail only for URLs that cannot have the part at all.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.into()
}

/// The outcome of one attempt that is worth another.
pub struct Transient(pub String);

/// Sends one GET; the transport's failures and the server's passing ones are [`Transient`].
async fn get(
    client: &Client,
    url: &Url,
    headers: HeaderMap,
    patience: &Patience,
) -> Result<Response, Transient> {
    let request = client
        .get(url.clone())
        .header(ACCEPT_ENCODING, "identity")
        .headers(headers)
        .send();
    let response = match timeout(patience.stall, request).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return Err(Transient(reason(error))),
        Err(_) => return Err(Transient(stalled(patience))),
    };
    let status = response.status();
    if status.is_server_error()
        || status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT
    {
        return Err(Transient(format!("the server answered {status}")));
    }
    Ok(response)
}

/// Sends a GET until there is an answer that is not [`Transient`].
pub async fn get_patiently(
    client: &Client,
    url: &Url,
    patience: &Patience,
) -> Result<Response, Error> {
    let mut failures = 0;
    loop {
        match get(client, url, HeaderMap::new(), patience).await {
            Ok(response) => return Ok(response),
            Err(Transient(reason)) => {
                failures += 1;
                if failures >= patience.attempts {
                    return Err(Error::Request {
                        url: shown_url(url),
                        attempts: failures,
                        reason,
                    });
                }
                tracing::warn!(url = shown_url(url), reason, "download: trying again");
                patience.wait(failures).await;
            }
        }
    }
}

/// Reads a small file: `None` when the server says that it does not exist (404, 410).
///
/// # Errors
/// Any other status, no answer, or more than `limit` bytes.
pub async fn small_file(
    client: &Client,
    url: &Url,
    limit: usize,
    patience: &Patience,
) -> Result<Option<Vec<u8>>, Error> {
    let mut response = get_patiently(client, url, patience).await?;
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
    let mut content = Vec::new();
    loop {
        match timeout(patience.stall, response.chunk()).await {
            Ok(Ok(Some(chunk))) if content.len() + chunk.len() > limit => {
                return Err(answer(format!("longer than {limit} bytes")));
            }
            Ok(Ok(Some(chunk))) => content.extend_from_slice(&chunk),
            Ok(Ok(None)) => return Ok(Some(content)),
            Ok(Err(error)) => return Err(answer(reason(error))),
            Err(_) => return Err(answer(stalled(patience))),
        }
    }
}

/// A file on its way here.
pub struct Download<'a> {
    client: &'a Client,
    url: Url,
    patience: &'a Patience,
    response: Option<Response>,
    offset: u64,
    /// Bytes of the current answer that were delivered by an earlier one.
    skip: u64,
    total: Option<u64>,
    etag: Option<HeaderValue>,
    last_modified: Option<HeaderValue>,
    failures: u32,
    breaks: u32,
}

impl<'a> Download<'a> {
    /// Asks for the file; returns once the server has begun to answer with it.
    pub async fn open(client: &'a Client, url: Url, patience: &'a Patience) -> Result<Self, Error> {
        let response = get_patiently(client, &url, patience).await?;
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
            client,
            patience,
            offset: 0,
            skip: 0,
            total: length(headers),
            etag: headers.get(ETAG).cloned(),
            last_modified: headers.get(LAST_MODIFIED).cloned(),
            failures: 0,
            breaks: 0,
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
                    return Ok(Some(chunk));
                }
                Ok(Ok(None)) if self.skip > 0 => {
                    return Err(self.changed("it is shorter than what came before"));
                }
                Ok(Ok(None)) if self.total.is_none_or(|total| total == self.offset) => {
                    return Ok(None);
                }
                Ok(Ok(None)) => "the body is shorter than announced (truncated)".to_owned(),
                Ok(Err(error)) => reason(error),
                Err(_) => stalled(self.patience),
            };
            if self.total == Some(self.offset) {
                return Ok(None);
            }
            self.broken(why).await?;
        }
    }

    async fn broken(&mut self, reason: String) -> Result<(), Error> {
        self.response = None;
        self.failures += 1;
        self.breaks += 1;
        if self.failures >= self.patience.attempts || self.breaks > self.patience.breaks {
            return Err(Error::Interrupted {
                url: self.shown(),
                offset: self.offset,
                total: self.total,
                reason,
            });
        }
        tracing::warn!(
            url = self.shown(),
            offset = self.offset,
            reason,
            "download broken off, resuming"
        );
        self.patience.wait(self.failures).await;
        Ok(())
    }

    async fn resume(&mut self) -> Result<(), Error> {
        let response = match get(self.client, &self.url, self.range(), self.patience).await {
            Ok(response) => response,
            Err(Transient(reason)) => return self.broken(reason).await,
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

/// What went wrong, down to the cause, without the URL (its query may be a secret).
pub fn reason(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
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

    #[test]
    fn secrets_in_urls_are_not_shown() {
        let url = Url::parse("https://user:pw@h.example/i.tar.lz4?X-Signature=abc#f").unwrap();
        assert_eq!(shown_url(&url), "https://h.example/i.tar.lz4");
    }
}
