//! How long a machine takes to the agent's first line (to iPXE's, where that is the medium) when its
//! medium is slow: a model over what was really read of the medium, counted by QEMU.

use std::path::PathBuf;
use std::process::Command;

use crate::Row;
use crate::support::bed::Bed;
use crate::support::machine::{Media, Start};
use crate::support::media::{CONSOLE, NO_TIMER_CHECK};
use crate::support::process::run;
use crate::support::root;
use crate::support::services::Helper;

/// What a BMC's virtual medium gives, bytes per second: the slowest that was reported, an old BMC, a
/// new one, one with the ISO beside it.
const RATES: [f64; 4] = [50e3, 500e3, 5e6, 50e6];
/// Bytes of kernel and initrd of metal-hammer 0.13.
const METAL_HAMMER: f64 = 51e6;
/// Seconds from power-on to that line, at most, under TCG on a busy host.
const TO_AGENT: u64 = 300;

const AGENT: &str = " INFO metal-anvil ";
/// iPXE's line when it has an address; kernel and initrd come over the network then.
const IPXE: &str = "/boot.ipxe";
/// A medium: what it is called, how `scripts/build-iso` makes it, how it is attached, the line on the
/// console at which it is read.
const VARIANTS: [(&str, &[&str], Media, &str); 5] = [
    ("SATA CD", &[], Media::SataCd, AGENT),
    ("USB CD", &[], Media::UsbCd, AGENT),
    ("USB stick", &[], Media::UsbStick, AGENT),
    ("UKI, SATA CD", &["--uki"], Media::SataCd, AGENT),
    (
        "iPXE, SATA CD",
        &["--ipxe", "http://[2001:db8:ff::1]:4242"],
        Media::SataCd,
        IPXE,
    ),
];

/// For each medium: what was read of it, in MB and requests, and seconds to the agent at each rate.
pub fn media() -> Vec<Row> {
    VARIANTS.iter().flat_map(rows).collect()
}

fn rows(variant: &(&'static str, &[&str], Media, &str)) -> Vec<Row> {
    let (name, options, attached, line) = *variant;
    let bed = Bed::plan("bench_media").helper(Helper::Absent).start();
    let iso = build(options, bed.dir.join("medium.iso"));
    let size = std::fs::metadata(&iso).expect("the medium was built").len() as f64;
    let mut guest = bed.power_on(&bed.machine(Start::Iso(iso, attached), vec![]));
    guest.wait_for(line, TO_AGENT);
    let here = guest.age().as_secs_f64();
    let (bytes, requests) = guest.read_from_medium();
    drop(guest);
    let bytes = bytes as f64;
    let row = |what: String, value, unit, against| Row {
        bench: "media",
        what,
        value,
        unit,
        against,
    };
    let mut rows = vec![
        row(
            format!("{name}: read of it"),
            bytes / 1e6,
            "MB",
            Some(("the medium", size / 1e6)),
        ),
        row(format!("{name}: requests"), requests as f64, "", None),
        row(format!("{name}: this host"), here, "s", None),
    ];
    // What this host needs with a medium that costs nothing is the same for both.
    rows.extend(RATES.iter().map(|rate| {
        row(
            format!("{name}: at {} MB/s", rate / 1e6),
            here + bytes / rate,
            "s",
            Some(("metal-hammer's 51 MB", here + METAL_HAMMER / rate)),
        )
    }));
    rows
}

/// The medium with a console that the bench can read.
fn build(options: &[&str], iso: PathBuf) -> PathBuf {
    run(Command::new(root().join("scripts/build-iso"))
        .args(options)
        .args([
            "--cmdline",
            &format!("{CONSOLE} {NO_TIMER_CHECK} loglevel=4"),
        ])
        .arg("--output")
        .arg(&iso));
    iso
}
