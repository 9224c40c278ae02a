//! Which step began when, how long it took and how often it was tried. Pure.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::event::Event;
use crate::sequence::failure::Step;

/// Steps that are kept; a boot that holds for days repeats some.
const MAX_ENTRIES: usize = 64;

/// One step of the boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub step: Step,
    /// Since the kernel started.
    pub started: Duration,
    /// How long it took; `None` while it is in hand.
    pub took: Option<Duration>,
    /// How often it was tried.
    pub tries: u32,
    pub failed: bool,
}

/// The steps in their order; the last one may be in hand.
#[derive(Debug, Default)]
pub struct Timeline {
    entries: Vec<Entry>,
}

impl Timeline {
    /// Nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            entries: Vec::new(),
        }
    }

    /// `step` begins, unless it is in hand already: the one before is finished.
    pub fn begin(&mut self, step: Step, now: Duration) -> Vec<Event> {
        let mut events = Vec::new();
        if let Some(entry) = self.in_hand() {
            if entry.step == step {
                return events;
            }
            let took = now.saturating_sub(entry.started);
            entry.took = Some(took);
            events.push(Event::Finished {
                step: entry.step,
                took,
                tries: entry.tries,
            });
        }
        if self.entries.len() >= MAX_ENTRIES {
            self.entries.remove(0);
        }
        self.entries.push(Entry {
            step,
            started: now,
            took: None,
            tries: 1,
            failed: false,
        });
        events.push(Event::Started { step, attempt: 1 });
        events
    }

    /// The step in hand is tried once more.
    pub fn again(&mut self) -> Option<Event> {
        let entry = self.in_hand()?;
        entry.tries = entry.tries.saturating_add(1);
        Some(Event::Started {
            step: entry.step,
            attempt: entry.tries,
        })
    }

    /// The boot ends in the step in hand.
    pub fn fail(&mut self, cause: &str, now: Duration) -> Option<Event> {
        let entry = self.in_hand()?;
        let took = now.saturating_sub(entry.started);
        entry.took = Some(took);
        entry.failed = true;
        Some(Event::Failed {
            step: entry.step,
            took,
            tries: entry.tries,
            cause: cause.to_owned(),
        })
    }

    fn in_hand(&mut self) -> Option<&mut Entry> {
        self.entries.last_mut().filter(|entry| entry.took.is_none())
    }

    /// All steps in at most `limit` bytes: `83.2 s: network 1.2, image 40.1 (2 tries)`. What does
    /// not fit is left out, the shortest steps first.
    #[must_use]
    pub fn short(&self, now: Duration, limit: usize) -> String {
        let mut shown: Vec<&Entry> = self.entries.iter().collect();
        loop {
            let mut text = format!("{:.1} s: ", now.as_secs_f64());
            for (number, entry) in shown.iter().enumerate() {
                let gap = if number == 0 { "" } else { ", " };
                let seconds = entry.length(now).as_secs_f64();
                let _ = write!(text, "{gap}{} {seconds:.1}{}", entry.step, entry.verdict());
            }
            if shown.len() < self.entries.len() {
                text.push_str(", ...");
            }
            if text.len() <= limit || shown.is_empty() {
                return text;
            }
            let shortest = (0..shown.len()).min_by_key(|&at| shown.get(at).map(|e| e.length(now)));
            shown.remove(shortest.unwrap_or_default());
        }
    }

    /// One line for each step.
    #[must_use]
    pub fn lines(&self, now: Duration) -> Vec<String> {
        let line = |entry: &Entry| {
            format!(
                "{:>8.3} s  {:<16} took {:.3} s{}",
                entry.started.as_secs_f64(),
                entry.step.to_string(),
                entry.length(now).as_secs_f64(),
                entry.verdict()
            )
        };
        self.entries.iter().map(line).collect()
    }

    /// For the installed OS. Times are seconds since the kernel started; the step that writes this
    /// is not finished.
    #[must_use]
    pub fn json(&self, now: Duration) -> Value {
        // Milliseconds say enough.
        let seconds = |time: Duration| (time.as_secs_f64() * 1000.0).round() / 1000.0;
        let step = |entry: &Entry| {
            json!({
                "step": entry.step.to_string(),
                "started": seconds(entry.started),
                "took": seconds(entry.length(now)),
                "tries": entry.tries,
                "finished": entry.took.is_some(),
            })
        };
        json!({
            "program": crate::sequence::PROGRAM,
            "written": seconds(now),
            "steps": self.entries.iter().map(step).collect::<Vec<_>>(),
        })
    }
}

impl Entry {
    fn length(&self, now: Duration) -> Duration {
        self.took
            .unwrap_or_else(|| now.saturating_sub(self.started))
    }

    fn verdict(&self) -> String {
        let mut text = match self.tries {
            0 | 1 => String::new(),
            tries => format!(" ({tries} tries)"),
        };
        if self.failed {
            text.push_str(" FAILED");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn boot() -> Timeline {
        let mut boot = Timeline::new();
        boot.begin(Step::Start, at(1500));
        boot.begin(Step::Network, at(1600));
        boot.begin(Step::Image, at(2800));
        boot.again();
        boot
    }

    #[test]
    fn a_step_ends_where_the_next_begins() {
        let mut boot = Timeline::new();
        let started = |step, attempt| Event::Started { step, attempt };
        assert_eq!(
            boot.begin(Step::Network, at(10)),
            [started(Step::Network, 1)]
        );
        assert_eq!(boot.begin(Step::Network, at(20)), [], "it is in hand");
        assert_eq!(boot.again(), Some(started(Step::Network, 2)));
        let finished = Event::Finished {
            step: Step::Network,
            took: at(20),
            tries: 2,
        };
        assert_eq!(
            boot.begin(Step::Wipe, at(30)),
            [finished, started(Step::Wipe, 1)]
        );
        let failed = Event::Failed {
            step: Step::Wipe,
            took: at(5),
            tries: 1,
            cause: "x".into(),
        };
        assert_eq!(boot.fail("x", at(35)), Some(failed));
        assert_eq!(boot.fail("y", at(36)), None, "nothing is in hand");
    }

    #[test]
    fn the_short_form_fits_and_keeps_what_took_long() {
        let boot = boot();
        assert_eq!(
            boot.short(at(9000), 256),
            "9.0 s: start 0.1, network 1.2, image 6.2 (2 tries)"
        );
        assert_eq!(
            boot.short(at(9000), 48),
            "9.0 s: network 1.2, image 6.2 (2 tries), ..."
        );
        for limit in 0..60 {
            let text = boot.short(at(9000), limit);
            assert!(
                text.len() <= limit.max("9.0 s: , ...".len()),
                "{limit}: {text}"
            );
        }
    }

    #[test]
    fn the_record_has_every_step() {
        let mut boot = boot();
        assert_eq!(
            boot.json(at(9000))["steps"][2],
            json!({"step": "image", "started": 2.8, "took": 6.2, "tries": 2, "finished": false})
        );
        assert_eq!(
            boot.lines(at(9000))[1],
            "   1.600 s  network          took 1.200 s"
        );
        boot.fail("x", at(9500));
        assert!(boot.lines(at(9900))[2].ends_with("took 6.700 s (2 tries) FAILED"));
    }

    #[test]
    fn a_boot_that_holds_for_days_has_a_bounded_timeline() {
        let mut boot = Timeline::new();
        for round in 0..1000 {
            boot.begin(Step::Allocation, at(round * 10));
            boot.begin(Step::Wipe, at(round * 10 + 5));
        }
        assert_eq!(boot.lines(at(20_000)).len(), MAX_ENTRIES);
    }
}
