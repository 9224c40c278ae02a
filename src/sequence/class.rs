//! What is done about an error, told by its type.
//!
//! What passes by itself is tried again where it happens (`control::retry`, the race for a
//! path, a download's resumption) and is an error here only once that has come to its end.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use thiserror::Error;

use crate::{config, control, efi, hardware, image, install, net, storage};

/// How a failed boot goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The machine resets and tries again.
    Reboot,
    /// A reset cannot help: the machine stays up until hands have changed something.
    Hold(Missing),
}

/// What somebody has to plug in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    Nic,
    Disk,
}

impl Missing {
    /// The devices of this kind, by the kernel's names below `sys`.
    pub(super) fn present(self, sys: &Path) -> BTreeSet<String> {
        let directory = match self {
            Self::Nic => "class/net",
            Self::Disk => "block",
        };
        fs::read_dir(sys.join(directory))
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect()
    }
}

/// An error that may end a boot.
pub trait Classed: std::error::Error {
    fn class(&self) -> Class {
        Class::Reboot
    }
}

impl Classed for net::Error {
    fn class(&self) -> Class {
        match self {
            Self::NoNic => Class::Hold(Missing::Nic),
            _ => Class::Reboot,
        }
    }
}

/// No disk is left that may be written.
#[derive(Debug, Error)]
#[error(
    "this machine has no disk that may be written, so nothing could ever be installed on it; \
     check disks, controller and policy.exclude_disks"
)]
pub(super) struct NoDisk;

impl Classed for NoDisk {
    fn class(&self) -> Class {
        Class::Hold(Missing::Disk)
    }
}

impl Classed for std::io::Error {}
impl Classed for crate::storage::eligible::UnknownLink {}
impl Classed for config::medium::MediumError {}
impl Classed for control::Error {}
impl Classed for control::boot_helper_client::HelperError {}
impl Classed for control::http::ClientError {}
impl Classed for efi::Error {}
impl Classed for hardware::Error {}
impl Classed for image::Error {}
impl Classed for install::Error {}
impl Classed for net::lldp::Error {}
impl Classed for net::path::TargetError {}
impl Classed for storage::device::Error {}
impl Classed for storage::disks::Error {}
impl Classed for storage::identity::Error {}
impl Classed for storage::scope::Error {}
impl Classed for storage::plan::PlanError {}
impl Classed for storage::wipe::WipeError {}
impl Classed for storage::apply::ApplyError {}
impl Classed for storage::stack::Error {}
impl Classed for storage::target::Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_no_reset_brings_back_holds() {
        let waited = std::time::Duration::ZERO;
        let report = String::new();
        let table: [(Box<dyn Classed>, Class); 4] = [
            (Box::new(net::Error::NoNic), Class::Hold(Missing::Nic)),
            (
                Box::new(net::Error::NoAddress { waited, report }),
                Class::Reboot,
            ),
            (Box::new(NoDisk), Class::Hold(Missing::Disk)),
            (
                Box::new(std::io::Error::other("disk on fire")),
                Class::Reboot,
            ),
        ];
        for (error, class) in table {
            assert_eq!(error.class(), class, "{error}");
        }
    }

    #[test]
    fn devices_are_told_by_name() {
        let sys = tempfile::tempdir().unwrap();
        assert!(Missing::Disk.present(sys.path()).is_empty());
        fs::create_dir_all(sys.path().join("block/sda")).unwrap();
        fs::create_dir_all(sys.path().join("class/net/lo")).unwrap();
        let names = |missing: Missing| Vec::from_iter(missing.present(sys.path()));
        assert_eq!(names(Missing::Disk), ["sda"]);
        assert_eq!(names(Missing::Nic), ["lo"]);
    }
}
