//! Installed -> the new kernel: the success is reported, then this program ends by kexec.

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use secrecy::SecretString;

use super::allocate::Allocated;
use super::come_back;
use super::failure::{During, Failure, MAX_MESSAGE, Step};
use crate::control::api::EventType;
use crate::control::apiserver::Completion;
use crate::efi::{boot, journal};
use crate::init::power;
use crate::install;
use crate::install::kexec::Loaded;
use crate::report::{console, memory, steps, stream};

/// After InstallationSucceeded the switch port is in the tenant's network: what follows is
/// best effort and may take 2 s in all (contracts.md §1): the last event, then the last lines.
const LAST_WORDS: Duration = Duration::from_millis(1500);
const LAST_FLUSH: Duration = Duration::from_millis(500);

/// Bytes of the last event for the image and how it is started; the rest is the timeline's.
const MAX_HOW: usize = 200;

/// The way into the installed OS.
pub(super) struct NewKernel {
    /// In memory, unless this kernel refuses to start another.
    pub loaded: Result<Loaded, install::Error>,
    /// The disk's entry in the firmware.
    pub entry: Option<u16>,
}

/// A machine whose OS is installed, verified and bootable.
pub struct Installed {
    pub(super) allocated: Allocated,
    pub(super) password: SecretString,
    pub(super) kernel: NewKernel,
}

impl Installed {
    /// Reports the success and starts the new kernel; by kexec, or where the kernel refuses
    /// that, by a reset through the boot entry. Once the success is reported nothing leads
    /// back to this medium: the switch port is in the tenant's network by then.
    ///
    /// # Errors
    /// The control plane refuses the report.
    pub(super) async fn kexec(self) -> Result<Infallible, Failure> {
        steps::begin(Step::Report);
        // The network may be the tenant's after the report.
        console::flush();
        if let Err(failure) = self.report().await {
            // The control plane still takes the install for unfinished; so does the next boot.
            let efi = &self.allocated.registered.authorized.connected.booted.efi;
            come_back(efi);
            journal::write(efi, &self.allocated.begun()).during(Step::Report)?;
            return Err(failure);
        }
        let authorized = &self.allocated.registered.authorized;
        let booted = &authorized.connected.booted;
        booted.lifeline.os_is_whole(true);
        if let Some(peak) = memory::peak_rss(Path::new("/proc")) {
            tracing::info!("peak RSS of the agent: {} MiB", peak.div_ceil(1 << 20));
        }
        steps::log();
        let message = last_message(&self.allocated.allocation.image.id);
        let last_words = authorized.apiserver.send_event_within(
            EventType::BootingNewKernel,
            &message,
            LAST_WORDS,
        );
        if let Err(error) = last_words.await {
            tracing::warn!("the last event was not heard: {error}");
        }
        let error = match self.kernel.loaded {
            Ok(loaded) => {
                tracing::info!("kexec");
                stream::flush(LAST_FLUSH);
                match loaded.execute() {
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        tracing::warn!("{error}; booting the disk by a reset instead");
        if let Some(entry) = self.kernel.entry
            && let Err(error) = boot::set_next(&booted.efi, entry)
        {
            tracing::warn!("{error}; the boot entry is first in BootOrder all the same");
        }
        power::reboot_now()
    }

    /// Reports the success; with a new token when the old one has expired meanwhile.
    async fn report(&self) -> Result<(), Failure> {
        let authorized = &self.allocated.registered.authorized;
        let apiserver = &authorized.apiserver;
        let completion = match apiserver.installation_succeeded(&self.password).await {
            Err(error) if error.is_unauthenticated() => {
                authorized.renew_token(&error).await?;
                apiserver.installation_succeeded(&self.password).await
            }
            result => result,
        };
        match completion.during(Step::Report)? {
            Completion::Answered => {
                tracing::info!("the control plane knows that this machine is installed")
            }
            Completion::Unanswered => tracing::warn!(
                "the success report was not answered; the network has probably moved to the tenant already"
            ),
        }
        Ok(())
    }
}

/// What the last event says: how the machine starts which image, and what the boot's time went
/// into.
fn last_message(how: &str) -> String {
    let mut end = how.len().min(MAX_HOW);
    while !how.is_char_boundary(end) {
        end -= 1;
    }
    let how = how.get(..end).unwrap_or_default();
    let left = MAX_MESSAGE.saturating_sub(how.len() + 2);
    format!("{how}, {}", steps::short(left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_event_is_short_whatever_an_image_is_called() {
        for image in ["debian-12", &"\u{1F980}".repeat(200)] {
            let message = last_message(image);
            assert!(message.len() <= MAX_MESSAGE, "{message}");
        }
    }
}
