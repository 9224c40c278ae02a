//! A disk that hangs in the middle of a wipe: told, and ended by the watchdog.

use serde_json::json;

use crate::common::*;
use crate::support::bed::Bed;
use crate::support::media::{self, helper_url};

/// Seconds.
const TIMEOUT: u64 = 10;
const SILENCE: u64 = 15;

#[test]
fn a_disk_that_hangs_is_reported_and_ends_in_a_reset() {
    let bed = Bed::plan("hang_disk").start();
    let start = media::direct(&format!(
        "PIXIE_API_URL={} anvil.policy.reboot_delay_seconds=3000 anvil.policy.wipe=secure \
         anvil.policy.watchdog.timeout_seconds={TIMEOUT} anvil.policy.watchdog.silence_seconds={SILENCE}",
        helper_url()
    ));
    let mut machine = bed.machine(start, vec![used_disk(&bed, "disk")]);
    machine.extra = vec!["-device".to_owned(), "i6300esb".to_owned()];
    let mut guest = bed.power_on(&machine);
    guest.wait_for("listening for switches", TO_WAITING);
    // One request a second, and a wipe has thousands: as good as none.
    guest.control(
        "block_set_io_throttle",
        json!({"device": "disk0", "bps": 0, "bps_rd": 0, "bps_wr": 0,
               "iops": 1, "iops_rd": 0, "iops_wr": 0}),
    );
    let message = bed
        .standin
        .wait_event(&bed.machine, "CRASHED", 1, TO_WAITING);
    assert!(message.contains("no sign of life"), "{message}");
    guest.wait_watchdog(TIMEOUT + 60);
}
