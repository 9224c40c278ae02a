//! Other media than the usual ISO, each to a running OS: one EFI program, iPXE.

use serde_json::json;

use crate::common::*;
use crate::support::allocation::Allocation;
use crate::support::bed::Bed;
use crate::support::images::Image;
use crate::support::machine::Media;
use crate::support::media::{self, CONSOLE, NO_TIMER_CHECK, helper_url};

#[test]
fn a_unified_kernel_image_leads_to_a_running_system() {
    let bed = Bed::plan("media_uki").start();
    let config = json!({"boot_helper_url": helper_url(), "hostname": "from-the-uki"});
    let iso = media::iso_as(&bed.dir, &config, Media::UsbStick, &["--uki"]);
    let mut machine = bed.machine(iso, vec![used_disk(&bed, "disk")]);
    // The memory stays as it is after the power-off.
    machine.extra = vec!["-no-shutdown".to_owned()];
    let url = bed.publish("tiny", &Image::built("tiny"));
    let mut guest = install(&bed, &machine, &Allocation::new(&url, "/dev/vda"));
    guest.wait_for("TINY-OS DONE", 60);
    assert_no_secret_in_memory(&bed, &guest);
    // The metal.config beside the program was read.
    guest.see("boot medium METAL-HAMMER is sd", 1);
    assert_eq!(bed.standin.events(&bed.machine), GOOD);
}

#[test]
fn ipxe_asks_the_boot_helper_and_the_agent_installs() {
    let files = media::part("vmlinuz");
    let directory = files
        .parent()
        .expect("a file is in a directory")
        .display()
        .to_string();
    let bed = Bed::plan("media_ipxe")
        .helper_options(&["--static-dir", &directory])
        .start();
    bed.standin.set(json!({
        "boot_files": format!("{}/static", helper_url()),
        "boot_cmdline": format!("{CONSOLE} {NO_TIMER_CHECK} loglevel=4"),
    }));
    let iso = media::ipxe(&bed.dir, &helper_url(), Media::UsbCd);
    let machine = bed.machine(iso, vec![used_disk(&bed, "disk")]);
    let url = bed.publish("tiny", &Image::built("tiny"));
    let mut guest = bed.power_on(&machine);
    guest.wait_for(&format!("loading {}/boot.ipxe", helper_url()), 60);
    hand_out(&bed, &Allocation::new(&url, "/dev/vda"));
    guest.wait_for("TINY-OS BOOTED via kexec", TO_INSTALLED);
    assert!(!guest.text().contains("DHCP"), "IPv4 was tried");
}
