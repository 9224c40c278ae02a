//! Looks at every process of a boot: started as the kernel's init (`rdinit=/watch`), it leaves a
//! child behind that writes each command line and each environment that it finds in /proc to the
//! second serial port, and becomes `/init`.
//!
//! A process that is gone within a round is not seen; those that are asked for take longer.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{ForkResult, fork};

/// The watcher's own proc and port: the agent makes its own, elsewhere and later.
const PROC: &str = "/watch.proc";
const PORT: &str = "/watch.port";
/// The second 8250 (Documentation/admin-guide/devices.txt).
const TTY_S1: (u64, u64) = (4, 65);
const ROUND: Duration = Duration::from_millis(5);

fn main() {
    let _ = fs::create_dir(PROC);
    let _ = mount(
        Some("proc"),
        PROC,
        Some("proc"),
        MsFlags::empty(),
        None::<&str>,
    );
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    let _ = mknod(PORT, SFlag::S_IFCHR, mode, makedev(TTY_S1.0, TTY_S1.1));
    // SAFETY: this process has one thread.
    if let Ok(ForkResult::Child) = unsafe { fork() } {
        if let Ok(port) = OpenOptions::new().write(true).open(PORT) {
            watch(port);
        }
        return;
    }
    let error = Command::new("/init").exec();
    panic!("/init: {error}");
}

fn watch(mut port: File) {
    let mut seen = BTreeSet::new();
    loop {
        let processes = fs::read_dir(PROC).into_iter().flatten().flatten();
        for process in processes {
            let name = process.file_name().to_string_lossy().into_owned();
            if name.parse::<u32>().is_err() {
                continue;
            }
            for what in ["cmdline", "environ"] {
                let Ok(bytes) = fs::read(process.path().join(what)) else {
                    continue;
                };
                let words = String::from_utf8_lossy(&bytes).replace('\0', " ");
                let line = format!("{name} {what} {}", words.trim());
                if seen.insert(line.clone()) {
                    let _ = writeln!(port, "{line}");
                }
            }
        }
        thread::sleep(ROUND);
    }
}
