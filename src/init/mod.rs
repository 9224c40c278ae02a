//! What PID 1 owes the kernel: file systems, consoles, orphans, panics, and a way out.

#[cfg(debug_assertions)]
pub mod fault;
pub mod mounts;
pub mod oom;
pub mod panic;
pub mod power;
pub mod reaper;
mod signals;

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::report::log::Verbosity;
use crate::report::{console, log, memory, remote};
use crate::sequence;
use crate::sequence::failure::{Failure, Lifeline, Step};
use crate::watchdog;

/// Threads for the network; disks and hashing have their own.
const WORKERS: usize = 2;

/// Runs the boot as PID 1. Never returns: the machine is handed over or reset.
pub fn run() -> ! {
    // The consoles are found through sysfs, so a failed mount can only be told to fd 2.
    if let Err(error) = mounts::mount_all() {
        eprintln!("metal-anvil: {error}");
    }
    let verbosity = log::start();
    remote::keep();
    console::start(Path::new("/sys"), Path::new("/dev"));
    tracing::info!("{} on {}", sequence::PROGRAM, memory::host());
    let panics = panic::install_hook();
    let lifeline = Lifeline::default();
    let silences = guard(&lifeline);
    oom::protect();
    if let Err(error) = reaper::start() {
        tracing::warn!("orphans will not be reaped: {error}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => match runtime.block_on(supervise(lifeline, verbosity, panics, silences)) {},
        Err(error) => {
            tracing::error!("cannot start: {error}");
            power::reboot_now()
        }
    }
}

/// Has the watchdog look after the boot; answers who was silent for too long.
fn guard(lifeline: &Lifeline) -> mpsc::Receiver<Failure> {
    let (announce, announced) = mpsc::channel(1);
    let alarm = move |name: &'static str, silence: Duration| {
        let why = format!(
            "{name} has given no sign of life for {} s: something hangs, a disk perhaps; the \
             kernel's messages may say which",
            silence.as_secs()
        );
        // One is enough.
        let _ = announce.try_send(Failure::new(Step::Agent, why));
    };
    let vital = lifeline.vital().clone();
    watchdog::start(Path::new("/sys"), Path::new("/dev"), vital, Box::new(alarm));
    announced
}

/// Runs the sequence and handles whatever ends it. The sequence has its own task, so that a
/// panic in it leaves this one able to act.
async fn supervise(
    lifeline: Lifeline,
    verbosity: Verbosity,
    mut panics: mpsc::Receiver<String>,
    mut silences: mpsc::Receiver<Failure>,
) -> Infallible {
    let boot = tokio::spawn(sequence::boot(lifeline.clone(), verbosity));
    let running = boot.abort_handle();
    let failure = tokio::select! {
        ended = boot => match ended {
            Ok(Err(failure)) => failure,
            Ok(Ok(never)) => match never {},
            Err(error) => Failure::new(Step::Agent, error.to_string()),
        },
        Some(message) = panics.recv() => Failure::new(Step::Agent, message),
        Some(failure) = silences.recv() => failure,
        why = signals::reboot_asked_for() => {
            running.abort();
            match lifeline.leave(why).await {}
        }
    };
    // A panic elsewhere leaves the sequence running; it must not go on behind the failure.
    running.abort();
    tokio::select! {
        never = lifeline.fail(failure) => match never {},
        why = signals::reboot_asked_for() => match lifeline.leave(why).await {},
    }
}
