//! The ssh server: for the keys that medium or command line name, and nobody else.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use thiserror::Error;

use super::shell::{clean, keep};
use super::{PublicKey, Server};
use crate::storage::tools;

/// dropbear(8): in the foreground, its log on stderr, no passwords, no forwarding to elsewhere or
/// from there, no greeting; every address, of which only those of IPv6 are there.
const OPTIONS: [&str; 8] = ["-F", "-E", "-s", "-j", "-k", "-m", "-p", "[::]:22"];
/// A key of this kind is made in a moment.
const KEYGEN: Duration = Duration::from_secs(60);
/// Longest line of the server that is logged.
const MAX_LINE: u64 = 512;

/// Why there is no ssh server.
#[derive(Debug, Error)]
pub enum Error {
    #[error("no key may log in: rescue_ssh_keys of metal.config is empty")]
    NoKeys,
    #[error(
        "the rescue part of this medium has none: scripts/build-rescue --ssh makes one with it"
    )]
    NoServer,
    #[error("cannot make its key: {0}")]
    Key(#[from] tools::Error),
    #[error("cannot write {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
}

/// Where the server's files are: memory, all of it.
#[derive(Debug)]
pub struct Homes {
    /// `/run`.
    pub run: PathBuf,
    /// root's home directory.
    pub root: PathBuf,
}

/// Starts the server and answers its key's fingerprint.
///
/// # Errors
/// No keys, no server, or its key or files cannot be made.
pub fn start(server: Option<&Server>, keys: &[PublicKey], homes: &Homes) -> Result<String, Error> {
    if keys.is_empty() {
        return Err(Error::NoKeys);
    }
    let server = server.ok_or(Error::NoServer)?;
    let host_key = prepare(keys, homes)?;
    let host_key = host_key.display().to_string();
    let said = tools::run(&server.keygen, &["-t", "ed25519", "-f", &host_key], KEYGEN)?;
    let (program, pid) = (server.program.clone(), homes.run.join("dropbear.pid"));
    let pid = pid.display().to_string();
    keep("the ssh server".to_owned(), move || {
        let mut command = clean(&program);
        // This key and no other; where its number is written, which nobody reads.
        command.args(OPTIONS).args(["-r", &host_key, "-P", &pid]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.stderr(Stdio::piped()).spawn()?;
        follow(&mut child);
        Ok(child)
    });
    Ok(fingerprint(&said).unwrap_or("unknown").to_owned())
}

/// Writes who may log in; answers where the server's own key belongs. Nobody else may read or
/// write either: the server would not believe it.
fn prepare(keys: &[PublicKey], homes: &Homes) -> Result<PathBuf, Error> {
    let directory = homes.root.join(".ssh");
    make_private(&directory)?;
    let lines: String = keys.iter().map(|key| format!("{key}\n")).collect();
    let path = directory.join("authorized_keys");
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .and_then(|mut file| file.write_all(lines.as_bytes()));
    written.map_err(|source| Error::File { path, source })?;
    let own = homes.run.join("rescue");
    make_private(&own)?;
    Ok(own.join("host-key"))
}

fn make_private(path: &Path) -> Result<(), Error> {
    let made = DirBuilder::new().mode(0o700).recursive(true).create(path);
    made.map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}

/// The fingerprint in what dropbearkey(1) prints.
fn fingerprint(said: &str) -> Option<&str> {
    let line = said
        .lines()
        .find_map(|line| line.strip_prefix("Fingerprint: "))?;
    Some(line.trim())
}

/// Logs what the server says: who came, and who was refused.
fn follow(child: &mut Child) {
    let Some(output) = child.stderr.take() else {
        return;
    };
    let work = move || {
        let mut reader = BufReader::new(output);
        loop {
            let mut line = Vec::new();
            match reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {
                    tracing::info!("ssh: {}", String::from_utf8_lossy(&line).trim());
                }
            }
        }
    };
    // Without it the server is silent, and works.
    let _ = thread::Builder::new().name("ssh-log".into()).spawn(work);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rescue::keys::tests::ED25519;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn no_server_without_keys() {
        let dir = tempfile::tempdir().unwrap();
        let (run, root) = (dir.path().join("run"), dir.path().join("root"));
        let homes = Homes { run, root };
        let nothing = PathBuf::from("/nonexistent");
        let server = Server {
            program: nothing.clone(),
            keygen: nothing,
        };
        assert!(matches!(
            start(Some(&server), &[], &homes),
            Err(Error::NoKeys)
        ));
        let keys = [ED25519.parse().unwrap()];
        assert!(matches!(start(None, &keys, &homes), Err(Error::NoServer)));
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            0,
            "nothing is made for it"
        );
        assert!(matches!(
            start(Some(&server), &keys, &homes),
            Err(Error::Key(_))
        ));
    }

    #[test]
    fn nobody_else_reads_or_writes_the_keys() {
        let dir = tempfile::tempdir().unwrap();
        let (run, root) = (dir.path().join("run"), dir.path().join("root"));
        let homes = Homes { run, root };
        let keys = [
            ED25519.parse().unwrap(),
            format!("{ED25519} two").parse().unwrap(),
        ];
        let own = prepare(&keys, &homes).unwrap();
        let file = homes.root.join(".ssh/authorized_keys");
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(text, format!("{ED25519}\n{ED25519} two\n"));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&file), 0o600);
        assert_eq!(mode(&homes.root.join(".ssh")), 0o700);
        assert_eq!(mode(own.parent().unwrap()), 0o700);
        // Who was named before is not any more.
        prepare(&keys[..1], &homes).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("{ED25519}\n"));
    }

    #[test]
    fn the_fingerprint_is_found() {
        let said = "Generating 256 bit ed25519 key, this may take a while...\n\
            Public key portion is:\nssh-ed25519 AAAA root@metal\nFingerprint: SHA256:abc/def \n";
        assert_eq!(fingerprint(said), Some("SHA256:abc/def"));
        assert_eq!(fingerprint("nothing"), None);
    }
}
