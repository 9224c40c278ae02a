//! What happens when the boot cannot go on: say it everywhere, then get out of it.

use std::convert::Infallible;
use std::error::Error;
use std::fmt::{self, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::back_off;
use super::class::{Class, Classed, Missing};
use crate::config::Policy;
use crate::control::api::EventType;
use crate::control::apiserver::Apiserver;
use crate::decide::Journal;
use crate::efi::failures;
use crate::efi::vars::Vars;
use crate::init::{panic, power};
use crate::report::steps;
use crate::watchdog::{self, Progress, Vital};

/// How long the CRASHED event may take: the machine has to get out of this, heard or not.
const REPORT_DEADLINE: Duration = Duration::from_secs(10);

/// The longest that failure handling may be without a sign of life.
const SILENCE: Duration = Duration::from_secs(60);

/// How often a machine that holds says so, and looks whether something was plugged in.
const HOLD_ROUND: Duration = Duration::from_secs(60);

/// A machine that holds resets after this, in case the reset brings something back after all.
const LONGEST_HOLD: Duration = Duration::from_secs(6 * 3600);

/// How long the cause in an event is, bytes: what is read at a glance. The server takes more.
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
    Rescue,
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
            Self::Rescue => "rescue",
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
    pub class: Class,
}

impl Failure {
    /// A failure whose cause is a plain text; a reset may help.
    #[must_use]
    pub fn new(step: Step, cause: impl Into<String>) -> Self {
        Self {
            step,
            cause: cause.into(),
            class: Class::Reboot,
        }
    }

    /// One line, at most 256 bytes: what fits into an event.
    #[must_use]
    pub fn message(&self) -> String {
        let first = self.cause.lines().next().unwrap_or_default();
        let mut message = format!("{}: {first}", self.step);
        shorten(&mut message);
        message
    }
}

/// Cuts a text to [`MAX_MESSAGE`].
pub(super) fn shorten(message: &mut String) {
    if message.len() > MAX_MESSAGE {
        let mut end = MAX_MESSAGE - '…'.len_utf8();
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        message.push('…');
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

impl<T, E: Classed> During<T> for Result<T, E> {
    fn during(self, step: Step) -> Result<T, Failure> {
        self.map_err(|error| Failure {
            step,
            cause: chain(&error),
            class: error.class(),
        })
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

/// What the disk holds, and with it where a boot that ends early leads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum OnDisk {
    /// Nothing that may boot: back to this medium.
    #[default]
    NothingWhole,
    /// An OS that the control plane knows of: an old one before the first write of its re-install,
    /// a new one once it is reported.
    Os,
    /// An OS that is still to be reported. While that is not on its way the install counts as begun,
    /// as this journal says; from then on the network may be the tenant's, and nothing leads back.
    Unreported(Journal),
}

/// Where a boot that ends early leads.
#[derive(Debug, PartialEq, Eq)]
enum NextBoot {
    Medium,
    Disk,
    /// To the medium, with this journal.
    Anew(Journal),
}

impl OnDisk {
    fn next_boot(&self, report_is_out: bool) -> NextBoot {
        match self {
            Self::NothingWhole => NextBoot::Medium,
            Self::Unreported(begun) if !report_is_out => NextBoot::Anew(begun.clone()),
            Self::Os | Self::Unreported(_) => NextBoot::Disk,
        }
    }
}

/// What failure handling needs, filled in as the boot proceeds. Shared with the sequence.
#[derive(Clone, Default)]
pub struct Lifeline(Arc<Inner>);

#[derive(Default)]
struct Inner {
    apiserver: OnceLock<Apiserver>,
    efi: OnceLock<Vars>,
    policy: Mutex<Policy>,
    on_disk: Mutex<OnDisk>,
    /// The success report is on its way, and no error has answered it.
    report_is_out: AtomicBool,
    /// Who works, for the watchdog.
    vital: Vital,
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
        watchdog::follow(policy.watchdog());
    }

    /// Says what the disk holds from now on.
    pub fn on_disk(&self, now: OnDisk) {
        *self
            .0
            .on_disk
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// Whether the success report is on its way, and no error has answered it.
    #[must_use]
    pub fn report_is_out(&self) -> &AtomicBool {
        &self.0.report_is_out
    }

    /// Whose signs of life the watchdog wants.
    #[must_use]
    pub fn vital(&self) -> &Vital {
        &self.0.vital
    }

    /// The machine got where it should: earlier failures do not count any more.
    pub fn succeeded(&self) {
        if let Some(Err(error)) = self.0.efi.get().map(failures::clear) {
            tracing::warn!("cannot forget earlier failures: {error}");
        }
    }

    /// Reports a failure and resets the machine, which comes back to this medium, or to the
    /// old OS where a re-install failed before it wrote anything. What no reset can help is
    /// waited for first.
    pub async fn fail(&self, failure: Failure) -> Infallible {
        // Whatever worked until now may be stuck for good; only this counts from here.
        let progress = self.0.vital.only("failure handling", SILENCE);
        panic::is_handled();
        tracing::error!("FAILED: {failure}");
        steps::fail(&failure);
        let message = failure.message();
        let report = self.report(EventType::Crashed, &message);
        progress.endless(report).await;
        if let Class::Hold(missing) = failure.class {
            self.hold(&failure, missing, &progress, Path::new("/sys"))
                .await;
        }
        // Before the pause: a watchdog may cut it short.
        progress.begin(SILENCE);
        self.aim_next_boot();
        let (pause, number) = back_off::next(self.0.efi.get(), self.reboot_delay());
        if number > 1 {
            tracing::warn!("failure number {number} in a row");
        }
        count_down(pause, &progress).await;
        power::reboot_now()
    }

    /// Resets the machine because somebody asked for it.
    pub async fn leave(&self, why: &str) -> Infallible {
        let progress = self.0.vital.only("the way out", SILENCE);
        tracing::warn!("{why}: rebooting");
        let report = self.report(EventType::PlannedReboot, why);
        progress.endless(report).await;
        progress.begin(SILENCE);
        self.aim_next_boot();
        power::reboot_now()
    }

    pub(super) fn reboot_delay(&self) -> Duration {
        let policy = self.0.policy.lock().unwrap_or_else(PoisonError::into_inner);
        policy.reboot_delay()
    }

    /// Stays until something was plugged in (or out), or for [`LONGEST_HOLD`].
    async fn hold(&self, failure: &Failure, missing: Missing, progress: &Progress, sys: &Path) {
        let before = missing.present(sys);
        let begin = Instant::now();
        while begin.elapsed() < LONGEST_HOLD {
            steps::hold(&format!(
                "{}; no reset can help. This machine looks again every {} s",
                failure.message(),
                HOLD_ROUND.as_secs()
            ));
            if let Some(apiserver) = self.0.apiserver.get() {
                let alive =
                    apiserver.send_event_within(EventType::Alive, "holding", REPORT_DEADLINE);
                if let Err(error) = progress.endless(alive).await {
                    tracing::debug!("cannot say that the machine lives: {error}");
                }
            }
            progress.endless(tokio::time::sleep(HOLD_ROUND)).await;
            if missing.present(sys) != before {
                tracing::warn!("the hardware has changed");
                return;
            }
        }
    }

    async fn report(&self, event: EventType, message: &str) {
        let Some(apiserver) = self.0.apiserver.get() else {
            tracing::warn!("there is no control plane yet to report this to");
            return;
        };
        match apiserver
            .send_event_within(event, message, REPORT_DEADLINE)
            .await
        {
            Ok(()) if event == EventType::Crashed => {
                tracing::info!("the control plane knows (CRASHED)");
            }
            Ok(()) => tracing::info!("the control plane knows"),
            Err(error) => tracing::error!("cannot report the failure: {error}"),
        }
    }

    fn aim_next_boot(&self) {
        let Some(efi) = self.0.efi.get() else { return };
        let on_disk = self.0.on_disk.lock();
        let on_disk = on_disk.unwrap_or_else(PoisonError::into_inner);
        let next = on_disk.next_boot(self.0.report_is_out.load(Ordering::SeqCst));
        drop(on_disk);
        if next == NextBoot::Disk {
            match super::boot_disk::aim(efi) {
                Ok(chosen) => {
                    tracing::warn!("the next boot is the installed OS, {chosen}");
                    return;
                }
                Err(failure) => tracing::error!("{failure}"),
            }
        }
        super::come_back(efi);
        if let NextBoot::Anew(begun) = next {
            super::begin_anew(efi, &begun);
        }
    }
}

/// Pauses, and says now and then how long still.
pub(super) async fn count_down(pause: Duration, progress: &Progress) {
    let end = Instant::now() + pause;
    tracing::warn!("rebooting in {} s", pause.as_secs());
    steps::count_down(pause.as_secs());
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        let whole = Duration::from_secs(left.as_secs());
        // To the next whole second, then on from there.
        let step = if left == whole {
            Duration::from_secs(1)
        } else {
            left - whole
        };
        tokio::time::sleep(step).await;
        progress.beat();
        let left = end.saturating_duration_since(Instant::now()).as_secs();
        if left < pause.as_secs() && back_off::is_worth_a_line(left) {
            tracing::warn!("rebooting in {left} s");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use thiserror::Error;

    #[derive(Debug, Error)]
    #[error("cannot write /dev/vda")]
    struct Outer(#[source] std::io::Error);

    impl Classed for Outer {}

    #[tokio::test(start_paused = true)]
    async fn a_countdown_lasts_as_long_as_it_says_and_shows_that_it_lives() {
        let vital = Vital::default();
        let progress = vital.only("failure handling", Duration::from_secs(2));
        let begin = Instant::now();
        let pause = Duration::from_millis(90_500);
        let counting = tokio::spawn(async move { count_down(pause, &progress).await });
        for _ in 0..90 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(vital.judge(), watchdog::progress::Verdict::Alive);
        }
        counting.await.unwrap();
        let took = begin.elapsed();
        assert!(
            took >= pause && took < pause + Duration::from_secs(1),
            "{took:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_holds_goes_on_when_something_is_plugged_in() {
        let sys = tempfile::tempdir().unwrap();
        let lifeline = Lifeline::default();
        let progress = lifeline.vital().only("failure handling", SILENCE);
        let failure = Err::<(), _>(crate::net::Error::NoNic).during(Step::Network);
        let failure = failure.unwrap_err();
        assert_eq!(failure.class, Class::Hold(Missing::Nic));
        let nic = sys.path().join("class/net/eth0");
        let plug = async {
            tokio::time::sleep(Duration::from_secs(3000)).await;
            std::fs::create_dir_all(nic).unwrap();
        };
        let begin = Instant::now();
        let hold = lifeline.hold(&failure, Missing::Nic, &progress, sys.path());
        tokio::join!(hold, plug);
        let held = begin.elapsed().as_secs();
        assert!((3000..=3060).contains(&held), "{held} s");
        let begin = Instant::now();
        lifeline
            .hold(&failure, Missing::Nic, &progress, sys.path())
            .await;
        assert_eq!(begin.elapsed(), LONGEST_HOLD, "it resets in the end");
    }

    #[test]
    fn an_os_that_was_not_reported_is_installed_anew() {
        let begun = Journal::NOT_WIPED;
        let unreported = OnDisk::Unreported(begun.clone());
        for (on_disk, is_out, expected) in [
            (OnDisk::NothingWhole, false, NextBoot::Medium),
            (OnDisk::Os, false, NextBoot::Disk),
            (unreported.clone(), false, NextBoot::Anew(begun)),
            (unreported, true, NextBoot::Disk),
        ] {
            assert_eq!(on_disk.next_boot(is_out), expected, "{on_disk:?}, {is_out}");
        }
    }

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
