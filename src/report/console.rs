//! Log lines on every console of the kernel.
//!
//! `/dev/console` is only the last `console=` of the command line; a technician may look at
//! the screen while an operator reads the serial port. So each line goes to all of them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, reload};

/// Lines that wait for one console. A serial port takes some 100 a second; one that takes
/// none (flow control, Scroll Lock) must not stop the boot, so what does not fit is dropped.
const WAITING_LINES: usize = 512;

/// The consoles, shared by all threads; a line is written whole. Each has a thread of its own.
#[derive(Clone)]
pub struct Consoles(Arc<Vec<SyncSender<Order>>>);

/// What a console's thread is asked for.
enum Order {
    Line(Arc<[u8]>),
    /// Tell when all lines before this one are written.
    Flush(SyncSender<()>),
}

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
        Self(Arc::new(
            files.into_iter().filter_map(start_writer).collect(),
        ))
    }

    /// Waits until every console shows what was written so far, for as long as `limit`.
    pub fn flush(&self, limit: Duration) {
        let (done, all_done) = sync_channel(self.0.len());
        let asked = self
            .0
            .iter()
            .filter(|console| console.try_send(Order::Flush(done.clone())).is_ok())
            .count();
        let until = Instant::now() + limit;
        for _ in 0..asked {
            let left = until.saturating_duration_since(Instant::now());
            if all_done.recv_timeout(left).is_err() {
                return;
            }
        }
    }
}

fn open_tty(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        // A console must not become the controlling terminal of PID 1.
        .custom_flags(libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(path)
}

/// A thread that writes to one console until the program ends.
fn start_writer(mut console: File) -> Option<SyncSender<Order>> {
    let (orders, inbox) = sync_channel(WAITING_LINES);
    let work = move || {
        for order in inbox {
            match order {
                // A console that fails (a serial port that is not there answers EIO) is
                // tried again with the next line.
                Order::Line(line) => drop(console.write_all(&line)),
                Order::Flush(done) => drop(done.try_send(())),
            }
        }
    };
    let thread = std::thread::Builder::new()
        .name("console".into())
        .spawn(work);
    thread.is_ok().then_some(orders)
}

impl Write for Consoles {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let line: Arc<[u8]> = bytes.into();
        for console in self.0.iter() {
            let _ = console.try_send(Order::Line(Arc::clone(&line)));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Consoles {
    type Writer = Self;

    fn make_writer(&'a self) -> Self::Writer {
        self.clone()
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

/// The consoles that log lines go to, for [`flush`].
static CONSOLES: OnceLock<Consoles> = OnceLock::new();

/// Waits until the consoles show every log line so far: before a reset or a kexec, for what
/// is still in memory then is lost. Returns after a moment whatever the consoles do.
pub fn flush() {
    if let Some(consoles) = CONSOLES.get() {
        consoles.flush(Duration::from_secs(2));
    }
}

/// Turns the logging's detail up or down.
pub type Verbosity = Box<dyn Fn(bool) + Send + Sync>;

/// Sends log lines to the consoles: the agent's at `info` (`debug` when asked for), its
/// libraries' only when they warn. Settings that ask for `debug` are read later than the
/// first line is written, hence the switch that is returned.
#[must_use]
pub fn start_logging(consoles: Consoles) -> Verbosity {
    let _ = CONSOLES.set(consoles.clone());
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
        consoles.flush(Duration::from_secs(20));
        for (tty, expected) in [("tty0", "hello\n"), ("ttyS1", "hello\n"), ("console", "")] {
            assert_eq!(
                fs::read_to_string(dev.join(tty)).unwrap(),
                expected,
                "{tty}"
            );
        }
    }

    #[test]
    fn a_console_that_takes_nothing_does_not_hold_up_the_boot() {
        let dir = tempfile::tempdir().unwrap();
        let (sys, dev) = (dir.path().join("sys"), dir.path().join("dev"));
        fs::create_dir_all(sys.join("class/tty/console")).unwrap();
        fs::create_dir_all(&dev).unwrap();
        fs::write(sys.join("class/tty/console/active"), "ttyS0 tty0\n").unwrap();
        fs::write(dev.join("tty0"), "").unwrap();
        nix::unistd::mkfifo(&dev.join("ttyS0"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        // A reader that never reads: the pipe fills up, then every write blocks.
        let _reader = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(dev.join("ttyS0"))
            .unwrap();
        let consoles = Consoles::open(&sys, &dev);
        let line = [b'x'; 1024];
        for _ in 0..10 * WAITING_LINES {
            consoles.make_writer().write_all(&line).unwrap();
        }
        consoles.flush(Duration::from_millis(50));
        // The other console still gets its lines.
        consoles.make_writer().write_all(b"last").unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while !fs::read(dev.join("tty0")).unwrap().ends_with(b"last") {
            assert!(Instant::now() < until, "the line never came");
            consoles.make_writer().write_all(b"last").unwrap();
            std::thread::yield_now();
        }
    }
}
