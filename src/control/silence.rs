//! How much silence proves that a machine has no allocation (contracts.md §9).
//!
//! Pure counting: the waiting itself is `waiting::probe`.

use std::time::Duration;

/// The longest stretch of silence that is asked of one Wait: the server closes every
/// response after 60 s, and a Wait that we end ourselves depends on no such cut.
const LONGEST_STRETCH: Duration = Duration::from_secs(45);

/// Silence gathered so far, and how much is needed.
#[derive(Debug)]
pub struct Silence {
    needed: Duration,
    needed_waits: u32,
    heard: Duration,
    waits: u32,
}

impl Silence {
    /// Silence of `needed` in total, over at least `waits` Waits.
    pub fn new(needed: Duration, waits: u32) -> Self {
        Self {
            needed,
            needed_waits: waits.max(1),
            heard: Duration::ZERO,
            waits: 0,
        }
    }

    /// How long the next Wait should stay silent.
    pub fn stretch(&self) -> Duration {
        let missing = self.needed.saturating_sub(self.heard);
        let waits = self.needed_waits.saturating_sub(self.waits).max(1);
        (missing / waits).min(LONGEST_STRETCH)
    }

    /// Counts a Wait that was silent for `time`; whether that was enough.
    pub fn add(&mut self, time: Duration) -> bool {
        self.heard = self.heard.saturating_add(time);
        self.waits = self.waits.saturating_add(1);
        self.heard >= self.needed && self.waits >= self.needed_waits
    }

    /// Forgets everything: something went wrong, and silence next to trouble proves nothing.
    pub fn reset(&mut self) {
        self.heard = Duration::ZERO;
        self.waits = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn stretches_add_up_to_what_is_needed() {
        // needed, waits, stretches when every Wait stays silent as long as asked
        let cases = [
            (10, 1, vec![10]),
            (120, 2, vec![45, 45, 30]),
            (60, 2, vec![30, 30]),
            (100, 1, vec![45, 45, 10]),
            (0, 1, vec![0]),
            (0, 0, vec![0]),
        ];
        for (needed, waits, expected) in cases {
            let mut silence = Silence::new(seconds(needed), waits);
            let mut stretches = Vec::new();
            loop {
                let stretch = silence.stretch();
                stretches.push(stretch.as_secs());
                if silence.add(stretch) {
                    break;
                }
            }
            assert_eq!(stretches, expected, "{needed} s over {waits}");
        }
    }

    #[test]
    fn one_long_wait_is_not_two() {
        let mut silence = Silence::new(seconds(120), 2);
        assert!(!silence.add(seconds(500)));
        assert!(silence.add(seconds(0)));
    }

    #[test]
    fn waits_cut_short_count_for_what_they_were() {
        let mut silence = Silence::new(seconds(10), 1);
        assert!(!silence.add(seconds(6)));
        assert_eq!(silence.stretch(), seconds(4));
        assert!(silence.add(seconds(4)));
    }

    #[test]
    fn trouble_starts_it_again() {
        let mut silence = Silence::new(seconds(120), 2);
        silence.add(seconds(45));
        silence.add(seconds(45));
        silence.reset();
        assert_eq!(silence.stretch(), seconds(45));
        assert!(!silence.add(seconds(45)));
        assert!(!silence.add(seconds(45)));
        assert!(silence.add(seconds(30)));
    }
}
