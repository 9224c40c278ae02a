//! The way out: a reboot that loses no write.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::reboot::{RebootMode, reboot};

use crate::report::console;
use crate::watchdog;

/// How long the flush may take: a disk that does not answer would keep the machine for ever.
const FLUSH: Duration = Duration::from_secs(30);

/// Flushes every file system, as far as that can be done in [`FLUSH`].
#[expect(clippy::disallowed_methods, reason = "this is the place with an end")]
pub fn flush() {
    if !ends_within(FLUSH, nix::unistd::sync) {
        tracing::error!(
            "the disks were not flushed within {} s; going on all the same",
            FLUSH.as_secs()
        );
    }
}

/// Flushes every file system and resets the machine. Should the kernel refuse, there is
/// nothing better left than to stop here, where the console still shows why.
pub fn reboot_now() -> ! {
    console::flush();
    watchdog::before_reset();
    flush();
    console::flush();
    let Err(errno) = reboot(RebootMode::RB_AUTOBOOT);
    tracing::error!("the kernel refuses to reboot: {errno}; power-cycle this machine");
    loop {
        thread::park();
    }
}

/// Does `work` in a thread of its own; whether it was done in time.
fn ends_within(limit: Duration, work: impl FnOnce() + Send + 'static) -> bool {
    let (done, end) = mpsc::channel();
    let started = thread::Builder::new().spawn(move || {
        work();
        // Nobody may be listening any more.
        let _ = done.send(());
    });
    started.is_ok() && end.recv_timeout(limit).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_ends_is_not_waited_for() {
        assert!(ends_within(Duration::from_secs(60), || {}));
        let (hold, held) = mpsc::channel::<()>();
        let stuck = move || assert!(held.recv().is_err(), "nobody lets it go on");
        assert!(!ends_within(Duration::from_millis(1), stuck));
        drop(hold);
    }
}
