//! How far an image has come, for people to read.

use std::fmt;
use std::time::Duration;

/// The state of an install or a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Bytes of the image that came in.
    pub downloaded: u64,
    /// Its whole length, when the server told it.
    pub total: Option<u64>,
    /// Bytes of the tar stream unpacked.
    pub unpacked: u64,
    /// Tar entries unpacked.
    pub entries: u64,
    /// Time since the download began.
    pub took: Duration,
}

impl Progress {
    /// Bytes of the image a second, since the beginning.
    #[must_use]
    pub fn rate(&self) -> u64 {
        per(self.downloaded, 1000, self.took.as_millis())
    }

    /// How long the rest of the download takes at this rate; `None` where that cannot be said.
    #[must_use]
    pub fn left(&self) -> Option<Duration> {
        let rest = self.total?.checked_sub(self.downloaded)?;
        let rate = self.rate();
        (rate > 0).then(|| Duration::from_secs(rest.div_ceil(rate)))
    }
}

/// `count` times `factor` by `divisor`, which may be 0 at the very beginning.
fn per(count: u64, factor: u32, divisor: u128) -> u64 {
    let value = u128::from(count) * u128::from(factor) / divisor.max(1);
    u64::try_from(value).unwrap_or(u64::MAX)
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: u64 = 1 << 20;
        let (received, rate) = (self.downloaded, self.rate() / MIB);
        match self.total.filter(|total| *total > 0) {
            Some(total) if received >= total => {
                write!(f, "image: all {} MiB received, {rate} MiB/s", total / MIB)?;
            }
            Some(total) => {
                let percent = per(received, 100, u128::from(total));
                write!(f, "image: {percent}% of {} MiB, {rate} MiB/s", total / MIB)?;
            }
            None => write!(f, "image: {} MiB, {rate} MiB/s", received / MIB)?,
        }
        match self.left() {
            Some(Duration::ZERO) => f.write_str(", unpacking and flushing the rest"),
            Some(left) => write!(f, ", {} s left", left.as_secs()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_how_fast_and_how_long() {
        const MIB: u64 = 1 << 20;
        let at = |downloaded, total, seconds| Progress {
            downloaded,
            total,
            took: Duration::from_secs(seconds),
            ..Progress::default()
        };
        for (progress, expected) in [
            (
                at(50 * MIB, Some(100 * MIB), 2),
                "image: 50% of 100 MiB, 25 MiB/s, 2 s left",
            ),
            (at(50 * MIB, None, 2), "image: 50 MiB, 25 MiB/s"),
            (at(0, Some(100 * MIB), 1), "image: 0% of 100 MiB, 0 MiB/s"),
            (at(0, Some(0), 0), "image: 0 MiB, 0 MiB/s"),
            (
                at(100 * MIB, Some(100 * MIB), 4),
                "image: all 100 MiB received, 25 MiB/s, unpacking and flushing the rest",
            ),
            (
                at(u64::MAX, Some(1), 0),
                "image: all 0 MiB received, 17592186044415 MiB/s",
            ),
        ] {
            assert_eq!(progress.to_string(), expected);
        }
    }
}
