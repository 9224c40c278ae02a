//! A panic anywhere becomes failure handling: PID 1 never exits, for the kernel would panic
//! in its turn and take the reason with it.

use std::panic::PanicHookInfo;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use super::power;

/// How long failure handling may take to report a panic before the machine is reset anyway.
const GRACE: Duration = Duration::from_secs(90);

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
        let sender = announce.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = sender.try_send(message);
        drop(sender);
        std::thread::sleep(GRACE);
        power::reboot_now();
    }));
    announced
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
