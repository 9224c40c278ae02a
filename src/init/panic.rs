//! A panic anywhere becomes failure handling: PID 1 never exits, for the kernel would panic
//! in its turn and take the reason with it.

use std::backtrace::Backtrace;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use super::power;

/// How long failure handling may take to report a panic before the machine is reset anyway.
const GRACE: Duration = Duration::from_secs(90);

/// Failure handling is at work, and has its own end.
static HANDLED: AtomicBool = AtomicBool::new(false);

/// Failure handling says that it has begun: panics need not reset the machine any more.
pub fn is_handled() {
    HANDLED.store(true, Ordering::SeqCst);
}

/// Installs the hook and returns the channel on which a panic is announced, once.
///
/// The thread that panicked is parked for ever: unwinding or aborting would end PID 1.
/// Should nobody act on the announcement, the machine is reset after a while.
#[must_use]
pub fn install_hook() -> mpsc::Receiver<String> {
    let (announce, announced) = mpsc::channel(1);
    let announce = Mutex::new(announce);
    std::panic::set_hook(Box::new(move |info| {
        let message = describe(info);
        tracing::error!("{message}");
        for line in backtrace().lines() {
            tracing::error!("{line}");
        }
        let sender = announce.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = sender.try_send(message);
        drop(sender);
        std::thread::sleep(GRACE);
        while somebody_ends_it(
            std::thread::current().name(),
            HANDLED.load(Ordering::SeqCst),
        ) {
            std::thread::park();
        }
        power::reboot_now();
    }));
    announced
}

/// Whether a thread that panicked may leave the machine to failure handling. That runs in the main
/// thread: whose own panic has nobody else to end it.
fn somebody_ends_it(thread: Option<&str>, handled: bool) -> bool {
    handled && thread != Some("main")
}

/// The frames of this thread. A release has no symbols, so each has its address, and the place
/// of a known function comes first: `addr2line` over an unstripped build of the same commit takes
/// the difference.
fn backtrace() -> String {
    let anchor = install_hook as fn() -> mpsc::Receiver<String>;
    format!(
        "panic::install_hook is at {anchor:p}\n{:#}",
        Backtrace::force_capture()
    )
}

fn describe(info: &PanicHookInfo<'_>) -> String {
    let payload = info.payload();
    let what = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    let place = info
        .location()
        .map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    format!("the agent panicked at {place}: {what}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_failure_handling_itself_resets() {
        for (thread, handled, expected) in [
            (Some("tokio-rt-worker"), true, true),
            (None, true, true),
            (Some("tokio-rt-worker"), false, false),
            (Some("main"), false, false),
            (Some("main"), true, false),
        ] {
            assert_eq!(
                somebody_ends_it(thread, handled),
                expected,
                "{thread:?} {handled}"
            );
        }
    }

    #[test]
    fn a_backtrace_has_addresses() {
        let text = backtrace();
        let addresses = text.matches("0x").count();
        assert!(addresses > 3, "{text}");
    }
}
