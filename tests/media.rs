//! `scripts/iso-config` on ISOs of `scripts/build-iso`, on the host. Kernel and initramfs are
//! stand-ins here: a region is the same beside any of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use metal_anvil::config::{digest, file};

fn script(name: &str, arguments: &[&str]) -> Output {
    Command::new(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("scripts")
            .join(name),
    )
    .args(arguments)
    .output()
    .unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn good(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a failed run said.
fn refused(output: &Output) -> String {
    assert!(!output.status.success(), "this should have been refused");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        desk.write("kernel", &[0x4b; 70_000]);
        desk.write("initrd", &[0x49; 50_000]);
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn write(&self, name: &str, data: &[u8]) -> String {
        fs::write(self.path(name), data).unwrap();
        self.text(name)
    }

    fn iso(&self, name: &str, more: &[&str]) -> String {
        let (kernel, initrd, iso) = (self.text("kernel"), self.text("initrd"), self.text(name));
        let mut arguments = vec!["--kernel", &kernel, "--initrd", &initrd, "--output", &iso];
        arguments.extend(more);
        good(&script("build-iso", &arguments));
        iso
    }

    /// A file of the ISO, by another program than the one under test.
    fn extract(&self, iso: &str, file: &str) -> Vec<u8> {
        let out = self.path("extracted");
        let _ = fs::remove_file(&out);
        let done = Command::new("xorriso")
            .args(["-osirrox", "on", "-indev", iso, "-extract", file])
            .arg(&out)
            .output()
            .unwrap();
        good(&done);
        fs::read(out).unwrap()
    }
}

#[test]
fn a_config_goes_into_a_finished_iso_and_nothing_else_changes() {
    let desk = Desk::new();
    let json = desk.write(
        "site.json",
        br#"{"boot_helper_url": "http://[2001:db8::1]:4242", "partition": "fra"}"#,
    );
    for more in [&[][..], &["--uki"]] {
        let iso = desk.iso("base.iso", more);
        let base = fs::read(&iso).unwrap();
        assert_eq!(good(&script("iso-config", &["--show", &iso])), "{}\n");

        let start = Instant::now();
        good(&script("iso-config", &[&iso, &json]));
        // 1 s on an idle machine, that of the tests is not.
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{:?}",
            start.elapsed()
        );
        let shown = good(&script("iso-config", &["--show", &iso]));
        assert_eq!(shown.trim_end(), fs::read_to_string(&json).unwrap());

        // The file system shows the same; the agent reads and accepts it.
        let region = desk.extract(&iso, "/boot/metal.config");
        let line = desk.extract(&iso, "/boot/metal.config.sha256");
        digest::check(&region, &line).unwrap();
        let (layer, problems) = file::parse(&region).unwrap();
        assert_eq!(
            (layer.partition.as_deref(), problems),
            (Some("fra"), vec![])
        );

        // Outside of the two files every byte is as it was.
        let after = fs::read(&iso).unwrap();
        assert_eq!(base.len(), after.len());
        let changed: Vec<usize> = (0..base.len())
            .filter(|&at| base[at] != after[at])
            .collect();
        let region_at = after
            .windows(16)
            .position(|bytes| bytes == &region[..16])
            .unwrap();
        let line_at = after
            .windows(line.len())
            .position(|bytes| bytes == line)
            .unwrap();
        for at in changed {
            let inside = (region_at..region_at + region.len()).contains(&at)
                || (line_at..line_at + line.len()).contains(&at);
            assert!(inside, "byte {at} changed");
        }
        // A build with the file gives what a build and an injection give, and an empty
        // object leads back to the base.
        let mut with = more.to_vec();
        with.extend(["--config", &json]);
        assert!(
            fs::read(desk.iso("built.iso", &with)).unwrap() == after,
            "two ways, two ISOs"
        );
        let empty = desk.write("empty.json", b" {} \n\n");
        good(&script("iso-config", &[&iso, &empty]));
        assert!(
            fs::read(&iso).unwrap() == base,
            "the way back leads elsewhere"
        );
    }
}

#[test]
fn the_largest_config_fits_and_a_byte_more_does_not() {
    let desk = Desk::new();
    let iso = desk.iso("base.iso", &[]);
    // The line end behind it is part of the region.
    let of = |bytes: usize| format!(r#"{{"a": "{}"}}"#, "x".repeat(bytes - 9)).into_bytes();
    let largest = desk.write("largest.json", &of(file::MAX_BYTES - 1));
    good(&script("iso-config", &[&iso, &largest]));
    let region = desk.extract(&iso, "/boot/metal.config");
    file::parse(&region).unwrap();
    let before = fs::read(&iso).unwrap();
    for (name, data, word) in [
        ("longer.json", of(file::MAX_BYTES), "65537 bytes"),
        ("list.json", b"[1]".to_vec(), "found list"),
        (
            "broken.json",
            b"{\"a\": }".to_vec(),
            "not JSON: Expecting value",
        ),
        ("nan.json", b"{\"a\": NaN}".to_vec(), "NaN is not JSON"),
        ("binary.json", b"\xff\xfe{}".to_vec(), "not JSON"),
        ("empty.json", Vec::new(), "not JSON"),
    ] {
        let path = desk.write(name, &data);
        let said = refused(&script("iso-config", &[&iso, &path]));
        assert!(said.contains(word) && said.contains(name), "{said}");
    }
    assert!(
        fs::read(&iso).unwrap() == before,
        "a refusal wrote something"
    );
}

#[test]
fn what_has_no_region_is_refused() {
    let desk = Desk::new();
    let json = desk.write("site.json", b"{}");
    let no_iso = desk.write("zeros", &[0; 100_000]);
    let ipxe = desk.iso("ipxe.iso", &["--ipxe", "http://[2001:db8::1]:4242"]);
    // As an operator replaces it without the script: xorriso drops the directory that is looked through.
    let iso = desk.iso("base.iso", &[]);
    let other = desk.text("other.iso");
    let done = Command::new("xorriso")
        .args([
            "-indev",
            &iso,
            "-outdev",
            &other,
            "-boot_image",
            "any",
            "replay",
        ])
        .args(["-update", &json, "/boot/metal.config"])
        .output()
        .unwrap();
    good(&done);
    for (medium, word) in [
        (&no_iso, "no Joliet directory"),
        (&ipxe, "--ipxe"),
        (&other, "another program has written it anew"),
    ] {
        for arguments in [[medium.as_str(), &json], ["--show", medium]] {
            let said = refused(&script("iso-config", &arguments));
            assert!(said.contains(word), "{medium}: {said}");
        }
    }
}

#[test]
fn a_damaged_region_is_shown_as_such() {
    let desk = Desk::new();
    let iso = desk.iso("base.iso", &[]);
    let mut bytes = fs::read(&iso).unwrap();
    let region = desk.extract(&iso, "/boot/metal.config");
    let at = bytes
        .windows(region.len())
        .position(|window| window == region)
        .unwrap();
    bytes[at + 5000] = b'\n';
    fs::write(&iso, bytes).unwrap();
    let said = refused(&script("iso-config", &["--show", &iso]));
    assert!(
        said.contains("does not fit boot/metal.config.sha256"),
        "{said}"
    );
    let region = desk.extract(&iso, "/boot/metal.config");
    let line = desk.extract(&iso, "/boot/metal.config.sha256");
    let error = digest::check(&region, &line).unwrap_err().to_string();
    assert!(error.contains("damaged"), "{error}");
}

#[test]
fn services_are_kept_from_starting_for_a_moment_only() {
    let desk = Desk::new();
    let policy = desk.path("policy-rc.d");
    let shell = |command: &str| {
        let script = format!(
            "set -euo pipefail; source scripts/lib.sh; work() {{ test -x '{0}' && '{0}' || \
             echo \"says $?\"; {command}; }}; without_services work",
            policy.display()
        );
        // What ignores Ctrl-C, as a background job does, hands that on; a shell cannot undo it.
        let output = Command::new("env")
            .args(["--default-signal=INT", "bash", "-c", &script])
            .env("METAL_ANVIL_POLICY_RC_D", &policy)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    };
    // Only root installs packages, and keeps services down meanwhile.
    // SAFETY: a system call that cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    let said = if root { "says 101\n" } else { "says 1\n" };
    for (command, code) in [
        ("true", 0),
        ("false", 1),
        ("die no such package", 1),
        ("kill -INT $BASHPID", 130),
        ("kill -TERM $BASHPID", 143),
    ] {
        assert_eq!(shell(command), (Some(code), said.to_owned()), "{command}");
        assert!(!policy.exists(), "left behind by {command}");
    }
    // One that somebody else made stays.
    desk.write("policy-rc.d", b"theirs");
    shell("true");
    assert_eq!(fs::read(&policy).unwrap(), b"theirs");
}
