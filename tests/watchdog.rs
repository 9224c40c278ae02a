//! Every hang ends in a reset: the agent as PID 1 of a QEMU machine with a hardware watchdog,
//! blocked on order. Light guests; the order is a hook that debug builds alone have.

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use support::guest::Guest;
use support::initrd::{built, newc};
use support::machine::{Machine, Start};
use support::media::{self, CONSOLE, NO_TIMER_CHECK};
use support::process::run;
use support::root;

/// Seconds that the timer is set to, and that a step may be silent.
const TIMEOUT: u64 = 10;
const SILENCE: u64 = 5;
/// A busy host emulates slowly.
const SLACK: u64 = 60;

/// The agent's debug build as init, with a fault on order.
fn start(name: &str, fault: &str, device: &str) -> Guest {
    let dir = root().join("target/e2e").join(name);
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("create {}: {e}", dir.display()));
    let bare = dir.join("agent");
    let agent = built("--bin", "metal-anvil");
    run(Command::new("strip").arg("-o").arg(&bare).arg(agent));
    let initrd: PathBuf = dir.join("initrd");
    fs::write(&initrd, newc(&[("init", bare)])).unwrap_or_else(|e| panic!("{e}"));
    let start = Start::Direct {
        kernel: media::part("vmlinuz"),
        initrd,
        append: format!(
            "{CONSOLE} panic=-1 loglevel=4 {NO_TIMER_CHECK} anvil.fault={fault} \
             anvil.policy.watchdog.timeout_seconds={TIMEOUT} \
             anvil.policy.watchdog.silence_seconds={SILENCE} anvil.policy.reboot_delay_seconds=3000"
        ),
    };
    let mut machine = Machine::new(
        &dir,
        "6c0b4e8e-22f4-4d2c-9f60-3d1d6d6f5f01",
        start,
        Vec::new(),
    );
    machine.cards.clear();
    machine.uefi = false;
    machine.extra = device.split_whitespace().map(ToOwned::to_owned).collect();
    let guest = machine.power_on(Command::new("qemu-system-x86_64"), &dir);
    guest.see("resets this machine", 60);
    guest
}

const I6300ESB: &str = "-device i6300esb";

#[test]
fn a_deadlocked_step_is_told_and_ends_in_a_reset() {
    let mut guest = start("watchdog_deadlock", "deadlock", I6300ESB);
    guest.wait_for("the step is blocked, on order", 30);
    let line = guest.wait_for("has given no sign of life for", SILENCE + SLACK);
    assert!(line.contains("start has given no sign of life"), "{line}");
    // Failure handling is alive and waits for 3000 s: only the watchdog ends that.
    guest.wait_for("rebooting in 3000 s", SLACK);
    guest.wait_watchdog(TIMEOUT + SLACK);
}

#[test]
fn a_runtime_without_threads_ends_in_a_reset() {
    let mut guest = start("watchdog_runtime", "runtime", I6300ESB);
    guest.wait_for("a thread of the runtime is blocked, on order", 30);
    guest.wait_watchdog(SILENCE + TIMEOUT + SLACK);
}

#[test]
fn a_watchdog_that_nobody_pets_resets() {
    // The chipset's own this time.
    let device = "-global ICH9-LPC.noreboot=false";
    let guest = start("watchdog_petter", "petter", device);
    guest.wait_watchdog(TIMEOUT + SLACK);
}

#[test]
fn a_release_takes_no_orders_to_hang() {
    let release = root().join("target/x86_64-unknown-linux-gnu/release/metal-anvil");
    let bytes = fs::read(&release).unwrap_or_else(|e| panic!("{}: {e}", release.display()));
    let needle = b"anvil.fault=";
    assert!(!bytes.windows(needle.len()).any(|part| part == needle));
    // And where it is taken, it is found.
    let debug = fs::read(built("--bin", "metal-anvil")).expect("own build");
    assert!(debug.windows(needle.len()).any(|part| part == needle));
}
