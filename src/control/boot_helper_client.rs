//! The first conversation of a boot: `GET {base}/config/{machine}` at the boot helper.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use reqwest::header::{ACCEPT, AUTHORIZATION};
use reqwest::{Client, StatusCode};
use secrecy::SecretString;
use serde::Deserialize;
use thiserror::Error;
use url::Url;
use uuid::Uuid;

use super::error::is_passing_status;
use super::helper_answer::HelperAnswer;
use super::http::{
    BOOT_HELPER_LIMIT, BodyError, ERROR_LIMIT, Failure, bearer, read_body_capped, retry_after,
    server_date, shown,
};
use super::retry::{self, Policy, Verdict};
use super::text::{SHOWN_CHARS, printable};

const POLICY: Policy = Policy {
    base: Duration::from_millis(500),
    cap: Duration::from_secs(15),
    attempt: Duration::from_secs(30),
    budget: Duration::from_secs(300),
};

/// What a boot helper said.
#[derive(Debug)]
pub struct Fetched {
    pub answer: HelperAnswer,
    /// What has to be added to this machine's clock to make it the helper's, by the `Date`
    /// header.
    pub clock_offset: Option<SignedDuration>,
}

/// A boot helper that gave no usable answer.
#[derive(Debug, Error)]
pub enum HelperError {
    #[error(
        "{0:?} is not a boot helper's address; expected http(s)://host[:port] in boot_helper_url or PIXIE_API_URL"
    )]
    BadBase(String),
    #[error("metal_ticket is empty or holds characters that cannot stand in a header")]
    BadTicket,
    #[error("boot helper {0}; check its address, the route to it, and that it runs")]
    Unreachable(#[from] Failure),
    #[error(
        "boot helper {url} answered 404: is this a boot helper's base URL, and does it know this machine? {message}"
    )]
    NotFound { url: String, message: String },
    #[error(
        "boot helper {url} answered {status}: it requires a metal_ticket, refuses this one, or (403) does not serve this machine at the address that it came from (allow, bind of metal-boot). {message}"
    )]
    TicketRefused {
        url: String,
        status: u16,
        message: String,
    },
    #[error("boot helper {url} answered HTTP {status}: {message}")]
    Status {
        url: String,
        status: u16,
        message: String,
        retry_after: Option<Duration>,
    },
    #[error(
        "boot helper {url} did not answer with JSON: line {line}, column {column}: {detail}; is this a boot helper's URL?"
    )]
    NotJson {
        url: String,
        line: usize,
        column: usize,
        detail: String,
    },
    #[error("boot helper {url} answered JSON that is no machine configuration: {detail}")]
    BadField { url: String, detail: String },
    #[error("boot helper {url} answered more than {limit} bytes; is this a boot helper's URL?")]
    TooLarge { url: String, limit: usize },
}

impl HelperError {
    /// Whether the helper may answer the same question from another address: its `allow` and
    /// `bind` judge by the source.
    #[must_use]
    pub fn depends_on_source(&self) -> bool {
        matches!(self, Self::TicketRefused { status: 403, .. })
    }

    /// Whether asking again may help.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Unreachable(failure) if failure.is_passing() => Verdict::Retry(None),
            Self::Status {
                status,
                retry_after,
                ..
            } if is_passing_status(*status) => Verdict::Retry(*retry_after),
            _ => Verdict::GiveUp,
        }
    }
}

/// Asks the boot helper at `base` what this machine needs, again and again within `budget`.
/// `ticket` is `metal_ticket`, sent as a bearer token.
///
/// # Errors
/// Any [`HelperError`] that outlasts the repetitions.
pub async fn fetch(
    client: &Client,
    base: &Url,
    machine: Uuid,
    ticket: Option<&SecretString>,
    budget: Duration,
) -> Result<Fetched, HelperError> {
    let policy = Policy { budget, ..POLICY };
    fetch_within(client, base, machine, ticket, policy).await
}

pub(super) async fn fetch_within(
    client: &Client,
    base: &Url,
    machine: Uuid,
    ticket: Option<&SecretString>,
    policy: Policy,
) -> Result<Fetched, HelperError> {
    let url = config_url(base, machine)?;
    retry::run(policy, "boot helper", HelperError::verdict, |deadline| {
        attempt(client, &url, ticket, deadline)
    })
    .await
}

fn config_url(base: &Url, machine: Uuid) -> Result<Url, HelperError> {
    let wrong = || HelperError::BadBase(shown(base));
    if !matches!(base.scheme(), "http" | "https") || base.query().is_some() {
        return Err(wrong());
    }
    let text = format!("{}/config/{machine}", base.as_str().trim_end_matches('/'));
    Url::parse(&text).map_err(|_| wrong())
}

async fn attempt(
    client: &Client,
    url: &Url,
    ticket: Option<&SecretString>,
    deadline: Duration,
) -> Result<Fetched, HelperError> {
    let mut request = client
        .get(url.clone())
        .header(ACCEPT, "application/json")
        .timeout(deadline);
    if let Some(ticket) = ticket {
        request = request.header(AUTHORIZATION, bearer(ticket).ok_or(HelperError::BadTicket)?);
    }
    let failed = |error: reqwest::Error| Failure::new(url, &error);
    let response = request.send().await.map_err(failed)?;
    let status = response.status();
    let clock_offset =
        server_date(response.headers()).map(|date| date.duration_since(Timestamp::now()));
    let retry_after = retry_after(response.headers());
    if status != StatusCode::OK {
        let body = read_body_capped(response, ERROR_LIMIT).await;
        return Err(refusal(
            shown(url),
            status.as_u16(),
            &body.unwrap_or_default(),
            retry_after,
        ));
    }
    let body = match read_body_capped(response, BOOT_HELPER_LIMIT).await {
        Ok(body) => body,
        Err(BodyError::TooLarge(limit)) => {
            let url = shown(url);
            return Err(HelperError::TooLarge { url, limit });
        }
        Err(BodyError::Http(error)) => return Err(failed(error).into()),
    };
    Ok(Fetched {
        answer: parse(&shown(url), &body)?,
        clock_offset,
    })
}

/// What an answer other than 200 means. metal-boot explains itself as `{"error": "..."}`.
fn refusal(url: String, status: u16, body: &[u8], retry_after: Option<Duration>) -> HelperError {
    #[derive(Deserialize)]
    struct Reason {
        error: String,
    }
    let message = serde_json::from_slice::<Reason>(body)
        .map(|reason| printable(&reason.error, SHOWN_CHARS))
        .unwrap_or_default();
    match status {
        404 | 410 => HelperError::NotFound { url, message },
        401 | 403 => HelperError::TicketRefused {
            url,
            status,
            message,
        },
        _ => HelperError::Status {
            url,
            status,
            message: if message.is_empty() {
                "see the helper's log".into()
            } else {
                message
            },
            retry_after,
        },
    }
}

fn parse(url: &str, body: &[u8]) -> Result<HelperAnswer, HelperError> {
    // In two steps: an error of the first is about JSON and quotes nothing, one of the
    // second names a wrong value.
    let value: serde_json::Value =
        serde_json::from_slice(body).map_err(|error| HelperError::NotJson {
            url: url.into(),
            line: error.line(),
            column: error.column(),
            detail: printable(&error.to_string(), 200),
        })?;
    if !value.is_object() {
        return Err(HelperError::BadField {
            url: url.into(),
            detail: "expected an object".into(),
        });
    }
    serde_json::from_value(value).map_err(|error| HelperError::BadField {
        url: url.into(),
        detail: printable(&error.to_string(), 200),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn the_path_is_config_and_the_machine() {
        let machine: Uuid = "7B0B6AD5-6A4F-4F7E-A0E7-0C2A8A8F8F10".parse().unwrap();
        let tail = "config/7b0b6ad5-6a4f-4f7e-a0e7-0c2a8a8f8f10";
        for base in ["http://[2001:db8::1]:4242", "http://[2001:db8::1]:4242/"] {
            let config = config_url(&url(base), machine).unwrap();
            assert_eq!(config.as_str(), format!("http://[2001:db8::1]:4242/{tail}"));
        }
        let below = config_url(&url("https://h/helper/"), machine).unwrap();
        assert_eq!(below.as_str(), format!("https://h/helper/{tail}"));
        for wrong in ["ftp://h", "file:///etc/passwd", "http://h/?a=b"] {
            assert!(config_url(&url(wrong), machine).is_err(), "{wrong}");
        }
    }

    #[test]
    fn answers_that_are_none_are_described() {
        let cases: [(&[u8], &str); 6] = [
            (b"<html>", "did not answer with JSON: line 1, column 1"),
            (b"", "did not answer with JSON: line 1, column 0"),
            (b"{\"debug\": true,\n\"x\"}", "line 2, column 4"),
            (b"[]", "no machine configuration: expected an object"),
            (
                br#"{"debug":"yes"}"#,
                "no machine configuration: invalid type",
            ),
            (
                br#"{"metal_apiserver_token_for_hammer":12345678}"#,
                "no machine configuration: expected text where a secret stands",
            ),
        ];
        for (body, expected) in cases {
            let error = parse("http://h/config/u", body).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert!(error.contains("http://h/config/u"), "{error}");
            assert!(!error.contains("12345678"), "{error}");
        }
    }

    #[test]
    fn deep_nesting_is_an_error() {
        let body = "[".repeat(100_000);
        let error = parse("http://h", body.as_bytes()).unwrap_err();
        assert!(matches!(error, HelperError::NotJson { .. }), "{error}");
    }

    #[test]
    fn statuses_say_what_to_check_and_whether_to_ask_again() {
        let body = br#"{"error":"apiserver\nis down"}"#;
        let wish = Some(Duration::from_secs(5));
        // status, expected in the text, asked again
        let cases = [
            (404, "answered 404: is this", false),
            (401, "requires a metal_ticket", false),
            (403, "requires a metal_ticket", false),
            (400, "HTTP 400: apiserver is down", false),
            (302, "HTTP 302", false),
            (500, "HTTP 500", true),
            (502, "HTTP 502", true),
            (503, "HTTP 503: apiserver is down", true),
            (429, "HTTP 429", true),
        ];
        for (status, text, again) in cases {
            let error = refusal("http://h/config/u".into(), status, body, wish);
            assert!(error.to_string().contains(text), "{error}");
            assert!(error.to_string().contains("http://h/config/u"), "{error}");
            let expected = if again {
                Verdict::Retry(wish)
            } else {
                Verdict::GiveUp
            };
            assert_eq!(error.verdict(), expected, "{status}");
            assert_eq!(error.depends_on_source(), status == 403, "{status}");
        }
    }
}
