//! From a verified tree to a running system: the files an installer reads, the installer
//! in a chroot (or, without one, the agent's own minimal work), boot-info, kexec.

mod blank;
mod boot_info;
pub mod chroot;
pub mod denylist;
mod error;
pub mod files;
pub mod forget;
pub mod kexec;
mod legacy;
pub mod native;

use std::io::Write;
use std::path::Path;

use reqwest::Url;
use secrecy::SecretString;

pub use boot_info::{BootInfo, PATH as BOOT_INFO, read as boot_info};
pub use error::Error;

use crate::control::line::Clients;
use crate::image::fetch::{Download, shown_url};
use crate::image::root::RootDir;
use crate::image::{Algorithm, Hasher, Patience};
use crate::password;

/// An installer is a static binary of some 20 MiB.
const MAX_INSTALLER: u64 = 128 * 1024 * 1024;

/// A password for the console user: 24 letters and digits (143 bits) from the kernel.
///
/// # Errors
/// The kernel has no random numbers for us.
pub fn console_password() -> Result<SecretString, Error> {
    Ok(password::random(24)?)
}

/// Fetches the installer that the boot helper names and puts it in place as `/os-installer`.
/// An image that brings its own keeps it; then nothing is fetched and the answer is false. `beat` is
/// called whenever a part of it has come.
///
/// # Errors
/// It could not be fetched, is larger than 128 MiB, or is not what `sha256` says; nothing
/// is put in place then.
pub async fn fetch_installer(
    clients: &dyn Clients,
    url: &Url,
    sha256: &str,
    root: &RootDir,
    beat: &(dyn Fn() + Sync),
) -> Result<bool, Error> {
    let wrong = |reason: String| Error::Fetched {
        url: shown_url(url),
        reason,
    };
    let expected = sha256.trim().to_ascii_lowercase();
    let is_hex = expected.bytes().all(|byte| byte.is_ascii_hexdigit());
    if expected.len() != Algorithm::Sha256.digits() || !is_hex {
        return Err(wrong("its sha256 is not 64 hexadecimal digits".to_owned()));
    }
    if chroot::find_installer(root)?.is_some() {
        return Ok(false);
    }
    let file = |operation| Error::file("/os-installer", operation);
    let mut staged = root
        .stage(Path::new("/os-installer"), 0o755)
        .map_err(file("create"))?;
    let patience = Patience::default();
    let mut download = Download::open(clients, url.clone(), &patience).await?;
    let mut hasher = Hasher::new(Algorithm::Sha256);
    while let Some(chunk) = download.next().await? {
        if download.offset() > MAX_INSTALLER {
            return Err(wrong(format!("it is larger than {MAX_INSTALLER} bytes")));
        }
        beat();
        hasher.update(&chunk);
        staged.file().write_all(&chunk).map_err(file("write"))?;
    }
    let got = hasher.finish();
    if got != expected {
        return Err(wrong(format!(
            "sha256 mismatch: expected {expected}, got {got}"
        )));
    }
    staged.commit().map_err(file("rename"))?;
    tracing::info!(
        url = shown_url(url),
        bytes = download.offset(),
        "installer fetched"
    );
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn passwords_are_long_and_never_the_same() {
        let passwords: std::collections::HashSet<String> = (0..200)
            .map(|_| console_password().unwrap().expose_secret().to_owned())
            .collect();
        assert_eq!(passwords.len(), 200);
        let mut seen = std::collections::HashSet::new();
        for password in &passwords {
            assert_eq!(password.len(), 24);
            assert!(password.bytes().all(|b| b.is_ascii_alphanumeric()));
            seen.extend(password.bytes());
        }
        // 4800 draws: a letter that never comes up would be a bug in the alphabet.
        assert_eq!(seen.len(), 62);
    }

    async fn served(content: &'static [u8]) -> Url {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = tokio::net::TcpListener::bind("[::1]:0").await.unwrap();
        let url = format!("http://{}/os-installer", listener.local_addr().unwrap());
        let app = axum::Router::new().fallback(move || async move { content });
        tokio::spawn(async move { axum::serve(listener, app).await });
        url.parse().unwrap()
    }

    #[tokio::test]
    async fn an_installer_is_fetched_and_verified() {
        let url = served(b"#!/bin/true\n").await;
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let root = RootDir::open(dir.path()).unwrap();
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(b"#!/bin/true\n");
        let right = hasher.finish();

        let wrong = "0".repeat(64);
        let beats = std::sync::atomic::AtomicUsize::new(0);
        let beat = || {
            beats.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        };
        let fetch = |sha256| fetch_installer(&client, &url, sha256, &root, &beat);
        for (sha256, reason) in [("00", "not 64 hex"), (wrong.as_str(), "mismatch")] {
            let error = fetch(sha256).await.unwrap_err();
            assert!(error.to_string().contains(reason), "{error}");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
        beats.store(0, std::sync::atomic::Ordering::Relaxed);
        assert!(fetch(&right).await.unwrap());
        assert!(beats.load(std::sync::atomic::Ordering::Relaxed) > 0);
        let installer = dir.path().join("os-installer");
        assert_eq!(std::fs::read(&installer).unwrap(), b"#!/bin/true\n");
        let mode = std::fs::metadata(&installer).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
        // Now the "image" has one.
        std::fs::write(&installer, "own").unwrap();
        assert!(!fetch(&right).await.unwrap());
        assert_eq!(std::fs::read(&installer).unwrap(), b"own");
    }
}
