//! Log lines on every console of the kernel.
//!
//! `/dev/console` is only the last `console=` of the command line; a technician may look at
//! the screen while an operator reads the serial port. So each line goes to all of them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, reload};

/// The consoles, shared by all threads; a line is written whole.
#[derive(Clone)]
pub struct Consoles(Arc<Mutex<Vec<File>>>);

impl Consoles {
    /// Opens the consoles that the kernel writes to (`/sys/class/tty/console/active`);
    /// `/dev/console` when that cannot be told.
    #[must_use]
    pub fn open(sys: &Path, dev: &Path) -> Self {
        let active = fs::read_to_string(sys.join("class/tty/console/active")).unwrap_or_default();
        let mut files: Vec<File> = active
            .split_whitespace()
            .filter_map(|name| open_tty(&dev.join(name)).ok())
            .collect();
        if files.is_empty() {
            files.extend(open_tty(&dev.join("console")));
        }
        Self(Arc::new(Mutex::new(files)))
    }
}

fn open_tty(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        // A console must not become the controlling terminal of PID 1.
        .custom_flags(libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(path)
}

/// Access to all consoles for the length of one line.
pub struct Line<'a>(MutexGuard<'a, Vec<File>>);

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for console in self.0.iter_mut() {
            // A console that fails (a serial port that is not there answers EIO) must not
            // stop the others, and the boot least of all.
            let _ = console.write_all(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Consoles {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        Line(self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Seconds since the kernel started, as the kernel's own lines show them.
struct SinceBoot;

impl FormatTime for SinceBoot {
    fn format_time(&self, w: &mut Writer<'_>) -> std::fmt::Result {
        let (seconds, millis) = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
            .map_or((0, 0), |now| (now.tv_sec(), now.tv_nsec() / 1_000_000));
        write!(w, "[{seconds:>5}.{millis:03}]")
    }
}

/// Turns the logging's detail up or down.
pub type Verbosity = Box<dyn Fn(bool) + Send + Sync>;

/// Sends log lines to the consoles: the agent's at `info` (`debug` when asked for), its
/// libraries' only when they warn. Settings that ask for `debug` are read later than the
/// first line is written, hence the switch that is returned.
#[must_use]
pub fn start_logging(consoles: Consoles) -> Verbosity {
    let (levels, handle) = reload::Layer::new(filter(false));
    let lines = tracing_subscriber::fmt::layer()
        .with_timer(SinceBoot)
        .with_target(false)
        .with_ansi(false)
        .with_writer(consoles)
        .with_filter(levels);
    // Fails only when a subscriber is set already, and then that one is right.
    let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(lines));
    Box::new(move |debug| {
        // Fails only when the subscriber is gone, and with it every line.
        let _ = handle.reload(filter(debug));
    })
}

fn filter(debug: bool) -> Targets {
    let own = if debug { Level::DEBUG } else { Level::INFO };
    Targets::new()
        .with_default(Level::WARN)
        .with_target(env!("CARGO_CRATE_NAME"), own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reaches_every_active_console() {
        let dir = tempfile::tempdir().unwrap();
        let (sys, dev) = (dir.path().join("sys"), dir.path().join("dev"));
        fs::create_dir_all(sys.join("class/tty/console")).unwrap();
        fs::create_dir_all(&dev).unwrap();
        fs::write(sys.join("class/tty/console/active"), "tty0 ttyS1 ttyS9\n").unwrap();
        for tty in ["tty0", "ttyS1", "console"] {
            fs::write(dev.join(tty), "").unwrap();
        }
        let consoles = Consoles::open(&sys, &dev);
        consoles.make_writer().write_all(b"hello\n").unwrap();
        for (tty, expected) in [("tty0", "hello\n"), ("ttyS1", "hello\n"), ("console", "")] {
            assert_eq!(
                fs::read_to_string(dev.join(tty)).unwrap(),
                expected,
                "{tty}"
            );
        }
    }
}
