//! The dashboard's thread: events in, bytes for the screen out.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};

use super::console::open_tty;
use super::dashboard::Dashboard;
use super::screen::Grid;
use super::stream::{self, Queue};

/// Records that wait for the screen.
const WAITING: usize = 512;
/// Times on the screen go on.
const TICK: Duration = Duration::from_secs(1);
/// The screen is not drawn more often.
const DRAW_EVERY: Duration = Duration::from_millis(100);
/// Should something else have drawn on the screen, it does not stay for long.
const WHOLE_EVERY: Duration = Duration::from_secs(30);
/// `KDGETMODE` of linux/kd.h: only virtual terminals know it.
const KDGETMODE: libc::Ioctl = 0x4b3b;

/// Starts the dashboard on this terminal; false where it is no screen.
pub fn start(path: &Path) -> bool {
    let Ok(terminal) = open_tty(path) else {
        return false;
    };
    if !is_screen(&terminal) {
        return false;
    }
    be_silent(&terminal);
    let queue = Arc::new(Queue::new(WAITING, Dashboard::wants));
    stream::subscribe(&queue);
    std::thread::Builder::new()
        .name("dashboard".into())
        .spawn(move || run(terminal, &queue))
        .is_ok()
}

/// Whether this is a virtual terminal of Linux, which has colours and places a cursor.
#[must_use]
pub(crate) fn is_screen(terminal: &File) -> bool {
    let mut mode: libc::c_int = 0;
    // SAFETY: the descriptor is open, and the kernel writes one int.
    unsafe { libc::ioctl(terminal.as_raw_fd(), KDGETMODE, &raw mut mode) == 0 }
}

/// Whoever presses keys must not write onto the dashboard.
fn be_silent(terminal: &File) {
    if let Ok(mut settings) = tcgetattr(terminal) {
        settings
            .local_flags
            .remove(LocalFlags::ECHO | LocalFlags::ECHONL | LocalFlags::ISIG);
        // It goes on echoing then; the dashboard is drawn anew now and then.
        let _ = tcsetattr(terminal, SetArg::TCSANOW, &settings);
    }
}

/// Columns and rows, where the terminal knows them.
fn size(terminal: &File) -> Option<(usize, usize)> {
    // SAFETY: all fields are numbers, for which zero is a value.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, and the kernel writes one winsize.
    let told = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) == 0 };
    (told && size.ws_col > 0).then_some((size.ws_col.into(), size.ws_row.into()))
}

fn run(mut terminal: File, queue: &Queue) {
    let mut dashboard = Dashboard::default();
    let mut shown: Option<Grid> = None;
    let mut whole = Instant::now();
    loop {
        let mut handled = 0;
        let mut next = queue.next(Some(TICK));
        while let Some(record) = next {
            dashboard.apply(&record);
            handled += 1;
            // A flood of events must not keep the screen from being drawn.
            if handled >= WAITING {
                break;
            }
            next = queue.next(Some(Duration::ZERO));
        }
        let (columns, rows) = size(&terminal).unwrap_or((80, 25));
        let grid = dashboard.render(stream::now(), columns, rows);
        if whole.elapsed() >= WHOLE_EVERY {
            whole = Instant::now();
            shown = None;
        }
        let bytes = grid.update(shown.as_ref());
        // A screen that fails is drawn anew the next time.
        let drawn = terminal.write_all(bytes.as_bytes()).is_ok();
        shown = drawn.then_some(grid);
        queue.settle(handled);
        queue.pause(DRAW_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_screen_is_left_to_plain_lines() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(!start(file.path()));
        assert!(!start(Path::new("/nonexistent/tty0")));
        assert_eq!(size(file.as_file()), None);
    }
}
