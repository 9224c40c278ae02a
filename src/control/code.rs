//! The error codes of the Connect protocol and the errors a server sends with them.
//!
//! <https://connectrpc.com/docs/protocol#error-codes>

use std::fmt;

use serde::Deserialize;

use super::text::{SHOWN_CHARS, printable};

/// A Connect error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    Canceled,
    Unknown,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    DataLoss,
    Unauthenticated,
}

/// Every code with its text on the wire.
const CODES: [(Code, &str); 16] = [
    (Code::Canceled, "canceled"),
    (Code::Unknown, "unknown"),
    (Code::InvalidArgument, "invalid_argument"),
    (Code::DeadlineExceeded, "deadline_exceeded"),
    (Code::NotFound, "not_found"),
    (Code::AlreadyExists, "already_exists"),
    (Code::PermissionDenied, "permission_denied"),
    (Code::ResourceExhausted, "resource_exhausted"),
    (Code::FailedPrecondition, "failed_precondition"),
    (Code::Aborted, "aborted"),
    (Code::OutOfRange, "out_of_range"),
    (Code::Unimplemented, "unimplemented"),
    (Code::Internal, "internal"),
    (Code::Unavailable, "unavailable"),
    (Code::DataLoss, "data_loss"),
    (Code::Unauthenticated, "unauthenticated"),
];

impl Code {
    /// The code that this text names.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        CODES
            .iter()
            .find_map(|(code, name)| (*name == text).then_some(*code))
    }

    /// The text on the wire.
    #[must_use]
    pub fn as_text(self) -> &'static str {
        CODES
            .iter()
            .find_map(|(code, name)| (*code == self).then_some(*name))
            .unwrap_or("unknown")
    }

    /// Whether the same call may succeed a moment later: the server or something behind it
    /// was busy, restarting or out of time. The other codes say that the request is wrong.
    #[must_use]
    pub fn is_passing(self) -> bool {
        match self {
            Self::Canceled
            | Self::Unknown
            | Self::DeadlineExceeded
            | Self::ResourceExhausted
            | Self::Aborted
            | Self::Internal
            | Self::Unavailable => true,
            Self::InvalidArgument
            | Self::NotFound
            | Self::AlreadyExists
            | Self::PermissionDenied
            | Self::FailedPrecondition
            | Self::OutOfRange
            | Self::Unimplemented
            | Self::DataLoss
            | Self::Unauthenticated => false,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_text())
    }
}

/// `{"code", "message", "details"}`: the body of a failed unary call, or the `error` of an
/// end-of-stream message. The details are protobuf messages that nobody here acts on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireError {
    pub code: Code,
    /// The server's message: one printable line, at most [`SHOWN_CHARS`] characters.
    pub message: String,
}

impl<'de> Deserialize<'de> for WireError {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Wire {
            code: String,
            #[serde(default)]
            message: Option<String>,
        }
        let wire = Wire::deserialize(deserializer)?;
        let message = wire.message.unwrap_or_default();
        Ok(match Code::from_text(&wire.code) {
            Some(code) => Self {
                code,
                message: printable(&message, SHOWN_CHARS),
            },
            // A newer server's code: `unknown`, with its own word kept in the message.
            None => Self {
                code: Code::Unknown,
                message: printable(&format!("({}) {message}", wire.code), SHOWN_CHARS),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_text_of_its_own() {
        for (code, text) in CODES {
            assert_eq!(Code::from_text(text), Some(code));
            assert_eq!(code.as_text(), text);
        }
        assert_eq!(Code::from_text("teapot"), None);
    }

    #[test]
    fn an_error_body_is_read_with_bounds() {
        let read = |text: &str| serde_json::from_str::<WireError>(text);
        let long = "x".repeat(4000);
        let cases = [
            (
                r#"{"code":"not_found","message":"no machine"}"#.to_owned(),
                Code::NotFound,
                "no machine".to_owned(),
            ),
            (
                r#"{"code":"unavailable","details":[{"type":"a.b","value":"AA"}]}"#.to_owned(),
                Code::Unavailable,
                String::new(),
            ),
            (
                r#"{"code":"teapot","message":"short"}"#.to_owned(),
                Code::Unknown,
                "(teapot) short".to_owned(),
            ),
            (
                format!(r#"{{"code":"internal","message":"{long}"}}"#),
                Code::Internal,
                format!("{}…", &long[..SHOWN_CHARS]),
            ),
            (
                r#"{"code":"internal","message":"a\u001b[2J\nb"}"#.to_owned(),
                Code::Internal,
                "a [2J b".to_owned(),
            ),
        ];
        for (text, code, message) in cases {
            assert_eq!(read(&text).unwrap(), WireError { code, message }, "{text}");
        }
        assert!(read("{}").is_err());
        assert!(read(r#"{"code":7}"#).is_err());
        assert!(read("[]").is_err());
    }
}
