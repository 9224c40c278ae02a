//! Secure Boot enforced by the firmware, with a key of the test: a signed medium installs.

use serde_json::json;

use crate::common::*;
use crate::support::allocation::Allocation;
use crate::support::bed::Bed;
use crate::support::guest::End;
use crate::support::images::{Edit, tiny_file, tiny_with};
use crate::support::machine::{Machine, Media, Order, Start};
use crate::support::media::{self, helper_url};
use crate::support::secure_boot::Keys;

/// The console of a machine whose firmware refuses a program (EFI_ACCESS_DENIED, EFI_SECURITY_VIOLATION).
const REFUSED: [&str; 2] = ["Access Denied", "Security Violation"];

/// A machine that starts only what `keys` signed, from this ISO before its disk.
fn guarded(bed: &Bed, keys: &Keys, iso: Start, name: &str) -> Machine {
    let mut machine = bed.machine(iso, vec![used_disk(bed, "disk")]);
    machine.secure_boot = true;
    machine.order = Some(Order::MediaFirst);
    machine.name = name.to_owned();
    keys.enroll(&machine.vars);
    machine
}

#[test]
fn under_secure_boot_a_signed_medium_installs_and_the_firmware_boots_the_disk() {
    let bed = Bed::plan("media_signed").start();
    let keys = Keys::make(&bed.dir);
    let config = json!({"boot_helper_url": helper_url()});
    let unsigned = media::iso_as(&bed.dir, &config, Media::SataCd, &["--uki"]);
    let mut refused = bed.power_on(&guarded(&bed, &keys, unsigned, "unsigned"));
    refused.wait_for_any(&REFUSED, 120);
    refused.power_cut();

    let (key, certificate) = (
        keys.key.display().to_string(),
        keys.certificate.display().to_string(),
    );
    let sign = ["--uki", "--sign", &key, &certificate];
    let iso = media::iso_as(&bed.dir, &config, Media::SataCd, &sign);
    let mut machine = guarded(&bed, &keys, iso, "signed");
    // The OS's loader is signed, its kernel is not: the firmware may start it, kexec may not.
    let loader = keys.sign(&bed.dir, &tiny_file("./boot/tiny.efi"));
    let image = tiny_with(&[
        Edit::Without("./boot/tiny.efi"),
        Edit::File("./boot/tiny.efi", &loader),
    ]);
    let url = bed.publish("signed", &image);
    let mut guest = bed.power_on(&machine);
    guest.wait_for("Secure Boot is on", TO_WAITING);
    hand_out(&bed, &Allocation::new(&url, "/dev/vda"));
    guest.wait_for("lockdown", TO_INSTALLED);
    assert_eq!(guest.wait_end(60), End::Reset);
    let told = bed
        .standin
        .wait_event(&bed.machine, "BOOTING_NEW_KERNEL", 1, 5);
    assert!(
        told.contains("by a reset into boot entry") && told.contains("Secure Boot"),
        "{told}"
    );
    assert_eq!(bed.standin.events(&bed.machine), GOOD);
    assert!(
        !guest.text().contains("TINY-OS"),
        "an unsigned kernel was started by kexec"
    );
    drop(guest);

    // The medium is still in the drive, and first in the order: BootNext leads past it.
    machine.name = "installed".to_owned();
    let mut booted = bed.power_on(&machine);
    booted.wait_for("TINY-OS BOOTED via firmware", 120);
}

#[test]
fn under_secure_boot_kexec_starts_a_signed_kernel() {
    let bed = Bed::plan("media_signed_kexec").start();
    let keys = Keys::make(&bed.dir);
    let config = json!({"boot_helper_url": helper_url()});
    let (key, certificate) = (
        keys.key.display().to_string(),
        keys.certificate.display().to_string(),
    );
    let sign = ["--uki", "--sign", &key, &certificate];
    let iso = media::iso_as(&bed.dir, &config, Media::SataCd, &sign);
    let machine = guarded(&bed, &keys, iso, "signed");
    let kernel = keys.sign(&bed.dir, &tiny_file("./boot/vmlinuz"));
    let image = tiny_with(&[
        Edit::Without("./boot/vmlinuz"),
        Edit::File("./boot/vmlinuz", &kernel),
    ]);
    let url = bed.publish("signed", &image);
    let guest = install(&bed, &machine, &Allocation::new(&url, "/dev/vda"));
    guest.see("Secure Boot is on", 1);
}
