//! What a technician at the machine sees: the whole agent, under UEFI, on the screen.

use crate::support::guest::End;
use crate::support::media;
use crate::support::screen::{self, Font};

use super::lab::Lab;

#[test]
fn no_ra_leaves_a_screen_that_says_what_to_check() {
    let lab = Lab::new("no_ra_screen");
    let mut machine = lab.machine("");
    machine.uefi = true;
    machine.memory = 1024;
    machine.start = media::direct(
        "console=tty0 vt.global_cursor_default=0 quiet loglevel=4 PIXIE_API_URL=http://[2001:db8::1]:4242 anvil.policy.slaac_timeout_seconds=15 \
         anvil.policy.reboot_delay_seconds=20",
    );
    let qemu = lab.ns.command("qemu-system-x86_64");
    let mut guest = machine.power_on(qemu, &lab.dir);
    let font = Font::of_kernel(&media::part("vmlinuz"));
    guest.wait_for("waiting for an IPv6 address", 420);
    let ports = ["eth0 ", "eth1 ", "check: whether the switch port forwards"];
    let waiting = [
        "> waiting for an IPv6 address",
        "no address",
        ports[0],
        ports[1],
        ports[2],
    ];
    screen::see(&guest, &font, &lab.dir, "no-address", &waiting);
    let failed = guest.wait_for("FAILED: network: no usable IPv6 address after 15 s", 420);
    assert!(failed.contains("FAILED"), "{failed}");
    for card in ["eth0", "eth1"] {
        let line = guest.wait_for(card, 30);
        for word in [
            "no router advertisement",
            "check: whether the switch port forwards",
        ] {
            assert!(line.contains(word), "{word:?} is not in {line:?}");
        }
    }
    guest.wait_for("rebooting in 20 s", 30);
    let failed = [
        "FAILED: network: no usable IPv6 address",
        "rebooting in ",
        ports[2],
    ];
    screen::see(&guest, &font, &lab.dir, "no-address-failed", &failed);
    assert_eq!(guest.wait_end(120), End::Reset);
}
