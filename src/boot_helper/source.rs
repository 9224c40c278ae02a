//! Where a request comes from, and how many at once and a minute one source may have.
//!
//! A source is counted twice: as an address, and as the /64 it lies in. With SLAAC an
//! attacker can have as many addresses of a /64 as he likes, while a /64 may be one port or
//! a whole row of racks: so the first bound is small, the second large. Every table here
//! has a fixed number of places.

use std::collections::HashMap;
use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Places in each table. A place has some 50 bytes.
const PLACES: usize = 1 << 16;
/// In this time an empty bucket fills up: after it, a bucket that nobody used says nothing.
const REFILL: Duration = Duration::from_secs(60);
/// How often a full table is searched for places that say nothing.
const SWEEP: Duration = Duration::from_secs(1);
/// Length of the prefix that a network is.
const NETWORK: u8 = 64;

/// An IPv6 prefix, `2001:db8::/32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    bits: u128,
    length: u8,
}

impl Prefix {
    /// The prefix of `length` bits (at most 128) that `address` lies in.
    #[must_use]
    pub fn of(address: Ipv6Addr, length: u8) -> Self {
        let length = length.min(128);
        let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
        Self {
            bits: address.to_bits() & mask,
            length,
        }
    }

    /// Whether `address` lies in it.
    #[must_use]
    pub fn contains(&self, address: Ipv6Addr) -> bool {
        Self::of(address, self.length) == *self
    }
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no IPv6 prefix; expected for example 2001:db8::/32");
        let (address, length) = text.split_once('/').unwrap_or((text, "128"));
        let address: Ipv6Addr = address.parse().map_err(|_| wrong())?;
        let length: u8 = length.parse().map_err(|_| wrong())?;
        if length > 128 {
            return Err(wrong());
        }
        let prefix = Self::of(address, length);
        if prefix.bits != address.to_bits() {
            return Err(format!(
                "{text:?} has bits behind its length; is {prefix} meant?"
            ));
        }
        Ok(prefix)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv6Addr::from_bits(self.bits), self.length)
    }
}

/// How much an address and its /64 may have.
#[derive(Debug, Clone, Copy)]
pub struct Quota {
    pub address: u32,
    pub network: u32,
}

/// How full a bucket is, and when that was.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

/// Token buckets that hold `size` and refill in [`REFILL`].
#[derive(Debug)]
struct Buckets {
    size: f64,
    places: HashMap<u128, Bucket>,
    swept: Option<Instant>,
}

/// What a bucket says.
enum Level {
    /// This many tokens.
    Has(f64),
    /// Not known, and no place to remember it.
    NoPlace,
}

impl Buckets {
    fn new(size: u32) -> Self {
        Self {
            size: f64::from(size.max(1)),
            places: HashMap::new(),
            swept: None,
        }
    }

    fn level(&mut self, key: u128, now: Instant) -> Level {
        if let Some(bucket) = self.places.get(&key) {
            let gone = now.saturating_duration_since(bucket.at).as_secs_f64();
            let filled = bucket.tokens + gone / REFILL.as_secs_f64() * self.size;
            return Level::Has(filled.min(self.size));
        }
        if self.places.len() >= PLACES {
            let due = self
                .swept
                .is_none_or(|at| now.saturating_duration_since(at) >= SWEEP);
            if due {
                self.swept = Some(now);
                self.places
                    .retain(|_, bucket| now.saturating_duration_since(bucket.at) < REFILL);
            }
        }
        if self.places.len() >= PLACES {
            Level::NoPlace
        } else {
            Level::Has(self.size)
        }
    }

    fn set(&mut self, key: u128, tokens: f64, now: Instant) {
        self.places.insert(key, Bucket { tokens, at: now });
    }

    /// How long until there is a whole token again.
    fn pause(&self, tokens: f64) -> Duration {
        REFILL.mul_f64(((1.0 - tokens) / self.size).clamp(0.0, 1.0))
    }
}

/// Requests a minute.
#[derive(Debug)]
pub struct RateLimit {
    tables: Mutex<(Buckets, Buckets)>,
}

impl RateLimit {
    /// At most so many requests a minute; as many may come at once.
    #[must_use]
    pub fn new(quota: Quota) -> Self {
        Self {
            tables: Mutex::new((Buckets::new(quota.address), Buckets::new(quota.network))),
        }
    }

    /// Counts a request.
    ///
    /// An address for which there is no place any more is held to its network's bound alone;
    /// a network for which there is none has to wait.
    ///
    /// # Errors
    /// How long the source should wait.
    pub fn take(&self, address: Ipv6Addr, now: Instant) -> Result<(), Duration> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let (addresses, networks) = &mut *tables;
        let network = Prefix::of(address, NETWORK).bits;
        let address = address.to_bits();
        let own = match addresses.level(address, now) {
            Level::Has(tokens) if tokens < 1.0 => return Err(addresses.pause(tokens)),
            Level::Has(tokens) => Some(tokens),
            Level::NoPlace => None,
        };
        match networks.level(network, now) {
            Level::Has(tokens) if tokens < 1.0 => return Err(networks.pause(tokens)),
            Level::Has(tokens) => networks.set(network, tokens - 1.0, now),
            Level::NoPlace => return Err(REFILL),
        }
        if let Some(tokens) = own {
            addresses.set(address, tokens - 1.0, now);
        }
        Ok(())
    }
}

/// Connections at once.
#[derive(Debug)]
pub struct Open {
    total: usize,
    quota: Quota,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    addresses: HashMap<u128, u32>,
    networks: HashMap<u128, u32>,
}

/// Which bound a connection would break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooMany {
    Total,
    Address,
    Network,
}

impl TooMany {
    /// For logs and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Total => "connections",
            Self::Address => "connections_per_address",
            Self::Network => "connections_per_network",
        }
    }
}

impl Open {
    /// At most `total` connections, and at most `quota` of one source.
    #[must_use]
    pub fn new(total: usize, quota: Quota) -> Self {
        Self {
            total,
            quota,
            counts: Mutex::default(),
        }
    }

    /// Counts a connection in.
    ///
    /// # Errors
    /// The bound it would break.
    pub fn enter(&self, address: Ipv6Addr) -> Result<(), TooMany> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let network = Prefix::of(address, NETWORK).bits;
        let address = address.to_bits();
        let of = |map: &HashMap<u128, u32>, key| map.get(&key).copied().unwrap_or(0);
        if counts.total >= self.total {
            return Err(TooMany::Total);
        }
        if of(&counts.addresses, address) >= self.quota.address {
            return Err(TooMany::Address);
        }
        if of(&counts.networks, network) >= self.quota.network {
            return Err(TooMany::Network);
        }
        counts.total += 1;
        *counts.addresses.entry(address).or_default() += 1;
        *counts.networks.entry(network).or_default() += 1;
        Ok(())
    }

    /// Counts a connection out that was counted in.
    pub fn leave(&self, address: Ipv6Addr) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let network = Prefix::of(address, NETWORK).bits;
        let address = address.to_bits();
        let out = |map: &mut HashMap<u128, u32>, key| {
            if let Some(count) = map.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    map.remove(&key);
                }
            }
        };
        counts.total = counts.total.saturating_sub(1);
        out(&mut counts.addresses, address);
        out(&mut counts.networks, network);
    }

    /// Connections now.
    #[must_use]
    pub fn count(&self) -> usize {
        self.counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    #[test]
    fn prefixes_are_read_and_compared() {
        // prefix, an address inside, one outside
        let cases = [
            ("2001:db8::/32", "2001:db8:ffff::1", Some("2001:db9::1")),
            (
                "2001:db8:0:1::/64",
                "2001:db8:0:1:ff::",
                Some("2001:db8::1"),
            ),
            ("2001:db8::1", "2001:db8::1", Some("2001:db8::2")),
            ("2001:db8::1/128", "2001:db8::1", Some("2001:db8::2")),
            ("::/0", "2001:db8::1", None),
            ("fe80::/10", "febf::1", Some("fec0::1")),
        ];
        for (text, inside, outside) in cases {
            let prefix: Prefix = text.parse().unwrap();
            assert!(prefix.contains(address(inside)), "{text} {inside}");
            if let Some(outside) = outside {
                assert!(!prefix.contains(address(outside)), "{text} {outside}");
            }
        }
        for wrong in [
            "",
            "10.0.0.0/8",
            "2001:db8::/129",
            "2001:db8::/-1",
            "2001:db8::/x",
            "/64",
        ] {
            assert!(wrong.parse::<Prefix>().is_err(), "{wrong:?}");
        }
        let error = "2001:db8::1/32".parse::<Prefix>().unwrap_err();
        assert!(error.contains("is 2001:db8::/32 meant?"), "{error}");
    }

    #[test]
    fn an_address_has_its_rate_and_its_network_another() {
        let limit = RateLimit::new(Quota {
            address: 2,
            network: 3,
        });
        let begin = Instant::now();
        let (a, b, far) = (
            address("2001:db8::a"),
            address("2001:db8::b"),
            address("2001:db8:0:1::a"),
        );
        assert!(limit.take(a, begin).is_ok());
        assert!(limit.take(a, begin).is_ok());
        // Half a minute for one of two a minute.
        assert_eq!(limit.take(a, begin), Err(Duration::from_secs(30)));
        assert!(limit.take(b, begin).is_ok());
        assert_eq!(
            limit.take(b, begin),
            Err(Duration::from_secs(20)),
            "the network's"
        );
        assert!(limit.take(far, begin).is_ok());
        let later = begin + Duration::from_secs(31);
        assert!(limit.take(a, later).is_ok());
        assert!(limit.take(a, later).is_err());
    }

    #[test]
    fn memory_is_bounded_whatever_the_addresses() {
        let limit = RateLimit::new(Quota {
            address: 5,
            network: u32::MAX,
        });
        let now = Instant::now();
        let base = address("2001:db8::").to_bits();
        for host in 0..(PLACES as u128 + 1000) {
            assert!(limit.take(Ipv6Addr::from_bits(base + host), now).is_ok());
        }
        assert_eq!(limit.tables.lock().unwrap().0.places.len(), PLACES);
        // Once the first ones say nothing any more, there are places again.
        let later = now + REFILL;
        assert!(limit.take(address("2001:db8:1::1"), later).is_ok());
        assert!(limit.tables.lock().unwrap().0.places.len() < 10);
    }

    #[test]
    fn too_many_networks_have_to_wait() {
        let limit = RateLimit::new(Quota {
            address: 5,
            network: 5,
        });
        let now = Instant::now();
        for network in 0..PLACES as u128 {
            assert!(limit.take(Ipv6Addr::from_bits(network << 64), now).is_ok());
        }
        let fresh = Ipv6Addr::from_bits((PLACES as u128) << 64);
        assert_eq!(limit.take(fresh, now), Err(REFILL));
    }

    #[test]
    fn connections_are_counted_in_and_out() {
        let open = Open::new(
            4,
            Quota {
                address: 2,
                network: 3,
            },
        );
        let (a, b) = (address("2001:db8::a"), address("2001:db8::b"));
        assert_eq!(open.enter(a), Ok(()));
        assert_eq!(open.enter(a), Ok(()));
        assert_eq!(open.enter(a), Err(TooMany::Address));
        assert_eq!(open.enter(b), Ok(()));
        assert_eq!(open.enter(b), Err(TooMany::Network));
        assert_eq!(open.enter(address("2001:db8:1::a")), Ok(()));
        assert_eq!(open.enter(address("2001:db8:2::a")), Err(TooMany::Total));
        for left in [a, a, b, address("2001:db8:1::a")] {
            open.leave(left);
        }
        assert_eq!(open.count(), 0);
        assert!(open.counts.lock().unwrap().addresses.is_empty());
        assert!(open.counts.lock().unwrap().networks.is_empty());
    }
}
