//! What becomes of a failure that is always there: told each time, paused for longer each time; and
//! of what no reset can help.

use std::path::PathBuf;
use std::process::Command;

use serde_json::json;

use crate::common::*;
use crate::support::bed::Bed;
use crate::support::guest::{End, Guest};
use crate::support::initrd::{built, joined, newc};
use crate::support::machine::Start;
use crate::support::media::{self, CONSOLE, NO_TIMER_CHECK, helper_url};
use crate::support::process::run;

/// Seconds of the first pause.
const FIRST: u64 = 2;
/// A machine that holds looks again each minute.
const TO_LOOK_AGAIN: u64 = 150;

/// The initramfs with the agent's debug build in it, which takes orders to fail.
fn debug_build(bed: &Bed) -> PathBuf {
    let bare = bed.dir.join("agent");
    let agent = built("--bin", "metal-anvil");
    run(Command::new("strip").arg("-o").arg(&bare).arg(agent));
    let (over, initrd) = (bed.dir.join("over"), bed.dir.join("initrd"));
    std::fs::write(&over, newc(&[("init", bare)])).expect("own directory");
    // The second archive's /init takes the place of the first one's.
    let both = joined(&[media::part("initrd.img"), over]);
    std::fs::write(&initrd, both).expect("own directory");
    initrd
}

/// The seconds of the first countdown line.
fn pause(guest: &Guest) -> u64 {
    let line = guest.see("rebooting in ", TO_RESET);
    let rest = line.split("rebooting in ").nth(1).unwrap_or_default();
    let number = rest
        .split_whitespace()
        .next()
        .and_then(|it| it.parse().ok());
    number.unwrap_or_else(|| panic!("no number in {line:?}"))
}

#[test]
fn a_panic_is_told_each_time_and_the_pauses_grow_over_reboots() {
    let bed = Bed::plan("failure_panic").start();
    let start = Start::Direct {
        kernel: media::part("vmlinuz"),
        initrd: debug_build(&bed),
        append: format!(
            "{CONSOLE} {NO_TIMER_CHECK} loglevel=4 PIXIE_API_URL={} anvil.fault=panic \
             anvil.policy.reboot_delay_seconds={FIRST}",
            helper_url()
        ),
    };
    let disk = used_disk(&bed, "disk");
    let before = disk.hash();
    let mut machine = bed.machine(start, vec![disk.clone()]);
    for number in 1..=3 {
        machine.name = format!("boot-{number}");
        let mut guest = bed.power_on(&machine);
        let line = guest.wait_for(FAILED, TO_WAITING);
        let message = bed.standin.wait_event(&bed.machine, "CRASHED", number, 30);
        for text in [&line, &message] {
            for word in [
                "agent: the agent panicked at src/init/fault.rs:",
                ": on order",
            ] {
                assert!(text.contains(word), "{word:?} is not in {text:?}");
            }
        }
        // Where it was, for those who have the build's symbols.
        guest.see("panic::install_hook is at 0x", 1);
        guest.see("the control plane knows (CRASHED)", 30);
        let seconds = pause(&guest);
        let longest = FIRST << (number - 1);
        assert!(
            (FIRST..=longest).contains(&seconds),
            "{number}: {seconds} s"
        );
        assert_eq!(guest.wait_end(TO_RESET), End::Reset);
        let counted = format!("failure number {number} in a row");
        assert_eq!(guest.text().contains(&counted), number > 1, "{number}");
    }
    let events = bed.standin.events(&bed.machine);
    assert_eq!(events, ["PREPARING", "CRASHED"].repeat(3));
    assert_eq!(disk.hash(), before, "a disk was written");
}

#[test]
fn a_machine_without_a_card_holds_until_one_is_plugged_in() {
    let bed = Bed::plan("failure_no_card").start();
    // A card may be slow to appear; nobody has to wait for that here.
    let start = media::agent_with("anvil.policy.slaac_timeout_seconds=5");
    let mut machine = bed.machine(start, vec![used_disk(&bed, "disk")]);
    machine.cards.clear();
    machine.extra = ["-device", "qemu-xhci,id=late"].map(str::to_owned).into();
    let before = machine.disks[0].hash();
    let mut guest = bed.power_on(&machine);
    let line = guest.wait_for(
        "holding: network: this machine has no network card",
        TO_WAITING,
    );
    assert!(line.contains("no reset can help"), "{line}");
    guest.see(FAILED, 1);
    guest.see("there is no control plane yet to report this to", 1);
    assert!(
        !guest.text().contains("rebooting in"),
        "it resets for nothing"
    );
    guest.control(
        "device_add",
        json!({"driver": "usb-net", "id": "plugged", "bus": "late.0"}),
    );
    guest.wait_for("the hardware has changed", TO_LOOK_AGAIN);
    assert_eq!(guest.wait_end(TO_RESET), End::Reset);
    assert_eq!(machine.disks[0].hash(), before, "a disk was written");
}

#[test]
fn a_machine_without_a_disk_is_reported_and_holds() {
    let bed = Bed::plan("failure_no_disk").start();
    let mut guest = bed.power_on(&bed.machine(media::agent(), vec![]));
    let line = guest.wait_for("holding: wipe: this machine has no disk", TO_WAITING);
    assert!(line.contains("no reset can help"), "{line}");
    let message = bed.standin.wait_event(&bed.machine, "CRASHED", 1, 30);
    assert!(
        message.starts_with("wipe: this machine has no disk"),
        "{message}"
    );
    // It goes on saying that it lives.
    let holds = |number| {
        let message = bed
            .standin
            .wait_event(&bed.machine, "ALIVE", number, TO_LOOK_AGAIN);
        message == "holding"
    };
    assert!((1..10).any(holds));
    assert!(guest.ended().is_none(), "it resets for nothing");
    assert_eq!(
        bed.standin.events(&bed.machine),
        ["PREPARING", "REGISTERING", "CRASHED"]
    );
}
