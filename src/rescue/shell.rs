//! Shells on the consoles, each started again when it ends.

use std::ffi::{CStr, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::init::oom;
use crate::report::terminal::is_screen;

/// The terminal of the screen that the shell is on: the first one is the dashboard's.
const SCREEN: &str = "tty2";
/// Its number for `VT_ACTIVATE`.
const SCREEN_NUMBER: libc::c_ulong = 2;
/// `VT_ACTIVATE` of linux/vt.h: shows this virtual terminal.
const VT_ACTIVATE: libc::Ioctl = 0x5606;
/// `CAP_SYS_PTRACE` of linux/capability.h.
const CAP_SYS_PTRACE: libc::c_ulong = 19;
/// A program that ran for so long gets started again at once.
const SETTLED: Duration = Duration::from_secs(5);
/// Pauses before a program that ends at once is started again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A terminal that gets a shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub device: PathBuf,
    /// What it is called to whoever looks for it.
    pub shown: String,
    is_screen: bool,
}

/// The terminals that people can sit at: every serial console in `active`
/// (`/sys/class/tty/console/active`), and the screen's second terminal.
#[must_use]
pub fn places(active: &str, has_screen: bool, dev: &Path) -> Vec<Place> {
    // tty0 to tty63 are the screen.
    let is_virtual = |name: &&str| {
        let number = name.strip_prefix("tty").unwrap_or("x");
        number.bytes().all(|byte| byte.is_ascii_digit())
    };
    let serial = active.split_whitespace().filter(|name| !is_virtual(name));
    let mut places: Vec<Place> = serial
        .map(|name| Place {
            device: dev.join(name),
            shown: format!("{name} (press Enter)"),
            is_screen: false,
        })
        .collect();
    if has_screen {
        places.push(Place {
            device: dev.join(SCREEN),
            shown: "the screen (Alt-F2; Alt-F1 leads back to this boot's screen)".to_owned(),
            is_screen: true,
        });
    }
    places
}

/// Starts `busybox` as a shell on every console, and answers where. With `to_front` the screen
/// shows the shell instead of the dashboard.
#[must_use]
pub fn start(busybox: &Path, sys: &Path, dev: &Path, to_front: bool) -> Vec<Place> {
    let active = fs::read_to_string(sys.join("class/tty/console/active")).unwrap_or_default();
    let screen = open(&dev.join(SCREEN)).ok().filter(is_screen);
    if let Some(screen) = screen.as_ref().filter(|_| to_front) {
        // SAFETY: the descriptor is open, and the argument is a number.
        let shown = unsafe { libc::ioctl(screen.as_raw_fd(), VT_ACTIVATE, SCREEN_NUMBER) };
        if let Err(errno) = Errno::result(shown) {
            tracing::debug!("the screen goes on showing this boot: {errno}");
        }
    }
    let places = places(&active, screen.is_some(), dev);
    for place in &places {
        let (busybox, place) = (busybox.to_owned(), place.clone());
        let what = format!("a shell on {}", place.device.display());
        keep(what, move || shell(&busybox, &place).spawn());
    }
    places
}

/// Starts `program` in a thread of its own, again and again.
pub(super) fn keep(what: String, program: impl Fn() -> io::Result<Child> + Send + 'static) {
    let work = move || {
        let mut pause = FIRST_PAUSE;
        loop {
            let begun = Instant::now();
            match program().and_then(|mut child| child.wait()) {
                Ok(status) => tracing::debug!("{what} has ended: {status}"),
                Err(error) => tracing::warn!("{what} cannot be started: {error}"),
            }
            let (now, next) = pauses(begun.elapsed(), pause);
            pause = next;
            thread::sleep(now);
        }
    };
    let started = thread::Builder::new().name("rescue".into()).spawn(work);
    if let Err(error) = started {
        tracing::warn!("there is nobody who could start programs: {error}");
    }
}

/// The pause after a program that has `lived` for so long, and what the next one would be.
fn pauses(lived: Duration, pause: Duration) -> (Duration, Duration) {
    if lived >= SETTLED {
        return (Duration::ZERO, FIRST_PAUSE);
    }
    (pause, LONGEST_PAUSE.min(2 * pause))
}

/// A login shell with this terminal as the one that controls it.
fn shell(busybox: &Path, place: &Place) -> Command {
    let mut command = clean(busybox);
    let term = if place.is_screen { "linux" } else { "vt220" };
    command.arg("sh").arg("-l").env("TERM", term);
    let device = place.device.clone();
    // The terminal is opened in the child: a hang-up must not leave a dead one behind.
    let path = std::ffi::CString::new(device.into_os_string().into_encoded_bytes());
    // SAFETY: the closure runs between fork and exec, and makes system calls only.
    unsafe {
        command.pre_exec(move || {
            let Ok(path) = &path else {
                return Err(Errno::EINVAL.into());
            };
            sit_down(path)
        });
    }
    command
}

/// Leads a new session on the terminal, whose streams become this process's own.
fn sit_down(path: &CStr) -> io::Result<()> {
    // SAFETY: plain system calls on a path that ends with a zero byte and on descriptors that
    // are checked.
    unsafe {
        Errno::result(libc::setsid())?;
        let terminal = Errno::result(libc::open(path.as_ptr(), libc::O_RDWR | libc::O_NOCTTY))?;
        Errno::result(libc::ioctl(terminal, libc::TIOCSCTTY, 0))?;
        for stream in 0..3 {
            Errno::result(libc::dup2(terminal, stream))?;
        }
        if terminal > 2 {
            libc::close(terminal);
        }
    }
    Ok(())
}

/// A command that knows nothing of the agent: an environment of its own, no descriptor but the
/// streams, and no right to look into other processes. Without `CAP_SYS_PTRACE`, and with fewer
/// rights than the agent, root is refused the agent's memory, environment and descriptors
/// (ptrace(2), "Ptrace access mode checking"); what it starts is, too.
pub(super) fn clean(program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("PS1", "rescue# ")
        .current_dir(OsStr::new("/"));
    // SAFETY: the closure runs between fork and exec, and makes system calls only; closing on
    // exec leaves the descriptor alone by which std tells that exec failed.
    unsafe {
        command.pre_exec(|| {
            oom::ordinary()?;
            Errno::result(libc::prctl(libc::PR_CAPBSET_DROP, CAP_SYS_PTRACE, 0, 0, 0))?;
            Errno::result(libc::syscall(
                libc::SYS_close_range,
                3,
                libc::c_uint::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            ))?;
            Ok(())
        });
    }
    command
}

/// Opens a terminal without making it the one that controls the agent.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_serial_console_and_the_screen_once() {
        let shells = |active, screen| -> Vec<String> {
            let places = places(active, screen, Path::new("/dev"));
            places
                .iter()
                .map(|place| place.device.display().to_string())
                .collect()
        };
        assert_eq!(
            shells("tty0 ttyS0 ttyS1\n", true),
            ["/dev/ttyS0", "/dev/ttyS1", "/dev/tty2"]
        );
        assert_eq!(shells("tty1 hvc0", false), ["/dev/hvc0"]);
        assert_eq!(
            shells("ttyAMA0 ttyUSB1", false),
            ["/dev/ttyAMA0", "/dev/ttyUSB1"]
        );
        assert_eq!(shells("", false), Vec::<String>::new());
        assert_eq!(shells("", true), ["/dev/tty2"]);
    }

    #[test]
    fn what_ends_at_once_is_started_less_and_less_often() {
        let mut pause = FIRST_PAUSE;
        let mut made = Vec::new();
        for _ in 0..8 {
            let (now, next) = pauses(Duration::ZERO, pause);
            made.push(now.as_secs());
            pause = next;
        }
        assert_eq!(made, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(pauses(SETTLED, pause), (Duration::ZERO, FIRST_PAUSE));
    }

    #[test]
    fn a_program_inherits_neither_descriptors_nor_environment() {
        // One that is not closed on exec, as a careless library would leave it.
        let (leak, _keep) = nix::unistd::pipe().unwrap();
        let number = leak.as_raw_fd();
        nix::fcntl::fcntl(
            &leak,
            nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()),
        )
        .unwrap();
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
        let script = format!(
            "test ! -e /proc/self/fd/{number} && test -z \"$CARGO_MANIFEST_DIR\" && echo $HOME"
        );
        let output = clean(Path::new("/bin/sh")).args(["-c", &script]).output();
        match output {
            Ok(output) => {
                assert!(output.status.success());
                assert_eq!(output.stdout, b"/root\n");
            }
            // The capability can be dropped by root only.
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
        }
    }
}
