//! A line of progress now and then: a serial console is slow, and its log is kept.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crate::image::Progress;

/// One line in this time; a gigabyte takes a handful of lines.
const EVERY: Duration = Duration::from_secs(5);

/// Prints the progress of a download, at most one line every few seconds.
pub(super) struct ProgressLine {
    started: Instant,
    last: Mutex<Instant>,
}

impl Default for ProgressLine {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            started: now,
            last: Mutex::new(now),
        }
    }
}

impl ProgressLine {
    /// Shows where a download stands, unless it was shown a moment ago.
    pub(super) fn show(&self, progress: Progress) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() < EVERY {
            return;
        }
        *last = Instant::now();
        tracing::info!(
            "{}",
            line(progress.downloaded, progress.total, self.started.elapsed())
        );
    }
}

fn line(received: u64, total: Option<u64>, took: Duration) -> String {
    const MIB: u64 = 1 << 20;
    let rate = u128::from(received) * 1000 / took.as_millis().max(1) / u128::from(MIB);
    match total.filter(|total| *total > 0) {
        Some(total) => format!(
            "image: {}% of {} MiB, {rate} MiB/s",
            u128::from(received) * 100 / u128::from(total),
            total / MIB
        ),
        None => format!("image: {} MiB, {rate} MiB/s", received / MIB),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_and_how_fast() {
        let second = Duration::from_secs(2);
        assert_eq!(
            line(50 << 20, Some(100 << 20), second),
            "image: 50% of 100 MiB, 25 MiB/s"
        );
        assert_eq!(line(50 << 20, None, second), "image: 50 MiB, 25 MiB/s");
        assert_eq!(line(0, Some(0), Duration::ZERO), "image: 0 MiB, 0 MiB/s");
    }
}
