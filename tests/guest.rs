//! Boots a QEMU guest with our kernel and runs `tests/in_guest` in it as root.

mod support;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use support::disk::{Bus, Disk, MIB};
use support::examine::examine;
use support::guest::{End, Guest};
use support::initrd::{built, newc};
use support::machine::{Machine, Start};
use support::media::{self, CONSOLE, NO_TIMER_CHECK};
use support::process::run;
use support::root;

/// What a tenant left in every sector.
const PATTERN: &[u8] = b"DATA OF A TENANT\n";

/// The media's initramfs followed by our own files: the kernel unpacks both, the later one wins.
fn initrd(dir: &Path) -> PathBuf {
    let ours = newc(&[
        // The agent stays /init, which is a command line where it is not PID 1.
        ("guest_init", built("--example", "guest_init")),
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

/// A directory for one guest's files, empty.
fn directory(name: &str) -> PathBuf {
    let dir = root().join("target/e2e").join(name);
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).expect("directory for the guest");
    dir
}

/// A machine that runs the tests which `words` on its command line let through.
fn machine(dir: &Path, words: &str, disks: Vec<Disk>) -> Machine {
    let start = Start::Direct {
        kernel: media::part("vmlinuz"),
        initrd: initrd(dir),
        append: format!("{CONSOLE} panic=-1 {NO_TIMER_CHECK} rdinit=/guest_init {words}"),
    };
    let mut machine = Machine::new(dir, "7f3ad6a2-6a2e-4d9c-9d0e-3c7a4a1b9f10", start, disks);
    machine.cards.clear();
    machine
}

fn power_on(machine: &Machine, dir: &Path) -> Guest {
    machine.power_on(Command::new("qemu-system-x86_64"), dir)
}

/// Waits for the end of the tests in the guest, all of which have to pass.
fn finish(mut guest: Guest, seconds: u64) {
    let exit = guest.wait_for("GUEST EXIT", seconds);
    let text = guest.text();
    let results: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("test ") || line.starts_with("test result:"))
        .collect();
    println!("{}", results.join("\n"));
    assert!(
        exit.trim().starts_with("GUEST EXIT 0 "),
        "tests failed in the guest"
    );
    // Not counted by test: the kernel's messages cut into those lines.
    let some_ran = results
        .iter()
        .any(|line| line.starts_with("test result: ok. ") && !line.contains(" ok. 0 passed"));
    assert!(some_ran, "no test ran in the guest");
    assert_eq!(guest.wait_end(30), End::PowerOff);
}

#[test]
fn in_guest_tests_pass() {
    let dir = directory("in_guest");
    let filter = std::env::var("METAL_ANVIL_GUEST_FILTER")
        .map(|filter| format!("guest.filter={filter} "))
        .unwrap_or_default();
    let disks = [
        (Bus::Virtio, "virtio"),
        (Bus::Sata, "sata"),
        (Bus::Scsi, "scsi"),
        (Bus::Nvme, "nvme"),
    ]
    .map(|(bus, name)| Disk::empty(&dir, name, bus, 256));
    let mut machine = machine(
        &dir,
        &format!("{filter}guest.skip=layouts:: guest.skip=wiping::"),
        disks.to_vec(),
    );
    // Room for the whole content of three disks, which is compared.
    machine.memory = 2048;
    finish(power_on(&machine, &dir), 600);
}

#[test]
fn each_layout_is_as_it_says_from_outside() {
    let dir = directory("layouts");
    let disks = [
        (Bus::Virtio, "virtio-a", 1024),
        (Bus::Virtio, "virtio-b", 1024),
        (Bus::Scsi, "scsi-a", 768),
        (Bus::Scsi, "scsi-b", 768),
        (Bus::Nvme4k, "nvme-a", 1024),
        (Bus::Nvme4k, "nvme-b", 1024),
    ]
    .map(|(bus, name, mib)| Disk::empty(&dir, name, bus, mib));
    // For what is being worked on: how its names begin.
    let only = std::env::var("METAL_ANVIL_LAYOUT").ok();
    let word = only
        .as_ref()
        .map_or(String::new(), |name| format!(" guest.layout={name}"));
    let words = format!("guest.filter=layouts::{word}");
    let machine = machine(&dir, &words, disks.to_vec());
    let mut guest = power_on(&machine, &dir);
    let mut names: Vec<String> = fs::read_dir(root().join("tests/layouts"))
        .expect("tests/layouts")
        .map(|entry| entry.expect("tests/layouts").file_name())
        .filter_map(|name| Some(name.to_str()?.strip_suffix(".json")?.to_owned()))
        .collect();
    names.sort();
    assert!(names.len() >= 14, "{names:?}");
    names.retain(|name| {
        only.as_ref()
            .is_none_or(|only| name.starts_with(only.as_str()))
    });
    for name in &names {
        let line = guest.wait_for_any(&["LAYOUT ", "GUEST EXIT"], 300);
        let (_, said) = line
            .split_once("LAYOUT ")
            .expect("the test in the guest failed");
        let mut words = said.split_whitespace();
        assert_eq!(words.next(), Some(name.as_str()), "{said}");
        // The serial number's last digit is the disk's place in our list.
        let known = words.filter_map(|word| {
            let (kernel_name, serial) = word.split_once('=')?;
            let index = serial.chars().last()?.to_digit(10)? as usize;
            Some((kernel_name.to_owned(), &machine.disks[index]))
        });
        let json = fs::read(root().join(format!("tests/layouts/{name}.json"))).expect("a layout");
        let layout = serde_json::from_slice(&json).expect("a layout is JSON");
        examine(&layout, known.collect());
        println!("{name}: as it says, {:?} after power-on", guest.age());
        guest.type_in("\n");
    }
    finish(guest, 60);
}

/// A place that the broken disk cannot write, in sectors.
const BAD_SECTOR: u64 = 100_000;

#[test]
fn nothing_of_a_tenant_is_left_after_a_secure_wipe() {
    let dir = directory("wiping");
    let full = |name: &str, bus: Bus| {
        let disk = Disk::empty(&dir, name, bus, 96);
        disk.fill(PATTERN);
        disk
    };
    let (sata, nvme) = (full("sata", Bus::Sata), full("nvme", Bus::Nvme));
    let [liar, protected, broken] =
        ["liar", "protected", "broken"].map(|name| full(name, Bus::Virtio));
    let key = dir.join("key");
    fs::write(&key, "a tenant's secret").expect("write the key");
    let mut luks = Command::new("cryptsetup");
    luks.args([
        "luksFormat",
        "--batch-mode",
        "--type=luks2",
        "--pbkdf=pbkdf2",
    ]);
    luks.args(["--pbkdf-force-iterations=1000", "--key-file"]);
    run(luks.arg(&key).arg(&nvme.path));
    let before = protected.hash();

    let mut machine = machine(
        &dir,
        "guest.filter=wiping::",
        vec![sata.clone(), nvme.clone()],
    );
    // Discards succeed and change nothing; writes fail; one place cannot be written by any means.
    let file = |disk: &Disk| disk.path.display().to_string();
    let errors: Vec<_> = ["write", "write-zeroes", "discard"]
        .map(|kind| json!({"event": "none", "iotype": kind, "sector": BAD_SECTOR, "errno": 5}))
        .to_vec();
    let node = json!({
        "driver": "raw", "node-name": "broken",
        "file": {"driver": "blkdebug", "inject-error": errors,
            "image": {"driver": "file", "filename": file(&broken), "discard": "unmap"}},
    });
    let node = node.to_string();
    let liar_drive = format!(
        "if=none,id=liar,format=raw,cache=unsafe,discard=ignore,file={}",
        file(&liar)
    );
    let protected_drive = format!(
        "if=none,id=protected,format=raw,readonly=on,file={}",
        file(&protected)
    );
    let cells = ["cell-root", "cell-data"].map(|name| Disk::empty(&dir, name, Bus::Virtio, 40));
    let cell_drives = [0, 1].map(|cell| {
        let options = "if=none,format=raw,cache=unsafe,discard=unmap";
        format!("{options},id=cell{cell},file={}", file(&cells[cell]))
    });
    let extra = [
        "-drive",
        &cell_drives[0],
        "-device",
        "virtio-blk-pci,drive=cell0,serial=cell-root",
        "-drive",
        &cell_drives[1],
        "-device",
        "virtio-blk-pci,drive=cell1,serial=cell-data",
        "-drive",
        &liar_drive,
        "-device",
        "virtio-blk-pci,drive=liar,serial=liar",
        "-drive",
        &protected_drive,
        "-device",
        "virtio-blk-pci,drive=protected,serial=protected",
        "-blockdev",
        &node,
        "-device",
        "virtio-scsi-pci,id=odd",
        "-device",
        "scsi-hd,bus=odd.0,drive=broken,serial=broken",
    ];
    machine.extra = extra.map(str::to_owned).to_vec();
    finish(power_on(&machine, &dir), 600);

    for disk in [&sata, &nvme, &liar] {
        assert_eq!(
            disk.places_of(PATTERN),
            [0_u64; 0],
            "in {}",
            disk.path.display()
        );
    }
    assert_eq!(
        protected.hash(),
        before,
        "a write-protected disk was written"
    );
    // All but the place that could not be written is gone, which is why the disk was reported.
    let bad = BAD_SECTOR * 512 / MIB;
    assert_eq!(broken.places_of(PATTERN), [bad]);
}
