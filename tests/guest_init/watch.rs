//! Looks at every process of a boot: started as the kernel's init (`rdinit=/watch`), it leaves a
//! child behind that writes each command line and each environment that it finds in /proc to the
//! second serial port, and becomes `/init`.
//!
//! A process that is gone within a round is not seen. The watcher runs before everybody else, so
//! that is one that did next to nothing.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::mpsc;
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
const ROUND: Duration = Duration::from_millis(2);

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
            before_all_others();
            let (lines, written) = mpsc::channel();
            thread::spawn(move || write(port, written));
            watch(lines);
        }
        return;
    }
    let error = Command::new("/init").exec();
    panic!("/init: {error}");
}

/// Nobody runs while it is time to look.
fn before_all_others() {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: reads one structure, which outlives the call.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &priority) };
}

/// Beside the watching, which must not wait for it: a byte takes a millisecond, on an emulated
/// port too.
fn write(mut port: File, lines: mpsc::Receiver<String>) {
    for line in lines {
        let _ = writeln!(port, "{line}");
    }
}

fn watch(lines: mpsc::Sender<String>) {
    let mut seen = BTreeSet::new();
    // Threads of the kernel have no executable, nor have the dead.
    let mut nobody = BTreeSet::new();
    loop {
        let processes = fs::read_dir(PROC).into_iter().flatten().flatten();
        for process in processes {
            let name = process.file_name().to_string_lossy().into_owned();
            if name.parse::<u32>().is_err() || nobody.contains(&name) {
                continue;
            }
            if fs::read_link(process.path().join("exe")).is_err() {
                nobody.insert(name);
                continue;
            }
            for what in ["cmdline", "environ"] {
                let bytes = fs::read(process.path().join(what)).unwrap_or_default();
                let words = String::from_utf8_lossy(&bytes).replace('\0', " ");
                let line = format!("{name} {what} {}", words.trim());
                if seen.insert(line.clone()) {
                    let _ = lines.send(line);
                }
            }
        }
        thread::sleep(ROUND);
    }
}
