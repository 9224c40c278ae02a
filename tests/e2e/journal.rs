//! The install journal and BootNext: what a second boot does to a machine (contracts.md §9).

use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::common::*;
use crate::support::allocation::Allocation;
use crate::support::bed::Bed;
use crate::support::guest::End;
use crate::support::images::{Edit, Image, tiny_with};
use crate::support::machine::{Machine, Media, Order};
use crate::support::media::{self, helper_url};

/// A machine that boots from the ISO in a CD drive, as a BMC attaches it.
fn with_iso(bed: &Bed, data: bool) -> Machine {
    let config = json!({"boot_helper_url": helper_url()});
    let mut disks = vec![used_disk(bed, "disk")];
    if data {
        disks.push(used_disk(bed, "data"));
    }
    bed.machine(media::iso(&bed.dir, &config, Media::SataCd), disks)
}

#[test]
fn an_installed_machine_that_boots_the_iso_boots_its_disk_untouched() {
    let bed = Bed::plan("journal_installed").start();
    let mut machine = with_iso(&bed, true);
    let url = bed.publish("tiny", &Image::built("tiny"));
    let allocation = Allocation::new(&url, "/dev/vda");
    let mut guest = install(&bed, &machine, &allocation);
    guest.wait_for("TINY-OS DONE", 60);
    assert_eq!(guest.wait_end(60), End::PowerOff);

    // A tenant's data on the second disk; then somebody makes the BMC boot the CD.
    machine.disks[1].scribble(4096, PATTERN);
    let before: Vec<String> = machine.disks.iter().map(|d| d.hash()).collect();
    machine.name = "accident".to_owned();
    machine.order = Some(Order::MediaFirst);
    let mut accident = bed.power_on(&machine);
    accident.wait_for("this machine is installed: booting its disk", TO_WAITING);
    assert_eq!(accident.wait_end(60), End::Reset);
    let after: Vec<String> = machine.disks.iter().map(|d| d.hash()).collect();
    assert_eq!(before, after, "an installed machine's disk was written");
    assert!(!accident.text().contains(FAILED));

    // The reset that follows goes to the disk although the CD is still first.
    machine.name = "reset".to_owned();
    let mut reset = bed.power_on(&machine);
    reset.wait_for("TINY-OS BOOTED via firmware", 120);
}

#[test]
fn a_second_power_on_with_the_iso_still_attached_boots_the_disk() {
    let bed = Bed::plan("journal_second").start();
    let mut machine = with_iso(&bed, false);
    let url = bed.publish("tiny", &Image::built("tiny"));
    let mut guest = install(&bed, &machine, &Allocation::new(&url, "/dev/vda"));
    assert_eq!(guest.wait_end(90), End::PowerOff);
    machine.name = "second".to_owned();
    let mut second = bed.power_on(&machine);
    second.wait_for("TINY-OS BOOTED via firmware", 120);
    assert!(
        !second.text().contains(&format!("machine {}", bed.machine)),
        "the agent was started"
    );
}

#[test]
fn a_power_cut_in_the_install_is_finished_after_the_reset_with_the_cd_last() {
    let bed = Bed::plan("journal_power_cut").start();
    let mut machine = with_iso(&bed, false);
    // The firmware's own order would boot the disk, which is bootable by then: only BootNext does not.
    machine.order = Some(Order::MediaLast);
    let hanging = bed.publish("hanging", &tiny_with(&[Edit::Installer("hang")]));
    let good = bed.publish("tiny", &Image::built("tiny"));
    let allocation = Allocation::new(&hanging, "/dev/vda");
    let mut guest = bed.power_on(&machine);
    hand_out(&bed, &allocation);
    guest.wait_for("tiny installer: hanging", TO_INSTALLED);
    guest.power_cut();

    // Cut once more before the agent has asked anybody: the firmware has spent its BootNext.
    bed.allocate(&allocation.with("/image/url", json!(good)));
    machine.name = "cut-again".to_owned();
    let mut cut = bed.power_on(&machine);
    let agent = format!("machine {}", bed.machine);
    let line = cut.wait_for_any(&["TINY-OS BOOTED", &agent], TO_WAITING);
    assert!(line.contains(&agent), "{line}");
    cut.power_cut();

    machine.name = "after-cut".to_owned();
    let mut again = bed.power_on(&machine);
    let line = again.wait_for_any(&["TINY-OS BOOTED", "install journal: "], TO_WAITING);
    assert!(line.contains("install journal: installing "), "{line}");
    again.wait_for("TINY-OS BOOTED via kexec", TO_INSTALLED);
    assert_eq!(again.wait_end(90), End::PowerOff);

    machine.name = "third".to_owned();
    let mut third = bed.power_on(&machine);
    third.wait_for("TINY-OS BOOTED via firmware", 120);
}

#[test]
fn an_install_that_nobody_heard_of_is_begun_anew() {
    let bed = Bed::plan("journal_unreported").start();
    let mut machine = with_iso(&bed, false);
    let url = bed.publish("tiny", &Image::built("tiny"));
    bed.standin.fail("InstallationSucceeded", 503, 1000);
    let mut guest = bed.power_on(&machine);
    hand_out(&bed, &Allocation::new(&url, "/dev/vda"));
    guest.wait_for("InstallationSucceeded: ", TO_INSTALLED);
    guest.press(&["ctrl", "alt", "delete"]);
    guest.wait_for("Ctrl-Alt-Del was pressed", 10);
    assert_eq!(guest.wait_end(60), End::Reset);

    bed.standin.order(json!({"do": "clear_errors"}));
    machine.name = "anew".to_owned();
    let mut anew = bed.power_on(&machine);
    let line = anew.wait_for_any(&["TINY-OS BOOTED", "install journal: "], TO_WAITING);
    assert!(line.contains("install journal: installing "), "{line}");
    anew.wait_for("TINY-OS BOOTED via kexec", TO_INSTALLED);
    let heard = bed
        .standin
        .wait_call(&bed.machine, "InstallationSucceeded", 1, 5);
    assert_eq!(heard["uuid"], bed.machine.as_str());
}

#[test]
fn a_medium_that_cannot_be_used_is_come_back_to() {
    let bed = Bed::plan("journal_unusable").start();
    let mut machine = with_iso(&bed, false);
    let url = bed.publish("tiny", &Image::built("tiny"));
    let mut guest = install(&bed, &machine, &Allocation::new(&url, "/dev/vda"));
    assert_eq!(guest.wait_end(90), End::PowerOff);

    let config = json!({
        "boot_helper_url": helper_url(),
        "policy": {"exclude_disks": [12345]},
    });
    machine.start = media::iso(&bed.dir, &config, Media::SataCd);
    machine.order = Some(Order::MediaFirst);
    machine.name = "unusable".to_owned();
    let mut unusable = bed.power_on(&machine);
    unusable.wait_for("FAILED: start: metal.config", TO_WAITING);
    assert_eq!(unusable.wait_end(60), End::Reset);

    // As after a BMC's "boot once": only BootNext leads to the medium.
    machine.order = Some(Order::MediaLast);
    machine.name = "back".to_owned();
    let mut back = bed.power_on(&machine);
    let wanted = "failure number 2 in a row";
    let line = back.wait_for_any(&["TINY-OS BOOTED", wanted], TO_WAITING);
    assert!(line.contains(wanted), "{line}");
}

#[test]
fn an_os_that_does_not_start_is_told_of_and_booted_ever_more_slowly() {
    let bed = Bed::plan("journal_comes_back").start();
    let mut machine = with_iso(&bed, false);
    let url = bed.publish("tiny", &Image::built("tiny"));
    let mut guest = install(&bed, &machine, &Allocation::new(&url, "/dev/vda"));
    assert_eq!(guest.wait_end(90), End::PowerOff);

    // Its loaders are none any more: the firmware goes on to the medium.
    let esp = machine.disks[0].head(96 << 20);
    let programs = (0..esp.len())
        .step_by(512)
        .filter(|at| esp[*at..].starts_with(b"MZ"));
    programs.for_each(|at| machine.disks[0].scribble(at as u64, b"XX"));
    machine.order = Some(Order::MediaFirst);
    for (name, pauses, told) in [
        ("first", false, 0),
        ("second", false, 0),
        ("third", true, 0),
        ("fourth", true, 1),
    ] {
        machine.name = name.to_owned();
        let mut boot = bed.power_on(&machine);
        boot.wait_for(
            "this machine is installed: booting its disk",
            TO_WAITING + 30,
        );
        assert_eq!(boot.text().contains("rebooting in"), pauses, "{name}");
        let events = bed.standin.events(&bed.machine);
        let crashed = events.iter().filter(|event| *event == "CRASHED").count();
        assert_eq!(crashed, told, "{name}: {events:?}");
        assert_eq!(boot.wait_end(60), End::Reset);
    }
    let message = bed.standin.wait_event(&bed.machine, "CRASHED", 1, 5);
    assert!(message.contains("came back 3 times"), "{message}");
}

#[test]
fn a_standing_allocation_on_a_machine_without_a_journal_is_held() {
    let bed = Bed::plan("journal_hold").start();
    let machine = with_iso(&bed, false);
    let url = bed.publish("tiny", &Image::built("tiny"));
    bed.allocate(&Allocation::new(&url, "/dev/vda").standing());
    let before = machine.disks[0].hash();
    let mut guest = bed.power_on(&machine);
    guest.wait_for("holding: ", TO_WAITING);
    let message = bed.standin.wait_event(&bed.machine, "CRASHED", 1, 30);
    assert!(message.contains("nothing was written"), "{message}");
    assert_eq!(machine.disks[0].hash(), before);
}

#[test]
fn a_machine_that_was_given_back_is_wiped() {
    let bed = Bed::plan("journal_given_back").start();
    let mut machine = with_iso(&bed, true);
    let url = bed.publish("tiny", &Image::built("tiny"));
    let mut guest = install(&bed, &machine, &Allocation::new(&url, "/dev/vda"));
    assert_eq!(guest.wait_end(90), End::PowerOff);
    bed.standin.clear(&bed.machine);
    machine.disks[1].scribble(4096, PATTERN);
    machine.name = "given-back".to_owned();
    machine.order = Some(Order::MediaFirst);
    let mut back = bed.power_on(&machine);
    // 120 s of silence over two Waits prove it to a machine that is installed.
    bed.standin.wait_event(&bed.machine, "WAITING", 2, 330);
    assert!(back.wait_for("install journal: ", 5).contains("installed"));
    assert!(
        machine.disks.iter().all(|d| d.is_blank()),
        "a disk was not wiped"
    );
}

#[test]
fn a_wipe_that_is_cut_on_a_wiped_machine_is_begun_anew() {
    let bed = Bed::plan("journal_cut_wipe").start();
    let mut machine = with_iso(&bed, true);
    let wiped = bed.power_on(&machine);
    bed.standin
        .wait_event(&bed.machine, "WAITING", 1, TO_WAITING);
    wiped.power_cut();

    // A disk of somebody's comes in, so slow that its wipe takes minutes.
    const LUKS: &[u8] = b"LUKS\xba\xbe";
    machine.disks[1].scribble(0, LUKS);
    machine.disks[1].scribble(4096, PATTERN);
    machine.drive_words = ",throttling.iops-total=60";
    machine.order = Some(Order::MediaFirst);
    machine.name = "cut".to_owned();
    let mut cut = bed.power_on(&machine);
    let line = cut.wait_for("install journal: ", TO_WAITING);
    assert!(line.contains("wiped"), "{line}");
    cut.wait_for("LUKS", TO_WAITING);
    let begin = Instant::now();
    while machine.disks[1].head(LUKS.len()) == LUKS {
        let waited = begin.elapsed();
        assert!(waited < Duration::from_secs(60), "the wipe does not begin");
        sleep(Duration::from_millis(20));
    }
    cut.power_cut();

    machine.drive_words = "";
    machine.name = "again".to_owned();
    let mut again = bed.power_on(&machine);
    let line = again.wait_for("install journal: ", TO_WAITING);
    assert!(line.contains("installing 00000000-"), "{line}");
    bed.standin
        .wait_event(&bed.machine, "WAITING", 2, TO_WAITING);
    assert!(machine.disks.iter().all(|disk| disk.is_blank()));
}

#[test]
fn an_ordered_reinstall_leaves_the_data_disk_alone() {
    let bed = Bed::plan("journal_reinstall").start();
    let mut machine = with_iso(&bed, true);
    let url = bed.publish("tiny", &Image::built("tiny"));
    let allocation = Allocation::new(&url, "/dev/vda");
    let mut guest = install(&bed, &machine, &allocation);
    assert_eq!(guest.wait_end(90), End::PowerOff);
    let first_root = fact(&guest, "root");

    machine.disks[1].scribble(4096, PATTERN);
    let data = machine.disks[1].hash();
    let config = json!({
        "boot_helper_url": helper_url(),
        "machine": {"allocation": format!("urn:uuid:{}", allocation.uuid())},
    });
    machine.start = media::iso(&bed.dir, &config, Media::SataCd);
    machine.order = Some(Order::MediaFirst);

    // The image is gone: that is known before the first write, and the old OS boots again.
    bed.allocate(
        &allocation
            .clone()
            .with("/image/url", json!(bed.publish("gone", &Image::missing()))),
    );
    let before = machine.disks[0].hash();
    machine.name = "image-gone".to_owned();
    let mut gone = bed.power_on(&machine);
    gone.wait_for("the next boot is the installed OS", TO_WAITING);
    assert_eq!(gone.wait_end(60), End::Reset);
    assert_eq!(machine.disks[0].hash(), before, "the old OS was written to");
    machine.name = "old-os".to_owned();
    let mut old = bed.power_on(&machine);
    old.wait_for("TINY-OS BOOTED via firmware", 120);
    assert_eq!(old.wait_end(90), End::PowerOff);

    bed.allocate(&allocation);
    machine.name = "again".to_owned();
    let mut again = bed.power_on(&machine);
    again.wait_for("TINY-OS BOOTED via kexec", TO_WAITING + TO_INSTALLED);
    assert_eq!(again.wait_end(90), End::PowerOff);
    assert_ne!(
        fact(&again, "root"),
        first_root,
        "the root was not made anew"
    );
    assert_eq!(
        machine.disks[1].hash(),
        data,
        "a data disk was written at a re-install"
    );
}
