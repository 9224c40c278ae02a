//! The makers of file systems, arrays and volumes that are run, with a deadline, and what they said when they fail.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::init::oom;

/// Output that is kept of a command, per stream, in bytes.
const MAX_OUTPUT: usize = 64 << 10;
/// Length of a command's last words in an error, in characters.
const MAX_LAST_WORDS: usize = 300;

/// Where the commands are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tools {
    pub mke2fs: PathBuf,
    pub mkfs_vfat: PathBuf,
    pub mdadm: PathBuf,
    pub lvm: PathBuf,
    /// How long one command may run.
    pub deadline: Duration,
}

impl Default for Tools {
    fn default() -> Self {
        Self {
            mke2fs: "/usr/sbin/mke2fs".into(),
            mkfs_vfat: "/usr/sbin/mkfs.vfat".into(),
            mdadm: "/usr/sbin/mdadm".into(),
            lvm: "/usr/sbin/lvm".into(),
            deadline: Duration::from_secs(600),
        }
    }
}

/// Why a command did not do its work.
#[derive(Debug, Error)]
pub enum Error {
    #[error("cannot run {command}: {source}")]
    Start { command: String, source: io::Error },
    #[error("{command}: {status}; it said: {last_words}")]
    Failed {
        command: String,
        status: ExitStatus,
        last_words: String,
    },
    #[error("{command}: killed after {} s", after.as_secs())]
    Deadline { command: String, after: Duration },
}

/// Runs `program` with `arguments` and waits for it, no longer than `deadline`. Its output
/// is logged at debug level and answered, and its last words are part of the error.
///
/// # Errors
/// When it cannot be started, exits with a status other than 0, or takes too long.
pub fn run<A: AsRef<OsStr>>(
    program: &Path,
    arguments: &[A],
    deadline: Duration,
) -> Result<String, Error> {
    let shown = std::iter::once(program.as_os_str())
        .chain(arguments.iter().map(AsRef::as_ref))
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ");
    let started = |source| Error::Start {
        command: shown.clone(),
        source,
    };
    // No environment: MKE2FS_* variables and locales must not change what is made.
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        // LVM makes its nodes itself then, instead of waiting for a udev that does not run.
        .env("DM_DISABLE_UDEV", "1")
        .env("LVM_SUPPRESS_FD_WARNINGS", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // SAFETY: the closure runs between fork and exec and makes only async-signal-safe system calls.
    unsafe { command.pre_exec(oom::ordinary) };
    let mut child = command.spawn().map_err(started)?;
    let ends_at = Instant::now() + deadline;
    match output_of(&mut child, ends_at) {
        Ok(Some([out, err])) => {
            let status = child.wait().map_err(started)?;
            tracing::debug!(command = %shown, %status, output = %out, errors = %err, "ran");
            if status.success() {
                return Ok(out);
            }
            let last_words = [&err, &out]
                .iter()
                .find_map(|text| text.lines().map(str::trim).rfind(|line| !line.is_empty()))
                .unwrap_or("nothing")
                .chars()
                .filter(|c| !c.is_control())
                .take(MAX_LAST_WORDS)
                .collect();
            Err(Error::Failed {
                command: shown.clone(),
                status,
                last_words,
            })
        }
        Ok(None) => {
            stop(&mut child);
            Err(Error::Deadline {
                command: shown.clone(),
                after: deadline,
            })
        }
        Err(source) => {
            stop(&mut child);
            Err(started(source))
        }
    }
}

/// Kills the child without waiting for its end: a process stuck in the kernel dies when
/// the disk answers, which may be never.
fn stop(child: &mut Child) {
    if let Err(error) = child.kill() {
        tracing::warn!(pid = child.id(), %error, "cannot kill a command that took too long");
    }
    if let Err(error) = child.try_wait() {
        tracing::debug!(pid = child.id(), %error, "the killed command is not reaped yet");
    }
}

/// Both streams until the child closes them; `None` when it did not in time.
fn output_of(child: &mut Child, ends_at: Instant) -> io::Result<Option<[String; 2]>> {
    let (sender, receiver) = mpsc::channel();
    let start = |index: usize, stream: Option<Box<dyn Read + Send>>| -> io::Result<()> {
        let sender = sender.clone();
        thread::Builder::new()
            .name("tool-output".to_owned())
            .spawn(move || {
                let text = stream.map(keep_tail).unwrap_or_default();
                // The receiver is gone only after the deadline; nobody wants the text then.
                sender.send((index, text)).ok();
            })
            .map(drop)
    };
    start(
        0,
        child
            .stdout
            .take()
            .map(|s| Box::new(s) as Box<dyn Read + Send>),
    )?;
    start(
        1,
        child
            .stderr
            .take()
            .map(|s| Box::new(s) as Box<dyn Read + Send>),
    )?;
    let mut output = [String::new(), String::new()];
    for _ in 0..output.len() {
        let left = ends_at.saturating_duration_since(Instant::now());
        match receiver.recv_timeout(left) {
            Ok((index, text)) => output[index] = text,
            Err(_) => return Ok(None),
        }
    }
    Ok(Some(output))
}

/// Reads to the end and keeps the last [`MAX_OUTPUT`] bytes.
fn keep_tail(mut stream: impl Read) -> String {
    let mut kept = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut chunk) {
        kept.extend_from_slice(&chunk[..length]);
        if kept.len() > 2 * MAX_OUTPUT {
            kept.drain(..kept.len() - MAX_OUTPUT);
        }
    }
    let start = kept.len().saturating_sub(MAX_OUTPUT);
    String::from_utf8_lossy(&kept[start..]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(10);

    fn sh(script: &str, deadline: Duration) -> Result<String, Error> {
        run(Path::new("/bin/sh"), &["-c", script], deadline)
    }

    #[test]
    fn success_and_failure() {
        assert_eq!(sh("echo fine; echo noise >&2", SECOND).unwrap(), "fine\n");
        let error = sh(
            "echo first >&2; echo; echo 'the last word' >&2; exit 3",
            SECOND,
        )
        .unwrap_err()
        .to_string();
        assert!(
            error.contains("exit status: 3; it said: the last word"),
            "{error}"
        );
        assert!(error.starts_with("/bin/sh -c"), "{error}");
        let error = sh("echo on stdout; exit 1", SECOND)
            .unwrap_err()
            .to_string();
        assert!(error.ends_with("it said: on stdout"), "{error}");
        let error = sh("exit 1", SECOND).unwrap_err().to_string();
        assert!(error.ends_with("it said: nothing"), "{error}");
    }

    #[test]
    fn a_command_that_is_not_there() {
        let error = run(Path::new("/nonexistent/mke2fs"), &["-F"], SECOND).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("cannot run /nonexistent/mke2fs -F"),
            "{error}"
        );
    }

    #[test]
    fn a_command_that_hangs_is_killed() {
        let started = Instant::now();
        let error = run(
            Path::new("/bin/sleep"),
            &["1000"],
            Duration::from_millis(50),
        )
        .unwrap_err();
        assert!(matches!(error, Error::Deadline { .. }), "{error}");
        assert!(started.elapsed() < SECOND);
    }

    #[test]
    fn output_is_bounded_and_its_end_is_kept() {
        let noise = io::repeat(b'x').take(1 << 20).chain(&b"end"[..]);
        let kept = keep_tail(noise);
        assert_eq!(kept.len(), MAX_OUTPUT);
        assert!(kept.ends_with("xend"));
    }

    #[test]
    fn when_memory_runs_out_a_command_dies_before_its_caller() {
        let file = "/proc/self/oom_score_adj";
        let own = std::fs::read_to_string(file).unwrap();
        // Every process may make itself a better candidate; the agent is the worst.
        std::fs::write(file, "500").unwrap();
        let its = sh(&format!("cat {file}"), SECOND).unwrap();
        assert_eq!(its, "0\n");
        // Back to where it was, which only root may.
        let _ = std::fs::write(file, own);
    }

    #[test]
    fn the_environment_does_not_leak() {
        // Cargo sets this one for every test.
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
        sh("test -z \"$CARGO_MANIFEST_DIR\"", SECOND).unwrap();
    }
}
