//! What PID 1 owes the kernel: file systems, consoles, orphans, panics, and a way out.

pub mod mounts;
pub mod panic;
pub mod power;
pub mod reaper;

use std::convert::Infallible;
use std::path::Path;

use tokio::sync::mpsc;

use crate::report::log::Verbosity;
use crate::report::{console, log, memory, remote};
use crate::sequence;
use crate::sequence::failure::{Failure, Lifeline, Step};

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
    if let Err(error) = reaper::start() {
        tracing::warn!("orphans will not be reaped: {error}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => match runtime.block_on(supervise(verbosity, panics)) {},
        Err(error) => {
            tracing::error!("cannot start: {error}");
            power::reboot_now()
        }
    }
}

/// Runs the sequence and handles whatever ends it. The sequence has its own task, so that a
/// panic in it leaves this one able to act.
async fn supervise(verbosity: Verbosity, mut panics: mpsc::Receiver<String>) -> Infallible {
    let lifeline = Lifeline::default();
    let boot = tokio::spawn(sequence::boot(lifeline.clone(), verbosity));
    let running = boot.abort_handle();
    let failure = tokio::select! {
        ended = boot => match ended {
            Ok(Err(failure)) => failure,
            Ok(Ok(never)) => match never {},
            Err(error) => Failure::new(Step::Agent, error.to_string()),
        },
        Some(message) = panics.recv() => Failure::new(Step::Agent, message),
    };
    // A panic elsewhere leaves the sequence running; it must not go on behind the failure.
    running.abort();
    lifeline.fail(failure).await
}
