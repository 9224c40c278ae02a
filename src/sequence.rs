//! The boot, top to bottom.
//!
//! Each state is what the steps before it proved. A step consumes the state on its left
//! and returns the one on its right, so the compiler holds the order: without `Registered`
//! no disk is looked at, without a decision's `WipeScope` none is written, without
//! `Installed` there is no kexec.

mod allocate;
mod authorize;
mod back_off;
mod bmc;
pub mod boot_disk;
mod booted;
pub mod class;
mod clock;
mod connect;
mod disk_image;
pub mod failure;
mod finish;
mod install;
mod logs;
mod ports;
mod preflight;
mod register;
mod rescue;
mod silence;
pub mod steps;
mod token;

use std::convert::Infallible;

pub use booted::{Booted, Told};
use failure::{Failure, Lifeline};

use crate::decide::Journal;
use crate::efi;
use crate::efi::vars::Vars;
use crate::report::log::Verbosity;

/// What this program calls itself to switches and control plane.
pub const PROGRAM: &str = concat!("metal-anvil ", env!("CARGO_PKG_VERSION"));

/// Where EFI system partitions are mounted, read-only, to look what is on them.
const ESP_MOUNT: &str = "/run/esp";

/// Boots the machine: an installed OS takes over by kexec, or the disk by a reset, or there
/// is a [`Failure`] to be handled.
///
/// # Errors
/// The first thing that kept the boot from going on.
pub async fn boot(lifeline: Lifeline, verbosity: Verbosity) -> Result<Infallible, Failure> {
    let vital = lifeline.vital().clone();
    // Nobody gets through a step without saying how long it may be silent.
    let progress = vital.expect("start", silence::START);
    let told = Told::read(lifeline, verbosity, &progress)?;
    let booted = rescue::unless_asked_for(told, &progress).await.start()?;
    drop(progress);
    let connected = booted
        .connect(vital.expect("network", silence::SHORT))
        .await?;
    let authorized = connected
        .authorize(vital.expect("boot helper", silence::SHORT))
        .await?;
    let registered = authorized
        .register(vital.expect("registration", silence::SHORT))
        .await?;
    let allocated = registered
        .allocate(vital.expect("allocation", silence::SHORT))
        .await?;
    let installed = allocated
        .install(vital.expect("installation", silence::SHORT))
        .await?;
    installed
        .kexec(vital.expect("success report", silence::SHORT))
        .await
}

/// Makes the next boot take a finished install for one that was cut: the control plane does not
/// know of it.
fn begin_anew(efi: &Vars, begun: &Journal) {
    if let Err(error) = efi::journal::write(efi, begun) {
        tracing::error!("{error}; the next boot takes this machine for installed");
    }
}

/// Makes the firmware boot this medium again, whatever its order says: a BMC's "boot once"
/// is spent, and what is on the disk may be half written.
fn come_back(efi: &Vars) {
    match efi::boot::set_next_to_current(efi) {
        Ok(outcome) => tracing::debug!("BootNext: {outcome:?}"),
        Err(error) => tracing::error!("cannot make the firmware come back to this medium: {error}"),
    }
}
