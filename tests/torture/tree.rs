//! Trees with everything that a root file system may hold, and lists of what a tree is.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, OsStr};
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{
    FileExt, FileTypeExt, MetadataExt, PermissionsExt, chown, lchown, symlink,
};
use std::path::{Path, PathBuf};

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mknod, utimensat};
use nix::sys::time::TimeSpec;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::sha256;

/// `user::rw-`, `user:1:r--`, `user:12345:rw-`, `group::r--`, `mask::rw-`, `other::r--`
/// (`linux/posix_acl_xattr.h`).
const ACCESS_ACL: &[u8] = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x04\0\x01\0\0\0\
    \x02\0\x06\0\x39\x30\0\0\x04\0\x04\0\xff\xff\xff\xff\x10\0\x06\0\xff\xff\xff\xff\
    \x20\0\x04\0\xff\xff\xff\xff";
/// `user::rwx`, `group::r-x`, `group:4:rwx`, `mask::rwx`, `other::r-x`.
const DEFAULT_ACL: &[u8] = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x04\0\x05\0\xff\xff\xff\xff\
    \x08\0\x07\0\x04\0\0\0\x10\0\x07\0\xff\xff\xff\xff\x20\0\x05\0\xff\xff\xff\xff";
/// Version 2, cap_net_raw effective and permitted (`linux/capability.h`).
const CAPABILITY: &[u8] = &[
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

/// A tree of `files` small files and one of every oddity.
pub fn grow(root: &Path, seed: u64, files: usize) {
    let mut random = StdRng::seed_from_u64(seed);
    fs::create_dir(root).expect("root");
    let at = |path: &str| root.join(path);
    for dir in ["etc", "dev", "many", "empty", "bin", "deep"] {
        fs::create_dir(at(dir)).expect(dir);
    }
    // GNU tar stores the names of accounts in ACLs; both unpackers have to know these.
    fs::write(at("etc/passwd"), "root:x:0:0::/:\ndaemon:x:1:1::/:\n").expect("passwd");
    fs::write(at("etc/group"), "root:x:0:\nadm:x:4:\n").expect("group");
    for number in 0..files {
        let dir = at(&format!("many/{:03}", number / 100));
        fs::create_dir_all(&dir).expect("directory");
        let path = dir.join(format!("file-{number}"));
        let length = random.random_range(0..3000);
        fs::write(&path, noise(&mut random, length)).expect("file");
        let owner = random.random_range(0..70_000);
        if number % 3 == 0 {
            chown(&path, Some(owner), Some(owner / 2)).expect("chown");
        }
        let mode = random.random_range(0..0o1000);
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("chmod");
        if number % 50 == 0 {
            fs::hard_link(&path, at(&format!("bin/hard-{number}"))).expect("link");
        }
        set_time(
            &path,
            random.random_range(0..2_000_000_000),
            random.random_range(0..1_000_000_000),
        );
    }
    sparse(&at("holes"), &mut random);
    fs::write(at("big"), noise(&mut random, 5 << 20)).expect("big");
    fs::write(at("bin/ping"), noise(&mut random, 70_000)).expect("ping");
    set(&at("bin/ping"), "security.capability", CAPABILITY);
    fs::write(at("bin/su"), b"#!").expect("su");
    chown(at("bin/su"), Some(7), Some(3_000_000_000)).expect("chown");
    fs::set_permissions(at("bin/su"), Permissions::from_mode(0o6755)).expect("chmod");
    fs::write(at("etc/labelled"), b"x").expect("file");
    set(&at("etc/labelled"), "user.note", b"a\nb=c\0d");
    set(&at("etc/labelled"), "trusted.mark", &[0xff; 200]);
    set(
        &at("etc/labelled"),
        "security.selinux",
        b"system_u:object_r:etc_t:s0\0",
    );
    set(&at("etc/labelled"), "system.posix_acl_access", ACCESS_ACL);
    set(&at("empty"), "system.posix_acl_default", DEFAULT_ACL);
    fs::create_dir(at("sticky")).expect("directory");
    fs::set_permissions(at("sticky"), Permissions::from_mode(0o3777)).expect("chmod");
    names(root);
    for (name, kind, device) in [
        ("dev/null", SFlag::S_IFCHR, makedev(1, 3)),
        ("dev/sdzz", SFlag::S_IFBLK, makedev(259, 1_000_000)),
        ("dev/fifo", SFlag::S_IFIFO, 0),
    ] {
        mknod(&at(name), kind, Mode::from_bits_truncate(0o620), device).expect(name);
    }
    symlink("../nowhere/at/all", at("etc/dangling")).expect("link");
    symlink("/absolute", at("etc/absolute")).expect("link");
    lchown(at("etc/dangling"), Some(12), Some(34)).expect("lchown");
    set_time(&at("etc/dangling"), -5, 250_000_000);
    set_time(&at("etc/absolute"), 1_000_000_000, 999_999_999);
    // Last: putting something into a directory changes its time.
    for dir in ["deep", "empty", "many", "sticky", "bin", "etc"] {
        set_time(&at(dir), 1_234_567_890, 123_456_789);
    }
}

/// A tree of about a megabyte, half of it noise, half of it text.
pub fn grow_small(root: &Path, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    fs::create_dir(root).expect("root");
    for number in 0..40 {
        let dir = root.join(format!("d{}", number % 5));
        fs::create_dir_all(&dir).expect("directory");
        let length = random.random_range(0..20_000);
        fs::write(
            dir.join(format!("noise-{number}")),
            noise(&mut random, length),
        )
        .expect("file");
        let text = format!("line {number} of some text that repeats itself\n").repeat(length / 60);
        fs::write(dir.join(format!("text-{number}")), text).expect("file");
    }
    symlink("d1/noise-1", root.join("link")).expect("link");
    fs::hard_link(root.join("d2/noise-2"), root.join("hard")).expect("link");
}

fn noise(random: &mut StdRng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    random.fill(&mut bytes[..]);
    bytes
}

/// 20 MB with 60 islands in it, one at the end.
fn sparse(path: &Path, random: &mut StdRng) {
    let file = File::create(path).expect("file");
    for island in 0..60_u64 {
        let length = random.random_range(1..9000);
        let at = island * 330_000 + random.random_range(0..4096);
        file.write_all_at(&noise(random, length), at)
            .expect("write");
    }
    file.set_len(20_000_000).expect("length");
    file.write_all_at(b"end", 19_999_997).expect("write");
    // All of a file may be a hole.
    File::create(path.with_extension("only"))
        .expect("file")
        .set_len(1 << 20)
        .expect("length");
}

fn names(root: &Path) {
    fs::write(root.join("n".repeat(255)), b"longest").expect("file");
    for odd in [
        &b"new\nline"[..],
        b"not \xff\xfe text",
        b" lead",
        b"quote'\"\\",
        b"-dash",
    ] {
        fs::write(root.join("etc").join(OsStr::from_bytes(odd)), odd).expect("file");
    }
    let mut deep = root.join("deep");
    for level in 0..12 {
        deep.push(format!("level-{level}-{}", "x".repeat(60)));
        fs::create_dir(&deep).expect("directory");
    }
    fs::write(deep.join("far down"), b"x").expect("file");
    symlink("y".repeat(300), deep.join("far away")).expect("link");
    fs::hard_link(deep.join("far down"), root.join("deep/near")).expect("link");
}

fn set_time(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = TimeSpec::new(seconds, nanoseconds);
    utimensat(
        AT_FDCWD,
        path,
        &time,
        &time,
        UtimensatFlags::NoFollowSymlink,
    )
    .expect("utimensat");
}

fn set(path: &Path, name: &str, value: &[u8]) {
    let (path, name) = (c_path(path), CString::new(name).expect("name"));
    // SAFETY: both strings end in a zero byte, and value and length belong together.
    let result = unsafe {
        libc::lsetxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    assert_eq!(result, 0, "{name:?}: {}", std::io::Error::last_os_error());
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("path")
}

/// What every path of a tree is: all that an unpacker could get wrong.
pub fn manifest(root: &Path) -> BTreeMap<String, String> {
    let mut seen = HashMap::new();
    let mut lines = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let line = line(&path, root, &mut seen);
        let name = path.strip_prefix(root).expect("below the root");
        lines.insert(
            format!("/{}", name.as_os_str().as_bytes().escape_ascii()),
            line,
        );
        if path.symlink_metadata().expect("stat").is_dir() {
            let mut inside: Vec<PathBuf> = fs::read_dir(&path)
                .expect("directory")
                .map(|entry| entry.expect("entry").path())
                .collect();
            // The stack turns the order round; the first name of a hard link is the lowest.
            inside.sort();
            left.extend(inside.into_iter().rev());
        }
    }
    lines
}

fn line(path: &Path, root: &Path, seen: &mut HashMap<u64, PathBuf>) -> String {
    let stat = path.symlink_metadata().expect("stat");
    let kind = stat.file_type();
    let content = if kind.is_file() {
        // Ten times the data would be no sparse file any more.
        let holes = stat.len() > 1 << 16 && stat.blocks() * 512 < stat.len() / 2;
        let first = seen.entry(stat.ino()).or_insert_with(|| path.to_owned());
        let first = first.strip_prefix(root).expect("below the root").to_owned();
        let sum = sha256(&fs::read(path).expect("content"));
        format!(
            "file {} {sum} links {} to {first:?} holes {holes}",
            stat.len(),
            stat.nlink()
        )
    } else if kind.is_symlink() {
        format!("link {:?}", fs::read_link(path).expect("link"))
    } else if kind.is_char_device() {
        format!("char {:#x}", stat.rdev())
    } else if kind.is_block_device() {
        format!("block {:#x}", stat.rdev())
    } else {
        format!("{kind:?}")
    };
    format!(
        "{content} mode {:o} owner {}:{} time {}.{:09} {}",
        stat.mode(),
        stat.uid(),
        stat.gid(),
        stat.mtime(),
        stat.mtime_nsec(),
        xattrs(path)
    )
}

/// Names and values in hexadecimal, sorted by name.
fn xattrs(path: &Path) -> String {
    let path = c_path(path);
    let mut names = vec![0_u8; 65536];
    // SAFETY: the path ends in a zero byte, and buffer and length belong together.
    let length = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(usize::try_from(length).unwrap_or(0));
    let mut listed: Vec<String> = names
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let c_name = CString::new(name).expect("name");
            let mut value = vec![0_u8; 65536];
            // SAFETY: both strings end in a zero byte, and buffer and length belong together.
            let length = unsafe {
                libc::lgetxattr(
                    path.as_ptr(),
                    c_name.as_ptr(),
                    value.as_mut_ptr().cast(),
                    value.len(),
                )
            };
            value.truncate(usize::try_from(length).expect("xattr"));
            format!("{}={}", name.escape_ascii(), value.escape_ascii())
        })
        .collect();
    listed.sort();
    listed.join(" ")
}
