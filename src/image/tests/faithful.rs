//! What comes out is what went in: modes, owners, times, links, devices, xattrs, holes.
//! These tests need root, as the agent has it.

use std::fs::{Metadata, symlink_metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use tar::EntryType;

use super::*;

fn at(target: &Target, path: &str) -> Metadata {
    symlink_metadata(target.root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

#[test]
fn modes_owners_and_times() {
    let target = Target::new();
    let owned = |header: &mut Header| {
        header.set_mode(0o4755);
        header.set_uid(1234);
        header.set_gid(3_000_000_000);
    };
    let directory = |header: &mut Header| {
        header.set_mode(0o2750);
        header.set_mtime(1_000_000_000);
    };
    target
        .unpack(&archive(&[
            member_with(b"./", EntryType::Directory, b"", b"", |h| h.set_mode(0o711)),
            member_with(b"./d/", EntryType::Directory, b"", b"", directory),
            pax(&[("mtime", b"1600000000.123456789")]),
            member_with(b"./d/su", EntryType::Regular, b"", b"content", owned),
            pax(&[("mtime", b"-1.5")]),
            member_with(
                b"./d/link",
                EntryType::Symlink,
                b"/absolute/elsewhere",
                b"",
                owned,
            ),
            file(b"made/by/itself", b""),
        ]))
        .unwrap();
    assert_eq!(at(&target, "").mode() & 0o7777, 0o711);
    let file = at(&target, "d/su");
    assert_eq!(
        (file.mode() & 0o7777, file.uid(), file.gid()),
        (0o4755, 1234, 3_000_000_000)
    );
    assert_eq!(
        (file.mtime(), file.mtime_nsec()),
        (1_600_000_000, 123_456_789)
    );
    assert_eq!(
        std::fs::read(target.root().join("d/su")).unwrap(),
        b"content"
    );
    let link = at(&target, "d/link");
    assert_eq!(
        (link.uid(), link.mtime(), link.mtime_nsec()),
        (1234, -2, 500_000_000)
    );
    let to = std::fs::read_link(target.root().join("d/link")).unwrap();
    assert_eq!(to, Path::new("/absolute/elsewhere"));
    let directory = at(&target, "d");
    assert_eq!(
        (directory.mode() & 0o7777, directory.mtime()),
        (0o2750, 1_000_000_000)
    );
    // The setgid directory must not rub off on what was put into it.
    assert_eq!(at(&target, "made/by").mode() & 0o7777, 0o755);
}

#[test]
fn links_devices_and_fifos() {
    let target = Target::new();
    let device = |header: &mut Header| {
        header.set_mode(0o660);
        header.set_gid(6);
        header.set_device_major(8).unwrap();
        header.set_device_minor(17).unwrap();
    };
    target
        .unpack(&archive(&[
            file(b"usr/bin/tool", b"#!"),
            member(b"bin", EntryType::Symlink, b"usr/bin", b""),
            file(b"bin/second", b"through a link that stays inside"),
            member(b"usr/bin/hard", EntryType::Link, b"./bin/tool", b""),
            member_with(b"dev/sdb1", EntryType::Block, b"", b"", device),
            member_with(b"dev/tty", EntryType::Char, b"", b"", device),
            member_with(b"run/fifo", EntryType::Fifo, b"", b"", |h| {
                h.set_mode(0o622)
            }),
        ]))
        .unwrap();
    assert_eq!(
        at(&target, "usr/bin/hard").ino(),
        at(&target, "usr/bin/tool").ino()
    );
    assert!(at(&target, "usr/bin/second").is_file());
    let block = at(&target, "dev/sdb1");
    assert!(block.file_type().is_block_device());
    assert_eq!(
        (block.rdev(), block.mode() & 0o7777, block.gid()),
        (0x811, 0o660, 6)
    );
    assert!(at(&target, "dev/tty").file_type().is_char_device());
    let fifo = at(&target, "run/fifo");
    assert!(fifo.file_type().is_fifo());
    assert_eq!(fifo.mode() & 0o7777, 0o622);
}

#[test]
fn what_is_there_makes_way() {
    let target = Target::new();
    let root = target.root();
    std::fs::create_dir_all(root.join("empty")).unwrap();
    std::fs::create_dir_all(root.join("full/of")).unwrap();
    std::fs::write(root.join("file"), "old and longer").unwrap();
    std::fs::hard_link(target.outer.path().join("victim"), root.join("shared")).unwrap();
    std::os::unix::fs::symlink("../victim", root.join("link")).unwrap();
    std::os::unix::fs::symlink("..", root.join("dirlink")).unwrap();
    target
        .unpack(&archive(&[
            file(b"file", b"new"),
            file(b"shared", b"new"),
            file(b"link", b"new"),
            file(b"empty", b"new"),
            member_with(b"dirlink/", EntryType::Directory, b"", b"", |h| {
                h.set_mode(0o700)
            }),
            file(b"dirlink/f", b"new"),
            member(b"full/", EntryType::Directory, b"", b""),
        ]))
        .unwrap();
    for name in ["file", "shared", "link", "empty", "dirlink/f"] {
        assert_eq!(std::fs::read(root.join(name)).unwrap(), b"new", "{name}");
        assert!(at(&target, name).is_file(), "{name}");
    }
    assert!(at(&target, "full/of").is_dir());
    target.assert_outside_untouched();
    let error = target.unpack(&archive(&[file(b"full", b"x")])).unwrap_err();
    assert!(
        error.to_string().contains("replacing a directory"),
        "{error}"
    );
}

#[test]
fn extended_attributes() {
    let target = Target::new();
    // Version 2, cap_net_raw permitted and effective; a newline in it on purpose (0x0a00).
    let capability: &[u8] = &[
        1, 0, 0, 2, 0, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    target
        .unpack(&archive(&[
            pax(&[
                ("SCHILY.xattr.security.capability", capability),
                ("SCHILY.xattr.user.note", b"a\nb=c"),
            ]),
            member_with(b"ping", EntryType::Regular, b"", b"x", |h| h.set_uid(7)),
            pax(&[("SCHILY.xattr.trusted.mark", b"dir")]),
            member(b"d/", EntryType::Directory, b"", b""),
            pax(&[("SCHILY.xattr.trusted.mark", b"link")]),
            member(b"l", EntryType::Symlink, b"nowhere", b""),
            file(b"plain", b""),
        ]))
        .unwrap();
    let get = |path: &str, name: &str| xattr(&target.root().join(path), name);
    assert_eq!(
        get("ping", "security.capability").as_deref(),
        Some(capability)
    );
    assert_eq!(get("ping", "user.note").as_deref(), Some(&b"a\nb=c"[..]));
    assert_eq!(get("d", "trusted.mark").as_deref(), Some(&b"dir"[..]));
    assert_eq!(get("l", "trusted.mark").as_deref(), Some(&b"link"[..]));
    assert_eq!(get("plain", "user.note"), None);
}

#[test]
fn labels_and_access_control_lists() {
    let target = Target::new();
    target
        .unpack(&archive(&[
            pax(&[(
                "SCHILY.acl.default",
                b"user::rwx,group:adm:r-x,group::r-x,mask::r-x,other::---",
            )]),
            member(b"d/", EntryType::Directory, b"", b""),
            pax(&[
                ("RHT.security.selinux", b"system_u:object_r:etc_t:s0"),
                (
                    "SCHILY.acl.access",
                    b"user::rw-\nuser:web:rw-\ngroup::r--\nmask::rw-\nother::---\n",
                ),
            ]),
            file(b"d/f", b"x"),
            // The names are the image's own, and come last.
            file(b"etc/passwd", b"web:x:990:990::/:\n"),
            file(b"etc/group", b"adm:x:4:\n"),
        ]))
        .unwrap();
    let get = |path: &str, name: &str| xattr(&target.root().join(path), name);
    let label = get("d/f", "security.selinux").unwrap();
    assert_eq!(label, b"system_u:object_r:etc_t:s0\0");
    let access = get("d/f", "system.posix_acl_access").unwrap();
    assert_eq!(access[12..20], [2, 0, 6, 0, 0xde, 3, 0, 0], "user 990");
    assert_eq!(at(&target, "d/f").mode() & 0o777, 0o660);
    let default = get("d", "system.posix_acl_default").unwrap();
    assert_eq!(default[20..28], [8, 0, 5, 0, 4, 0, 0, 0], "group 4");
    let unknown = archive(&[
        pax(&[(
            "SCHILY.acl.access",
            b"user::rw-,user:nobody-here:r--,group::r--,mask::r--,other::---",
        )]),
        file(b"f", b"x"),
    ]);
    let error = target.unpack(&unknown).unwrap_err().to_string();
    assert!(error.contains("nobody-here"), "{error}");
}

/// A file system of 1 MiB and one of a few inodes, in a mount namespace of this thread.
#[test]
fn a_full_disk_is_reported_with_numbers() {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};

    unshare(CloneFlags::CLONE_NEWNS).expect("this test needs root");
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let members = vec![
        file(b"a", &[7; 700_000]),
        file(b"b", &[7; 700_000]),
        file(b"c", b""),
    ];
    // Filled beside the unpacker, which goes on with the next ones meanwhile.
    let small: Vec<_> = (0..200)
        .map(|n| file(format!("small-{n}").as_bytes(), &[7; 60_000]))
        .collect();
    for (options, members, expected) in [
        ("size=1m", &members, "of 1048576 bytes 0 are free"),
        ("nr_inodes=3", &members, "of 3 inodes 0;"),
        ("size=1m", &small, "unpacking \"small-17\": write failed"),
    ] {
        let target = Target::new();
        mount(
            Some("tmpfs"),
            &target.root(),
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options),
        )
        .unwrap();
        let error = target.unpack(&archive(members)).unwrap_err();
        assert!(matches!(error, Error::DiskFull { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains(expected) && text.contains("bytes of the image"),
            "{text}"
        );
        assert!(!error.is_damage());
    }

    // A file system of its own is full; the unpacker is elsewhere by then.
    let target = Target::new();
    let boot = target.root().join("boot");
    std::fs::create_dir(&boot).unwrap();
    let (tmpfs, flags) = (Some("tmpfs"), MsFlags::empty());
    mount(tmpfs, &boot, tmpfs, flags, Some("size=1m")).unwrap();
    let below = |place: &str, count: usize| -> Vec<_> {
        let name = |n| format!("{place}/small-{n}");
        (0..count)
            .map(|n| file(name(n).as_bytes(), &[7; 60_000]))
            .collect()
    };
    let members = [below("boot", 18), below("etc", 100)].concat();
    let error = target.unpack(&archive(&members)).unwrap_err().to_string();
    assert!(
        error.contains("\"boot/small-17\"") && error.contains("of 1048576 bytes 0 are free"),
        "{error}"
    );
}

/// The same entry for ever.
struct Endless(Vec<u8>, usize);

impl std::io::Read for Endless {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        use std::io::BufRead;
        let count = self.fill_buf()?.read(into)?;
        self.consume(count);
        Ok(count)
    }
}

impl std::io::BufRead for Endless {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        Ok(&self.0[self.1..])
    }

    fn consume(&mut self, count: usize) {
        self.1 = (self.1 + count) % self.0.len();
    }
}

#[test]
fn a_small_file_that_fails_ends_it_at_once() {
    // Longer than any name in an xattr may be.
    let xattr = format!("SCHILY.xattr.user.{}", "n".repeat(300));
    let bad = [
        pax(&[(xattr.as_str(), &b"value"[..])]),
        file(b"bad", b"content"),
    ];
    // Fills the batch.
    let small = (0..40).map(|n| file(format!("small-{n}").as_bytes(), b"x"));
    let start: Vec<u8> = bad.into_iter().chain(small).flatten().collect();
    let endless = Endless(member(b"d", EntryType::Directory, b"", b""), 0);
    let target = Target::new();
    let root = RootDir::open(&target.root()).unwrap();
    let counters = Counters::default();
    let source = std::io::Read::chain(&start[..], endless);
    let Err(Stop::Failed(error)) = unpack(source, &root, &counters) else {
        panic!("it was unpacked");
    };
    assert!(error.to_string().contains("\"bad\""), "{error}");
    let entries = counters.entries.into_inner();
    assert!(entries < 1_000_000, "{entries} entries before it ended");
}

/// Their content comes later than their names, which the archive goes on with meanwhile.
#[test]
fn small_files_that_are_linked_and_replaced() {
    let mut members = Vec::new();
    for n in 0..500 {
        let content = vec![(n % 251) as u8; n * 7];
        members.push(file(format!("d/{n}").as_bytes(), &content));
        // Linked, and then replaced, while the thread has not filled it yet.
        if n % 5 == 0 {
            let (link, target) = (format!("link-{n}"), format!("d/{n}"));
            let (link, target) = (link.as_bytes(), target.as_bytes());
            members.push(member(link, EntryType::Link, target, b""));
            members.push(member(target, EntryType::Symlink, b"elsewhere", b""));
            members.push(file(target, b"the last one"));
        }
    }
    let target = Target::new();
    target.unpack(&archive(&members)).unwrap();
    for n in 0..500 {
        let content = vec![(n % 251) as u8; n * 7];
        let read = |name: String| std::fs::read(target.root().join(name)).unwrap();
        if n % 5 == 0 {
            assert_eq!(read(format!("link-{n}")), content, "{n}");
            assert_eq!(read(format!("d/{n}")), b"the last one", "{n}");
        } else {
            assert_eq!(read(format!("d/{n}")), content, "{n}");
        }
        let time = at(&target, &format!("d/{n}")).modified().unwrap();
        assert_eq!(
            time,
            std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000)
        );
    }
    target.assert_outside_untouched();
}

#[test]
fn long_names_of_both_kinds() {
    let target = Target::new();
    let deep = [b"deep/".repeat(40), b"file".to_vec()].concat();
    let name = [&deep[..], b"\0"].concat();
    target
        .unpack(&archive(&[
            member(b"././@LongLink", EntryType::GNULongName, b"", &name),
            file(b"short", b"gnu"),
            pax(&[("path", b"p/\xc3\xbcber"), ("linkpath", &deep)]),
            member(b"p/uber", EntryType::Link, b"", b""),
        ]))
        .unwrap();
    let text = String::from_utf8(deep).unwrap();
    assert_eq!(std::fs::read(target.root().join(&text)).unwrap(), b"gnu");
    assert_eq!(at(&target, "p/über").ino(), at(&target, &text).ino());
}

/// GNU tar's own archives, sparse files in both formats included.
#[test]
fn archives_of_gnu_tar() {
    let source = tempfile::tempdir().unwrap();
    let holes = std::fs::File::create(source.path().join("holes")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&holes, b"start", 0).unwrap();
    for part in 1..30_u64 {
        std::os::unix::fs::FileExt::write_all_at(&holes, &[part as u8; 5000], part << 20).unwrap();
    }
    holes.set_len(40 << 20).unwrap();
    std::fs::create_dir(source.path().join("sub")).unwrap();
    std::fs::write(source.path().join("sub/plain"), vec![3; 123_457]).unwrap();
    for format in ["gnu", "posix", "ustar"] {
        let output = Command::new("tar")
            .args(["-C", source.path().to_str().unwrap(), "-cf", "-"])
            .args(["--format", format, "-S", "."])
            .output()
            .unwrap();
        if format == "ustar" {
            // ustar knows no sparse files; GNU tar says so and writes none.
            assert!(!output.status.success());
            continue;
        }
        assert!(output.status.success(), "{format}");
        assert!(output.stdout.len() < 2 << 20, "{format}: tar made no holes");
        let target = Target::new();
        target.unpack(&output.stdout).unwrap();
        let equal = |name: &str| {
            let was = std::fs::read(source.path().join(name)).unwrap();
            was == std::fs::read(target.root().join(name)).unwrap()
        };
        assert!(equal("holes") && equal("sub/plain"), "{format}");
        assert!(
            at(&target, "holes").blocks() < 4 << 11,
            "{format}: no holes on disk"
        );
        let (was, is) = (
            symlink_metadata(source.path().join("holes")).unwrap(),
            at(&target, "holes"),
        );
        assert_eq!(was.mtime(), is.mtime(), "{format}");
    }
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    let name = std::ffi::CString::new(name).unwrap();
    let mut value = vec![0; 4096];
    // SAFETY: both strings end in a zero byte, and buffer and length belong together.
    let length = unsafe {
        libc::lgetxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    value.truncate(usize::try_from(length).ok()?);
    Some(value)
}
