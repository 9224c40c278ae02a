//! IPMI requests and answers as bytes (IPMI 2.0 rev. 1.1, section 5).

use std::fmt;

use zeroize::Zeroizing;

use super::Error;

/// Network function numbers of requests (table 5-1).
pub const APP: u8 = 0x06;
pub const STORAGE: u8 = 0x0a;
pub const TRANSPORT: u8 = 0x0c;

/// One request to the BMC. Its data may hold a password: it is shown nowhere and zeroed
/// when dropped.
pub struct Request {
    /// What it is, for messages: `Get Device ID`.
    pub what: &'static str,
    pub netfn: u8,
    pub command: u8,
    pub data: Zeroizing<Vec<u8>>,
}

impl Request {
    /// A request with its data.
    #[must_use]
    pub fn new(what: &'static str, netfn: u8, command: u8, data: &[u8]) -> Self {
        Self {
            what,
            netfn,
            command,
            data: Zeroizing::new(data.to_vec()),
        }
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)
    }
}

/// The first byte of every answer (table 5-2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion(pub u8);

impl Completion {
    pub const OK: Self = Self(0x00);
    /// Of Set User Password, operation "test": the password is another one.
    pub const WRONG_PASSWORD: Self = Self(0x80);
    /// Of Set User Password, operation "test": it was stored in the other size.
    pub const WRONG_PASSWORD_SIZE: Self = Self(0x81);
    pub const NODE_BUSY: Self = Self(0xc0);
    pub const INVALID_COMMAND: Self = Self(0xc1);
    pub const TIMEOUT: Self = Self(0xc3);
    pub const INVALID_LENGTH: Self = Self(0xc7);
    pub const FIELD_LENGTH_EXCEEDED: Self = Self(0xc8);
    pub const PARAMETER_OUT_OF_RANGE: Self = Self(0xc9);
    pub const CANNOT_RETURN_SO_MUCH: Self = Self(0xca);
    pub const NOT_PRESENT: Self = Self(0xcb);
    pub const INVALID_FIELD: Self = Self(0xcc);
    pub const DUPLICATED: Self = Self(0xcf);
    pub const INITIALISING: Self = Self(0xd2);

    /// Whether the same request may be answered better a moment later.
    #[must_use]
    pub fn is_transient(self) -> bool {
        [
            Self::NODE_BUSY,
            Self::TIMEOUT,
            Self::DUPLICATED,
            Self::INITIALISING,
        ]
        .contains(&self)
    }
}

impl fmt::Display for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let meaning = match *self {
            Self::OK => "done",
            Self::NODE_BUSY => "busy",
            Self::INVALID_COMMAND => "invalid command",
            Self(0xc2) => "invalid for this LUN",
            Self::TIMEOUT => "timeout",
            Self(0xc4) => "out of space",
            Self(0xc6) => "request truncated",
            Self::INVALID_LENGTH => "request length invalid",
            Self::FIELD_LENGTH_EXCEEDED => "request field too long",
            Self::PARAMETER_OUT_OF_RANGE => "parameter out of range",
            Self::CANNOT_RETURN_SO_MUCH => "cannot return so many bytes",
            Self::NOT_PRESENT => "not present",
            Self::INVALID_FIELD => "invalid data field",
            Self(0xcd) => "illegal for this sensor or record",
            Self(0xce) => "cannot be answered",
            Self::DUPLICATED => "duplicated request",
            Self(0xd1) => "firmware update in progress",
            Self::INITIALISING => "initialisation in progress",
            Self(0xd3) => "destination unavailable",
            Self(0xd4) => "insufficient privilege",
            Self(0xd5) => "not supported in this state",
            Self(0xd6) => "disabled",
            Self(0xff) => "unspecified error",
            _ => "specific to the command",
        };
        write!(f, "{:#04x} ({meaning})", self.0)
    }
}

/// Splits an answer into completion code and data.
///
/// # Errors
/// [`Error::Short`] for an answer without a byte.
pub fn split<'a>(what: &'static str, answer: &'a [u8]) -> Result<(Completion, &'a [u8]), Error> {
    match answer {
        [code, data @ ..] => Ok((Completion(*code), data)),
        [] => Err(Error::Short {
            what,
            wanted: 1,
            got: 0,
        }),
    }
}

/// The first `N` bytes of an answer's data; BMCs may send more than the standard says.
///
/// # Errors
/// [`Error::Short`].
pub fn head<const N: usize>(what: &'static str, data: &[u8]) -> Result<[u8; N], Error> {
    data.first_chunk().copied().ok_or(Error::Short {
        what,
        wanted: N,
        got: data.len(),
    })
}
