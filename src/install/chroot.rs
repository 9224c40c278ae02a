//! Running an OS installer inside the installed tree.
//!
//! The kernel's file systems are mounted in the target for as long as the installer runs,
//! and taken away in reverse order whatever becomes of it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use secrecy::SecretString;
use tokio::net::unix::pipe;
use tokio::process::Command;
use tokio::time::{Instant, timeout_at};

use super::blank::Blanks;
use super::error::Error;
use crate::image::root::{Links, RootDir};
use crate::init::oom;

/// Where images keep their installer; the first found wins (contracts.md §6).
pub const INSTALLERS: [&str; 3] = ["/os-installer", "/install-go", "/install.sh"];
/// How long an installer may take. metal-hammer gives it ten minutes.
pub const DEADLINE: Duration = Duration::from_secs(15 * 60);
/// Whether the machine was started by UEFI: only then is there an efivarfs.
const EFIVARS: &str = "/sys/firmware/efi/efivars";
/// Length of a line of the log; the rest of a longer one becomes further lines.
const MAX_LINE: usize = 1024;
/// Bytes without a line break that are collected: a secret is looked for before a line is
/// cut, and userdata may be one long line.
const MAX_RAW_LINE: usize = 128 * 1024;
/// Lines that are logged; what comes after them still counts for the tail.
const MAX_LINES: usize = 5000;
/// Lines that an error quotes.
const TAIL: usize = 15;
/// How long the end of a killed installer is waited for, and its output read once it is gone:
/// a daemon that it left behind may hold the pipe for ever.
const AFTERMATH: Duration = Duration::from_secs(2);

/// The installer that the image brings, if any.
///
/// # Errors
/// A file of that name is there, but is not an executable file inside the target.
pub fn find_installer(root: &RootDir) -> Result<Option<&'static str>, Error> {
    for path in INSTALLERS {
        let mode = root
            .mode(Path::new(path))
            .map_err(Error::file(path, "stat"))?;
        match mode {
            None => {}
            Some(mode) if mode & libc::S_IFMT == libc::S_IFREG && mode & 0o111 != 0 => {
                return Ok(Some(path));
            }
            Some(mode) => {
                return Err(Error::content(
                    path,
                    format!("expected an executable file, its mode is {mode:o}"),
                ));
            }
        }
    }
    Ok(None)
}

/// Runs an installer in the target and waits for its end. `secrets` (the console password,
/// userdata) are blanked out of what it prints. Everything mounted for it is unmounted again.
///
/// # Errors
/// A mount failed, it could not be started, it failed, or it took longer than `deadline`.
pub async fn run(
    root: &RootDir,
    installer: &'static str,
    deadline: Duration,
    secrets: &[SecretString],
) -> Result<(), Error> {
    let mounts = Mounts::new(root)?;
    let result = execute(root, installer, deadline, secrets).await;
    drop(mounts);
    result
}

async fn execute(
    root: &RootDir,
    installer: &'static str,
    deadline: Duration,
    secrets: &[SecretString],
) -> Result<(), Error> {
    let start = |source| Error::Start { installer, source };
    let (input, output) = pipe::pipe().map_err(start)?;
    let input = input.into_blocking_fd().map_err(start)?;
    let mut command = Command::new(installer);
    command
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("HOME", "/root")
        .env("TERM", "linux")
        .env("LANG", "C.UTF-8")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(input.try_clone().map_err(start)?)
        .stderr(input)
        .kill_on_drop(true);
    let directory = root.as_fd().as_raw_fd();
    // SAFETY: the closure runs between fork and exec and makes only async-signal-safe system
    // calls; the descriptor stays open, because `root` outlives the spawn below.
    unsafe {
        command.pre_exec(move || {
            oom::ordinary()?;
            Errno::result(libc::setsid())?;
            Errno::result(libc::fchdir(directory))?;
            Errno::result(libc::chroot(c".".as_ptr()))?;
            Errno::result(libc::chdir(c"/".as_ptr()))?;
            Ok(())
        });
    }
    let until = Instant::now() + deadline;
    let mut child = command.spawn().map_err(start)?;
    // The command holds our ends of the pipe; while they are open it never ends.
    drop(command);
    // It leads its own session and process group, so its id names the group.
    let group = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .map(Pid::from_raw);
    tracing::info!(installer, "the installer runs");

    let mut log = Log::new(installer, secrets);
    let status = tokio::select! {
        status = timeout_at(until, child.wait()) => Some(status),
        () = follow(&output, &mut log) => None,
    };
    let status = match status {
        Some(status) => status,
        // It closed its output; it may still be at work.
        None => timeout_at(until, child.wait()).await,
    };
    // Whatever it left behind in its group would keep the target busy.
    if let Some(group) = group {
        // ESRCH: nothing is left, which is how it should be.
        let _ = killpg(group, Signal::SIGKILL);
    }
    let timed_out = status.is_err();
    let status = match status {
        Ok(status) => Some(status),
        // Even a killed process stays while the kernel waits for a disk that does not answer.
        Err(_) => timeout_at(Instant::now() + AFTERMATH, child.wait())
            .await
            .ok(),
    };
    let _ = timeout_at(Instant::now() + AFTERMATH, follow(&output, &mut log)).await;
    let tail = log.finish();
    let Some(status) = status.filter(|_| !timed_out) else {
        return Err(Error::Deadline {
            installer,
            seconds: deadline.as_secs(),
            tail,
        });
    };
    let status = status.map_err(start)?;
    if !status.success() {
        return Err(Error::Failed {
            installer,
            status: describe(status),
            tail,
        });
    }
    tracing::info!(installer, "the installer is done");
    Ok(())
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => match Signal::try_from(signal) {
            Ok(signal) => format!("killed by {signal}"),
            Err(_) => format!("killed by signal {signal}"),
        },
        (None, None) => "it neither exited nor was killed".to_owned(),
    }
}

/// Reads output into the log until the pipe is closed.
async fn follow(output: &pipe::Receiver, log: &mut Log) {
    let mut buffer = [0; 4096];
    loop {
        if output.readable().await.is_err() {
            return;
        }
        match output.try_read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => log.add(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(%error, "the installer's output cannot be read");
                return;
            }
        }
    }
}

/// Output cut into lines that are safe to print.
struct Log {
    installer: &'static str,
    blanks: Blanks,
    line: Vec<u8>,
    lines: usize,
    tail: VecDeque<String>,
}

impl Log {
    fn new(installer: &'static str, secrets: &[SecretString]) -> Self {
        Self {
            installer,
            blanks: Blanks::new(secrets),
            line: Vec::new(),
            lines: 0,
            tail: VecDeque::new(),
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' || self.line.len() >= MAX_RAW_LINE {
                self.end_line();
            }
            if byte != b'\n' {
                self.line.push(byte);
            }
        }
    }

    fn end_line(&mut self) {
        let text = String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned();
        // Escape sequences would act on the console that this ends up on.
        let text: String = text
            .chars()
            .filter(|&c| c == '\t' || !c.is_control())
            .collect();
        let text: Vec<char> = self.blanks.apply(text).trim_end().chars().collect();
        for part in text.chunks(MAX_LINE) {
            self.print(part.iter().collect());
        }
    }

    fn print(&mut self, text: String) {
        self.lines += 1;
        match self.lines.cmp(&MAX_LINES) {
            std::cmp::Ordering::Less => tracing::info!(installer = self.installer, "{text}"),
            std::cmp::Ordering::Equal => {
                tracing::warn!(installer = self.installer, "more output is not logged");
            }
            std::cmp::Ordering::Greater => {}
        }
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(text);
    }

    fn finish(mut self) -> String {
        self.end_line();
        Vec::from(self.tail).join("\n")
    }
}

/// The kernel's file systems inside the target, until dropped.
struct Mounts {
    mounted: Vec<PathBuf>,
}

impl Mounts {
    fn new(root: &RootDir) -> Result<Self, Error> {
        let mut mounts = Self {
            mounted: Vec::new(),
        };
        let safe = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
        mounts.add(root, "proc", "/proc", safe, None)?;
        mounts.add(root, "sysfs", "/sys", safe, None)?;
        if Path::new(EFIVARS).is_dir() {
            mounts.add(root, "efivarfs", EFIVARS, safe, None)?;
        }
        mounts.bind_dev(root)?;
        // Not every kernel has pseudo terminals, and few installers want one.
        let pts = Some("ptmxmode=0666,mode=0620,gid=5");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        if let Err(error) = mounts.add(root, "devpts", "/dev/pts", flags, pts) {
            tracing::debug!(%error, "the installer gets no pseudo terminals");
        }
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mounts.add(root, "tmpfs", "/run", flags, Some("mode=0755"))?;
        mounts.add(root, "tmpfs", "/tmp", flags, Some("mode=1777"))?;
        Ok(mounts)
    }

    fn add(
        &mut self,
        root: &RootDir,
        what: &'static str,
        path: &str,
        flags: MsFlags,
        options: Option<&str>,
    ) -> Result<(), Error> {
        let point = mount_point(root, what, path)?;
        mount(Some(what), &point, Some(what), flags, options).map_err(failed(what, path))?;
        self.mounted.push(point);
        Ok(())
    }

    /// The same /dev that the agent has, private: what is mounted in it stays in the target.
    fn bind_dev(&mut self, root: &RootDir) -> Result<(), Error> {
        let (what, path) = ("/dev", "/dev");
        let none = None::<&str>;
        let point = mount_point(root, what, path)?;
        mount(Some(what), &point, none, MsFlags::MS_BIND, none).map_err(failed(what, path))?;
        self.mounted.push(point.clone());
        mount(none, &point, none, MsFlags::MS_PRIVATE, none).map_err(failed(what, path))
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        for point in self.mounted.drain(..).rev() {
            let Err(errno) = umount2(&point, MntFlags::UMOUNT_NOFOLLOW) else {
                continue;
            };
            tracing::warn!(path = %point.display(), %errno, "unmounting lazily");
            let lazily = MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH;
            if let Err(errno) = umount2(&point, lazily) {
                tracing::error!(path = %point.display(), %errno, "it stays mounted");
            }
        }
    }
}

/// The directory to mount on, made when missing. No part of it may be a link: the mount
/// goes by its path, which therefore has to be what it looks like.
fn mount_point(root: &RootDir, what: &'static str, path: &str) -> Result<PathBuf, Error> {
    let relative = path.trim_start_matches('/');
    root.make_dirs(Path::new(relative), Links::Refuse)
        .map_err(failed(what, path))?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(root, relative, how).map_err(failed(what, path))?;
    Ok(root.path().join(relative))
}

fn failed(what: &'static str, path: &str) -> impl FnOnce(Errno) -> Error {
    let path = path.to_owned();
    move |errno| Error::Mount {
        what,
        path,
        source: errno.into(),
    }
}

#[cfg(test)]
mod tests;
