//! Ordered re-installs: cut at any moment, and with disks that change places in between. What is on
//! the data disks must be the same afterwards, bit by bit.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::common::*;
use crate::support::allocation::Allocation;
use crate::support::bed::Bed;
use crate::support::disk::{Bus, Disk, MIB};
use crate::support::guest::{End, Guest};
use crate::support::images::Image;
use crate::support::machine::{Machine, Start};
use crate::support::media;

/// A machine with tiny on /dev/vda and disks full of a tenant's data behind it, each with a serial
/// number of its own wherever it is plugged in, and the order to install again.
struct Installed {
    bed: Bed,
    machine: Machine,
    /// From the journal's `installing` to the kexec.
    took: Duration,
}

impl Installed {
    fn new(name: &str, data: &[&str]) -> Self {
        let bed = Bed::plan(name).start();
        let mut disks = vec![used_disk(&bed, "root")];
        disks.extend(
            data.iter()
                .map(|name| Disk::empty(&bed.dir, name, Bus::Virtio, 96)),
        );
        for (disk, serial) in disks.iter_mut().zip(["root"].iter().chain(data)) {
            disk.serial = Some((*serial).to_owned());
        }
        let mut machine = bed.machine(media::agent(), disks);
        let url = bed.publish("tiny", &Image::built("tiny"));
        let allocation = Allocation::new(&url, "/dev/vda");
        let mut guest = bed.power_on(&machine);
        hand_out(&bed, &allocation);
        guest.wait_for("journal=installing ", TO_INSTALLED);
        let begun = Instant::now();
        guest.wait_for("TINY-OS BOOTED via kexec", TO_INSTALLED);
        let took = begun.elapsed();
        assert_eq!(guest.wait_end(90), End::PowerOff);
        for (disk, number) in machine.disks[1..].iter().zip(1..) {
            disk.fill(format!("disk {number}: DATA OF A TENANT\n").as_bytes());
        }
        machine.start = media::agent_with(&format!(
            "anvil.machine.allocation=urn:uuid:{}",
            allocation.uuid()
        ));
        Self { bed, machine, took }
    }

    fn hashes(&self) -> Vec<String> {
        self.machine.disks[1..].iter().map(Disk::hash).collect()
    }

    fn power_on(&mut self, name: &str) -> Guest {
        self.machine.name = name.to_owned();
        self.bed.power_on(&self.machine)
    }
}

/// Numbers that look random and are the same for the same seed (Marsaglia's xorshift64).
struct Random(u64);

impl Random {
    /// From 0 up to `limit`.
    fn below(&mut self, limit: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        limit.mul_f64((self.0 >> 11) as f64 / (1_u64 << 53) as f64)
    }
}

fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|e| panic!("{variable}={text}: {e}")),
    )
}

/// `METAL_ANVIL_REINSTALLS` asks for more rounds, `METAL_ANVIL_SEED` for the same moments again.
#[test]
fn power_cuts_at_random_moments_of_a_reinstall() {
    let rounds = number_from("METAL_ANVIL_REINSTALLS").unwrap_or(2);
    let seed = number_from("METAL_ANVIL_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.expect("a clock after 1970").as_nanos() as u64 | 1
    });
    eprintln!("METAL_ANVIL_SEED={seed}");
    let mut random = Random(seed);
    let mut it = Installed::new("reinstall_cuts", &["data-1", "data-2"]);
    let before = it.hashes();
    for round in 1..=rounds {
        let mut guest = it.power_on(&format!("cut-{round}"));
        guest.wait_for("journal=installing ", TO_WAITING);
        let moment = random.below(it.took.mul_f64(1.1));
        std::thread::sleep(moment);
        let last = guest.text().lines().last().unwrap_or_default().to_owned();
        guest.power_cut();
        eprintln!("round {round}: cut {moment:.1?} after the journal's line, at {last:?}");
        assert_eq!(
            it.hashes(),
            before,
            "a data disk was written before the cut"
        );

        let mut guest = it.power_on(&format!("finished-{round}"));
        let journal = guest.wait_for("install journal: ", TO_WAITING);
        let is_known = ["installing ", "installed "]
            .iter()
            .any(|state| journal.contains(&format!("install journal: {state}")));
        assert!(is_known, "{journal}");
        guest.wait_for("TINY-OS BOOTED via kexec", TO_INSTALLED);
        assert_eq!(guest.wait_end(90), End::PowerOff);
        assert_eq!(it.hashes(), before, "a data disk was written after the cut");
    }
    it.machine.start = Start::Disks;
    let mut last = it.power_on("last");
    last.wait_for("TINY-OS BOOTED via firmware", 120);
}

#[test]
fn disks_that_change_places_after_a_cut_are_told_apart() {
    let mut it = Installed::new("reinstall_swapped", &["data"]);
    let before = it.hashes();
    let mut guest = it.power_on("cut");
    guest.wait_for("partitioned disk=/dev/vda", TO_WAITING);
    guest.power_cut();
    let root = &it.machine.disks[0];
    assert!(
        !root.holds(b"installing ", root.size()) && !root.holds(b"installed ", root.size()),
        "the cut came too late: the journal's copy is on the disk, and tells which it is"
    );

    it.machine.disks.swap(0, 1);
    let mut guest = it.power_on("swapped");
    let line = guest.wait_for(FAILED, TO_WAITING);
    for word in [
        "preflight: ",
        "is on /dev/vdb (serial root, ",
        "nothing was written",
    ] {
        assert!(line.contains(word), "{word:?} is not in {line:?}");
    }
    assert_eq!(guest.wait_end(TO_RESET), End::Reset);
    it.machine.disks.swap(0, 1);
    assert_eq!(it.hashes(), before, "a data disk was written");

    let mut guest = it.power_on("in-place");
    guest.wait_for("TINY-OS BOOTED via kexec", TO_WAITING + TO_INSTALLED);
    assert_eq!(guest.wait_end(90), End::PowerOff);
    assert_eq!(it.hashes(), before, "a data disk was written");
    assert!(it.machine.disks[0].holds(b"installed ", 200 * MIB));
}
