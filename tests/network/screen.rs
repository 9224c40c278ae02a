//! What a technician at the machine sees: the whole agent, under UEFI, on the screen.

use std::fs;
use std::time::Duration;

use crate::support::guest::End;
use crate::support::media;

use super::lab::Lab;

#[test]
fn no_ra_leaves_a_screen_that_says_what_to_check() {
    let lab = Lab::new("no_ra_screen");
    let mut machine = lab.machine("");
    machine.uefi = true;
    machine.memory = 1024;
    machine.start = media::direct(
        "console=tty0 vt.global_cursor_default=0 quiet loglevel=4 PIXIE_API_URL=http://[2001:db8::1]:4242 anvil.policy.slaac_timeout_seconds=5 \
         anvil.policy.reboot_delay_seconds=20",
    );
    let qemu = lab.ns.command("qemu-system-x86_64");
    let mut guest = machine.power_on(qemu, &lab.dir);
    let failed = guest.wait_for("FAILED: network: no usable IPv6 address after 5 s", 420);
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
    // The screen has a writer of its own: what it shows is whole when it no longer changes. A cursor
    // would blink.
    let picture = lab.dir.join("screen.ppm");
    let dump = || {
        std::thread::sleep(Duration::from_secs(1));
        guest.screendump(&picture);
        fs::read(&picture).expect("the screen")
    };
    let mut screen = dump();
    let still = (0..10).any(|_| {
        let next = dump();
        let same = next == screen;
        screen = next;
        same
    });
    assert!(still, "the screen goes on changing");
    let lit = lit_pixels(&screen);
    // A dozen lines of text light some ten thousand pixels; a blank screen with a cursor, a few.
    assert!(
        lit > 3000,
        "only {lit} pixels of {} are lit",
        picture.display()
    );
    assert_eq!(guest.wait_end(120), End::Reset);
}

/// Pixels of a binary PPM (`P6`) that are not dark.
fn lit_pixels(ppm: &[u8]) -> usize {
    // Magic, width, height and depth end at the fourth white space; QEMU writes no comment.
    let mut ends = ppm
        .iter()
        .enumerate()
        .filter(|(_, byte)| byte.is_ascii_whitespace());
    let (end, _) = ends.nth(3).expect("a PPM header");
    let pixels = ppm[end + 1..].chunks_exact(3);
    pixels.filter(|rgb| rgb.iter().any(|c| *c > 0x60)).count()
}
