//! A machine whose OS stands boots it, and nothing is written but the firmware's BootNext.
//!
//! By a reset, not by kexec: the OS may have a newer kernel by now than the one that was
//! installed, and only its own boot loader knows.

use std::convert::Infallible;
use std::path::Path;

use super::failure::{During, Failure, Lifeline, Step};
use crate::efi;
use crate::efi::vars::Vars;
use crate::init::power;
use crate::report::steps;
use crate::storage::disks::{self, Transport};

/// Points BootNext at the installed OS and says which boot entry that is.
///
/// # Errors
/// No boot entry and no EFI system partition of this machine holds an OS.
pub fn aim(efi: &Vars) -> Result<String, Failure> {
    let disks = disks::discover(Path::new("/sys")).during(Step::BootDisk)?;
    // A stick in the machine may carry a loader, but it is not what was installed.
    let own = disks
        .into_iter()
        .filter(|disk| !disk.removable && disk.transport != Transport::Usb);
    let paths: Vec<_> = own.map(|disk| disk.path).collect();
    let chosen =
        efi::boot::boot_disk(efi, &paths, Path::new(super::ESP_MOUNT)).during(Step::BootDisk)?;
    Ok(chosen.to_string())
}

/// Resets the machine into the installed OS.
pub(super) fn boot(efi: &Vars, lifeline: &Lifeline) -> Result<Infallible, Failure> {
    steps::begin(Step::BootDisk);
    let chosen = aim(efi)?;
    lifeline.succeeded();
    tracing::info!("this machine is installed: booting its disk, {chosen}");
    power::reboot_now()
}
