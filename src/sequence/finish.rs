//! Installed -> the new kernel: the success is reported, then this program ends by kexec.

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use secrecy::SecretString;

use super::allocate::Allocated;
use super::failure::{During, Failure, MAX_MESSAGE, OnDisk, Step};
use super::{begin_anew, come_back, silence};
use crate::control::api::EventType;
use crate::control::apiserver::Completion;
use crate::control::text::printable;
use crate::efi::boot;
use crate::init::power;
use crate::install;
use crate::install::kexec::Loaded;
use crate::net;
use crate::report::{console, memory, steps, stream};
use crate::watchdog::{self, Progress};

/// After InstallationSucceeded the switch port is in the tenant's network: what follows is
/// best effort and may take 2 s in all (contracts.md §1): the last event, then the last lines.
const LAST_WORDS: Duration = Duration::from_millis(1500);
const LAST_FLUSH: Duration = Duration::from_millis(500);

/// Characters of an image's name in the last event; each may have four bytes.
const MAX_IMAGE: usize = 24;

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
    pub(super) async fn kexec(self, progress: Progress) -> Result<Infallible, Failure> {
        steps::begin(Step::Report);
        let calls = silence::calls(&self.allocated.registered.authorized.settings.policy);
        progress.begin(2 * calls);
        // The network may be the tenant's after the report.
        console::flush();
        let authorized = &self.allocated.registered.authorized;
        let booted = &authorized.connected.booted;
        if let Err(failure) = self.report().await {
            // The control plane still takes the install for unfinished; so does the next boot.
            come_back(&booted.efi);
            begin_anew(&booted.efi, &self.allocated.begun());
            booted.lifeline.on_disk(OnDisk::NothingWhole);
            return Err(failure);
        }
        booted.lifeline.on_disk(OnDisk::Os);
        booted.lifeline.succeeded();
        if let Some(peak) = memory::peak_rss(Path::new("/proc")) {
            tracing::info!("peak RSS of the agent: {} MiB", peak.div_ceil(1 << 20));
        }
        steps::log();
        let message = last_message(
            &self.allocated.allocation.image.id,
            &self.kernel,
            booted.secure_boot,
        );
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
                net::quiet::take_down(Path::new("/sys"));
                power::flush();
                watchdog::before_kexec();
                match loaded.execute(self.kernel.entry) {
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
        let is_out = authorized.connected.booted.lifeline.report_is_out();
        let report = || apiserver.installation_succeeded(&self.password, is_out);
        let completion = match report().await {
            Err(error) if error.is_unauthenticated() => {
                authorized.renew_token(&error).await?;
                report().await
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

/// What the last event says: the image, where this kernel refuses to start it that the firmware
/// does, and what the boot's time went into.
fn last_message(image: &str, kernel: &NewKernel, secure_boot: bool) -> String {
    let way = way(&printable(image, MAX_IMAGE), kernel, secure_boot);
    let left = MAX_MESSAGE.saturating_sub(way.len() + 2);
    match steps::short(left) {
        took if took.is_empty() => way,
        took => format!("{way}, {took}"),
    }
}

/// What the control plane is told about the boot: the image, and where this kernel refuses to
/// start it, that the firmware does.
fn way(image: &str, kernel: &NewKernel, secure_boot: bool) -> String {
    let Err(error) = &kernel.loaded else {
        return image.to_owned();
    };
    let entry = match kernel.entry {
        Some(number) => format!("boot entry {number:04X}"),
        None => "the removable path of its disk".to_owned(),
    };
    let why = match error {
        install::Error::NoKernel => "it does not say how its kernel is started",
        _ if secure_boot => {
            "under Secure Boot kexec takes only a kernel that a key of the firmware vouches for"
        }
        _ => "kexec was refused",
    };
    format!("{image}, by a reset into {entry}: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(entry: Option<u16>) -> NewKernel {
        NewKernel {
            loaded: Err(install::Error::Kexec {
                kernel: "/boot/vmlinuz".to_owned(),
                reason: "not permitted".to_owned(),
            }),
            entry,
        }
    }

    #[test]
    fn a_refused_kexec_is_told_of() {
        let text = way("debian-12", &refused(Some(0x1a)), true);
        assert_eq!(
            text,
            "debian-12, by a reset into boot entry 001A: under Secure Boot kexec takes only a kernel \
             that a key of the firmware vouches for"
        );
        let text = way("debian-12", &refused(None), false);
        assert_eq!(
            text,
            "debian-12, by a reset into the removable path of its disk: kexec was refused"
        );
    }

    #[test]
    fn an_image_without_an_installer_is_no_refused_kexec() {
        let silent = NewKernel {
            loaded: Err(install::Error::NoKernel),
            entry: Some(7),
        };
        for secure_boot in [false, true] {
            assert_eq!(
                way("appliance", &silent, secure_boot),
                "appliance, by a reset into boot entry 0007: it does not say how its kernel is started"
            );
        }
    }

    #[test]
    fn the_last_event_is_short_whatever_an_image_is_called() {
        for image in ["debian-12", &"\u{1F980}".repeat(200)] {
            for entry in [Some(1), None] {
                let message = last_message(image, &refused(entry), true);
                assert!(message.len() <= MAX_MESSAGE, "{message}");
            }
        }
    }
}
