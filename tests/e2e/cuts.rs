//! Power cuts spread over one whole install: whatever was written by then, the machine that is powered
//! on again ends installed, and the disk that must stay as it is does.
//!
//! One install is stopped at many moments (SIGSTOP to QEMU), and what is on the disk and in the
//! firmware's variables is copied: what a power cut at that moment leaves. Each copy then gets a
//! power-on of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::common::*;
use crate::support::allocation::Allocation;
use crate::support::bed::Bed;
use crate::support::disk::{Bus, Disk};
use crate::support::guest::End;
use crate::support::images::Image;
use crate::support::machine::{Machine, Start};
use crate::support::media;
use crate::support::process::run;

/// From the first write to the kexec, emulated on a quiet host: only sets how often it is stopped.
const ABOUT: Duration = Duration::from_secs(3);
/// What makes the first write of an install.
const FIRST_WRITE: &str = " wiping ";
/// The installed kernel takes over.
const LAST: &str = "Starting new kernel";

/// What a cut has left.
#[derive(Clone)]
struct Cut {
    number: usize,
    /// Since the first write.
    after: Duration,
    /// The console's last line.
    at: String,
    dir: PathBuf,
}

fn number_from(variable: &str) -> Option<usize> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|e| panic!("{variable}={text}: {e}")),
    )
}

/// A machine whose second disk must stay as it is, and its allocation from the beginning.
fn plan(
    name: &str,
    uuid: Option<&str>,
    allocation: Option<&Allocation>,
) -> (Bed, Machine, Allocation) {
    let mut bed = Bed::plan(name).start();
    if let Some(uuid) = uuid {
        uuid.clone_into(&mut bed.machine);
    }
    let url = bed.publish("tiny", &Image::built("tiny"));
    let allocation = allocation.cloned();
    let allocation = allocation.unwrap_or_else(|| Allocation::new(&url, "/dev/vda").fresh());
    bed.allocate(&allocation);
    let disks = vec![
        used_disk(&bed, "disk"),
        Disk::with_pattern(&bed.dir, "data", Bus::Virtio, 16),
    ];
    let start = media::agent_with("anvil.policy.exclude_disks=virt1");
    let machine = bed.machine(start, disks);
    (bed, machine, allocation)
}

/// A copy that has holes where the file has them.
fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("--sparse=auto").arg(from).arg(to));
}

/// One install, stopped and copied again and again; `wanted` of the copies, evenly spread.
fn cuts(bed: &Bed, machine: &Machine, wanted: usize) -> Vec<Cut> {
    let pause = (ABOUT / (2 * wanted as u32)).clamp(Duration::from_millis(10), ABOUT / 20);
    let mut guest = bed.power_on(machine);
    guest.wait_for(FIRST_WRITE, TO_WAITING);
    let begun = Instant::now();
    let mut stopped = Duration::ZERO;
    let mut cuts = Vec::new();
    let limit = Duration::from_secs(TO_INSTALLED);
    while !guest.text().contains(LAST) {
        assert!(begun.elapsed() < limit, "the install does not end");
        let number = cuts.len();
        let dir = bed.dir.join(format!("cut-{number}"));
        fs::create_dir(&dir).expect("a cut's directory");
        let freeze = Instant::now();
        guest.freeze();
        copy(&machine.disks[0].path, &dir.join("disk.raw"));
        copy(&machine.vars, &dir.join("vars.fd"));
        let text = guest.text();
        guest.thaw();
        cuts.push(Cut {
            number,
            after: freeze.duration_since(begun) - stopped,
            at: text.lines().last().unwrap_or_default().to_owned(),
            dir,
        });
        stopped += freeze.elapsed();
        std::thread::sleep(pause);
    }
    drop(guest);
    let taken = cuts.len();
    assert!(taken >= wanted, "{taken} moments only, {wanted} are wanted");
    let mut spread: Vec<Cut> = Vec::new();
    for number in 0..wanted {
        spread.push(cuts[number * (taken - 1) / (wanted - 1).max(1)].clone());
    }
    for cut in &cuts {
        if !spread.iter().any(|it| it.number == cut.number) {
            fs::remove_dir_all(&cut.dir).expect("a cut that is not used");
        }
    }
    spread
}

/// Powers the machine on with what a cut has left, until its OS runs; how it came to that.
fn finish(bed: &Bed, machine: &Machine, cut: &Cut) -> &'static str {
    let mut machine = machine.clone();
    machine.disks[0].path = cut.dir.join("disk.raw");
    machine.vars = cut.dir.join("vars.fd");
    machine.name = format!("cut-{}", cut.number);
    let data = machine.disks[1].hash();
    let mut guest = bed.power_on(&machine);
    let line = guest.wait_for_any(
        &["TINY-OS BOOTED", FAILED, "this machine is installed: "],
        TO_WAITING + TO_INSTALLED,
    );
    assert!(!line.contains(FAILED), "cut {}: {line}", cut.number);
    let how = if line.contains("TINY-OS") {
        "installed"
    } else {
        assert_eq!(guest.wait_end(TO_RESET), End::Reset);
        machine.start = Start::Disks;
        machine.name = format!("cut-{}-disk", cut.number);
        guest = bed.power_on(&machine);
        guest.wait_for("TINY-OS BOOTED via firmware", 120);
        "was installed"
    };
    drop(guest);
    assert_eq!(machine.disks[1].hash(), data, "a data disk was written");
    fs::remove_dir_all(&cut.dir).expect("a cut that is done");
    how
}

/// `METAL_ANVIL_CUTS` asks for more cuts, `METAL_ANVIL_CUTS_JOBS` for more machines at a time.
#[test]
fn power_cuts_all_over_an_install() {
    let wanted = number_from("METAL_ANVIL_CUTS").unwrap_or(3);
    let jobs = number_from("METAL_ANVIL_CUTS_JOBS").unwrap_or(1);
    let (bed, machine, allocation) = plan("cuts", None, None);
    let cuts = cuts(&bed, &machine, wanted);
    let uuid = bed.machine.clone();
    let left = Mutex::new(cuts.into_iter());
    let done = Mutex::new(0);
    std::thread::scope(|threads| {
        for job in 0..jobs {
            let (left, done, uuid, allocation) = (&left, &done, &uuid, &allocation);
            threads.spawn(move || {
                let (bed, machine, _) = plan(&format!("cuts-{job}"), Some(uuid), Some(allocation));
                loop {
                    let next = left.lock().expect("cuts").next();
                    let Some(cut) = next else { return };
                    let how = finish(&bed, &machine, &cut);
                    eprintln!(
                        "cut {} at {:.2?}: {how}; the last line was {:?}",
                        cut.number, cut.after, cut.at
                    );
                    *done.lock().expect("count") += 1;
                }
            });
        }
    });
    assert_eq!(done.into_inner().expect("count"), wanted);
}
