//! Who works, and how long each may be silent.
//!
//! Every step of the boot is handed a [`Progress`], which says how long it may go without a
//! sign of life. The watchdog is petted only while all of them keep that.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

/// How long nobody at all may be at work: between two steps there is next to no time.
const NOBODY: Duration = Duration::from_secs(30);

/// How often an endless wait gives a sign of life: well within the least silence that policy may ask for.
pub const TICK: Duration = Duration::from_secs(2);
/// How long an endless wait may go without one, on a machine that is busy otherwise.
const ENDLESS: Duration = Duration::from_secs(30);

/// Who is at work. Clones are the same list.
#[derive(Clone)]
pub struct Vital(Arc<Board>);

struct Board {
    epoch: Instant,
    slots: Mutex<Vec<Weak<Slot>>>,
    /// When somebody was last seen at work, milliseconds after the epoch.
    seen: AtomicU64,
    /// No silence is longer than this, milliseconds.
    cap: AtomicU64,
}

struct Slot {
    name: &'static str,
    /// The last sign of life, milliseconds after the epoch.
    last: AtomicU64,
    /// The longest silence, milliseconds.
    longest: AtomicU64,
    /// Whose work this is a part of: its signs of life are those of the whole.
    whole: Option<Arc<Slot>>,
}

/// Whether the program does what it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Alive,
    /// This part of it has given no sign of life for longer than it may.
    Silent {
        name: &'static str,
        silence: Duration,
    },
}

impl Default for Vital {
    fn default() -> Self {
        Self(Arc::new(Board {
            epoch: Instant::now(),
            slots: Mutex::default(),
            seen: AtomicU64::new(0),
            cap: AtomicU64::new(u64::MAX),
        }))
    }
}

impl Vital {
    /// Somebody goes to work, and gives signs of life at most `longest` apart until the last
    /// clone of what is returned is dropped.
    #[must_use]
    pub fn expect(&self, name: &'static str, longest: Duration) -> Progress {
        self.0.add(name, longest, None)
    }

    /// The same, and nobody else counts any more: their work has ended, or is stuck for good.
    #[must_use]
    pub fn only(&self, name: &'static str, longest: Duration) -> Progress {
        let mut slots = self.0.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.clear();
        drop(slots);
        self.expect(name, longest)
    }

    /// No silence is longer than `cap` from now on, whatever was declared.
    pub fn cap(&self, cap: Option<Duration>) {
        self.0
            .cap
            .store(cap.map_or(u64::MAX, millis), Ordering::Relaxed);
    }

    /// Looks whether everybody at work has given a sign of life in time.
    #[must_use]
    pub fn judge(&self) -> Verdict {
        let now = self.0.now();
        let cap = self.0.cap.load(Ordering::Relaxed);
        let mut slots = self.0.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let mut working = Vec::new();
        slots.retain(|slot| match slot.upgrade() {
            Some(slot) => {
                working.push(slot);
                true
            }
            None => false,
        });
        drop(slots);
        if working.is_empty() {
            let silence = now.saturating_sub(self.0.seen.load(Ordering::Relaxed));
            return match silence > millis(NOBODY).min(cap) {
                true => Verdict::Silent {
                    name: "the boot",
                    silence: Duration::from_millis(silence),
                },
                false => Verdict::Alive,
            };
        }
        self.0.seen.store(now, Ordering::Relaxed);
        for slot in &working {
            // Parts at work answer for their whole, which may not be silent for as long.
            let is_whole =
                |part: &Arc<Slot>| part.whole.as_ref().is_some_and(|w| Arc::ptr_eq(w, slot));
            if working.iter().any(is_whole) {
                slot.last.store(now, Ordering::Relaxed);
                continue;
            }
            let silence = now.saturating_sub(slot.last.load(Ordering::Relaxed));
            if silence > slot.longest.load(Ordering::Relaxed).min(cap) {
                return Verdict::Silent {
                    name: slot.name,
                    silence: Duration::from_millis(silence),
                };
            }
        }
        Verdict::Alive
    }
}

impl Board {
    fn now(&self) -> u64 {
        millis(self.epoch.elapsed())
    }

    fn add(
        self: &Arc<Self>,
        name: &'static str,
        longest: Duration,
        whole: Option<Arc<Slot>>,
    ) -> Progress {
        let slot = Arc::new(Slot {
            name,
            last: AtomicU64::new(self.now()),
            longest: AtomicU64::new(millis(longest)),
            whole,
        });
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.push(Arc::downgrade(&slot));
        Progress {
            board: Arc::clone(self),
            slot,
        }
    }
}

/// The signs of life of one step, or of a part of it. Clones are the same one.
#[derive(Clone)]
pub struct Progress {
    board: Arc<Board>,
    slot: Arc<Slot>,
}

impl Progress {
    /// For work that no watchdog waits for: an ordinary host, or a test.
    #[must_use]
    pub fn unwatched() -> Self {
        Vital::default().expect("unwatched", Duration::MAX)
    }

    /// A sign of life: something has moved.
    pub fn beat(&self) {
        let now = self.board.now();
        let mut slot = Some(&self.slot);
        while let Some(at) = slot {
            at.last.store(now, Ordering::Relaxed);
            slot = at.whole.as_ref();
        }
    }

    /// A sign of life, before work that may be silent for `longest`.
    pub fn begin(&self, longest: Duration) {
        self.beat();
        self.slot.longest.store(millis(longest), Ordering::Relaxed);
    }

    /// A part that works beside others, each of which has to give its own signs of life.
    #[must_use]
    pub fn part(&self, longest: Duration) -> Self {
        self.beat();
        let whole = Some(Arc::clone(&self.slot));
        self.board.add(self.slot.name, longest, whole)
    }

    /// Does work that has a reason to be endless. Its signs of life are that the runtime's timer
    /// runs and that this very task is polled.
    pub async fn endless<T>(&self, work: impl Future<Output = T>) -> T {
        self.begin(ENDLESS);
        let mut work = std::pin::pin!(work);
        loop {
            match tokio::time::timeout(TICK, &mut work).await {
                Ok(done) => {
                    self.beat();
                    return done;
                }
                Err(_) => self.beat(),
            }
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use tokio::time::advance;

    const SECOND: Duration = Duration::from_secs(1);

    fn silent(vital: &Vital) -> Option<&'static str> {
        match vital.judge() {
            Verdict::Alive => None,
            Verdict::Silent { name, .. } => Some(name),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_may_be_silent_for_as_long_as_it_said() {
        let vital = Vital::default();
        let step = vital.expect("wipe", 10 * SECOND);
        advance(10 * SECOND).await;
        assert_eq!(silent(&vital), None);
        advance(SECOND).await;
        assert_eq!(silent(&vital), Some("wipe"));
        step.beat();
        assert_eq!(silent(&vital), None);
        step.begin(60 * SECOND);
        advance(60 * SECOND).await;
        assert_eq!(silent(&vital), None);
        vital.cap(Some(5 * SECOND));
        assert_eq!(silent(&vital), Some("wipe"));
    }

    #[tokio::test(start_paused = true)]
    async fn one_disk_that_hangs_is_not_covered_by_the_others() {
        let vital = Vital::default();
        let step = vital.expect("wipe", 10 * SECOND);
        let (quick, stuck) = (step.part(10 * SECOND), step.part(10 * SECOND));
        advance(8 * SECOND).await;
        quick.beat();
        advance(8 * SECOND).await;
        assert_eq!(silent(&vital), Some("wipe"));
        drop(stuck);
        // The part's sign of life was the whole's as well.
        assert_eq!(silent(&vital), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_may_be_silent_for_longer_than_its_whole() {
        let vital = Vital::default();
        let step = vital.expect("wipe", 10 * SECOND);
        let erase = step.part(10 * SECOND);
        erase.begin(3600 * SECOND);
        for _ in 0..360 {
            advance(10 * SECOND).await;
            assert_eq!(silent(&vital), None);
        }
        advance(SECOND).await;
        assert_eq!(silent(&vital), Some("wipe"));
        drop(erase);
        assert_eq!(silent(&vital), None);
        advance(11 * SECOND).await;
        assert_eq!(silent(&vital), Some("wipe"));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_at_work_is_silence_too() {
        let vital = Vital::default();
        drop(vital.expect("start", SECOND));
        assert_eq!(silent(&vital), None);
        advance(NOBODY + SECOND).await;
        assert_eq!(silent(&vital), Some("the boot"));
        let _next = vital.expect("network", SECOND);
        assert_eq!(silent(&vital), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_endless_wait_lives_while_its_task_is_polled() {
        let vital = Vital::default();
        let step = vital.expect("allocation", SECOND);
        let day = Duration::from_secs(86_400);
        let waiting = tokio::spawn(async move {
            step.endless(tokio::time::sleep(day)).await;
            step
        });
        for _ in 0..1000 {
            tokio::time::sleep(SECOND).await;
            assert_eq!(silent(&vital), None);
        }
        let step = waiting.await.unwrap();
        assert_eq!(silent(&vital), None);
        // The same wait, and nobody who polls it.
        let stuck = step.endless(std::future::pending::<()>());
        let mut stuck = Box::pin(stuck);
        assert!((&mut stuck).now_or_never().is_none());
        tokio::time::sleep(31 * SECOND).await;
        assert_eq!(silent(&vital), Some("allocation"));
    }
}
