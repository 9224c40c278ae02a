//! What the end-to-end tests have in common: the agent's words, the usual steps, the usual verdicts.

use crate::support::allocation::Allocation;
use crate::support::bed::Bed;
use crate::support::disk::{Bus, Disk};
use crate::support::guest::{End, Guest};
use crate::support::images::Image;
use crate::support::machine::{Machine, Start};
use crate::support::{loki, media};

/// What a failed boot says on the console, before the step and the cause.
pub const FAILED: &str = "FAILED: ";
/// Power-on to a registered machine that waits: firmware, kernel, SLAAC, LLDP, wipe; emulated.
pub const TO_WAITING: u64 = 180;
/// An allocation to the end of a small install.
pub const TO_INSTALLED: u64 = 180;
/// A failure to the reset.
pub const TO_RESET: u64 = 120;
/// The events of a good boot, in their legal order.
pub const GOOD: [&str; 5] = [
    "PREPARING",
    "REGISTERING",
    "WAITING",
    "INSTALLING",
    "BOOTING_NEW_KERNEL",
];
/// What stands on a used disk (`Disk::with_pattern`).
pub const PATTERN: &[u8] = b"DATA OF A TENANT";
/// MiB of the disks that tiny goes to.
pub const SMALL: u64 = 512;

/// A used disk on virtio, /dev/vda when it is the first.
pub fn used_disk(bed: &Bed, name: &str) -> Disk {
    Disk::with_pattern(&bed.dir, name, Bus::Virtio, SMALL)
}

/// Waits for the machine to wait, gives it the allocation and waits for the install to begin.
pub fn hand_out(bed: &Bed, allocation: &Allocation) {
    bed.standin
        .wait_event(&bed.machine, "WAITING", 1, TO_WAITING);
    bed.allocate(allocation);
}

/// Installs tiny on the first disk of `machine` and answers the guest once tiny has started by kexec.
pub fn install(bed: &Bed, machine: &Machine, allocation: &Allocation) -> Guest {
    let mut guest = bed.power_on(machine);
    hand_out(bed, allocation);
    guest.wait_for("TINY-OS BOOTED via kexec", TO_INSTALLED);
    guest
}

/// A fact that tiny printed: the first `TINY-OS NAME=` line's value.
pub fn fact(guest: &Guest, name: &str) -> String {
    let prefix = format!("TINY-OS {name}=");
    let text = guest.text();
    text.lines()
        .find_map(|line| line.strip_prefix(prefix.as_str()))
        .unwrap_or_else(|| panic!("tiny printed no fact {name}"))
        .to_owned()
}

/// Nothing that machine or helper sent was refused by the stand-in.
pub fn assert_nothing_refused(bed: &Bed) {
    let refusals = bed.standin.refusals();
    assert!(refusals.is_empty(), "the apiserver refused: {refusals:#?}");
}

/// The infra token, the machine's tokens and the console password are in no log of this test.
pub fn assert_no_secret_in_logs(bed: &Bed) {
    let infra = std::fs::read_to_string(bed.dir.join("infra-token")).expect("own token");
    for needle in [
        infra.trim(),
        "machine-secret-",
        "standin-superuser",
        loki::PASSWORD,
    ] {
        for entry in std::fs::read_dir(&bed.dir)
            .expect("own directory")
            .flatten()
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            let log = [".log", ".console", "loki.json"]
                .iter()
                .any(|end| name.ends_with(end));
            if !log {
                continue;
            }
            let bytes = std::fs::read(entry.path()).expect("own log");
            let found = bytes.windows(needle.len()).any(|w| w == needle.as_bytes());
            assert!(!found, "a secret ({}...) is in {name}", &needle[..8]);
        }
    }
}

/// The failure is one console line with every word of `wanted`, the CRASHED event says the same, and
/// the machine reboots.
pub fn assert_crash(bed: &Bed, mut guest: Guest, wanted: &[&str], seconds: u64) {
    let line = guest.wait_for(FAILED, seconds);
    for word in wanted {
        assert!(
            line.contains(word),
            "{word:?} is not in the console's {line:?}"
        );
    }
    let message = bed.standin.wait_event(&bed.machine, "CRASHED", 1, 30);
    for word in wanted {
        assert!(
            message.contains(word),
            "{word:?} is not in the event's {message:?}"
        );
    }
    assert_eq!(
        guest.wait_end(TO_RESET),
        End::Reset,
        "a failure ends in a reboot"
    );
    assert!(
        !guest.text().contains("TINY-OS BOOTED"),
        "a failed install was booted"
    );
    let succeeded = bed
        .standin
        .record()
        .iter()
        .any(|l| l["method"] == "InstallationSucceeded");
    assert!(!succeeded, "a failed install was reported as done");
}

/// A bed with one used disk, one allocation of `image`, and the crash that must follow once the
/// install has begun: no boot, and no boot entry that the next power-on would follow.
pub fn crash_of_image(name: &str, image: &Image, wanted: &[&str]) {
    let bed = Bed::plan(name).start();
    let machine = bed.machine(media::agent(), vec![used_disk(&bed, "disk")]);
    let url = bed.publish("broken", image);
    let guest = bed.power_on(&machine);
    hand_out(&bed, &Allocation::new(&url, "/dev/vda"));
    assert_crash(&bed, guest, wanted, TO_INSTALLED);
    // What the firmware finds afterwards: nothing to boot. 40 s are enough for OVMF to give up.
    let mut after = bed.machine(Start::Disks, machine.disks.clone());
    after.name = "after".to_owned();
    after.cards.clear();
    let mut second = bed.power_on(&after);
    let said = second.wait_for_any(
        &[
            "TINY-OS BOOTED",
            "BdsDxe: No bootable option",
            "UEFI Interactive Shell",
        ],
        90,
    );
    assert!(
        !said.contains("TINY-OS"),
        "the firmware boots a failed install: {said}"
    );
}

/// An allocation made later than any Register, given before power-on: it is checked before the first
/// write. The crash must come, and the disks must be as they were.
pub fn crash_before_the_first_write(
    name: &str,
    disks: &[&str],
    edit: impl Fn(Allocation) -> Allocation,
    wanted: &[&str],
) {
    let bed = Bed::plan(name).start();
    let disks: Vec<Disk> = disks.iter().map(|disk| used_disk(&bed, disk)).collect();
    let before: Vec<String> = disks.iter().map(Disk::hash).collect();
    let url = bed.publish("tiny", &Image::built("tiny"));
    bed.allocate(&edit(Allocation::new(&url, "/dev/vda").fresh()));
    let guest = bed.power_on(&bed.machine(media::agent(), disks.clone()));
    assert_crash(&bed, guest, wanted, TO_WAITING);
    let after: Vec<String> = disks.iter().map(Disk::hash).collect();
    assert_eq!(
        before, after,
        "a disk was written before the failure was known"
    );
}

/// The memory of the installed system holds none of the secrets of the boot that installed it.
pub fn assert_no_secret_in_memory(bed: &Bed, guest: &Guest) {
    let dump = bed.dir.join("memory");
    guest.dump_memory(&dump);
    let found = |text: &str| {
        let mut grep = std::process::Command::new("grep");
        let grep = grep
            .args(["--text", "--count", "--fixed-strings", text])
            .arg(&dump);
        let output = grep.env("LC_ALL", "C").output().expect("grep");
        String::from_utf8_lossy(&output.stdout).trim() != "0"
    };
    // What surely is in it: the search works.
    assert!(found("TINY-OS DONE"), "the dump holds no memory");
    for secret in [
        "machine-secret-",
        "standin-superuser",
        loki::PASSWORD,
        "bG9nZ2VyOm",
    ] {
        assert!(
            !found(secret),
            "{secret}... is in the memory of the installed system"
        );
    }
    std::fs::remove_file(&dump).expect("own dump");
}
