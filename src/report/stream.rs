//! The one way of every event: told once, heard by every listener through a queue of its own.
//!
//! Telling never waits for a listener. A queue has a fixed number of places; when they are taken
//! the oldest of the least important records gives way, and the listener learns how many did.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::event::{Event, Priority};

/// The shortest pause of a listener that is asked to hurry.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// An event and when it was: time since the kernel started.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    pub at: Duration,
    pub event: Event,
}

/// Time since the kernel started.
#[must_use]
pub fn now() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
        .map_or(Duration::ZERO, Duration::from)
}

/// What waits for one listener.
pub struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    limit: usize,
    wants: fn(&Event) -> bool,
}

#[derive(Default)]
struct Waiting {
    /// One queue for each priority, with the number each record came as.
    lanes: [VecDeque<(u64, Arc<Record>)>; Priority::COUNT],
    pushed: u64,
    /// Handled by the listener, or dropped.
    settled: u64,
    /// Dropped since the listener last asked.
    dropped: u64,
    /// Somebody waits until so many are settled.
    hurry: u64,
}

impl Waiting {
    fn len(&self) -> usize {
        self.lanes.iter().map(VecDeque::len).sum()
    }

    fn pop(&mut self) -> Option<Arc<Record>> {
        let lanes = self.lanes.iter_mut();
        let oldest = lanes
            .filter(|lane| !lane.is_empty())
            .min_by_key(|lane| lane.front().map(|(number, _)| *number))?;
        oldest.pop_front().map(|(_, record)| record)
    }

    fn in_hurry(&self) -> bool {
        self.settled < self.hurry
    }
}

impl Queue {
    /// A queue of at most `limit` records that the listener `wants`.
    #[must_use]
    pub fn new(limit: usize, wants: fn(&Event) -> bool) -> Self {
        Self {
            waiting: Mutex::default(),
            changed: Condvar::new(),
            limit,
            wants,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a record; the oldest of the least important ones makes room for it.
    pub fn push(&self, record: &Arc<Record>) {
        if !(self.wants)(&record.event) {
            return;
        }
        let priority = record.event.priority() as usize;
        let mut waiting = self.lock();
        waiting.pushed += 1;
        if waiting.len() >= self.limit {
            waiting.dropped += 1;
            waiting.settled += 1;
            let least = waiting.lanes.iter().position(|lane| !lane.is_empty());
            if least.is_none_or(|least| least > priority) {
                self.changed.notify_all();
                return;
            }
            if let Some(lane) = least.and_then(|least| waiting.lanes.get_mut(least)) {
                lane.pop_front();
            }
        }
        let number = waiting.pushed;
        if let Some(lane) = waiting.lanes.get_mut(priority) {
            lane.push_back((number, Arc::clone(record)));
        }
        self.changed.notify_all();
    }

    /// The next record, waited for as long as `limit` (for ever without one). It counts as handled
    /// only after [`Self::settle`].
    pub fn next(&self, limit: Option<Duration>) -> Option<Arc<Record>> {
        let until = limit.map(|limit| Instant::now() + limit);
        let mut waiting = self.lock();
        loop {
            if let Some(record) = waiting.pop() {
                return Some(record);
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return None;
            }
            waiting = self.wait(waiting, left);
        }
    }

    /// Up to `most` records: what has come within `linger` of the first one, which is waited for.
    /// Sooner when somebody waits for them to be handled.
    pub fn batch(&self, most: usize, linger: Duration) -> Vec<Arc<Record>> {
        let mut batch = Vec::new();
        batch.extend(self.next(None));
        let until = Instant::now() + linger;
        let mut waiting = self.lock();
        while batch.len() < most {
            if let Some(record) = waiting.pop() {
                batch.push(record);
                continue;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || waiting.in_hurry() {
                break;
            }
            waiting = self.wait(waiting, Some(left));
        }
        batch
    }

    fn wait<'a>(
        &self,
        waiting: MutexGuard<'a, Waiting>,
        limit: Option<Duration>,
    ) -> MutexGuard<'a, Waiting> {
        match limit {
            None => self
                .changed
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner),
            Some(limit) => {
                let waited = self.changed.wait_timeout(waiting, limit);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }

    /// The listener is done with `count` records.
    pub fn settle(&self, count: usize) {
        self.lock().settled += count as u64;
        self.changed.notify_all();
    }

    /// How many records were dropped since this was last asked.
    pub fn dropped(&self) -> u64 {
        std::mem::take(&mut self.lock().dropped)
    }

    /// Waits for `length`, or only a moment when somebody waits for the listener.
    pub fn pause(&self, length: Duration) {
        let begin = Instant::now();
        let mut waiting = self.lock();
        loop {
            let wanted = if waiting.in_hurry() {
                length.min(SHORTEST_PAUSE)
            } else {
                length
            };
            let left = wanted.saturating_sub(begin.elapsed());
            if left.is_zero() {
                return;
            }
            waiting = self.wait(waiting, Some(left));
        }
    }

    /// Asks the listener to hurry with what is queued now.
    fn hurry(&self) -> u64 {
        let mut waiting = self.lock();
        waiting.hurry = waiting.pushed;
        self.changed.notify_all();
        waiting.pushed
    }

    /// Waits until the listener is done with what had been pushed up to `number`.
    fn await_settled(&self, number: u64, until: Instant) -> bool {
        let mut waiting = self.lock();
        while waiting.settled < number {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            waiting = self.wait(waiting, Some(left));
        }
        true
    }
}

/// Where events come in.
pub struct Hub(Mutex<Vec<Weak<Queue>>>);

/// This program's.
static HUB: Hub = Hub::new();

impl Hub {
    /// A hub that nobody listens to.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// What `queue` wants is put into it from now on, for as long as somebody holds it.
    pub fn subscribe(&self, queue: &Arc<Queue>) {
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        queues.push(Arc::downgrade(queue));
    }

    /// Tells an event.
    pub fn tell(&self, record: Record) {
        let record = Arc::new(record);
        self.queues().iter().for_each(|queue| queue.push(&record));
    }

    /// Waits until every listener is done with what was told so far; whether all were in time.
    pub fn flush(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let asked: Vec<_> = self
            .queues()
            .into_iter()
            .map(|queue| (queue.hurry(), queue))
            .collect();
        asked.iter().fold(true, |all, (number, queue)| {
            queue.await_settled(*number, until) && all
        })
    }

    fn queues(&self) -> Vec<Arc<Queue>> {
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        queues.retain(|queue| queue.strong_count() > 0);
        queues.iter().filter_map(Weak::upgrade).collect()
    }
}

impl Default for Hub {
    fn default() -> Self {
        Self::new()
    }
}

/// Tells an event to everybody who listens.
pub fn tell(event: Event) {
    HUB.tell(Record { at: now(), event });
}

/// The same of something that was at another time.
pub fn tell_of(at: Duration, event: Event) {
    HUB.tell(Record { at, event });
}

/// Listens from now on, for as long as the queue is held.
pub fn subscribe(queue: &Arc<Queue>) {
    HUB.subscribe(queue);
}

/// Waits until everybody has heard, shown or sent what was told so far, for as long as `limit`.
pub fn flush(limit: Duration) -> bool {
    HUB.flush(limit)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use tracing::Level;

    use super::*;
    use crate::image::Progress;
    use crate::report::event::{Line, Origin};

    fn line(level: Level, text: &str) -> Event {
        Event::Line(Line::new(level, Origin::Agent, text))
    }

    fn told(queue: &Queue) -> Vec<String> {
        std::iter::from_fn(|| queue.next(Some(Duration::ZERO)))
            .filter_map(|record| record.event.as_line())
            .map(|(_, text)| text)
            .collect()
    }

    fn hub(limit: usize) -> (Hub, Arc<Queue>) {
        let (hub, queue) = (Hub::new(), Arc::new(Queue::new(limit, |_| true)));
        hub.subscribe(&queue);
        (hub, queue)
    }

    fn tell(hub: &Hub, event: Event) {
        let at = Duration::ZERO;
        hub.tell(Record { at, event });
    }

    #[test]
    fn the_least_important_gives_way_and_the_order_stays() {
        let (hub, queue) = hub(3);
        tell(&hub, line(Level::ERROR, "error"));
        tell(&hub, Event::Progress(Progress::default()));
        tell(&hub, line(Level::INFO, "first"));
        tell(&hub, line(Level::INFO, "second"));
        tell(&hub, line(Level::DEBUG, "detail"));
        tell(&hub, line(Level::WARN, "warning"));
        assert_eq!(told(&queue), ["error", "second", "warning"]);
        assert_eq!((queue.dropped(), queue.dropped()), (3, 0));
    }

    #[test]
    fn what_is_not_wanted_takes_no_place() {
        let queue = Arc::new(Queue::new(1, |event| matches!(event, Event::Line(_))));
        let hub = Hub::new();
        hub.subscribe(&queue);
        tell(&hub, line(Level::INFO, "a"));
        tell(&hub, Event::Ports(Vec::new()));
        assert_eq!((told(&queue), queue.dropped()), (vec!["a".to_owned()], 0));
    }

    #[test]
    fn a_flush_ends_with_the_listener_or_with_its_time() {
        let (hub, queue) = hub(10);
        tell(&hub, line(Level::INFO, "a"));
        assert!(!hub.flush(Duration::from_millis(1)), "nobody listens");
        let listener = thread::spawn({
            let queue = Arc::clone(&queue);
            // The pauses before and between are cut short by the hurry.
            move || {
                queue.pause(Duration::from_secs(600));
                let batch = queue.batch(10, Duration::from_secs(600));
                queue.settle(batch.len());
            }
        });
        assert!(hub.flush(Duration::from_secs(60)));
        listener.join().unwrap();
        drop(queue);
        tell(&hub, line(Level::INFO, "b"));
        assert!(
            hub.flush(Duration::ZERO),
            "whoever is gone is not waited for"
        );
    }

    #[test]
    fn telling_never_waits() {
        let (hub, queue) = hub(100);
        for number in 0..100_000 {
            tell(&hub, line(Level::INFO, &number.to_string()));
        }
        assert_eq!(told(&queue).last().map(String::as_str), Some("99999"));
        assert_eq!(queue.dropped(), 99_900);
    }
}
