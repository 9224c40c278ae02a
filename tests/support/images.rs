//! Images as the image server offers them: the built ones, and broken variants of `tiny`.

use std::fs::{self, File};
use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};

use md5::{Digest, Md5};

use super::root;

/// A tarball and the text of its `.md5` file, either of them possibly absent or wrong.
#[derive(Clone, Debug)]
pub struct Image {
    /// `img.tar.lz4`.
    pub tarball: Content,
    /// `img.tar.lz4.md5`; `None`: the server has none.
    pub md5: Option<String>,
}

/// Bytes in memory or in a file.
#[derive(Clone, Debug)]
pub enum Content {
    /// A file that is linked, not copied.
    File(PathBuf),
    /// Made by a test.
    Bytes(Vec<u8>),
    /// The server answers 404.
    Missing,
}

impl Image {
    /// An image built by `scripts/build-images`.
    pub fn built(name: &str) -> Self {
        let dir = root().join("target/images").join(name);
        let tarball = fs::canonicalize(dir.join("img.tar.lz4"))
            .unwrap_or_else(|e| panic!("{}: {e}; run scripts/build-images", dir.display()));
        let md5 = fs::read_to_string(dir.join("img.tar.lz4.md5")).expect("md5 of a built image");
        Self {
            tarball: Content::File(tarball),
            md5: Some(md5),
        }
    }

    /// Any bytes with the md5 that belongs to them.
    pub fn of(bytes: Vec<u8>) -> Self {
        let md5 = Some(md5_line(&bytes));
        Self {
            tarball: Content::Bytes(bytes),
            md5,
        }
    }

    /// An image that the server does not have.
    pub fn missing() -> Self {
        Self {
            tarball: Content::Missing,
            md5: None,
        }
    }

    /// The same tarball with one bit of byte `at` (from the end) flipped, md5 unchanged.
    pub fn with_flipped_byte(mut self, from_end: usize) -> Self {
        let mut bytes = self.bytes();
        let at = bytes.len() - from_end;
        bytes[at] ^= 0x10;
        self.tarball = Content::Bytes(bytes);
        self
    }

    /// Only the first `keep` percent of the tarball, with an md5 that fits what is left.
    pub fn truncated(self, keep: usize) -> Self {
        let mut bytes = self.bytes();
        bytes.truncate(bytes.len() * keep / 100);
        Self::of(bytes)
    }

    /// The md5 file of another image.
    pub fn with_md5_of(mut self, other: &[u8]) -> Self {
        self.md5 = Some(md5_line(other));
        self
    }

    /// Puts the image under `www/NAME/`.
    pub fn publish(&self, www: &Path, name: &str) {
        let dir = www.join(name);
        fs::create_dir_all(&dir).expect("image directory");
        let path = dir.join("img.tar.lz4");
        let _ = fs::remove_file(&path);
        match &self.tarball {
            Content::File(source) => std::os::unix::fs::symlink(source, &path).expect("link"),
            Content::Bytes(bytes) => fs::write(&path, bytes).expect("write the image"),
            Content::Missing => {}
        }
        let md5 = dir.join("img.tar.lz4.md5");
        let _ = fs::remove_file(&md5);
        if let Some(line) = &self.md5 {
            fs::write(&md5, line).expect("write the md5");
        }
    }

    /// The tarball itself.
    pub fn bytes(&self) -> Vec<u8> {
        match &self.tarball {
            Content::File(path) => fs::read(path).expect("read a built image"),
            Content::Bytes(bytes) => bytes.clone(),
            Content::Missing => panic!("the image is missing on purpose"),
        }
    }
}

/// A change to the `tiny` image.
pub enum Edit<'a> {
    /// What its installer is told (`tests/images/tiny.rs`).
    Installer(&'a str),
    /// Leave out entries whose path starts with this (`./install-go`).
    Without(&'a str),
    /// A second copy of a file of the image, under another name.
    Copy(&'a str, &'a str),
    /// One more regular file, its name taken as it is (`../evil`, `/evil`).
    File(&'a str, &'a [u8]),
    /// One more symbolic link, name and target as they are.
    Symlink(&'a str, &'a str),
    /// One more hard link, name and target as they are.
    Hardlink(&'a str, &'a str),
}

/// One file of `tiny`.
pub fn tiny_file(name: &str) -> Vec<u8> {
    let path = root().join("target/images/tiny/img.tar");
    let file = File::open(&path)
        .unwrap_or_else(|e| panic!("{}: {e}; run scripts/build-images tiny", path.display()));
    let mut data = Vec::new();
    for entry in tar::Archive::new(file).entries().expect("built tar") {
        let mut entry = entry.expect("built tar");
        if entry.path().expect("built tar").display().to_string() == name {
            entry.read_to_end(&mut data).expect("built tar");
        }
    }
    assert!(!data.is_empty(), "tiny has no {name}");
    data
}

/// `tiny` with changes; the md5 fits, so that only the change is at fault.
pub fn tiny_with(edits: &[Edit]) -> Image {
    let path = root().join("target/images/tiny/img.tar");
    let file = File::open(&path)
        .unwrap_or_else(|e| panic!("{}: {e}; run scripts/build-images tiny", path.display()));
    let mut archive = tar::Archive::new(file);
    let mut out = tar::Builder::new(Vec::new());
    'entries: for entry in archive.entries().expect("built tar") {
        let mut entry = entry.expect("built tar");
        let name = entry.path().expect("built tar").display().to_string();
        for edit in edits {
            if let Edit::Without(prefix) = edit
                && name
                    .trim_start_matches("./")
                    .starts_with(prefix.trim_start_matches("./"))
            {
                continue 'entries;
            }
        }
        let header = entry.header().clone();
        let mut data = Vec::new();
        entry.read_to_end(&mut data).expect("built tar");
        out.append(&header, data.as_slice()).expect("tar in memory");
        for edit in edits {
            if let Edit::Copy(from, to) = edit
                && *from == name
            {
                raw(&mut out, to, tar::EntryType::Regular, "", &data);
            }
        }
    }
    for edit in edits {
        match edit {
            Edit::Without(_) | Edit::Copy(..) => {}
            Edit::Installer(order) => raw(
                &mut out,
                "./etc/tiny/installer",
                tar::EntryType::Regular,
                "",
                order.as_bytes(),
            ),
            Edit::File(name, data) => raw(&mut out, name, tar::EntryType::Regular, "", data),
            Edit::Symlink(name, target) => {
                raw(&mut out, name, tar::EntryType::Symlink, target, b"")
            }
            Edit::Hardlink(name, target) => raw(&mut out, name, tar::EntryType::Link, target, b""),
        }
    }
    Image::of(lz4(&out.into_inner().expect("tar in memory")))
}

/// Appends an entry whose names go into the header unchecked: the crate refuses hostile ones.
pub fn raw(
    out: &mut tar::Builder<Vec<u8>>,
    name: &str,
    kind: tar::EntryType,
    target: &str,
    data: &[u8],
) {
    let mut header = tar::Header::new_gnu();
    let fields = header.as_gnu_mut().expect("GNU header");
    fields.name[..name.len()].copy_from_slice(name.as_bytes());
    fields.linkname[..target.len()].copy_from_slice(target.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(data.len() as u64);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    out.append(&header, Cursor::new(data))
        .expect("tar in memory");
}

/// Compresses with the lz4 frame format.
pub fn lz4(data: &[u8]) -> Vec<u8> {
    let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
    encoder.write_all(data).expect("lz4 in memory");
    encoder.finish().expect("lz4 in memory")
}

/// A line as `md5sum` prints it.
pub fn md5_line(bytes: &[u8]) -> String {
    let digest: String = Md5::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    format!("{digest}  img.tar.lz4\n")
}
