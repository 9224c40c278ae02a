//! Init of the in-guest tests: runs `/in_guest` (a static test program), or what `guest.run=` names,
//! as root in a QEMU guest, prints `GUEST EXIT <code> after <n> ms` and powers off.
//!
//! It goes into a small initramfs together with the media's own (for the disk tools);
//! `tests/guest.rs` puts that together and boots it.

use std::fs::{self, File};
use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

fn main() {
    let none = MsFlags::empty();
    for (kind, target) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("efivarfs", "/sys/firmware/efi/efivars"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
    ] {
        // What fails here (devtmpfs mounted by the kernel, no EFI) fails in the test that needs it.
        let _ = fs::create_dir_all(target);
        let _ = mount(Some(kind), target, Some(kind), none, None::<&str>);
    }
    // The kernel opened no console for an initramfs without /dev/console: open it now.
    let console = File::options().read(true).write(true).open("/dev/console");
    let begin = Instant::now();
    let code = match &console {
        Ok(console) => run(console),
        Err(_) => -1,
    };
    let took = begin.elapsed().as_millis();
    if let Ok(mut console) = console {
        let _ = writeln!(console, "\nGUEST EXIT {code} after {took} ms");
        let _ = console.flush();
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "a test's disks answer, or the test ends"
    )]
    nix::unistd::sync();
    let _ = reboot(RebootMode::RB_POWER_OFF);
}

/// Disks that have a device under them: no loop devices.
fn disks_found() -> usize {
    let Ok(disks) = fs::read_dir("/sys/block") else {
        return 0;
    };
    disks
        .flatten()
        .filter(|disk| disk.path().join("device").exists())
        .count()
}

/// Runs the tests on the console; -1 when they cannot be started.
fn run(console: &File) -> i32 {
    let handle = || console.try_clone().map_or(Stdio::null(), Stdio::from);
    let words = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    // `guest.filter=NAME`: only tests whose name holds NAME; `guest.skip=NAME`: not those.
    let said = |key: &'static str| {
        words
            .split_whitespace()
            .filter_map(move |word| word.strip_prefix(key))
    };
    let skipped = said("guest.skip=").flat_map(|name| ["--skip", name]);
    // `guest.disks=N`: not before the kernel has found so many disks; USB takes a second.
    if let Some(disks) = said("guest.disks=").next().and_then(|n| n.parse().ok()) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while disks_found() < disks && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
    }
    // `guest.run=PROGRAM,ARGUMENT,…`: that instead of the tests.
    let mut command = match said("guest.run=").next() {
        Some(run) => {
            let mut parts = run.split(',');
            let mut command = Command::new(parts.next().unwrap_or_default());
            command.args(parts);
            command
        }
        None => {
            let mut command = Command::new("/in_guest");
            command.arg("--test-threads=1").args(skipped);
            command.args(said("guest.filter=").next());
            command
        }
    };
    let status = command
        .env("RUST_BACKTRACE", "1")
        .env("METAL_ANVIL_IN_GUEST", "1")
        .stdin(Stdio::null())
        .stdout(handle())
        .stderr(handle())
        .status();
    status.ok().and_then(|s| s.code()).unwrap_or(-1)
}
