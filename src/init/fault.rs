//! Faults on order, for the tests of the watchdog. Debug builds alone have this module.
//!
//! `anvil.fault=` on the kernel command line: `deadlock` blocks the step that runs, `runtime`
//! every thread of the runtime, `petter` ends the thread that pets, `panic` panics once the control
//! plane can hear of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::WORKERS;

static PETTER_ENDS: AtomicBool = AtomicBool::new(false);

/// What the kernel command line asks for.
fn ordered() -> Option<String> {
    let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let mut words = line.split_whitespace();
    words.find_map(|word| word.strip_prefix("anvil.fault=").map(ToOwned::to_owned))
}

/// Panics if that is asked for.
pub fn panic_if_ordered() {
    assert!(ordered().as_deref() != Some("panic"), "on order");
}

/// Does what is asked for.
pub fn strike() {
    match ordered().as_deref() {
        Some("deadlock") => block("the step"),
        Some("runtime") => {
            for _ in 1..WORKERS {
                tokio::spawn(async { block("a thread of the runtime") });
            }
            block("a thread of the runtime");
        }
        Some("petter") => PETTER_ENDS.store(true, Ordering::SeqCst),
        _ => {}
    }
}

fn block(what: &str) {
    tracing::warn!("{what} is blocked, on order");
    loop {
        thread::park();
    }
}

/// Whether the thread that pets the watchdog is to end.
pub fn petter_is_to_end() -> bool {
    PETTER_ENDS.load(Ordering::SeqCst)
}
