//! Which source a machine's UUID was first asked for from.
//!
//! A machine that reads another's UUID could ask for its token. Where every port has a
//! prefix of its own, the first source that asks for a UUID keeps it (`enforce`). Instances
//! behind one anycast address share no memory, so the usual setting only says it (`log`).

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use uuid::Uuid;

use super::source::Prefix;

/// UUIDs that are remembered. The one asked for longest ago goes first.
const PLACES: usize = 1 << 14;
/// UUIDs that one source may hold when they are enforced: a port has one machine, whose
/// board may be exchanged.
const HELD: usize = 4;

/// What is done about a UUID from another source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Nothing.
    Off,
    /// A warning is logged.
    Log,
    /// It gets no token.
    Enforce,
}

/// What a request's UUID and source say together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Good,
    /// The UUID was first asked for from there.
    Elsewhere(Prefix),
    /// The source already holds as many UUIDs as one may.
    TooMany,
}

#[derive(Debug)]
struct Bound {
    source: Prefix,
    asked: Instant,
}

/// UUIDs and their sources.
#[derive(Debug)]
pub struct Bindings {
    mode: Mode,
    /// Length of the prefix that a source is.
    length: u8,
    /// A binding that nobody asked for in this time is forgotten.
    life: Duration,
    places: Mutex<HashMap<Uuid, Bound>>,
}

impl Bindings {
    /// Nothing is bound yet.
    #[must_use]
    pub fn new(mode: Mode, length: u8, life: Duration) -> Self {
        Self {
            mode,
            length,
            life,
            places: Mutex::default(),
        }
    }

    /// How seriously a verdict is meant.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Judges a request, and remembers its UUID when it is new.
    pub fn judge(&self, machine: Uuid, address: Ipv6Addr, now: Instant) -> Verdict {
        if self.mode == Mode::Off {
            return Verdict::Good;
        }
        let source = Prefix::of(address, self.length);
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = |bound: &Bound| now.saturating_duration_since(bound.asked) >= self.life;
        if let Some(bound) = places.get_mut(&machine).filter(|bound| !is_over(bound)) {
            if bound.source != source {
                return Verdict::Elsewhere(bound.source);
            }
            bound.asked = now;
            return Verdict::Good;
        }
        if self.mode == Mode::Enforce {
            let held = places
                .values()
                .filter(|bound| bound.source == source && !is_over(bound));
            if held.count() >= HELD {
                return Verdict::TooMany;
            }
        }
        if places.len() >= PLACES {
            let oldest = places.iter().min_by_key(|(_, bound)| bound.asked);
            if let Some(oldest) = oldest.map(|(machine, _)| *machine) {
                places.remove(&oldest);
            }
        }
        places.insert(machine, Bound { source, asked: now });
        Verdict::Good
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(600);

    fn address(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    #[test]
    fn the_first_source_keeps_a_uuid() {
        let bindings = Bindings::new(Mode::Enforce, 64, LIFE);
        let now = Instant::now();
        let machine = Uuid::from_u128(1);
        let (here, also_here, there) = (
            address("2001:db8:0:1::1"),
            address("2001:db8:0:1::2"),
            address("2001:db8:0:2::1"),
        );
        assert_eq!(bindings.judge(machine, here, now), Verdict::Good);
        assert_eq!(bindings.judge(machine, also_here, now), Verdict::Good);
        let elsewhere = Verdict::Elsewhere(Prefix::of(here, 64));
        assert_eq!(bindings.judge(machine, there, now), elsewhere);
        // Asking does not prolong somebody else's binding.
        let half = now + LIFE / 2;
        assert_eq!(bindings.judge(machine, there, half), elsewhere);
        assert_eq!(bindings.judge(machine, there, now + LIFE), Verdict::Good);
        assert_eq!(
            bindings.judge(machine, here, now + LIFE),
            Verdict::Elsewhere(Prefix::of(there, 64))
        );
    }

    #[test]
    fn a_source_cannot_take_every_uuid() {
        let now = Instant::now();
        let source = address("2001:db8::1");
        let bindings = Bindings::new(Mode::Enforce, 64, LIFE);
        for number in 0..HELD {
            let machine = Uuid::from_u128(number as u128);
            assert_eq!(bindings.judge(machine, source, now), Verdict::Good);
        }
        let one_more = Uuid::from_u128(99);
        assert_eq!(bindings.judge(one_more, source, now), Verdict::TooMany);
        assert_eq!(bindings.judge(one_more, source, now + LIFE), Verdict::Good);
        // Who only logs cannot know how machines are spread over prefixes.
        let bindings = Bindings::new(Mode::Log, 64, LIFE);
        for number in 0..=HELD {
            let machine = Uuid::from_u128(number as u128);
            assert_eq!(bindings.judge(machine, source, now), Verdict::Good);
        }
    }

    #[test]
    fn off_remembers_nothing_and_log_a_bounded_number() {
        let now = Instant::now();
        let off = Bindings::new(Mode::Off, 64, LIFE);
        for host in ["2001:db8::1", "2001:db8:0:1::1"] {
            assert_eq!(off.judge(Uuid::nil(), address(host), now), Verdict::Good);
        }
        assert!(off.places.lock().unwrap().is_empty());
        let log = Bindings::new(Mode::Log, 128, LIFE);
        for number in 0..PLACES as u64 + 10 {
            let at = now + Duration::from_millis(number);
            let machine = Uuid::from_u128(u128::from(number));
            assert_eq!(
                log.judge(machine, address("2001:db8::1"), at),
                Verdict::Good
            );
        }
        let places = log.places.lock().unwrap();
        assert_eq!(places.len(), PLACES);
        assert!(!places.contains_key(&Uuid::from_u128(0)));
    }
}
