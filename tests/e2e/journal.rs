//! The install journal and BootNext: what a second boot does to a machine (contracts.md §9).

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

    bed.allocate(&allocation.with("/image/url", json!(good)));
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
