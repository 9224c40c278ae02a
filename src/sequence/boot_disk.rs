//! A machine whose OS stands boots it, and nothing is written but the firmware's BootNext.
//!
//! By a reset, not by kexec: the OS may have a newer kernel by now than the one that was
//! installed, and only its own boot loader knows.

use std::convert::Infallible;
use std::path::Path;

use jiff::Timestamp;

use super::authorize::Authorized;
use super::failure::{During, Failure, Step, count_down, shorten};
use super::{back_off, silence};
use crate::control::api::EventType;
use crate::efi::vars::Vars;
use crate::efi::{self, disk_boots};
use crate::init::power;
use crate::report::steps;
use crate::storage::disks::{self, Transport};
use crate::watchdog::Progress;

/// An OS that is restarted a few times for its own reasons is none that does not start: with so many
/// boots in a row behind it this one pauses, and with more the control plane is told.
const SUSPICIOUS: u8 = 2;

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

/// Resets the machine into the installed OS. One that came back again and again does not start: the
/// control plane is told, and each round takes longer than the one before.
pub(super) async fn boot(
    authorized: &Authorized,
    progress: &Progress,
) -> Result<Infallible, Failure> {
    steps::begin(Step::BootDisk);
    let booted = &authorized.connected.booted;
    let chosen = aim(&booted.efi)?;
    booted.lifeline.succeeded();
    let before = disk_boots::count(&booted.efi, Timestamp::now()).unwrap_or_else(|error| {
        tracing::warn!("cannot count how often the disk was booted: {error}");
        0
    });
    if before >= SUSPICIOUS {
        let why = came_back(before, &chosen);
        tracing::warn!("{why}");
        if before > SUSPICIOUS {
            let told = authorized.send_event(EventType::Crashed, &why, Step::BootDisk);
            if let Err(failure) = progress.endless(told).await {
                tracing::warn!("{failure}");
            }
        }
        let pause = back_off::after(before - 1, booted.lifeline.reboot_delay());
        progress.begin(silence::START);
        count_down(pause, progress).await;
    }
    tracing::info!("this machine is installed: booting its disk, {chosen}");
    power::reboot_now()
}

/// What an operator has to look at when the installed OS does not stay.
fn came_back(times: u8, chosen: &str) -> String {
    let mut message = format!(
        "boot from disk: this medium came back {times} times within minutes, so the installed OS does not start; \
         check its boot loader, Secure Boot, and whether the firmware keeps to BootNext ({chosen})"
    );
    shorten(&mut message);
    message
}

#[cfg(test)]
mod tests {
    use super::super::failure::MAX_MESSAGE;
    use super::*;

    #[test]
    fn what_came_back_is_told_in_one_short_line() {
        let message = came_back(3, &"x".repeat(300));
        assert!(message.len() <= MAX_MESSAGE, "{}", message.len());
        assert!(message.contains("came back 3 times"), "{message}");
    }
}
