//! What happens when the boot cannot go on: say it everywhere, then get out of it.

use std::convert::Infallible;
use std::error::Error;
use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::config::Policy;
use crate::control::api::EventType;
use crate::control::apiserver::Apiserver;
use crate::efi::vars::Vars;
use crate::init::power;
use crate::report::steps;

/// How long the CRASHED event may take: the machine has to get out of this, heard or not.
const REPORT_DEADLINE: Duration = Duration::from_secs(10);

/// The server's limit for an event's message.
pub(super) const MAX_MESSAGE: usize = 256;

/// The steps of a boot, as operators read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Start,
    Network,
    BootHelper,
    SwitchPorts,
    Registration,
    Allocation,
    Wipe,
    Wait,
    Preflight,
    Partitioning,
    Image,
    Installer,
    BootEntry,
    Report,
    BootDisk,
    Agent,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "start",
            Self::Network => "network",
            Self::BootHelper => "boot helper",
            Self::SwitchPorts => "switch ports",
            Self::Registration => "registration",
            Self::Allocation => "allocation",
            Self::Wipe => "wipe",
            Self::Wait => "wait",
            Self::Preflight => "preflight",
            Self::Partitioning => "partitioning",
            Self::Image => "image",
            Self::Installer => "installer",
            Self::BootEntry => "boot entry",
            Self::Report => "success report",
            Self::BootDisk => "boot from disk",
            Self::Agent => "agent",
        })
    }
}

/// Why the boot ended, in words for an operator.
#[derive(Debug)]
pub struct Failure {
    pub step: Step,
    /// The cause with everything that led to it; may have several lines.
    pub cause: String,
}

impl Failure {
    /// A failure whose cause is a plain text.
    #[must_use]
    pub fn new(step: Step, cause: impl Into<String>) -> Self {
        Self {
            step,
            cause: cause.into(),
        }
    }

    /// One line, at most 256 bytes: what fits into an event.
    #[must_use]
    pub fn message(&self) -> String {
        let first = self.cause.lines().next().unwrap_or_default();
        let mut message = format!("{}: {first}", self.step);
        if message.len() > MAX_MESSAGE {
            let mut end = MAX_MESSAGE - '…'.len_utf8();
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
            message.push('…');
        }
        message
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.cause)
    }
}

/// Adds the step to an error on its way up.
pub trait During<T> {
    /// # Errors
    /// The same error, as the failure of a step.
    fn during(self, step: Step) -> Result<T, Failure>;
}

impl<T, E: Error> During<T> for Result<T, E> {
    fn during(self, step: Step) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(step, chain(&error)))
    }
}

/// An error and its sources, each said once: many libraries repeat the source in their text.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            let _ = write!(text, ": {more}");
        }
        source = error.source();
    }
    text
}

/// What failure handling needs, filled in as the boot proceeds. Shared with the sequence.
#[derive(Clone, Default)]
pub struct Lifeline(Arc<Inner>);

#[derive(Default)]
struct Inner {
    apiserver: OnceLock<Apiserver>,
    efi: OnceLock<Vars>,
    policy: Mutex<Policy>,
    /// The disk holds a whole OS, an old one or the one just installed: it boots next.
    os_is_whole: AtomicBool,
}

impl Lifeline {
    /// Failures are reported here from now on.
    pub fn report_to(&self, apiserver: &Apiserver) {
        let _ = self.0.apiserver.set(apiserver.clone());
    }

    /// The firmware's variables, by which the machine comes back to this medium.
    pub fn use_efi(&self, efi: &Vars) {
        let _ = self.0.efi.set(efi.clone());
    }

    /// How failures are to be handled.
    pub fn follow(&self, policy: &Policy) {
        *self.0.policy.lock().unwrap_or_else(PoisonError::into_inner) = policy.clone();
    }

    /// Says whether the disk holds a whole OS that is to boot if this boot fails: an old one
    /// before the first write of its re-install, a new one once it is reported.
    pub fn os_is_whole(&self, whole: bool) {
        self.0.os_is_whole.store(whole, Ordering::SeqCst);
    }

    /// Reports a failure and resets the machine, which comes back to this medium, or to the
    /// old OS where a re-install failed before it wrote anything.
    pub async fn fail(&self, failure: Failure) -> Infallible {
        tracing::error!("FAILED: {failure}");
        steps::fail(&failure);
        self.report(&failure.message()).await;
        let delay = {
            let policy = self.0.policy.lock().unwrap_or_else(PoisonError::into_inner);
            policy.reboot_delay()
        };
        tracing::warn!("rebooting in {} s", delay.as_secs());
        steps::count_down(delay.as_secs());
        tokio::time::sleep(delay).await;
        self.aim_next_boot();
        power::reboot_now()
    }

    async fn report(&self, message: &str) {
        let Some(apiserver) = self.0.apiserver.get() else {
            tracing::warn!("there is no control plane yet to report this to");
            return;
        };
        let event = apiserver.send_event_within(EventType::Crashed, message, REPORT_DEADLINE);
        match event.await {
            Ok(()) => tracing::info!("the control plane knows (CRASHED)"),
            Err(error) => tracing::error!("cannot report the failure: {error}"),
        }
    }

    fn aim_next_boot(&self) {
        let Some(efi) = self.0.efi.get() else { return };
        if self.0.os_is_whole.load(Ordering::SeqCst) {
            match super::boot_disk::aim(efi) {
                Ok(chosen) => {
                    tracing::warn!("the next boot is the installed OS, {chosen}");
                    return;
                }
                Err(failure) => tracing::error!("{failure}"),
            }
        }
        super::come_back(efi);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use thiserror::Error;

    #[derive(Debug, Error)]
    #[error("cannot write /dev/vda")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn a_failure_names_step_and_causes() {
        let result: Result<(), _> = Err(Outer(std::io::Error::other("disk on fire")));
        let failure = result.during(Step::Wipe).unwrap_err();
        assert_eq!(
            failure.message(),
            "wipe: cannot write /dev/vda: disk on fire"
        );
    }

    #[test]
    fn an_events_message_is_one_short_line() {
        let failure = Failure::new(Step::Network, format!("{}\nsecond line", "é".repeat(300)));
        let message = failure.message();
        assert!(message.len() <= MAX_MESSAGE, "{}", message.len());
        assert!(
            message.ends_with('…') && !message.contains("second"),
            "{message}"
        );
    }
}
