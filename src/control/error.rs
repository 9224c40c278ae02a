//! What can go wrong between the agent and metal-apiserver.
//!
//! Every text names the URL; none can hold a token, because requests are never shown.

use std::time::Duration;

use thiserror::Error;

use super::code::Code;
use super::http::Failure;
use super::retry::Verdict;

/// A call that did not succeed.
#[derive(Debug, Error)]
pub enum Error {
    /// Not an apiserver's address at all.
    #[error("{0:?} is not an apiserver's address; expected http(s)://host[:port][/path]")]
    BadBase(String),
    /// The bearer token cannot be sent.
    #[error("the token for {0} is empty or holds characters that cannot stand in a header")]
    BadToken(String),
    /// No answer.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The token is refused: a new one has to be fetched from the boot helper.
    #[error("{url} refused the token: {message}")]
    Unauthenticated { url: String, message: String },
    /// The server answered with an error of its own.
    #[error("{url} answered {code}: {message}")]
    Refused {
        url: String,
        code: Code,
        message: String,
        retry_after: Option<Duration>,
    },
    /// An answer that no Connect server gives.
    #[error(
        "{url} answered HTTP {status} with {content_type}, not as metal-apiserver does; a proxy in between, or not its URL?"
    )]
    NotConnect {
        url: String,
        status: u16,
        content_type: String,
        retry_after: Option<Duration>,
    },
    /// More bytes than any honest answer has.
    #[error("the answer of {url} is larger than {limit} bytes")]
    TooLarge { url: String, limit: usize },
    /// An answer that is not the message that was asked for.
    #[error("the answer of {url} cannot be read: {detail}")]
    BadMessage { url: String, detail: String },
    /// A Wait that ended before it could prove anything.
    #[error("{url} ended after {}.{:03} s without a message", .lasted.as_secs(), .lasted.subsec_millis())]
    EndedEarly { url: String, lasted: Duration },
}

impl Error {
    /// Whether a new token is needed before anything else is tried.
    #[must_use]
    pub fn is_unauthenticated(&self) -> bool {
        matches!(self, Self::Unauthenticated { .. })
    }

    /// Whether the same call is worth another attempt.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Failed(failure) if failure.is_passing() => Verdict::Retry(None),
            Self::Refused {
                code, retry_after, ..
            } if code.is_passing() => Verdict::Retry(*retry_after),
            Self::NotConnect {
                status,
                retry_after,
                ..
            } if is_passing_status(*status) => Verdict::Retry(*retry_after),
            Self::EndedEarly { .. } => Verdict::Retry(None),
            Self::BadBase(_)
            | Self::BadToken(_)
            | Self::Failed(_)
            | Self::Unauthenticated { .. }
            | Self::Refused { .. }
            | Self::NotConnect { .. }
            | Self::TooLarge { .. }
            | Self::BadMessage { .. } => Verdict::GiveUp,
        }
    }
}

/// Statuses after which the same request may succeed: timeouts, overload, and whatever the
/// server or a proxy calls its own fault (RFC 9110 §15.6), except "not implemented".
#[must_use]
pub fn is_passing_status(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500 | 502..=599)
}

#[cfg(test)]
mod tests {
    use super::super::http::FailureKind;
    use super::*;

    #[test]
    fn which_errors_are_worth_another_attempt() {
        let url = || "https://api.example.org/S/M".to_owned();
        let failed = |kind| {
            Error::Failed(Failure {
                url: url(),
                kind,
                detail: String::new(),
            })
        };
        let refused = |code| Error::Refused {
            url: url(),
            code,
            message: String::new(),
            retry_after: None,
        };
        let status = |status| Error::NotConnect {
            url: url(),
            status,
            content_type: "text/html".into(),
            retry_after: Some(Duration::from_secs(3)),
        };
        let again = Verdict::Retry(None);
        let later = Verdict::Retry(Some(Duration::from_secs(3)));
        let cases = [
            (failed(FailureKind::Connect), again),
            (failed(FailureKind::Timeout), again),
            (failed(FailureKind::Dead), again),
            (failed(FailureKind::Cut), again),
            (failed(FailureKind::Tls), Verdict::GiveUp),
            (failed(FailureKind::Clock), Verdict::GiveUp),
            (refused(Code::Unavailable), again),
            (refused(Code::Internal), again),
            (refused(Code::InvalidArgument), Verdict::GiveUp),
            (refused(Code::FailedPrecondition), Verdict::GiveUp),
            (refused(Code::PermissionDenied), Verdict::GiveUp),
            (status(503), later),
            (status(429), later),
            (status(504), later),
            (status(501), Verdict::GiveUp),
            (status(404), Verdict::GiveUp),
            (status(302), Verdict::GiveUp),
            (status(200), Verdict::GiveUp),
            (
                Error::Unauthenticated {
                    url: url(),
                    message: String::new(),
                },
                Verdict::GiveUp,
            ),
            (
                Error::EndedEarly {
                    url: url(),
                    lasted: Duration::ZERO,
                },
                again,
            ),
            (
                Error::TooLarge {
                    url: url(),
                    limit: 1,
                },
                Verdict::GiveUp,
            ),
            (Error::BadToken(url()), Verdict::GiveUp),
            (Error::BadBase(url()), Verdict::GiveUp),
        ];
        for (error, expected) in cases {
            assert_eq!(error.verdict(), expected, "{error}");
        }
    }
}
