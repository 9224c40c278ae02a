//! How long each piece of the boot may go without a sign of life, before the watchdog takes
//! the machine for hung. Every wait of a step is bounded by itself; what stands here is that
//! bound and some more, so that an error comes first and silence means a hang.

use std::time::Duration;

use crate::config::Policy;
use crate::image::Patience;
use crate::install::chroot;

/// On top of every bound.
const MORE: Duration = Duration::from_secs(60);

/// The medium may take 30 s to appear; disks and firmware are read.
pub(super) const START: Duration = Duration::from_secs(120);
/// What takes no time, unless the machine is slow.
pub(super) const SHORT: Duration = Duration::from_secs(60);
/// Partitions, arrays, volumes and file systems: each command ends within ten minutes, and
/// most within a second.
pub(super) const LAYOUT: Duration = Duration::from_secs(1800);
/// Flushing and unmounting what an image left in memory, on a slow disk.
pub(super) const FLUSH: Duration = Duration::from_secs(900);
/// The installer has its own deadline, before which its binary may have to be fetched.
pub(super) const INSTALLER: Duration = chroot::DEADLINE.saturating_add(FLUSH);

/// A usable address.
pub(super) fn network(policy: &Policy) -> Duration {
    policy.slaac_timeout() + MORE
}

/// The boot helper: two rounds of NTP, its own time, and a path to the apiserver.
pub(super) fn boot_helper(policy: &Policy) -> Duration {
    2 * policy.boot_helper_timeout() + 2 * MORE
}

/// Calls of the apiserver, each with its repetitions: two at most in a row, with a new token
/// between them.
pub(super) fn calls(policy: &Policy) -> Duration {
    Duration::from_secs(2 * 140) + boot_helper(policy)
}

/// The switches' announcements.
pub(super) fn switches(policy: &Policy) -> Duration {
    policy.switches().timeout + MORE
}

/// A download that does not move is broken off and resumed, for so long.
pub(super) fn image() -> Duration {
    Patience::default().longest() + FLUSH
}
