//! Installed -> the new kernel: the success is reported, then this program ends by kexec.

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use secrecy::SecretString;

use super::allocate::Allocated;
use super::failure::{During, Failure, Step};
use crate::control::api::EventType;
use crate::efi::boot;
use crate::init::power;
use crate::install;
use crate::install::kexec::Loaded;
use crate::report::memory;

/// After InstallationSucceeded the switch port is in the tenant's network: what follows is
/// best effort and may take this long in all (contracts.md §1).
const LAST_WORDS: Duration = Duration::from_secs(2);

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
    /// that, by a reset through the boot entry.
    ///
    /// # Errors
    /// The control plane refuses the report, or the kernel the jump.
    pub(super) async fn kexec(self) -> Result<Infallible, Failure> {
        let authorized = &self.allocated.registered.authorized;
        authorized
            .apiserver
            .installation_succeeded(&self.password)
            .await
            .during(Step::Kexec)?;
        if let Some(peak) = memory::peak_rss(Path::new("/proc")) {
            tracing::info!("peak RSS of the agent: {} MiB", peak.div_ceil(1 << 20));
        }
        let last_words = authorized.apiserver.send_event(
            EventType::BootingNewKernel,
            &self.allocated.allocation.image.id,
        );
        match tokio::time::timeout(LAST_WORDS, last_words).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("the last event was not heard: {error}"),
            Err(_) => tracing::warn!("the last event was not answered"),
        }
        match self.kernel.loaded {
            Ok(loaded) => {
                tracing::info!("kexec");
                loaded.execute().during(Step::Kexec)
            }
            Err(error) => {
                tracing::warn!("{error}; booting the disk by a reset instead");
                if let Some(entry) = self.kernel.entry {
                    boot::set_next(&authorized.connected.booted.efi, entry).during(Step::Kexec)?;
                }
                power::reboot_now()
            }
        }
    }
}
