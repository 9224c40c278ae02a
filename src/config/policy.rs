//! What a partition's operator may tune, and what holds where nothing is said.

use std::time::Duration;

use crate::bmc;
pub use crate::control::helper_answer::{AddrGenMode, BmcUse, LldpPolicy, Policy, WatchdogPolicy};
use crate::image;
use crate::net::lldp::Requirement;
use crate::watchdog;

/// A first failure stays on the screen so long; later ones in a row for longer.
const REBOOT_DELAY: Duration = Duration::from_secs(5);
/// Longer than this and a machine looks dead.
const LONGEST: Duration = Duration::from_secs(3600);
const SLAAC_TIMEOUT: Duration = Duration::from_secs(120);
/// Helpers restart, routes converge, a fleet powers on at once.
const BOOT_HELPER_TIMEOUT: Duration = Duration::from_secs(300);
/// Seconds that every step is silent for now and then, on a busy machine: less would reset a good one.
const LEAST_SILENCE: u64 = 5;
const _: () = assert!(2 * watchdog::progress::TICK.as_secs() < LEAST_SILENCE);
/// Hours until the planned reboot, and the greatest length of the random time added to it.
const WAIT_HOURS: u64 = 24;
/// A machine token lives less than a week (contracts.md §3).
const MAX_WAIT_HOURS: u64 = 72;

impl Policy {
    /// `self` where it says something, `below` where it does not.
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        let lldp = match (self.lldp, below.lldp) {
            (Some(upper), Some(lower)) => Some(LldpPolicy {
                interfaces: upper.interfaces.or(lower.interfaces),
                chassis: upper.chassis.or(lower.chassis),
                timeout_seconds: upper.timeout_seconds.or(lower.timeout_seconds),
            }),
            (upper, lower) => upper.or(lower),
        };
        let watchdog = match (self.watchdog, below.watchdog) {
            (Some(upper), Some(lower)) => Some(WatchdogPolicy {
                enabled: upper.enabled.or(lower.enabled),
                timeout_seconds: upper.timeout_seconds.or(lower.timeout_seconds),
                silence_seconds: upper.silence_seconds.or(lower.silence_seconds),
                over_kexec_seconds: upper.over_kexec_seconds.or(lower.over_kexec_seconds),
            }),
            (upper, lower) => upper.or(lower),
        };
        Self {
            adopt: self.adopt.or(below.adopt),
            lldp,
            watchdog,
            addr_gen_mode: self.addr_gen_mode.or(below.addr_gen_mode),
            slaac_timeout_seconds: self.slaac_timeout_seconds.or(below.slaac_timeout_seconds),
            boot_helper_timeout_seconds: self
                .boot_helper_timeout_seconds
                .or(below.boot_helper_timeout_seconds),
            reboot_delay_seconds: self.reboot_delay_seconds.or(below.reboot_delay_seconds),
            wait_hours: self.wait_hours.or(below.wait_hours),
            bmc: self.bmc.or(below.bmc),
            bmc_user: self.bmc_user.or(below.bmc_user),
            bmc_super_user: self.bmc_super_user.or(below.bmc_super_user),
            image_without_checksum: self.image_without_checksum.or(below.image_without_checksum),
            image_max_gib: self.image_max_gib.or(below.image_max_gib),
            wipe: self.wipe.or(below.wipe),
            wipe_failures: self.wipe_failures.or(below.wipe_failures),
            // Both count: a disk that anybody wants left alone is.
            exclude_disks: [self.exclude_disks, below.exclude_disks].concat(),
            kexec_denylist: [self.kexec_denylist, below.kexec_denylist].concat(),
            inventory_tags: if self.inventory_tags.is_empty() {
                below.inventory_tags
            } else {
                self.inventory_tags
            },
        }
    }

    /// Time for a usable address.
    #[must_use]
    pub fn slaac_timeout(&self) -> Duration {
        limited(self.slaac_timeout_seconds, SLAAC_TIMEOUT)
    }

    /// Time for a usable answer of the boot helper.
    #[must_use]
    pub fn boot_helper_timeout(&self) -> Duration {
        limited(self.boot_helper_timeout_seconds, BOOT_HELPER_TIMEOUT)
    }

    /// Time between a first failure and the reboot.
    #[must_use]
    pub fn reboot_delay(&self) -> Duration {
        limited(self.reboot_delay_seconds, REBOOT_DELAY)
    }

    /// Time without an allocation until the planned reboot, before the random part.
    #[must_use]
    pub fn wait(&self) -> Duration {
        let hours = self
            .wait_hours
            .unwrap_or(WAIT_HOURS)
            .clamp(1, MAX_WAIT_HOURS);
        Duration::from_secs(hours * 3600)
    }

    /// When a hang ends in a reset.
    #[must_use]
    pub fn watchdog(&self) -> watchdog::Rules {
        let default = watchdog::Rules::default();
        let Some(set) = &self.watchdog else {
            return default;
        };
        watchdog::Rules {
            enabled: set.enabled.unwrap_or(default.enabled),
            timeout: set.timeout_seconds.unwrap_or(default.timeout),
            silence: set
                .silence_seconds
                .map(|seconds| Duration::from_secs(seconds.max(LEAST_SILENCE))),
            over_kexec: set.over_kexec_seconds,
        }
    }

    /// The name of the BMC user that the control plane manages the machine with.
    #[must_use]
    pub fn bmc_user(&self) -> &str {
        self.bmc_user.as_deref().unwrap_or(bmc::USER)
    }

    /// The name of the BMC user that gets the control plane's super-user password.
    #[must_use]
    pub fn bmc_super_user(&self) -> &str {
        self.bmc_super_user.as_deref().unwrap_or(bmc::SUPER_USER)
    }

    /// Bytes that an image may unpack to.
    #[must_use]
    pub fn image_limit(&self) -> u64 {
        self.image_max_gib
            .map_or(image::DEFAULT_LIMIT, |gib| gib.saturating_mul(1 << 30))
    }

    /// The switches that have to be heard before the machine registers.
    #[must_use]
    pub fn switches(&self) -> Requirement {
        let default = Requirement::default();
        let Some(lldp) = &self.lldp else {
            return default;
        };
        let count = |set: Option<u32>, default| set.map_or(default, |n| n as usize);
        let interfaces = count(lldp.interfaces, default.interfaces);
        Requirement {
            interfaces,
            // Nobody who wants no interface, or one, means two switches.
            chassis: count(lldp.chassis, default.chassis.min(interfaces)),
            timeout: limited(lldp.timeout_seconds, default.timeout),
        }
    }
}

/// A time that was set, within reason; the default where none was.
fn limited(seconds: Option<u64>, default: Duration) -> Duration {
    seconds.map_or(default, Duration::from_secs).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(json: serde_json::Value) -> Policy {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn the_upper_policy_wins_and_both_exclude_disks() {
        let upper = serde_json::json!({"lldp": {"chassis": 1}, "exclude_disks": ["S1"]});
        let lower = serde_json::json!({"lldp": {"chassis": 4, "interfaces": 3},
            "exclude_disks": ["S2"], "reboot_delay_seconds": 7,
            "bmc": "required", "bmc_super_user": "ADMIN"});
        let policy = policy(upper).over(policy(lower));
        assert_eq!(policy.exclude_disks, ["S1", "S2"]);
        assert_eq!(policy.reboot_delay(), Duration::from_secs(7));
        assert_eq!(policy.bmc, Some(BmcUse::Required));
        assert_eq!(
            (policy.bmc_user(), policy.bmc_super_user()),
            ("metal", "ADMIN")
        );
        let switches = policy.switches();
        assert_eq!((switches.interfaces, switches.chassis), (3, 1));
        assert_eq!(switches.timeout, Duration::from_secs(32));
    }

    #[test]
    fn each_rule_of_the_watchdog_comes_from_whoever_set_it() {
        let upper = serde_json::json!({"watchdog": {"timeout_seconds": 30}});
        let lower = serde_json::json!({"watchdog": {"enabled": false, "timeout_seconds": 90,
            "silence_seconds": 300, "over_kexec_seconds": 180}});
        assert_eq!(Policy::default().watchdog(), watchdog::Rules::default());
        let rules = policy(upper).over(policy(lower)).watchdog();
        let expected = watchdog::Rules {
            enabled: false,
            timeout: 30,
            silence: Some(Duration::from_secs(300)),
            over_kexec: Some(180),
        };
        assert_eq!(rules, expected);
    }

    #[test]
    fn no_silence_is_so_short_that_a_good_machine_is_reset() {
        let silence = |seconds: u64| {
            let set = serde_json::json!({"watchdog": {"silence_seconds": seconds}});
            policy(set).watchdog().silence.unwrap().as_secs()
        };
        assert_eq!([0, 1, 5, 6].map(silence), [5, 5, 5, 6]);
    }

    #[test]
    fn defaults_and_limits() {
        assert_eq!(Policy::default().switches(), Requirement::default());
        assert_eq!(Policy::default().reboot_delay(), REBOOT_DELAY);
        let count = |lldp: serde_json::Value| {
            let switches = policy(serde_json::json!({"lldp": lldp})).switches();
            (switches.interfaces, switches.chassis)
        };
        assert_eq!(count(serde_json::json!({"interfaces": 0})), (0, 0));
        assert_eq!(count(serde_json::json!({"interfaces": 1})), (1, 1));
        assert_eq!(count(serde_json::json!({"interfaces": 4})), (4, 2));
        assert_eq!(
            count(serde_json::json!({"interfaces": 1, "chassis": 2})),
            (1, 2)
        );
        assert_eq!(count(serde_json::json!({"chassis": 1})), (2, 1));
        let odd = policy(serde_json::json!({"reboot_delay_seconds": 1_000_000, "wait_hours": 0}));
        assert_eq!(odd.reboot_delay(), LONGEST);
        assert_eq!(odd.image_limit(), image::DEFAULT_LIMIT);
        let small = policy(serde_json::json!({"image_max_gib": 2}));
        assert_eq!(small.image_limit(), 2 << 30);
        assert_eq!(odd.wait(), Duration::from_secs(3600));
    }
}
