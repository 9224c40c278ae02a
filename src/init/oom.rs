//! Who dies when memory runs out: never the agent, for the kernel panics without its PID 1.

use std::fs;

use nix::errno::Errno;

/// `OOM_SCORE_ADJ_MIN`, `linux/oom.h`: never chosen.
const NEVER: &str = "-1000";

/// Where a process says how gladly it dies (proc_pid_oom_score_adj(5)).
const FILE: &std::ffi::CStr = c"/proc/self/oom_score_adj";

/// Keeps this process from being chosen. Its children inherit that, see [`ordinary`].
pub fn protect() {
    if let Err(error) = fs::write("/proc/self/oom_score_adj", NEVER) {
        tracing::warn!("the agent is not protected from running out of memory: {error}");
    }
}

/// Makes this process an ordinary candidate again: for a child between fork and exec, so only
/// async-signal-safe calls.
///
/// # Errors
/// None that matters: a child that stays protected does its work all the same.
pub fn ordinary() -> std::io::Result<()> {
    // SAFETY: a path that ends with a zero byte, and a descriptor that is checked and closed;
    // the kernel reads one byte that lives through the call.
    unsafe {
        if let Ok(fd) = Errno::result(libc::open(FILE.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC)) {
            libc::write(fd, b"0".as_ptr().cast(), 1);
            libc::close(fd);
        }
    }
    Ok(())
}
