//! Secrets in files: the helper's own token, and the tickets that machines show.
//!
//! Files are read anew each time, so that they can be replaced while the helper runs.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use axum::http::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use thiserror::Error;
use tokio::io::AsyncReadExt;
use tracing::warn;
use zeroize::Zeroizing;

/// Largest file that is read, bytes. Tokens have a few kB.
const LIMIT: u64 = 64 << 10;

/// A file that holds no secret.
#[derive(Debug, Error)]
#[error("{path} cannot be used: {reason}", path = .path.display())]
pub struct SecretFileError {
    path: PathBuf,
    reason: String,
}

/// The text of a secret's file, without what surrounds it.
///
/// # Errors
/// It cannot be read, is empty, or is larger than 64 kB.
pub async fn read(path: &Path) -> Result<SecretString, SecretFileError> {
    let wrong = |reason: String| SecretFileError {
        path: path.into(),
        reason,
    };
    let file = tokio::fs::File::open(path).await;
    let file = file.map_err(|error| wrong(error.to_string()))?;
    let mut text = Zeroizing::new(String::new());
    file.take(LIMIT + 1)
        .read_to_string(&mut text)
        .await
        .map_err(|error| wrong(error.to_string()))?;
    if text.len() as u64 > LIMIT {
        return Err(wrong(format!("it has more than {LIMIT} bytes")));
    }
    if text.trim().is_empty() {
        return Err(wrong("it is empty".into()));
    }
    Ok(SecretString::from(text.trim()))
}

/// Says at the start what would only be noticed at the first request.
pub fn check(path: &Path) {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.permissions().mode() & 0o007 != 0 => warn!(
            "{} is open to every user of this host; its mode should be 0600 or 0640",
            path.display()
        ),
        Ok(_) => {}
        Err(error) => warn!(
            "{} cannot be read yet ({error}); machines are refused until it can",
            path.display()
        ),
    }
}

/// Whether `authorization` is `Bearer` and one of the tickets, which stand one a line.
///
/// Compared as SHA-256 digests in constant time: the time taken tells neither how much of a
/// ticket was right nor how long it is.
#[must_use]
pub fn shows_ticket(authorization: Option<&HeaderValue>, tickets: &SecretString) -> bool {
    let given = authorization.and_then(|value| {
        let (scheme, given) = value.as_bytes().split_at_checked("Bearer ".len())?;
        scheme
            .eq_ignore_ascii_case(b"bearer ")
            .then_some(given.trim_ascii())
    });
    let digest = Sha256::digest(given.unwrap_or_default());
    let tickets = tickets.expose_secret().lines().map(str::trim);
    let found = tickets
        .filter(|ticket| !ticket.is_empty())
        .fold(Choice::from(0), |found, ticket| {
            found | Sha256::digest(ticket).as_slice().ct_eq(digest.as_slice())
        });
    given.is_some() && bool::from(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_holds_a_secret_or_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let full = "x".repeat(LIMIT as usize);
        for (text, expected) in [
            (" s3cret\n".to_owned(), Ok("s3cret")),
            (full.clone(), Ok(&*full)),
            (format!("{full}\n"), Err("it has more than 65536 bytes")),
            (String::new(), Err("it is empty")),
            (" \n\t\n".to_owned(), Err("it is empty")),
        ] {
            std::fs::write(&path, &text).unwrap();
            match (read(&path).await, expected) {
                (Ok(secret), Ok(wanted)) => assert!(secret.expose_secret() == wanted),
                (Err(error), Err(words)) => {
                    let error = error.to_string();
                    assert!(error.contains(words), "{error}");
                    assert!(error.contains(path.to_str().unwrap()), "{error}");
                }
                (Ok(_), Err(words)) => panic!("{} bytes: not {words}", text.len()),
                (Err(error), Ok(_)) => panic!("{error}"),
            }
        }
        std::fs::write(&path, b"\xff\xfe").unwrap();
        assert!(read(&path).await.is_err(), "no text");
        std::fs::remove_file(&path).unwrap();
        assert!(read(&path).await.is_err(), "no file");
    }

    #[test]
    fn one_of_the_tickets_opens() {
        let tickets = SecretString::from("first-ticket\n\n second-ticket \n");
        for good in [
            "Bearer first-ticket",
            "bearer second-ticket",
            "Bearer  second-ticket",
        ] {
            let value = HeaderValue::from_static(good);
            assert!(shows_ticket(Some(&value), &tickets), "{good}");
        }
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer first-ticke",
            "Bearer first-ticket2",
            "Bearer first-ticket second-ticket",
            "Basic first-ticket",
            "Digest first-ticket",
            "first-ticket",
        ] {
            let value = HeaderValue::from_static(wrong);
            assert!(!shows_ticket(Some(&value), &tickets), "{wrong:?}");
        }
        assert!(!shows_ticket(None, &tickets));
        let empty = SecretString::from("\n\n");
        let nothing = HeaderValue::from_static("Bearer ");
        assert!(!shows_ticket(Some(&nothing), &empty));
    }
}
