//! Installers that fail, each in its own way.

use crate::common::crash_of_image;
use crate::support::images::{Edit, tiny_with};

#[test]
fn an_installer_that_exits_with_3() {
    crash_of_image(
        "installer_exit_3",
        &tiny_with(&[Edit::Installer("exit 3")]),
        &["installer: ", "3"],
    );
}

#[test]
fn an_installer_that_writes_no_boot_info() {
    // Its boot loader is on the disk by then, so the firmware's fallback path would find it:
    // what counts is that the agent neither reports success nor starts it.
    use crate::common::{TO_INSTALLED, assert_crash, hand_out, used_disk};
    use crate::support::allocation::Allocation;
    use crate::support::bed::Bed;
    use crate::support::media;
    let bed = Bed::plan("installer_no_boot_info").start();
    let machine = bed.machine(media::agent(), vec![used_disk(&bed, "disk")]);
    let url = bed.publish("broken", &tiny_with(&[Edit::Installer("no-boot-info")]));
    let guest = bed.power_on(&machine);
    hand_out(&bed, &Allocation::new(&url, "/dev/vda"));
    assert_crash(&bed, guest, &["installer: ", "boot-info"], TO_INSTALLED);
}
