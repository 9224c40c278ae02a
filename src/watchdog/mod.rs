//! The watchdog: every hang ends in a reset.
//!
//! It is opened before anything that could hang, and petted by a thread of its own only while
//! everybody at work gives signs of life ([`progress`]). Whoever is silent for longer than he
//! said ends the petting for good: failure handling hears of it, and has until the timer
//! runs out to report and reset in order.

pub mod choose;
pub mod device;
pub mod progress;

use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use std::{io, thread};

use choose::{Candidate, candidates};
use device::{Device, Timer};
use progress::Verdict;
pub use progress::{Progress, Vital};

/// The timeout until settings say another, in seconds.
pub const TIMEOUT: u32 = 60;
/// What settings may say, in seconds: shorter and a slow console stops the machine, longer and
/// nobody would call it a watchdog.
const RANGE: (u32, u32) = (10, 600);
/// Pets in one timeout: two may come late.
const PETS: u32 = 4;

/// What the settings say about the watchdog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    pub enabled: bool,
    /// From the last pet to the reset, in seconds.
    pub timeout: u32,
    /// No step may be silent for longer.
    pub silence: Option<Duration>,
    /// The timer stays armed over a kexec, with this timeout in seconds.
    pub over_kexec: Option<u32>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            enabled: true,
            timeout: TIMEOUT,
            silence: None,
            over_kexec: None,
        }
    }
}

/// Tells failure handling who was silent, and for how long.
type Alarm = Box<dyn Fn(&'static str, Duration) + Send>;

/// The machine's watchdog and the thread that pets it.
pub struct Watchdog {
    vital: Vital,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    timer: Option<Box<dyn Timer>>,
    identity: String,
    rules: Rules,
    /// The timeout that the driver has, in seconds.
    timeout: u32,
    alarm: Alarm,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Petted while everybody is alive.
    Guarding,
    /// Not armed, by the settings or for the new kernel.
    Disarmed,
    /// Somebody was silent: never petted again.
    Silent,
    /// Petted for the last time: the reset has to come before the timer runs out.
    Leaving,
}

/// For the way out, which is taken from many places.
static WATCHDOG: OnceLock<Watchdog> = OnceLock::new();

/// Opens the machine's watchdog below `sys` and `dev` and starts the thread that pets it;
/// `alarm` is told once when somebody is silent. A machine without one is watched all the same:
/// silence is still told.
pub fn start(sys: &Path, dev: &Path, vital: Vital, alarm: Alarm) {
    let opened = open_first(&candidates(sys, dev), Device::open);
    let (timer, identity, timeout) = match opened {
        Some((timer, candidate, timeout)) => {
            tracing::info!(
                "watchdog {} ({}) resets this machine {timeout} s after a hang{}",
                candidate.identity,
                candidate.device.display(),
                if candidate.nowayout { "; nowayout" } else { "" }
            );
            let timer: Box<dyn Timer> = Box::new(timer);
            (Some(timer), candidate.identity, timeout)
        }
        None => {
            tracing::warn!("no watchdog can be used: a hang will not end in a reset");
            (None, String::new(), TIMEOUT)
        }
    };
    let watchdog = WATCHDOG.get_or_init(|| Watchdog::new(vital, timer, identity, timeout, alarm));
    let started = thread::Builder::new()
        .name("watchdog".into())
        .spawn(|| watchdog.run());
    if let Err(error) = started {
        // The timer runs, and nobody pets it: as good as any other reason to start again.
        tracing::error!("nobody can pet the watchdog: {error}");
    }
}

/// Follows the settings from now on.
pub fn follow(rules: Rules) {
    if let Some(watchdog) = WATCHDOG.get() {
        watchdog.follow(rules);
    }
}

/// Before a reset: petted once more, so that a reset that hangs ends in another. The BMC's
/// timer, which would run on through the firmware's start, is stopped.
pub fn before_reset() {
    if let Some(watchdog) = WATCHDOG.get() {
        watchdog.before_reset();
    }
}

/// Before a kexec: stopped, so that the new OS is not reset, or left armed where the settings
/// want a kexec that hangs to end in a reset.
pub fn before_kexec() {
    if let Some(watchdog) = WATCHDOG.get() {
        watchdog.before_kexec();
    }
}

/// The first candidate that opens and takes the timeout.
fn open_first<T: Timer>(
    candidates: &[Candidate],
    open: impl Fn(&Path) -> io::Result<T>,
) -> Option<(T, Candidate, u32)> {
    candidates.iter().find_map(|candidate| {
        let opened = open(&candidate.device).and_then(|mut timer| {
            let armed = timer
                .set_timeout(TIMEOUT)
                .and_then(|timeout| timer.pet().map(|()| timeout));
            if armed.is_err() {
                // Opened, it runs; given up, nobody would pet it.
                let _ = timer.disarm();
            }
            armed.map(|timeout| (timer, timeout))
        });
        match opened {
            Ok((timer, timeout)) => Some((timer, candidate.clone(), timeout)),
            Err(error) => {
                let Candidate {
                    identity, device, ..
                } = candidate;
                tracing::warn!("watchdog {identity} ({}): {error}", device.display());
                None
            }
        }
    })
}

impl Watchdog {
    fn new(
        vital: Vital,
        timer: Option<Box<dyn Timer>>,
        identity: String,
        timeout: u32,
        alarm: Alarm,
    ) -> Self {
        let state = State {
            timer,
            identity,
            rules: Rules::default(),
            timeout,
            alarm,
            phase: Phase::Guarding,
        };
        Self {
            vital,
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread that pets.
    fn run(&self) {
        loop {
            let pause = self.round();
            let state = self.lock();
            if petter_is_to_end() {
                return;
            }
            drop(self.changed.wait_timeout(state, pause));
        }
    }

    /// Looks and pets once; answers the time until the next round.
    fn round(&self) -> Duration {
        let verdict = self.vital.judge();
        let mut state = self.lock();
        if state.phase == Phase::Guarding {
            match verdict {
                Verdict::Alive => state.pet(),
                Verdict::Silent { name, silence } => state.stop_petting(name, silence),
            }
        }
        Duration::from_secs(state.timeout.into()) / PETS
    }

    fn follow(&self, rules: Rules) {
        self.vital.cap(rules.silence);
        self.lock().follow(rules);
        self.changed.notify_all();
    }

    fn before_reset(&self) {
        let mut state = self.lock();
        if !matches!(state.phase, Phase::Guarding | Phase::Silent) {
            return;
        }
        if state.identity == choose::IPMI {
            state.disarm();
        } else if state.phase == Phase::Guarding {
            state.pet();
        }
        state.phase = Phase::Leaving;
    }

    fn before_kexec(&self) {
        let mut state = self.lock();
        if state.phase != Phase::Guarding {
            return;
        }
        state.phase = Phase::Leaving;
        match state.rules.over_kexec {
            None => state.disarm(),
            Some(seconds) => {
                state.set_timeout(seconds);
                state.pet();
                tracing::info!(
                    "watchdog {} stays armed: the new kernel has {} s to take it over",
                    state.identity,
                    state.timeout
                );
            }
        }
    }
}

impl State {
    fn pet(&mut self) {
        let Some(timer) = &mut self.timer else { return };
        if let Err(error) = timer.pet() {
            tracing::warn!("watchdog {}: cannot pet it: {error}", self.identity);
        }
    }

    fn stop_petting(&mut self, name: &'static str, silence: Duration) {
        self.phase = Phase::Silent;
        let what_follows = match self.timer {
            Some(_) => format!("the watchdog resets this machine within {} s", self.timeout),
            None => "there is no watchdog".to_owned(),
        };
        tracing::error!(
            "{name} has given no sign of life for {} s; {what_follows}",
            silence.as_secs()
        );
        (self.alarm)(name, silence);
    }

    fn set_timeout(&mut self, seconds: u32) {
        let Some(timer) = &mut self.timer else { return };
        match timer.set_timeout(seconds) {
            Ok(timeout) => {
                if timeout != seconds {
                    tracing::info!(
                        "watchdog {} has a timeout of {timeout} s, not {seconds}",
                        self.identity
                    );
                }
                self.timeout = timeout;
            }
            Err(error) => tracing::warn!(
                "watchdog {} keeps its timeout of {} s: {error}",
                self.identity,
                self.timeout
            ),
        }
    }

    fn follow(&mut self, rules: Rules) {
        self.rules = rules;
        match self.phase {
            Phase::Guarding if !rules.enabled => {
                tracing::warn!("policy.watchdog.enabled is false: a hang will not end in a reset");
                self.phase = Phase::Disarmed;
                self.disarm();
            }
            Phase::Disarmed if rules.enabled => self.phase = Phase::Guarding,
            _ => {}
        }
        if self.phase == Phase::Guarding {
            let (least, most) = RANGE;
            let wanted = rules.timeout.clamp(least, most);
            if wanted != self.timeout {
                self.set_timeout(wanted);
            }
            // An open device starts with its next pet.
            self.pet();
        }
    }

    /// Stops the timer. One that cannot be stopped gets its longest time: whoever comes next
    /// has so long to take it over.
    fn disarm(&mut self) {
        let Some(timer) = &mut self.timer else { return };
        if let Err(error) = timer.disarm() {
            tracing::warn!("watchdog {} cannot be stopped: {error}", self.identity);
            self.set_timeout(RANGE.1);
            self.pet();
            // Disarmed by the settings alone, it is still this program that has to pet it.
            if self.phase == Phase::Disarmed {
                self.phase = Phase::Guarding;
            }
        }
    }
}

/// Whether the petting thread is to end: test builds alone can ask for that.
#[cfg(not(debug_assertions))]
fn petter_is_to_end() -> bool {
    false
}

#[cfg(debug_assertions)]
use crate::init::fault::petter_is_to_end;

#[cfg(test)]
mod tests;
