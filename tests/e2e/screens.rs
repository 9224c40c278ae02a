//! What a technician sees and what an operator finds, from power-on to a failed install. The pictures
//! stay in `target/e2e/screens/`; `scripts/screenshots` puts them into the documents.

use crate::common::*;
use crate::support::allocation::Allocation;
use crate::support::bed::Bed;
use crate::support::guest::End;
use crate::support::images::Image;
use crate::support::screen::{self, Font};
use crate::support::{loki, media};

#[test]
fn a_failed_install_is_told_on_the_screen_and_in_the_remote_log() {
    let option = loki::option("screens");
    let mut bed = Bed::plan("screens").helper_options(&[&option]).start();
    loki::start(&mut bed);
    let machine = bed.machine(
        media::direct(&format!(
            "console=tty0 vt.global_cursor_default=0 loglevel=4 PIXIE_API_URL={} \
             anvil.policy.reboot_delay_seconds=30",
            media::helper_url()
        )),
        vec![used_disk(&bed, "disk")],
    );
    let font = Font::of_kernel(&media::part("vmlinuz"));
    let url = bed.publish("broken", &Image::built("tiny").truncated(60));
    let guest = bed.power_on(&machine);
    // While the firmware starts: one switch is not heard until its picture is taken.
    guest.set_cable(1, false);
    let see = |name: &str, wanted: &[&str]| screen::see(&guest, &font, bed.dir(), name, wanted);

    guest.see("listening for switches on 2 ports", TO_WAITING);
    let id = format!("machine {}", bed.machine);
    see(
        "switch-ports",
        &[
            &id,
            "> listening for switches on 2 ports",
            "no carrier",
            "ok network",
        ],
    );
    guest.set_cable(1, true);
    bed.standin
        .wait_event(&bed.machine, "WAITING", 1, TO_WAITING);
    let ports = ["leaf01 port swp7", "leaf02 port swp7"];
    see(
        "waiting",
        &["> waiting for an allocation", ports[0], ports[1], "ok wipe"],
    );
    bed.allocate(&Allocation::new(&bed.slow(&url), "/dev/vda"));
    see(
        "installing",
        &["> image", "[####", "MiB/s", "ok partitioning"],
    );
    guest.see(FAILED, TO_INSTALLED);
    see("failed", &["FAILED: image: ", "rebooting in ", "!! image"]);

    let mut guest = guest;
    assert_eq!(guest.wait_end(TO_RESET), End::Reset);
    let message = bed.standin.wait_event(&bed.machine, "CRASHED", 1, 5);
    let message = message.trim_end_matches('…');
    loki::assert_story(
        &bed,
        &[
            "kernel: Linux version ",
            " on Linux ",
            "step: network",
            "step: switch ports",
            "step: wait",
            "step: image",
            &format!("ERROR {FAILED}{message}"),
            "the control plane knows",
            "rebooting in ",
        ],
    );
    assert_no_secret_in_logs(&bed);
}
