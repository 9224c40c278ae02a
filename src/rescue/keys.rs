//! Public keys for the ssh server, as they stand in an `authorized_keys` file (sshd(8)).

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use thiserror::Error;

/// What the server takes.
const KINDS: [&str; 7] = [
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "ssh-rsa",
];
/// Longest key, base64 and comment included. One of RSA with 16384 bits has 2.8 kB.
const MAX_BYTES: usize = 4096;

/// A public key: its kind, its bytes in base64, a comment. Options in front of it, by which a key
/// could be made to run commands of its own, are refused.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct PublicKey(String);

/// Why a text is no public key. The text is not repeated: somebody may have taken the other half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum KeyError {
    #[error("a public key is one line of {MAX_BYTES} bytes at most")]
    NotALine,
    #[error("a public key begins with its kind, one of {}", KINDS.join(", "))]
    Kind,
    #[error("the second word of a public key is base64 and says the same kind again")]
    Body,
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let text = text.trim();
        if text.len() > MAX_BYTES || text.chars().any(char::is_control) {
            return Err(KeyError::NotALine);
        }
        let mut words = text.split_ascii_whitespace();
        let kind = words.next().filter(|kind| KINDS.contains(kind));
        let kind = kind.ok_or(KeyError::Kind)?;
        let body = words.next().ok_or(KeyError::Body)?;
        let bytes = BASE64_STANDARD.decode(body).map_err(|_| KeyError::Body)?;
        if !says(&bytes, kind) {
            return Err(KeyError::Body);
        }
        let comment: Vec<&str> = words.collect();
        let line = [&[kind, body], &comment[..]].concat().join(" ");
        Ok(Self(line))
    }
}

/// Whether a key's bytes begin with its kind: a string with its length before it, then the
/// numbers (RFC 4253, 6.6).
fn says(bytes: &[u8], kind: &str) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else {
        return false;
    };
    usize::try_from(u32::from_be_bytes(*length)).is_ok_and(|length| length == kind.len())
        && rest.len() > kind.len()
        && rest.starts_with(kind.as_bytes())
}

impl TryFrom<String> for PublicKey {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        text.parse()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The private half was thrown away.
    pub(crate) const ED25519: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOGz95r9TPSQZ8XTblZwCRzPWlbD4E058LlGRWsTjT/T";

    #[test]
    fn a_key_with_and_without_a_comment() {
        let key: PublicKey = ED25519.parse().unwrap();
        assert_eq!(key.to_string(), ED25519);
        let key: PublicKey = format!("  {ED25519}   me at   home\t\n")
            .parse()
            .unwrap_or(key);
        assert_eq!(key.to_string(), format!("{ED25519} me at home"));
    }

    #[test]
    fn what_is_no_public_key() {
        let (kind, body) = ED25519.split_once(' ').unwrap();
        let table = [
            (String::new(), KeyError::Kind),
            (body.to_owned(), KeyError::Kind),
            (kind.to_owned(), KeyError::Body),
            (format!("ssh-rsa {body}"), KeyError::Body),
            (format!("ssh-dss {body}"), KeyError::Kind),
            (format!("{kind} {}", &body[..20]), KeyError::Body),
            (format!("{kind} {body}!"), KeyError::Body),
            (format!("command=\"reboot\" {ED25519}"), KeyError::Kind),
            (
                format!("{ED25519}\ncommand=\"x\" {ED25519}"),
                KeyError::NotALine,
            ),
            (
                format!("{ED25519} {}", "x".repeat(MAX_BYTES)),
                KeyError::NotALine,
            ),
            (
                "-----BEGIN OPENSSH PRIVATE KEY-----".to_owned(),
                KeyError::Kind,
            ),
        ];
        for (text, expected) in table {
            assert_eq!(text.parse::<PublicKey>(), Err(expected), "{text}");
        }
    }

    #[test]
    fn a_private_key_by_mistake_is_not_repeated() {
        let json = r#"["-----BEGIN OPENSSH PRIVATE KEY-----\nhunter2"]"#;
        let error = serde_json::from_str::<Vec<PublicKey>>(json).unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}
