//! The boot's steps as they happen: told as events, kept as the timeline.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;

use super::event::Event;
use super::stream::{now, tell};
use super::timeline::Timeline;
use crate::image::Progress;
use crate::sequence::failure::{Failure, Step};

/// This boot's. There is one boot in a program, as there is one log.
static BOOT: Mutex<State> = Mutex::new(State {
    timeline: Timeline::new(),
    doing: String::new(),
});

struct State {
    timeline: Timeline,
    /// What is being done, for those who ask in between.
    doing: String,
}

fn boot() -> MutexGuard<'static, State> {
    BOOT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The boot comes to a step, unless it is there already.
pub fn begin(step: Step) {
    let events = {
        let mut boot = boot();
        boot.doing = step.to_string();
        boot.timeline.begin(step, now())
    };
    events.into_iter().for_each(tell);
}

/// The step in hand is tried once more.
pub fn again() {
    let started = boot().timeline.again();
    started.into_iter().for_each(tell);
}

/// What the step in hand does or waits for, and how long that may take.
pub fn doing(what: impl Into<String>, limit: Option<Duration>) {
    let what = what.into();
    boot().doing.clone_from(&what);
    tell(Event::Doing { what, limit });
}

/// The machine stays as it is until somebody decides.
pub fn hold(why: &str) {
    boot().doing = format!("holding: {why}");
    tell(Event::Holding {
        why: why.to_owned(),
    });
}

/// The machine resets in so many seconds.
pub fn count_down(seconds: u64) {
    tell(Event::Countdown { seconds });
}

/// How far the image has come.
pub fn progress(so_far: Progress) {
    boot().doing = so_far.to_string();
    tell(Event::Progress(so_far));
}

/// The boot ends here.
pub fn fail(failure: &Failure) {
    let failed = boot().timeline.fail(&failure.to_string(), now());
    failed.into_iter().for_each(tell);
}

/// What the boot is doing now, in a few words.
#[must_use]
pub fn status() -> String {
    boot().doing.clone()
}

/// Every step in at most `limit` bytes.
#[must_use]
pub fn short(limit: usize) -> String {
    boot().timeline.short(now(), limit)
}

/// Logs the whole timeline.
pub fn log() {
    let lines = boot().timeline.lines(now());
    for line in lines {
        tracing::info!("timeline: {line}");
    }
}

/// The timeline for the installed OS.
#[must_use]
pub fn record() -> Value {
    boot().timeline.json(now())
}
