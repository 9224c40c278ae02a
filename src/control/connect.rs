//! A client of the Connect protocol with JSON messages: unary calls and server streams.
//!
//! <https://connectrpc.com/docs/protocol>, as far as contracts.md §4 needs it.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap};
use reqwest::{Body, Response, StatusCode};
use secrecy::SecretString;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use tokio::time::Instant;
use url::Url;
use zeroize::Zeroizing;

use super::code::{Code, WireError};
use super::envelope::{self, EnvelopeReader, Frame};
use super::error::Error;
use super::http::{
    APISERVER_LIMIT, BodyError, ERROR_LIMIT, Failure, FailureKind, bearer, read_body_capped,
    retry_after, server_date, shown,
};
use super::line::{Held, Line};
use super::text::{SHOWN_CHARS, printable};

const UNARY: &str = "application/json";
const STREAM: &str = "application/connect+json";

/// A client for the services under one base URL. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Connect {
    line: Line,
    base: String,
}

/// The answer of a unary call.
#[derive(Debug)]
pub struct Answer<T> {
    pub message: T,
    /// The server's clock, from the `Date` header.
    pub date: Option<Timestamp>,
}

/// How a call is made.
pub struct Call<'a> {
    /// `package.Service/Method`.
    pub method: &'a str,
    pub token: &'a SecretString,
    /// Told when the request leaves, that is: once the connection stands.
    pub sent: Option<oneshot::Sender<Instant>>,
}

impl Connect {
    /// A client for the server at `base`, which may have a path.
    ///
    /// # Errors
    /// [`Error::BadBase`] unless it is an http or https URL with a host.
    pub fn new(line: impl Into<Line>, base: &Url) -> Result<Self, Error> {
        let good = matches!(base.scheme(), "http" | "https") && base.has_host();
        if !good || base.query().is_some() || base.fragment().is_some() {
            return Err(Error::BadBase(shown(base)));
        }
        Ok(Self {
            line: line.into(),
            base: base.as_str().trim_end_matches('/').to_owned(),
        })
    }

    /// The URL of a method, as it may be shown.
    #[must_use]
    pub fn shown_url(&self, method: &str) -> String {
        self.url(method)
            .map_or_else(|_| printable(method, 300), |url| shown(&url))
    }

    fn url(&self, method: &str) -> Result<Url, Error> {
        Url::parse(&format!("{}/{method}", self.base)).map_err(|_| Error::BadBase(method.into()))
    }

    /// One message there, one back, within `deadline`.
    ///
    /// # Errors
    /// Any [`Error`].
    pub async fn unary<Q: Serialize + Sync, A: DeserializeOwned>(
        &self,
        call: Call<'_>,
        request: &Q,
        deadline: Duration,
    ) -> Result<Answer<A>, Error> {
        let url = self.url(call.method)?;
        let body = Bytes::from_owner(encode(&url, request)?);
        let (response, _) = self.send(&url, call, body, UNARY, Some(deadline)).await?;
        let response = judge(&url, response, UNARY).await?;
        let date = server_date(response.headers());
        let body = body_of(&url, response, APISERVER_LIMIT).await?;
        let message = decode(&url, &body)?;
        Ok(Answer { message, date })
    }

    /// One message there, a stream of messages back. There is no deadline: a server may
    /// hold back even its headers until it has something to say.
    ///
    /// # Errors
    /// Any [`Error`].
    pub async fn stream<Q: Serialize + Sync>(
        &self,
        call: Call<'_>,
        request: &Q,
    ) -> Result<Stream, Error> {
        let url = self.url(call.method)?;
        let too_large = |error: envelope::EnvelopeError| Error::BadMessage {
            url: shown(&url),
            detail: error.to_string(),
        };
        let body = envelope::wrap(&encode(&url, request)?).map_err(too_large)?;
        let (response, held) = self.send(&url, call, body.into(), STREAM, None).await?;
        let response = judge(&url, response, STREAM).await?;
        Ok(Stream {
            url,
            response,
            held,
            line: self.line.clone(),
            reader: EnvelopeReader::new(APISERVER_LIMIT),
        })
    }

    async fn send(
        &self,
        url: &Url,
        call: Call<'_>,
        body: Bytes,
        content_type: &'static str,
        deadline: Option<Duration>,
    ) -> Result<(Response, Held), Error> {
        let token = bearer(call.token).ok_or_else(|| Error::BadToken(shown(url)))?;
        let (client, mut held) = self.line.hold();
        let mut request = client
            .post(url.clone())
            .header(AUTHORIZATION, token)
            .header(CONTENT_TYPE, content_type)
            .header(ACCEPT, content_type)
            .header("connect-protocol-version", "1");
        request = match call.sent {
            None => request.body(body),
            // The HTTP machinery asks for the body when the connection stands and the
            // headers are on their way. It is one piece, so its length can be told.
            Some(sent) => request
                .header(CONTENT_LENGTH, body.len())
                .body(Body::wrap_stream(futures_util::stream::once(async move {
                    // A caller that no longer listens does not want to know.
                    let _ = sent.send(Instant::now());
                    Ok::<_, Infallible>(body)
                }))),
        };
        if let Some(deadline) = deadline {
            request = request.timeout(deadline);
        }
        let response = tokio::select! {
            response = request.send() => response,
            () = held.replaced() => return Err(moved(url)),
        };
        match response {
            Ok(response) => Ok((response, held)),
            Err(error) => Err(failed(&self.line, url, &error)),
        }
    }
}

/// A conversation that broke, which its path may be to blame for.
fn failed(line: &Line, url: &Url, error: &reqwest::Error) -> Error {
    let failure = Failure::new(url, error);
    line.blame(failure.kind);
    failure.into()
}

/// A conversation that was given up because another path took over.
fn moved(url: &Url) -> Error {
    Error::Failed(Failure {
        url: shown(url),
        kind: FailureKind::Cut,
        detail: "another path has taken over".into(),
    })
}

/// The messages of a server stream.
#[derive(Debug)]
pub struct Stream {
    url: Url,
    response: Response,
    held: Held,
    line: Line,
    reader: EnvelopeReader,
}

impl Stream {
    /// The next message; `None` after an end without an error.
    ///
    /// # Errors
    /// Any [`Error`]; the stream is over after one. A connection that ends without an
    /// end-of-stream message is a [`Failure`] of kind `Cut`.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Error> {
        loop {
            let frame = self.reader.take().map_err(|error| Error::BadMessage {
                url: shown(&self.url),
                detail: error.to_string(),
            })?;
            match frame {
                Some(Frame::Message(body)) => return decode(&self.url, &body).map(Some),
                Some(Frame::End(None)) => return Ok(None),
                Some(Frame::End(Some(error))) => return Err(refusal(&self.url, error, None)),
                None => {}
            }
            let chunk = tokio::select! {
                chunk = self.response.chunk() => chunk,
                () = self.held.replaced() => return Err(moved(&self.url)),
            };
            match chunk {
                Ok(Some(chunk)) => self.reader.push(&chunk),
                Ok(None) => {
                    let place = if self.reader.is_cut() {
                        "in the middle of a message"
                    } else {
                        "without an end-of-stream message"
                    };
                    return Err(Error::Failed(Failure {
                        url: shown(&self.url),
                        kind: FailureKind::Cut,
                        detail: format!("the stream stopped {place}"),
                    }));
                }
                Err(error) => return Err(failed(&self.line, &self.url, &error)),
            }
        }
    }
}

/// A message as bytes that are zeroed when the last holder drops them: it may hold passwords.
fn encode<Q: Serialize>(url: &Url, request: &Q) -> Result<Zeroizing<Vec<u8>>, Error> {
    let wrong = |error: serde_json::Error| Error::BadMessage {
        url: shown(url),
        detail: format!("the request cannot be written: {error}"),
    };
    // Written once to be counted: a buffer that grows leaves copies behind.
    let mut count = Count(0);
    serde_json::to_writer(&mut count, request).map_err(wrong)?;
    let mut body = Zeroizing::new(Vec::with_capacity(count.0));
    serde_json::to_writer(&mut *body, request).map_err(wrong)?;
    Ok(body)
}

/// A writer that only counts.
struct Count(usize);

impl std::io::Write for Count {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn decode<A: DeserializeOwned>(url: &Url, body: &[u8]) -> Result<A, Error> {
    if !envelope::is_object(body) {
        return Err(Error::BadMessage {
            url: shown(url),
            detail: "expected a JSON object".into(),
        });
    }
    serde_json::from_slice(body).map_err(|error| Error::BadMessage {
        url: shown(url),
        detail: printable(&error.to_string(), SHOWN_CHARS),
    })
}

async fn body_of(url: &Url, response: Response, limit: usize) -> Result<Vec<u8>, Error> {
    read_body_capped(response, limit)
        .await
        .map_err(|error| match error {
            BodyError::TooLarge(limit) => Error::TooLarge {
                url: shown(url),
                limit,
            },
            BodyError::Http(error) => Failure::new(url, &error).into(),
        })
}

/// Lets a successful response through and makes an error of any other.
async fn judge(url: &Url, response: Response, expected: &str) -> Result<Response, Error> {
    let status = response.status();
    let content_type = media_type(response.headers());
    if status == StatusCode::OK && content_type == expected {
        return Ok(response);
    }
    let retry_after = retry_after(response.headers());
    let wire = if content_type == UNARY && status != StatusCode::OK {
        // An error body that breaks off or is too large still leaves the status to report.
        let body = body_of(url, response, ERROR_LIMIT).await.ok();
        body.and_then(|body| serde_json::from_slice::<WireError>(&body).ok())
    } else {
        None
    };
    Err(match wire {
        Some(error) => refusal(url, error, retry_after),
        None if status == StatusCode::UNAUTHORIZED => Error::Unauthenticated {
            url: shown(url),
            message: "HTTP 401".into(),
        },
        None => Error::NotConnect {
            url: shown(url),
            status: status.as_u16(),
            content_type: if content_type.is_empty() {
                "no content type".into()
            } else {
                content_type
            },
            retry_after,
        },
    })
}

fn refusal(url: &Url, error: WireError, retry_after: Option<Duration>) -> Error {
    let url = shown(url);
    match error.code {
        Code::Unauthenticated => Error::Unauthenticated {
            url,
            message: error.message,
        },
        code => Error::Refused {
            url,
            code,
            message: error.message,
            retry_after,
        },
    }
}

/// The content type without its parameters.
fn media_type(headers: &HeaderMap) -> String {
    let text = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let media_type = text.and_then(|text| text.split(';').next()).unwrap_or("");
    printable(media_type, 80).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_written_once_where_it_stays() {
        let url = Url::parse("https://api.example.org").unwrap();
        let request = serde_json::json!({"password": "x".repeat(10_000)});
        let body = encode(&url, &request).unwrap();
        assert_eq!(
            body.capacity(),
            body.len(),
            "it grew, and left copies behind"
        );
        assert_eq!(*body, serde_json::to_vec(&request).unwrap());
    }

    #[test]
    fn only_http_urls_are_bases() {
        let client = crate::control::http::control_client(crate::control::http::Trust::Public);
        let client = client.unwrap();
        let cases = [
            (
                "https://api.example.org",
                Some("https://api.example.org/S/M"),
            ),
            ("http://[::1]:8080/", Some("http://[::1]:8080/S/M")),
            (
                "http://[::1]/helper/api/",
                Some("http://[::1]/helper/api/S/M"),
            ),
            ("ftp://api.example.org", None),
            ("data:text/plain,x", None),
            ("https://api.example.org/?a=b", None),
        ];
        for (base, expected) in cases {
            let connect = Connect::new(client.clone(), &Url::parse(base).unwrap());
            let url = connect.ok().map(|connect| connect.shown_url("S/M"));
            assert_eq!(url.as_deref(), expected, "{base}");
        }
    }
}
