//! The ways out of this machine, and in which order they are tried. Pure.

use std::fmt;
use std::net::Ipv6Addr;
use std::time::Duration;

use url::{Host, Url};

use super::link::{Link, Table};

/// A BMC's USB card waits so long for a real one that has a carrier: spanning tree may hold
/// that back for 50 s.
const BMC_WAITS: Duration = Duration::from_secs(60);
/// And so long when no real one has a carrier.
const BMC_WAITS_ALONE: Duration = Duration::from_secs(5);

/// A link, with one of its addresses or the one that the kernel would choose (RFC 6724).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// Interface index.
    pub index: u32,
    pub link: String,
    pub source: Option<Ipv6Addr>,
}

/// A way that works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    pub candidate: Candidate,
    /// The address that the conversation starts from.
    pub address: Ipv6Addr,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from {}", self.candidate.link, self.address)
    }
}

impl Path {
    /// Whether the link and the address are still there as they were.
    #[must_use]
    pub fn is_sound(&self, table: &Table) -> bool {
        table.get(self.candidate.index).is_some_and(|link| {
            let address = link.addresses.get(&self.address);
            // A conversation with a link-local peer starts from a link-local address.
            let local = self.address.is_unicast_link_local();
            link.name == self.candidate.link
                && link.carrier
                && address.is_some_and(|address| local || address.usable())
        })
    }
}

/// Whom a path has to reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub host: TargetHost,
    pub port: u16,
    /// The link that a link-local address is meant on.
    pub zone: Option<String>,
}

/// An address or a name that has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetHost {
    Address(Ipv6Addr),
    Name(String),
}

/// A URL that no IPv6 path can lead to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    #[error(
        "{0} is an IPv4 address, but this agent speaks IPv6 only; use an IPv6 address or a name"
    )]
    Ipv4(std::net::Ipv4Addr),
    #[error(
        "{0} is link-local and means something on one link only; name it: http://[{0}%25eth0]:port"
    )]
    NoZone(Ipv6Addr),
    #[error("the URL names no host and port")]
    NoHost,
}

impl Target {
    /// The host of a URL.
    ///
    /// # Errors
    /// It has none, or none that IPv6 reaches.
    pub fn of(url: &Url, zone: Option<&str>) -> Result<Self, TargetError> {
        let host = match url.host().ok_or(TargetError::NoHost)? {
            Host::Ipv6(address) if address.is_unicast_link_local() && zone.is_none() => {
                return Err(TargetError::NoZone(address));
            }
            Host::Ipv6(address) => TargetHost::Address(address),
            Host::Ipv4(address) => return Err(TargetError::Ipv4(address)),
            Host::Domain(name) => TargetHost::Name(name.to_owned()),
        };
        Ok(Self {
            host,
            port: url.port_or_known_default().ok_or(TargetError::NoHost)?,
            zone: zone.map(str::to_owned),
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.host, &self.zone) {
            (TargetHost::Address(address), Some(zone)) => write!(f, "[{address}%{zone}]")?,
            (TargetHost::Address(address), None) => write!(f, "[{address}]")?,
            (TargetHost::Name(name), _) => f.write_str(name)?,
        }
        write!(f, ":{}", self.port)
    }
}

/// Links, by interface index, that are tried before or after all others.
#[derive(Debug, Clone, Copy, Default)]
pub struct Preference {
    pub first: Option<u32>,
    pub last: Option<u32>,
}

/// What is tried, best first: the preferred link, real cards, those with a router, in the
/// order of their indexes; after all links, each address of those that have several. A BMC's
/// card joins late; `elapsed` is since the search began.
#[must_use]
pub fn candidates(
    table: &Table,
    zone: Option<&str>,
    preference: Preference,
    elapsed: Duration,
) -> Vec<Candidate> {
    let real_carrier = table.links().any(|link| link.carrier && !link.is_bmc());
    let bmc_waits = if real_carrier {
        BMC_WAITS
    } else {
        BMC_WAITS_ALONE
    };
    let may = |link: &&Link| match zone {
        // Whoever names a link wants no other.
        Some(zone) => link.name == zone && link.carrier,
        None => link.usable() && (!link.is_bmc() || elapsed >= bmc_waits),
    };
    let mut links: Vec<&Link> = table.links().filter(may).collect();
    links.sort_by_key(|link| {
        (
            Some(link.index) == preference.last,
            Some(link.index) != preference.first,
            link.is_bmc(),
            link.routers.is_empty(),
            link.index,
        )
    });
    let candidate = |link: &Link, source| Candidate {
        index: link.index,
        link: link.name.clone(),
        source,
    };
    let mut found: Vec<_> = links.iter().map(|link| candidate(link, None)).collect();
    for link in links {
        let usable = link
            .addresses
            .iter()
            .filter(|(_, details)| details.usable());
        let usable: Vec<_> = usable.collect();
        if usable.len() > 1 && zone.is_none() {
            let each = usable
                .iter()
                .map(|(address, _)| candidate(link, Some(**address)));
            found.extend(each);
        }
    }
    found
}

#[cfg(test)]
#[path = "path_tests.rs"]
mod tests;
