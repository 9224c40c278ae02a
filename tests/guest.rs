//! Boots a QEMU guest with our kernel and runs `tests/in_guest` in it as root.

mod support;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::disk::{Bus, Disk};
use support::guest::{End, Machine, Start};
use support::initrd::{built, newc};
use support::media::{self, CONSOLE};
use support::root;

/// The media's initramfs followed by our own files: the kernel unpacks both, the later one wins.
fn initrd(dir: &Path) -> PathBuf {
    let ours = newc(&[
        ("init", built("--example", "guest_init")),
        ("in_guest", built("--test", "in_guest")),
    ]);
    let path = dir.join("initrd");
    let mut bytes = fs::read(media::part("initrd.img")).expect("media's initramfs");
    // An archive that follows a compressed one starts at a multiple of four bytes.
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.write_all(&ours).expect("append in memory");
    fs::write(&path, bytes).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
    path
}

#[test]
fn in_guest_tests_pass() {
    let dir = root().join("target/e2e/in_guest");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).expect("directory for the guest");
    let filter = std::env::var("METAL_ANVIL_GUEST_FILTER")
        .map(|filter| format!(" guest.filter={filter}"))
        .unwrap_or_default();
    let start = Start::Direct {
        kernel: media::part("vmlinuz"),
        initrd: initrd(&dir),
        append: format!("{CONSOLE} panic=-1{filter}"),
    };
    let disks = [
        (Bus::Virtio, "virtio"),
        (Bus::Sata, "sata"),
        (Bus::Scsi, "scsi"),
        (Bus::Nvme, "nvme"),
    ]
    .map(|(bus, name)| Disk::empty(&dir, name, bus, 256));
    let mut machine = Machine::new(
        &dir,
        "7f3ad6a2-6a2e-4d9c-9d0e-3c7a4a1b9f10",
        start,
        disks.to_vec(),
    );
    machine.cards.clear();
    let mut guest = machine.power_on(Command::new("qemu-system-x86_64"), &dir);
    let exit = guest.wait_for("GUEST EXIT", 420);
    let text = guest.text();
    let results: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("test ") || line.starts_with("test result:"))
        .collect();
    println!("{}", results.join("\n"));
    assert_eq!(exit.trim(), "GUEST EXIT 0", "tests failed in the guest");
    let passed = results
        .iter()
        .filter(|line| line.starts_with("test ") && line.ends_with(" ok"))
        .count();
    assert!(passed > 0, "no test ran in the guest");
    assert_eq!(guest.wait_end(30), End::PowerOff);
}
