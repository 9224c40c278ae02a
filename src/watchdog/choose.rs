//! Which watchdog of several: by what its driver is called, never by number.
//!
//! `/dev/watchdog` is whichever driver came first. With a BMC that is often the IPMI
//! watchdog, which is no class device and therefore not in `/sys/class/watchdog`.

use std::fs;
use std::path::{Path, PathBuf};

/// `drivers/char/ipmi/ipmi_watchdog.c`: how that driver calls itself.
pub const IPMI: &str = "IPMI";
/// `drivers/watchdog/softdog.c`: a timer of the kernel, which dies with it.
const SOFTDOG: &str = "Software Watchdog";

/// A watchdog that can be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Below `/dev`.
    pub device: PathBuf,
    /// What the driver calls itself.
    pub identity: String,
    /// Once started it cannot be stopped.
    pub nowayout: bool,
}

impl Candidate {
    /// The chipset's first: a reset clears it. The BMC's runs on through the firmware's own
    /// start; the kernel's own resets nothing when the kernel is gone.
    fn rank(&self) -> u8 {
        match self.identity.as_str() {
            IPMI => 1,
            SOFTDOG => 2,
            _ => 0,
        }
    }
}

/// The machine's watchdogs below `sys` and `dev`, the one to be taken first.
#[must_use]
pub fn candidates(sys: &Path, dev: &Path) -> Vec<Candidate> {
    let class = sys.join("class/watchdog");
    let mut names: Vec<String> = fs::read_dir(&class)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    let read = |name: &str, attribute: &str| {
        let text = fs::read_to_string(class.join(name).join(attribute)).unwrap_or_default();
        text.trim().to_owned()
    };
    let mut found: Vec<Candidate> = names
        .iter()
        .map(|name| Candidate {
            device: dev.join(name),
            identity: read(name, "identity"),
            nowayout: read(name, "nowayout") == "1",
        })
        .collect();
    // The class's first device answers there as well. Without it the node is that of a driver
    // outside the class, and this kernel has one such driver.
    let old = dev.join("watchdog");
    if !names.iter().any(|name| name == "watchdog0") && old.exists() {
        found.push(Candidate {
            device: old,
            identity: IPMI.to_owned(),
            nowayout: false,
        });
    }
    found.sort_by_key(Candidate::rank);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(class: &[(&str, &str, &str)], dev: &[&str]) -> Vec<(String, bool)> {
        let dir = tempfile::tempdir().unwrap();
        let (sys, devices) = (dir.path().join("sys"), dir.path().join("dev"));
        fs::create_dir_all(&devices).unwrap();
        for (name, identity, nowayout) in class {
            let at = sys.join("class/watchdog").join(name);
            fs::create_dir_all(&at).unwrap();
            fs::write(at.join("identity"), format!("{identity}\n")).unwrap();
            fs::write(at.join("nowayout"), format!("{nowayout}\n")).unwrap();
        }
        for name in dev {
            fs::write(devices.join(name), "").unwrap();
        }
        candidates(&sys, &devices)
            .into_iter()
            .map(|it| {
                let name = it.device.file_name().unwrap().to_string_lossy();
                (format!("{name} {}", it.identity), it.nowayout)
            })
            .collect()
    }

    #[test]
    fn the_chipsets_comes_before_the_bmcs_and_the_kernels_own() {
        let class = [
            ("watchdog1", "Software Watchdog", "0"),
            ("watchdog2", "iTCO_wdt", "1"),
        ];
        assert_eq!(
            order(&class, &["watchdog", "watchdog1", "watchdog2"]),
            [
                ("watchdog2 iTCO_wdt".to_owned(), true),
                ("watchdog IPMI".to_owned(), false),
                ("watchdog1 Software Watchdog".to_owned(), false),
            ]
        );
    }

    #[test]
    fn the_old_node_of_a_class_device_is_not_a_second_one() {
        let class = [("watchdog0", "i6300ESB timer", "0")];
        assert_eq!(
            order(&class, &["watchdog", "watchdog0"]),
            [("watchdog0 i6300ESB timer".to_owned(), false)]
        );
        assert_eq!(order(&[], &[]), []);
    }
}
