//! Plain lines on the consoles that are no screens, and the start of everything that listens.
//!
//! `/dev/console` is only the last `console=` of the command line; a technician may look at
//! the screen while an operator reads the serial port. So each line goes to all of them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::event::{Event, Line, Origin};
use super::stream::{self, Queue, Record};
use super::{kmsg, terminal};

/// Records that wait for one console. A serial port takes some 100 lines a second; one that
/// takes none (flow control, Scroll Lock) must not stop the boot, so what does not fit is dropped.
const WAITING: usize = 512;

/// The screen.
const SCREEN: &str = "tty0";

/// Lines of progress on a console without a cursor: one in this time.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// How long a flush may take.
const FLUSH: Duration = Duration::from_secs(2);

/// Starts a listener for each console of the kernel: the dashboard on the screen, plain lines
/// everywhere else.
pub fn start(sys: &Path, dev: &Path) {
    let active = fs::read_to_string(sys.join("class/tty/console/active")).unwrap_or_default();
    let names: Vec<&str> = active.split_whitespace().collect();
    let screen = terminal::start(&dev.join(SCREEN));
    // What the kernel writes onto the dashboard would tear it; the other consoles get its lines
    // through the stream then.
    let quiet = screen && names.contains(&SCREEN);
    if let Err(error) = kmsg::start(quiet) {
        tracing::warn!("no kernel messages in the log: {error}");
    }
    start_plain(&names, dev, screen);
}

fn start_plain(names: &[&str], dev: &Path, screen: bool) {
    let plain = names.iter().filter(|name| !screen || **name != SCREEN);
    let mut consoles: Vec<Console> = plain
        .filter_map(|name| Console::open(dev.join(name)).ok())
        .collect();
    // Where the consoles cannot be told, the kernel's choice.
    if consoles.is_empty() && !screen {
        consoles.extend(Console::open(dev.join("console")));
    }
    consoles.into_iter().for_each(start_writer);
}

/// A terminal that lines are written to.
struct Console {
    path: PathBuf,
    file: File,
}

impl Console {
    fn open(path: PathBuf) -> io::Result<Self> {
        let file = open_tty(&path)?;
        Ok(Self { path, file })
    }

    /// Writes, after opening it anew if need be: when a shell on it ends, the kernel hangs up
    /// whatever has the terminal open. A console that fails (a serial port that is not there
    /// answers EIO) is tried again with the next line.
    fn write(&mut self, text: &str) {
        if self.file.write_all(text.as_bytes()).is_ok() {
            return;
        }
        if let Ok(file) = open_tty(&self.path) {
            self.file = file;
            let _ = self.file.write_all(text.as_bytes());
        }
    }
}

/// Opens a terminal, which must not become the controlling one of PID 1.
pub(super) fn open_tty(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(path)
}

/// Whether a plain console shows the event.
fn is_shown(event: &Event) -> bool {
    match event {
        Event::Line(Line {
            origin: Origin::Kernel { unseen },
            ..
        }) => *unseen,
        other => other.as_line().is_some(),
    }
}

/// A thread that writes to one console until the program ends.
fn start_writer(mut console: Console) {
    let queue = Arc::new(Queue::new(WAITING, is_shown));
    stream::subscribe(&queue);
    let work = move || {
        let mut plain = Plain::default();
        while let Some(record) = queue.next(None) {
            let text = plain.show(&record, queue.dropped());
            console.write(&text);
            queue.settle(1);
        }
    };
    // Without a thread this console stays dark; the others do not.
    let _ = std::thread::Builder::new()
        .name("console".into())
        .spawn(work);
}

/// Events as plain lines.
#[derive(Default)]
struct Plain {
    /// When progress was last shown.
    progress: Option<Duration>,
}

impl Plain {
    /// The record's line, empty when it is not worth one; before it how many were `dropped`.
    fn show(&mut self, record: &Record, dropped: u64) -> String {
        let mut text = match dropped {
            0 => String::new(),
            count => format!("({count} lines were too many for this console)\n"),
        };
        if matches!(record.event, Event::Progress(_)) {
            let soon = |last| record.at.saturating_sub(last) < PROGRESS_EVERY;
            if self.progress.is_some_and(soon) {
                return text;
            }
            self.progress = Some(record.at);
        }
        if let Some(line) = line(record) {
            text.push_str(&line);
            text.push('\n');
        }
        text
    }
}

/// A record as a line with the time since the kernel started, as the kernel's own lines show it.
#[must_use]
pub fn line(record: &Record) -> Option<String> {
    let (level, text) = record.event.as_line()?;
    let kernel = matches!(
        record.event,
        Event::Line(Line {
            origin: Origin::Kernel { .. },
            ..
        })
    );
    let who = if kernel { "kernel: " } else { "" };
    let (seconds, millis) = (record.at.as_secs(), record.at.subsec_millis());
    Some(format!("[{seconds:>5}.{millis:03}] {level:>5} {who}{text}"))
}

/// Waits until every listener has shown or sent what was told so far: before a reset or a kexec,
/// for what is still in memory then is lost. Returns after a moment whatever they do.
pub fn flush() {
    stream::flush(FLUSH);
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tracing::Level;

    use super::*;
    use crate::image::Progress;

    fn say(text: &str) {
        let line = Line::new(Level::INFO, Origin::Agent, text);
        stream::tell(Event::Line(line));
    }

    /// A `/dev` with these consoles.
    fn dev(consoles: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for console in consoles {
            fs::write(dir.path().join(console), "").unwrap();
        }
        dir
    }

    /// Waits until the file holds `text`.
    fn wait_for(path: &Path, text: &str) {
        let until = Instant::now() + Duration::from_secs(20);
        while !fs::read_to_string(path).unwrap().contains(text) {
            assert!(Instant::now() < until, "{text:?} never came");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_line_reaches_every_active_console() {
        let dir = dev(&["tty0", "ttyS1", "console"]);
        let dev = dir.path();
        start_plain(&["tty0", "ttyS1", "ttyS9"], dev, false);
        say("hello-to-all");
        wait_for(&dev.join("tty0"), "INFO hello-to-all\n");
        wait_for(&dev.join("ttyS1"), "INFO hello-to-all\n");
        assert_eq!(fs::read_to_string(dev.join("console")).unwrap(), "");
    }

    #[test]
    fn a_screen_with_a_dashboard_gets_no_lines() {
        let dir = dev(&["tty0", "ttyS0", "console"]);
        let dev = dir.path();
        start_plain(&["tty0", "ttyS0"], dev, true);
        say("hello-to-serial");
        wait_for(&dev.join("ttyS0"), "hello-to-serial");
        assert_eq!(fs::read_to_string(dev.join("tty0")).unwrap(), "");
    }

    #[test]
    fn a_console_that_takes_nothing_does_not_hold_up_the_boot() {
        let dir = dev(&["tty0"]);
        let dev = dir.path();
        nix::unistd::mkfifo(&dev.join("ttyS0"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        // A reader that never reads: the pipe fills up, then every write blocks.
        let _reader = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(dev.join("ttyS0"))
            .unwrap();
        start_plain(&["ttyS0", "tty0"], dev, false);
        let line = "x".repeat(1024);
        for _ in 0..10 * WAITING {
            say(&line);
        }
        // The other console still gets its lines, and learns of those that it did not get.
        say("the-last-line");
        wait_for(&dev.join("tty0"), "the-last-line");
    }

    #[test]
    fn a_console_that_was_hung_up_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ttyS0");
        let pair = nix::pty::openpty(None, None).unwrap();
        std::os::unix::fs::symlink(nix::unistd::ttyname(&pair.slave).unwrap(), &path).unwrap();
        let mut console = Console::open(path.clone()).unwrap();
        console.write("before\n");
        // Without its other end every write fails, as after a hang-up.
        drop(pair.master);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        console.write("after\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "after\n");
    }

    #[test]
    fn progress_is_a_line_a_second() {
        let mut plain = Plain::default();
        let shown = [0, 400, 999, 1000, 1500, 2100].map(|at| {
            let event = Event::Progress(Progress::default());
            let at = Duration::from_millis(at);
            !plain.show(&Record { at, event }, 0).is_empty()
        });
        assert_eq!(shown, [true, false, false, true, false, true]);
    }

    #[test]
    fn lines_look_like_the_kernels() {
        let record = |origin| Record {
            at: Duration::from_millis(12_034),
            event: Event::Line(Line::new(Level::WARN, origin, "text")),
        };
        let own = record(Origin::Agent);
        assert_eq!(line(&own).unwrap(), "[   12.034]  WARN text");
        let kernel = record(Origin::Kernel { unseen: true });
        assert_eq!(line(&kernel).unwrap(), "[   12.034]  WARN kernel: text");
        let seen = record(Origin::Kernel { unseen: false });
        assert!(is_shown(&kernel.event) && !is_shown(&seen.event));
        assert_eq!(
            Plain::default().show(&own, 3),
            "(3 lines were too many for this console)\n[   12.034]  WARN text\n"
        );
    }
}
