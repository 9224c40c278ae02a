//! A real Debian, end to end.

use std::io::Write;

use serde_json::json;

use crate::common::*;
use crate::support::allocation::Allocation;
use crate::support::bed::Bed;
use crate::support::disk::{Bus, Disk};
use crate::support::images::Image;
use crate::support::machine::Start;
use crate::support::media;

/// The agent's largest resident set may be this many MiB during the install; what it knows of
/// this small machine's hardware is a part of it.
const PEAK_MIB: u64 = 64;
/// MiB of the machine: the least that is promised to do.
const MEMORY: u32 = 1024;

#[test]
fn debian_is_installed_in_bounded_memory_and_boots_twice() {
    let bed = Bed::plan("debian").start();
    let disk = Disk::empty(&bed.dir, "disk", Bus::Virtio, 4096);
    let mut machine = bed.machine(media::agent(), vec![disk]);
    machine.memory = MEMORY;
    let url = bed.publish("debian", &Image::built("debian"));
    let allocation = Allocation::new(&url, "/dev/vda").with("/hostname", json!("debian-test"));
    let mut guest = bed.power_on(&machine);
    hand_out(&bed, &allocation);
    let line = guest.wait_for("peak RSS of the agent: ", 420);
    let usable = guest.see(" MiB of memory", 1);
    // Past the test runner's capture, which hides what a test that passes prints.
    let _ = writeln!(
        std::io::stderr(),
        "debian: {}, {}",
        usable.trim(),
        line.trim()
    );
    let number = |line: &str, before: &str| -> u64 {
        line.split(before)
            .nth(1)
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|number| number.parse().ok())
            .unwrap_or_else(|| panic!("no number in {line:?}"))
    };
    assert!(number(&usable, "-anvil, ") <= MEMORY.into(), "{usable}");
    let peak = number(&line, "peak RSS of the agent: ");
    assert!(
        peak <= PEAK_MIB,
        "the agent used {peak} MiB, {PEAK_MIB} are allowed"
    );
    let booted = guest.wait_for("METAL-DEBIAN BOOTED via kexec", 300);
    assert!(booted.contains("host=debian-test"), "{booted}");
    let units = guest.wait_for("METAL-DEBIAN failed units:", 30);
    assert!(units.trim_end().ends_with("failed units:"), "{units}");
    assert_eq!(bed.standin.events(&bed.machine), GOOD);
    assert_nothing_refused(&bed);
    // The journal of ext4 keeps what Debian had not written yet.
    guest.power_cut();

    machine.start = Start::Disks;
    machine.name = "second".to_owned();
    let mut second = bed.power_on(&machine);
    second.wait_for("METAL-DEBIAN BOOTED via firmware", 300);
}
