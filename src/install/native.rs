//! What the agent does itself when neither image nor boot helper brings an installer: host
//! name, ssh keys, a fresh machine id, and boot-info for the newest kernel in `/boot`.

use std::cmp::Ordering;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::json;
use uuid::Uuid;

use super::boot_info;
use super::error::Error;
use super::files::to_yaml;
use crate::image::root::{Links, RootDir};

/// Files of the target that are changed rather than replaced are small.
const MAX_FILE: u64 = 1024 * 1024;
/// More names in `/boot` than any system has.
const MAX_NAMES: usize = 10_000;
/// `HOST_NAME_MAX` of `linux/limits.h`.
const MAX_HOST_NAME: usize = 64;

/// What goes into the system.
pub struct Facts<'a> {
    pub hostname: &'a str,
    /// One `authorized_keys` line each.
    pub ssh_public_keys: &'a [String],
    /// UUID of the root file system.
    pub root_uuid: &'a str,
    /// GUID of the partition that it is on: all that a kernel without an initrd can find.
    pub root_partition: Option<Uuid>,
    /// `ttyS0,115200n8`, from [`super::files::serial_console`].
    pub console: Option<&'a str>,
}

/// Writes everything but `/etc/fstab`, which storage renders
/// ([`super::files::write_fstab`]).
///
/// # Errors
/// A fact that cannot be written, a file that cannot, or no kernel in `/boot`.
pub fn configure(root: &RootDir, facts: &Facts<'_>) -> Result<(), Error> {
    let put = |path: &str, content: &str, mode| {
        root.write(Path::new(path), content.as_bytes(), mode)
            .map_err(Error::file(path, "write"))
    };
    check_host_name(facts.hostname)?;
    put("/etc/hostname", &format!("{}\n", facts.hostname), 0o644)?;
    put(
        "/etc/hosts",
        &hosts(&read_or_empty(root, "/etc/hosts")?, facts.hostname),
        0o644,
    )?;
    if let Some(keys) = authorized_keys(facts.ssh_public_keys)? {
        private_directory(root, "/root/.ssh")?;
        put("/root/.ssh/authorized_keys", &keys, 0o600)?;
    }
    // Empty: systemd makes a new one at the first boot (machine-id(5)).
    put("/etc/machine-id", "", 0o444)?;
    let dbus = "/var/lib/dbus/machine-id";
    let linked = root
        .is_symlink(Path::new(dbus))
        .map_err(Error::file(dbus, "stat"))?;
    if !linked {
        // dbus makes it again from /etc/machine-id; an empty one would stop it.
        root.remove(Path::new(dbus))
            .map_err(Error::file(dbus, "remove"))?;
    }
    let info = boot_info_yaml(root, facts)?;
    put(boot_info::PATH, &info, 0o644)
}

fn boot_info_yaml(root: &RootDir, facts: &Facts<'_>) -> Result<String, Error> {
    let names = root
        .names(Path::new("/boot"), MAX_NAMES)
        .map_err(Error::file("/boot", "list"))?;
    let names: Vec<&str> = names.iter().filter_map(|name| name.to_str()).collect();
    let Some((kernel, initrd)) = newest_kernel(&names) else {
        return Err(Error::content(
            "/boot",
            "there is no vmlinuz-<version> and no vmlinuz; the image has to bring a kernel or an installer",
        ));
    };
    // UUID= is resolved by an initrd's programs, PARTUUID= by the kernel itself
    // (Documentation/admin-guide/kernel-parameters.txt, root=).
    let mut command_line = match (initrd, facts.root_partition) {
        (None, Some(guid)) => format!("root=PARTUUID={guid} rootwait ro"),
        _ => format!("root=UUID={} ro", facts.root_uuid),
    };
    if let Some(console) = facts.console {
        command_line.push_str(&format!(" console=tty0 console={console}"));
    }
    let release = read_or_empty(root, "/etc/os-release")?;
    let info = json!({
        "initrd": initrd.map(|name| format!("/boot/{name}")).unwrap_or_default(),
        "cmdline": command_line,
        "kernel": format!("/boot/{kernel}"),
        "bootloader_id": os_id(&release).unwrap_or("metal"),
    });
    to_yaml(boot_info::PATH, &info)
}

/// The newest kernel among the names in `/boot`, and the initrd made for it.
fn newest_kernel<'a>(names: &[&'a str]) -> Option<(&'a str, Option<&'a str>)> {
    let has = |wanted: &str| names.iter().copied().find(|name| *name == wanted);
    let version = names
        .iter()
        .filter_map(|name| name.strip_prefix("vmlinuz-"))
        // Red Hat's rescue image and leftovers of package managers are no choice to boot.
        .filter(|version| {
            !version.contains("rescue")
                && ![".old", ".bak", ".dpkg-new", ".dpkg-tmp", ".hmac"]
                    .iter()
                    .any(|end| version.ends_with(end))
        })
        .max_by(|a, b| compare_versions(a, b));
    let (kernel, initrds) = match version {
        Some(version) => (
            has(&format!("vmlinuz-{version}"))?,
            [
                format!("initrd.img-{version}"),
                format!("initramfs-{version}.img"),
                format!("initramfs-{version}"),
                format!("initrd-{version}"),
            ],
        ),
        None => (
            has("vmlinuz")?,
            ["initrd.img", "initramfs.img", "initramfs", "initrd"].map(str::to_owned),
        ),
    };
    Some((kernel, initrds.iter().find_map(|name| has(name))))
}

/// Runs of digits compare as numbers, everything else as text; `~` sorts before the end, as
/// in Debian's versions, and so does the kernel's own `-rc`.
fn compare_versions(a: &str, b: &str) -> Ordering {
    let (a, b) = (a.replace("-rc", "~rc"), b.replace("-rc", "~rc"));
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    let rank = |next: Option<&u8>| match next {
        Some(b'~') => 0,
        None => 1,
        Some(_) => 2,
    };
    loop {
        if let (Some(b'0'..=b'9'), Some(b'0'..=b'9')) = (a.first(), b.first()) {
            let (number_a, rest_a) = split_number(a);
            let (number_b, rest_b) = split_number(b);
            let by_value = (number_a.len(), number_a).cmp(&(number_b.len(), number_b));
            if by_value != Ordering::Equal {
                return by_value;
            }
            (a, b) = (rest_a, rest_b);
            continue;
        }
        match (a.first(), b.first()) {
            (None, None) => return Ordering::Equal,
            (Some(x), Some(y)) if x == y => (a, b) = (&a[1..], &b[1..]),
            (x, y) => return rank(x).cmp(&rank(y)).then(x.cmp(&y)),
        }
    }
}

/// The digits at the start, leading zeros removed, and what follows.
fn split_number(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text
        .iter()
        .position(|b| !b.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    let zeros = digits.iter().take_while(|&&b| b == b'0').count();
    (&digits[zeros..], rest)
}

/// RFC 1123 labels; a dot between them is allowed, as `hostname(7)` has it.
fn check_host_name(name: &str) -> Result<(), Error> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() <= MAX_HOST_NAME && name.split('.').all(label) {
        return Ok(());
    }
    Err(Error::Fact {
        what: "the allocation's hostname",
        reason: format!("{name:?} is no host name (letters, digits, hyphens, at most 64)"),
    })
}

/// `/etc/hosts` with a line for the machine's own name.
fn hosts(before: &str, hostname: &str) -> String {
    let named = before
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default())
        .any(|line| {
            line.split_ascii_whitespace()
                .skip(1)
                .any(|name| name == hostname)
        });
    let mut text = if before.trim().is_empty() {
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned()
    } else {
        before.to_owned()
    };
    if !named {
        if !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&format!("127.0.1.1\t{hostname}\n"));
    }
    text
}

fn authorized_keys(keys: &[String]) -> Result<Option<String>, Error> {
    let mut text = String::new();
    for key in keys
        .iter()
        .map(|key| key.trim())
        .filter(|key| !key.is_empty())
    {
        if key.chars().any(|c| c.is_control() && c != '\t') {
            return Err(Error::Fact {
                what: "the allocation's sshPublicKeys",
                reason: "a key holds a line break or another control character".to_owned(),
            });
        }
        text.push_str(key);
        text.push('\n');
    }
    Ok((!text.is_empty()).then_some(text))
}

fn private_directory(root: &RootDir, path: &str) -> Result<(), Error> {
    root.make_dirs(Path::new(path), Links::Contain)
        .map_err(|errno| Error::file(path, "mkdir")(errno.into()))?;
    let flags = nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_DIRECTORY;
    let fd = root
        .lookup(Path::new(path), flags, Links::Contain)
        .map_err(|errno| Error::file(path, "open")(errno.into()))?;
    std::fs::File::from(fd)
        .set_permissions(std::fs::Permissions::from_mode(0o700))
        .map_err(Error::file(path, "chmod"))
}

fn read_or_empty(root: &RootDir, path: &str) -> Result<String, Error> {
    match root.read(Path::new(path), MAX_FILE) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(Error::file(path, "read")(error)),
    }
}

/// `ID=` of os-release(5), when it is what the manual page allows.
fn os_id(release: &str) -> Option<&str> {
    let value = release.lines().find_map(|line| line.strip_prefix("ID="))?;
    let id = value.trim().trim_matches(['"', '\'']);
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    let fits = (1..=32).contains(&id.len()) && !id.starts_with('.') && id.bytes().all(allowed);
    fits.then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_ascend() {
        let ascending = [
            "5.10.0-9-amd64",
            "5.10.0-28-amd64",
            "6.1-rc3",
            "6.1",
            "6.1.0-9-amd64",
            "6.1.0-21-amd64",
            "6.1.10",
            "6.12.0~rc1",
            "6.12.0",
            "6.12.0-1.el10.x86_64",
            "10.0",
        ];
        for (i, a) in ascending.iter().enumerate() {
            for (j, b) in ascending.iter().enumerate() {
                assert_eq!(compare_versions(a, b), i.cmp(&j), "{a} {b}");
            }
        }
        assert_eq!(compare_versions("6.01", "6.1"), Ordering::Equal);
    }

    #[test]
    fn kernels_and_their_initrds() {
        for (names, expected) in [
            (
                &[
                    "vmlinuz-6.1.0-9",
                    "vmlinuz-6.1.0-21",
                    "initrd.img-6.1.0-9",
                    "initrd.img-6.1.0-21",
                ][..],
                Some(("vmlinuz-6.1.0-21", Some("initrd.img-6.1.0-21"))),
            ),
            (
                &[
                    "vmlinuz-5.14",
                    "initramfs-5.14.img",
                    "vmlinuz-0-rescue-abc",
                    "config-9",
                ],
                Some(("vmlinuz-5.14", Some("initramfs-5.14.img"))),
            ),
            (
                &["vmlinuz-6.2.old", "vmlinuz-6.1"],
                Some(("vmlinuz-6.1", None)),
            ),
            (
                &["vmlinuz", "initrd.img"],
                Some(("vmlinuz", Some("initrd.img"))),
            ),
            (&["vmlinuz", "vmlinuz-6.1"], Some(("vmlinuz-6.1", None))),
            (&["grub", "System.map-6.1"], None),
            (&[], None),
        ] {
            assert_eq!(newest_kernel(names), expected, "{names:?}");
        }
    }

    #[test]
    fn host_names_and_hosts() {
        for good in ["a", "web-1", "web-1.example.org", &"a".repeat(63)] {
            check_host_name(good).unwrap();
        }
        for bad in [
            "",
            "-a",
            "a-",
            "a..b",
            "a b",
            "a\nb",
            "ü",
            &"a".repeat(64),
            &"a.".repeat(40),
        ] {
            assert!(check_host_name(bad).is_err(), "{bad:?}");
        }
        assert_eq!(hosts("::1 localhost", "h"), "::1 localhost\n127.0.1.1\th\n");
        assert_eq!(hosts("::1 h # x\n", "h"), "::1 h # x\n");
        assert!(hosts("# ::1 h\n", "h").ends_with("127.0.1.1\th\n"));
        assert!(hosts("", "h").starts_with("127.0.0.1\tlocalhost\n"));
    }

    #[test]
    fn ids_of_distributions() {
        assert_eq!(os_id("NAME=x\nID=debian\nVERSION_ID=12\n"), Some("debian"));
        assert_eq!(os_id("ID=\"almalinux\"\n"), Some("almalinux"));
        for bad in ["", "ID=\n", "ID=../x\n", "ID=A B\n", "VERSION_ID=12\n"] {
            assert_eq!(os_id(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_system_is_configured() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootDir::open(dir.path()).unwrap();
        for (path, content) in [
            ("/boot/vmlinuz-6.1.0-9-amd64", "MZ"),
            ("/boot/initrd.img-6.1.0-9-amd64", "x"),
            ("/usr/lib/os-release", "ID=debian\n"),
            ("/etc/machine-id", "0123\n"),
            ("/var/lib/dbus/machine-id", "0123\n"),
        ] {
            root.write(Path::new(path), content.as_bytes(), 0o644)
                .unwrap();
        }
        let at = |path: &str| dir.path().join(path);
        std::os::unix::fs::symlink("../usr/lib/os-release", at("etc/os-release")).unwrap();
        let keys = [
            "ssh-ed25519 AAAA a".to_owned(),
            String::new(),
            "ssh-rsa B\n".to_owned(),
        ];
        let facts = Facts {
            hostname: "web-1",
            ssh_public_keys: &keys,
            root_uuid: "9e2f-01",
            root_partition: Some(Uuid::from_u128(7)),
            console: Some("ttyS0,115200n8"),
        };
        configure(&root, &facts).unwrap();
        let read = |path: &str| std::fs::read_to_string(at(path)).unwrap();
        let mode = |path: &str| std::fs::metadata(at(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(read("etc/hostname"), "web-1\n");
        assert_eq!(
            read("root/.ssh/authorized_keys"),
            "ssh-ed25519 AAAA a\nssh-rsa B\n"
        );
        assert_eq!(
            (mode("root/.ssh"), mode("root/.ssh/authorized_keys")),
            (0o700, 0o600)
        );
        assert_eq!(read("etc/machine-id"), "");
        assert!(!at("var/lib/dbus/machine-id").exists());
        let info = boot_info::read(&root).unwrap();
        assert_eq!(info.kernel_path, "/boot/vmlinuz-6.1.0-9-amd64");
        assert!(info.initrd.is_some());
        assert_eq!(info.bootloader_id.as_deref(), Some("debian"));
        assert_eq!(
            info.command_line,
            "root=UUID=9e2f-01 ro console=tty0 console=ttyS0,115200n8"
        );

        // Without an initrd the kernel finds the root by its partition alone.
        root.remove(Path::new("/boot/initrd.img-6.1.0-9-amd64"))
            .unwrap();
        configure(&root, &facts).unwrap();
        let alone = boot_info::read(&root).unwrap().command_line;
        assert!(
            alone.starts_with("root=PARTUUID=00000000-0000-0000-0000-000000000007 rootwait ro "),
            "{alone}"
        );

        // Again, with dbus' file linked, as Debian has it: the link stays.
        std::os::unix::fs::symlink("/etc/machine-id", at("var/lib/dbus/machine-id")).unwrap();
        configure(&root, &facts).unwrap();
        assert!(
            std::fs::symlink_metadata(at("var/lib/dbus/machine-id"))
                .unwrap()
                .is_symlink()
        );
    }

    #[test]
    fn what_cannot_be_configured() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootDir::open(dir.path()).unwrap();
        let try_it = |hostname: &str, key: &str| {
            let facts = Facts {
                hostname,
                ssh_public_keys: &[key.to_owned()],
                root_uuid: "u",
                root_partition: None,
                console: None,
            };
            configure(&root, &facts).unwrap_err().to_string()
        };
        assert!(try_it("a b", "k").contains("hostname"));
        assert!(try_it("a", "k\ncommand=x k").contains("sshPublicKeys"));
        assert!(try_it("a", "k").contains("vmlinuz"));
    }
}
