//! The ISO starts the agent from every kind of drive that a BMC or a hand can offer.

use serde_json::json;

use crate::common::*;
use crate::support::allocation::Allocation;
use crate::support::bed::Bed;
use crate::support::images::Image;
use crate::support::machine::Media;
use crate::support::media::{self, helper_url};
use crate::support::services::Helper;

/// Power-on to the agent's line about its settings.
const TO_AGENT: u64 = 120;

fn starts_from(name: &str, kind: Media) {
    let bed = Bed::plan(name).helper(Helper::Absent).start();
    let config = json!({"boot_helper_url": helper_url(), "hostname": "from-the-iso"});
    let machine = bed.machine(media::iso(&bed.dir, &config, kind), vec![]);
    let mut guest = bed.power_on(&machine);
    guest.wait_for(&format!("machine {}", bed.machine), TO_AGENT);
    // What it does with metal.config shows where it asks next.
    guest.wait_for("waiting for an IPv6 address", 60);
    guest.wait_for("address 2001:db8:", 60);
    guest.wait_for(&helper_url(), 60);
}

#[test]
fn sata_cd() {
    starts_from("medium_sata_cd", Media::SataCd);
}

#[test]
fn scsi_cd() {
    starts_from("medium_scsi_cd", Media::ScsiCd);
}

#[test]
fn usb_cd() {
    starts_from("medium_usb_cd", Media::UsbCd);
}

/// The stick is a disk as well, and the first one that the firmware finds: it stays what it is.
#[test]
fn usb_stick_to_a_running_system() {
    let bed = Bed::plan("medium_usb_stick").start();
    let config = json!({"boot_helper_url": helper_url()});
    let mut machine = bed.machine(
        media::iso(&bed.dir, &config, Media::UsbStick),
        vec![used_disk(&bed, "disk")],
    );
    // The memory stays as it is after the power-off.
    machine.extra = vec!["-no-shutdown".to_owned()];
    let url = bed.publish("tiny", &Image::built("tiny"));
    let mut guest = install(&bed, &machine, &Allocation::new(&url, "/dev/vda"));
    guest.wait_for("TINY-OS DONE", 60);
    guest.see("is left alone: the medium booted from", 1);
    assert_no_secret_in_memory(&bed, &guest);
    assert_eq!(bed.standin.events(&bed.machine), GOOD);
}
