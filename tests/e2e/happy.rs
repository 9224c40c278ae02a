//! A good install, from power-on to the installed system, twice started.

use crate::common::*;
use crate::support::allocation::{Allocation, SSH_KEY};
use crate::support::bed::Bed;
use crate::support::disk::{Bus, Disk};
use crate::support::guest::End;
use crate::support::images::{Edit, Image, tiny_with};
use crate::support::machine::Start;
use crate::support::{loki, media};

#[test]
fn tiny_is_installed_and_starts_by_kexec_and_then_from_the_disk() {
    let option = loki::option("happy_tiny");
    let mut bed = Bed::plan("happy_tiny").helper_options(&[&option]).start();
    loki::start(&mut bed);
    let disks = vec![used_disk(&bed, "disk"), used_disk(&bed, "data")];
    let mut machine = bed.machine(media::agent(), disks);
    // The memory stays as it is after the power-off.
    machine.extra = vec!["-no-shutdown".to_owned()];
    let url = bed.publish("tiny", &Image::built("tiny"));
    let allocation = Allocation::new(&url, "/dev/vda");
    let mut guest = install(&bed, &machine, &allocation);
    guest.wait_for("TINY-OS DONE", 60);
    assert_no_secret_in_memory(&bed, &guest);
    assert_eq!(guest.wait_end(60), End::PowerOff);

    assert_eq!(bed.standin.events(&bed.machine), GOOD);
    assert_nothing_refused(&bed);
    bed.standin
        .wait_call(&bed.machine, "InstallationSucceeded", 1, 5);
    assert!(
        bed.downloads().contains("img.tar.lz4.md5"),
        "the checksum was fetched"
    );
    assert_no_secret_in_logs(&bed);
    let events = bed.standin.record();
    let last = events
        .iter()
        .rev()
        .find(|line| line["method"] == "SendEvent");
    let last = last.expect("an event")["message"]["event"]["message"].to_string();
    assert!(last.contains(" s: ") && last.contains("image "), "{last}");
    loki::assert_story(
        &bed,
        &["step: network", "step: image", "timeline: ", " INFO kexec"],
    );

    let text = guest.text();
    let root = fact(&guest, "root");
    for wanted in [
        format!("TINY-OS fstab=UUID={root} / ext4 "),
        "TINY-OS allocation=hostname: ".to_owned(),
        "TINY-OS file=/etc/metal/userdata 0600 ".to_owned(),
        "TINY-OS file=/etc/metal/install.yaml ".to_owned(),
        "TINY-OS file=/etc/metal/machine-details.yaml ".to_owned(),
        "TINY-OS userdata=#cloud-config".to_owned(),
        "TINY-OS efi=true".to_owned(),
    ] {
        assert!(
            text.contains(&wanted),
            "{wanted:?} is missing in what tiny saw"
        );
    }
    assert!(
        fact(&guest, "disk.json").contains(&root),
        "disk.json names the root's UUID"
    );
    let fstab: Vec<&str> = text
        .lines()
        .filter(|l| l.contains("TINY-OS fstab=UUID="))
        .collect();
    assert!(
        fstab
            .iter()
            .any(|l| l.contains(" /boot/efi vfat ") && l.ends_with(" 0 2")),
        "{fstab:?}"
    );
    assert!(
        text.contains("TINY-OS fstab=tmpfs /tmp tmpfs "),
        "{fstab:?}"
    );
    // Every disk of a first install is wiped, not only the one that is written.
    assert!(machine.disks[1].is_blank(), "the second disk was not wiped");

    let timeline = fact(&guest, "timeline");
    for step in ["start", "switch ports", "image", "boot entry"] {
        assert!(
            timeline.contains(&format!("\"step\": \"{step}\"")),
            "{timeline}"
        );
    }

    machine.start = Start::Disks;
    machine.extra.clear();
    machine.name = "second".to_owned();
    let mut second = bed.power_on(&machine);
    second.wait_for("TINY-OS BOOTED via firmware", 120);
    second.wait_for("TINY-OS DONE", 60);
    assert_eq!(fact(&second, "root"), root);
}

#[test]
fn an_image_without_installer_is_finished_by_the_agent() {
    let bed = Bed::plan("happy_native").start();
    let machine = bed.machine(media::agent(), vec![used_disk(&bed, "disk")]);
    let loader = Edit::Copy("./boot/tiny.efi", "./boot/efi/EFI/BOOT/BOOTX64.EFI");
    let image = tiny_with(&[Edit::Without("./install-go"), loader]);
    let url = bed.publish("native", &image);
    let mut guest = bed.power_on(&machine);
    hand_out(&bed, &Allocation::new(&url, "/dev/vda"));
    guest.wait_for("TINY-OS BOOTED", TO_INSTALLED);
    guest.wait_for("TINY-OS DONE", 60);
    assert_eq!(fact(&guest, "hostname"), "metal-test");
    let id = fact(&guest, "machine-id");
    assert!(!id.contains("left-by-the-image"), "{id}");
    assert_eq!(bed.standin.events(&bed.machine), GOOD);
    assert!(!guest.text().contains(SSH_KEY), "tiny does not print keys");
}

#[test]
fn sata_and_nvme_disks_are_installed_as_well() {
    for (name, bus, device) in [
        ("happy_sata", Bus::Sata, "/dev/sda"),
        ("happy_nvme", Bus::Nvme, "/dev/nvme0n1"),
    ] {
        let bed = Bed::plan(name).start();
        let disk = Disk::with_pattern(&bed.dir, "disk", bus, SMALL);
        let machine = bed.machine(media::agent(), vec![disk]);
        let url = bed.publish("tiny", &Image::built("tiny"));
        let mut guest = install(&bed, &machine, &Allocation::new(&url, device));
        guest.wait_for("TINY-OS DONE", 60);
    }
}

#[test]
fn a_wait_that_the_server_cuts_is_opened_again() {
    let bed = Bed::plan("happy_cut").wait_seconds(11.0).start();
    let machine = bed.machine(media::agent(), vec![used_disk(&bed, "disk")]);
    let url = bed.publish("tiny", &Image::built("tiny"));
    let mut guest = bed.power_on(&machine);
    bed.standin
        .wait_event(&bed.machine, "WAITING", 1, TO_WAITING);
    bed.standin.wait_cut(&bed.machine, 3, 90);
    bed.standin.wait_open(&bed.machine, 10);
    bed.allocate(&Allocation::new(&url, "/dev/vda"));
    guest.wait_for("TINY-OS BOOTED via kexec", TO_INSTALLED);
    assert_eq!(bed.standin.events(&bed.machine), GOOD);
}
