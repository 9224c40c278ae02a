//! Image torture: trees that GNU tar packed come out as GNU tar itself unpacks them, and a
//! download that is cut, truncated or flipped anywhere is either made whole or refused.
//!
//! Needs root. Seeds are fixed and printed; `TORTURE_FILES` (100000, say) sets the number of
//! small files, `TORTURE_ROUNDS` the number of random places each.

#[path = "torture/server.rs"]
mod server;
#[path = "torture/tree.rs"]
mod tree;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use metal_anvil::control::http::{Trust, download_client};
use metal_anvil::image::{self, Algorithm, Error, Hasher, ImageSource, Progress};
use server::{Served, Server};

const SEED: u64 = 0x6d65_7461_6c21;
/// Installs at a time: most of one that is cut is waiting.
const AT_ONCE: usize = 16;

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |text| text.parse().expect(variable))
}

/// An ext4 of its own in memory: it has every kind of xattr, and its flush waits for nobody
/// else's writes.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new() -> Self {
        let disk = Self(scratch());
        let script =
            "truncate -s 4G disk; mkfs.ext4 -q -F -i 4096 disk; mkdir mnt; mount -o loop disk mnt";
        command(script, disk.0.path());
        disk
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("mnt")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What stays mounted keeps its directory, and a failed test has said why it failed.
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

/// For hundreds of small installs: in memory, where each one's flush waits for nobody's disk.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").expect("a directory of our own")
}

fn command(line: &str, dir: &Path) {
    let done = Command::new("bash")
        .args(["-e", "-o", "pipefail", "-c", line])
        .current_dir(dir)
        .output()
        .expect("bash");
    let text = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{line}: {text}");
}

fn sha256(bytes: &[u8]) -> String {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(bytes);
    hasher.finish()
}

async fn install(server: &Server, name: &str, dir: &Path) -> Result<image::Summary, Error> {
    let client = download_client(Trust::Public).expect("a client");
    let source = ImageSource::new(server.url(name));
    let installed = image::install(&client, &source, dir, &|_: Progress| ()).await?;
    Ok(installed.summary().clone())
}

/// Unpacks `archive` with the agent and with GNU tar and compares the trees.
async fn assert_as_gnu_tar(archive: &Path, flags: &str, what: &str) {
    let dir = archive.parent().expect("the disk");
    let (ours, theirs) = (dir.join("ours"), dir.join("theirs"));
    command("rm -rf ours theirs; mkdir ours theirs", dir);
    let bytes = std::fs::read(archive).expect("the archive");
    let server = Server::start();
    server.put("img", Served::new(bytes));
    install(&server, "img", &ours)
        .await
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    let unpack = format!(
        "tar -xpf {} -C theirs --numeric-owner {flags}",
        archive.display()
    );
    command(&unpack, dir);
    assert_same(&tree::manifest(&ours), &tree::manifest(&theirs), what);
}

fn assert_same(ours: &BTreeMap<String, String>, theirs: &BTreeMap<String, String>, what: &str) {
    let differing: Vec<_> = theirs
        .keys()
        .chain(ours.keys())
        .filter(|path| ours.get(*path) != theirs.get(*path))
        .take(10)
        .map(|path| {
            format!(
                "{path}:\n  ours   {:?}\n  theirs {:?}",
                ours.get(path),
                theirs.get(path)
            )
        })
        .collect();
    assert!(differing.is_empty(), "{what}:\n{}", differing.join("\n"));
}

/// pax and GNU archives, with every attribute that each can hold.
#[tokio::test(flavor = "multi_thread")]
async fn trees_come_out_as_gnu_tar_unpacks_them() {
    let disk = Disk::new();
    let dir = disk.path();
    let root = dir.join("tree");
    println!("seed {SEED:#x}");
    tree::grow(&root, SEED, number("TORTURE_FILES", 2000));
    let listed = tree::manifest(&root);
    for needed in [
        "security.capability",
        "security.selinux",
        "posix_acl_default",
        "char 0x",
    ] {
        let found = listed.values().any(|line| line.contains(needed));
        assert!(found, "the tree has no {needed}: wrong file system?");
    }
    let all = "--xattrs --xattrs-include='*' --acls --selinux";
    for (format, flags) in [
        ("--format=posix -S", all),
        ("--format=posix -S --sparse-version=0.1", "--acls"),
        ("--format=posix -S --sparse-version=0.0", "--selinux"),
        ("--format=gnu -S", ""),
    ] {
        let archive = dir.join("a.tar");
        let pack = format!("tar -cf a.tar -C tree --numeric-owner {format} {flags} .");
        command(&pack, &dir);
        assert_as_gnu_tar(&archive, flags, &pack).await;
    }
    // Against the tree itself, so that a common mistake of both would show.
    let out = dir.join("out");
    std::fs::create_dir(&out).expect("a directory");
    command(
        &format!("tar -c -C tree --numeric-owner --format=posix -S {all} . | zstd -q > a.zst"),
        &dir,
    );
    let server = Server::start();
    server.put(
        "img",
        Served::new(std::fs::read(dir.join("a.zst")).expect("archive")),
    );
    install(&server, "img", &out).await.expect("the image");
    assert_same(&tree::manifest(&out), &listed, "the tree that was packed");
}

/// A small image in each format, and what it unpacks to.
struct Images {
    packed: Vec<(&'static str, Arc<Vec<u8>>)>,
    manifest: BTreeMap<String, String>,
}

impl Images {
    fn new() -> Self {
        let dir = scratch();
        let root = dir.path().join("tree");
        tree::grow_small(&root, SEED);
        let packers = [
            ("lz4", "lz4 -qc"),
            ("zstd", "zstd -qc"),
            ("gzip", "gzip -c"),
            ("xz", "xz -0c"),
            ("tar", "cat"),
            ("lz4 legacy", "lz4 -qlc"),
        ];
        let packed = packers.map(|(name, packer)| {
            let line = format!("tar -c -C tree --numeric-owner --format=posix . | {packer} > img");
            command(&line, dir.path());
            let bytes = std::fs::read(dir.path().join("img")).expect("the image");
            (name, Arc::new(bytes))
        });
        Self {
            packed: packed.into(),
            manifest: tree::manifest(&root),
        }
    }
}

/// Runs `case` for that many random places in images of all formats, some at a time.
async fn everywhere<F, Fut>(what: &str, rounds: usize, case: F)
where
    F: Fn(usize, &'static str, Arc<Vec<u8>>, usize) -> Fut,
    Fut: Future<Output = ()>,
{
    let images = IMAGES.get_or_init(Images::new);
    let mut random = StdRng::seed_from_u64(SEED);
    println!("{what}: seed {SEED:#x}, {rounds} places");
    let places: Vec<_> = (0..rounds)
        .map(|round| {
            let (name, bytes) = &images.packed[round % images.packed.len()];
            (
                round,
                *name,
                Arc::clone(bytes),
                random.random_range(0..bytes.len()),
            )
        })
        .collect();
    stream::iter(places)
        .map(|(round, name, bytes, at)| case(round, name, bytes, at))
        .buffer_unordered(AT_ONCE)
        .collect::<Vec<()>>()
        .await;
}

static IMAGES: std::sync::OnceLock<Images> = std::sync::OnceLock::new();

/// Half of them with the checksum of the whole image; half published like that, with a
/// checksum that is right, so that only the formats' own ends can tell.
#[tokio::test(flavor = "multi_thread")]
async fn truncation_is_always_found() {
    let server = Server::start();
    everywhere(
        "truncation",
        number("TORTURE_ROUNDS", 200),
        |round, format, bytes, at| {
            let server = &server;
            async move {
                let published = (round / 6) % 2 == 0;
                let name = format!("truncated-{round}");
                // Between two headers nothing but the missing end of the archive tells.
                let at = if format == "tar" { at / 512 * 512 } else { at };
                let mut served = Served::new(bytes[..at].to_vec());
                if !published {
                    served.sha256 = sha256(&bytes);
                }
                server.put(&name, served);
                let dir = scratch();
                let error = match install(server, &name, dir.path()).await {
                    Ok(_) => panic!("{format}: cut at {at} of {}, and accepted", bytes.len()),
                    Err(error) => error,
                };
                let mismatch = matches!(error, Error::ChecksumMismatch { .. });
                // Too few bytes to tell the format need no checksum to be refused.
                let short = matches!(error, Error::Format { .. });
                assert!(short || mismatch != published, "{format} at {at}: {error}");
            }
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_is_always_found() {
    let server = Server::start();
    everywhere(
        "bit flips",
        number("TORTURE_ROUNDS", 200),
        |round, format, bytes, at| {
            let server = &server;
            async move {
                let name = format!("flipped-{round}");
                let mut damaged = bytes.to_vec();
                damaged[at] ^= 1 << (round % 8);
                let served = Served {
                    sha256: sha256(&bytes),
                    ..Served::new(damaged)
                };
                server.put(&name, served);
                let dir = scratch();
                let error = match install(server, &name, dir.path()).await {
                    Ok(_) => panic!("{format}: a bit of byte {at} flipped, and accepted"),
                    Err(error) => error,
                };
                let told = matches!(error, Error::ChecksumMismatch { .. });
                assert!(
                    told,
                    "{format}: a flipped bit of byte {at} was reported as: {error}"
                );
            }
        },
    )
    .await;
}

/// With and without Range: the tree is whole, and no byte was asked for twice where the
/// server can continue.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_cut_anywhere_is_made_whole() {
    let server = Server::start();
    let rounds = number("TORTURE_ROUNDS", 200) / 2;
    everywhere("cut connections", rounds, |round, format, bytes, at| {
        let server = &server;
        async move {
            let ranges = (round / 6) % 2 == 0;
            let name = format!("cut-{round}");
            let length = bytes.len();
            server.put(
                &name,
                Served {
                    cut: Some(at),
                    ranges,
                    ..Served::new(bytes.to_vec())
                },
            );
            let dir = scratch();
            let summary = install(server, &name, dir.path()).await;
            let summary = summary.unwrap_or_else(|error| panic!("{format}: cut at {at}: {error}"));
            assert_eq!(summary.progress.downloaded, length as u64);
            let manifest = &IMAGES.get_or_init(Images::new).manifest;
            assert_same(
                &tree::manifest(dir.path()),
                manifest,
                &format!("{format}, cut at {at}"),
            );
            let sent = server.sent(&name);
            match ranges {
                true => assert_eq!(sent, length, "{format}: bytes sent, cut at {at}"),
                false => assert_eq!(sent, length + at, "{format}: bytes sent, cut at {at}"),
            }
        }
    })
    .await;
}
