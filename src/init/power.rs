//! The way out: a reboot that loses no write.

use nix::sys::reboot::{RebootMode, reboot};

use crate::report::console;

/// Flushes every file system and resets the machine. Should the kernel refuse, there is
/// nothing better left than to stop here, where the console still shows why.
pub fn reboot_now() -> ! {
    console::flush();
    nix::unistd::sync();
    let Err(errno) = reboot(RebootMode::RB_AUTOBOOT);
    tracing::error!("the kernel refuses to reboot: {errno}; power-cycle this machine");
    loop {
        std::thread::park();
    }
}
