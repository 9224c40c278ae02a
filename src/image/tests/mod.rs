//! Tests that need more than one file of the module: archives and servers are made here.

mod faithful;
mod hostile;
mod http;
mod server;

use std::io::Write;

use tar::{EntryType, Header};

use super::checksum::{Algorithm, Hasher};
use super::error::Error;
use super::pipe::Stop;
use super::root::RootDir;
use super::unpack::{Counters, unpack};

/// A tar member byte for byte: nothing in the name is looked at.
pub fn member(path: &[u8], kind: EntryType, link: &[u8], content: &[u8]) -> Vec<u8> {
    member_with(path, kind, link, content, |_| {})
}

pub fn member_with(
    path: &[u8],
    kind: EntryType,
    link: &[u8],
    content: &[u8],
    change: impl FnOnce(&mut Header),
) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path);
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    change(&mut header);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// A pax header for the member after it.
pub fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in records {
        let body = key.len() + value.len() + 3;
        let mut length = body + 1;
        while length != body + length.to_string().len() {
            length = body + length.to_string().len();
        }
        data.extend_from_slice(format!("{length} {key}=").as_bytes());
        data.extend_from_slice(value);
        data.push(b'\n');
    }
    member(b"pax", EntryType::XHeader, b"", &data)
}

pub fn file(path: &[u8], content: &[u8]) -> Vec<u8> {
    member(path, EntryType::Regular, b"", content)
}

/// The members with the archive's end behind them.
pub fn archive(members: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = members.concat();
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

pub fn lz4(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn digest(algorithm: Algorithm, bytes: &[u8]) -> String {
    let mut hasher = Hasher::new(algorithm);
    hasher.update(bytes);
    hasher.finish()
}

/// A target root inside a directory that a hostile archive would like to write to.
pub struct Target {
    pub outer: tempfile::TempDir,
}

impl Target {
    pub fn new() -> Self {
        let outer = tempfile::tempdir().unwrap();
        std::fs::create_dir(outer.path().join("root")).unwrap();
        std::fs::write(outer.path().join("victim"), "untouched").unwrap();
        Self { outer }
    }

    pub fn root(&self) -> std::path::PathBuf {
        self.outer.path().join("root")
    }

    pub fn unpack(&self, bytes: &[u8]) -> Result<(), Error> {
        let root = RootDir::open(&self.root()).unwrap();
        match unpack(bytes, &root, &Counters::default()) {
            Ok(()) => Ok(()),
            Err(Stop::Failed(error)) => Err(error),
            Err(other) => panic!("{other:?}"),
        }
    }

    /// Nothing beside the root changed.
    pub fn assert_outside_untouched(&self) {
        let mut names: Vec<_> = std::fs::read_dir(self.outer.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["root", "victim"]);
        let victim = std::fs::read(self.outer.path().join("victim")).unwrap();
        assert_eq!(victim, b"untouched");
    }
}
