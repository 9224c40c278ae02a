//! What is known of every physical link: a table that netlink messages are applied to.
//!
//! Pure: messages in, [`Event`]s out. [`super::monitor`] feeds it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv6Addr;

use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::advert::Advertisement;
use super::device::Device;
use super::mac::MacAddress;

/// Routers and duplicate addresses remembered per link. The kernel itself bounds the
/// addresses (`max_addresses`, 16); whoever floods the link shall not fill our memory.
const REMEMBERED: usize = 16;

/// One physical Ethernet link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The kernel's interface index: stays the same when the name changes.
    pub index: u32,
    pub name: String,
    /// The permanent address where the driver tells it, else the current one.
    pub mac: MacAddress,
    /// Where its hardware sits.
    pub device: Device,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// The other end is there (`IFF_LOWER_UP`).
    pub carrier: bool,
    /// Bytes.
    pub mtu: u32,
    /// What each router said last, default router or not.
    pub advertisements: BTreeMap<Ipv6Addr, Advertisement>,
    /// Default routers learned from router advertisements.
    pub routers: BTreeSet<Ipv6Addr>,
    pub addresses: BTreeMap<Ipv6Addr, Address>,
    /// Why the link could not be brought up.
    pub problem: Option<String>,
}

/// An IPv6 address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    pub prefix_length: u8,
    pub scope: Scope,
    pub state: State,
}

/// How far an address reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Global, unique local addresses (RFC 4193) included.
    Global,
    Link,
    Other,
}

/// Where an address is in its life (RFC 4862 section 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Duplicate address detection is under way.
    Tentative,
    /// Another node uses the address.
    Duplicate,
    Preferred,
    /// Its preferred lifetime is over.
    Deprecated,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tentative => "tentative",
            Self::Duplicate => "DUPLICATE: another host uses it",
            Self::Preferred => "preferred",
            Self::Deprecated => "deprecated",
        })
    }
}

impl Address {
    /// Global, and neither tentative nor duplicate nor deprecated.
    #[must_use]
    pub fn usable(&self) -> bool {
        self.scope == Scope::Global && self.state == State::Preferred
    }
}

impl Link {
    /// Whether this is the USB card of a BMC, which ranks behind every real one.
    #[must_use]
    pub fn is_bmc(&self) -> bool {
        self.device.is_bmc(self.mac)
    }

    /// Whether a conversation can start from this link.
    #[must_use]
    pub fn usable(&self) -> bool {
        self.carrier && self.addresses.values().any(Address::usable)
    }
}

/// An address that a conversation can start from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsableAddress {
    pub index: u32,
    pub link: String,
    pub address: Ipv6Addr,
    pub prefix_length: u8,
}

impl fmt::Display for UsableAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{} on {}",
            self.address, self.prefix_length, self.link
        )
    }
}

/// What changed, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A physical link that was not there before.
    Appeared {
        index: u32,
    },
    Disappeared {
        link: String,
    },
    Carrier {
        link: String,
        present: bool,
    },
    Usable(UsableAddress),
    /// Duplicate address detection failed; said once for each address.
    Duplicate {
        index: u32,
        link: String,
        address: Ipv6Addr,
    },
    Renamed {
        index: u32,
        before: String,
    },
    /// A router's first advertisement, or one that says something else than before.
    Advertised {
        link: String,
        router: Ipv6Addr,
    },
    Router {
        link: String,
        router: Ipv6Addr,
    },
}

/// Every physical link by its index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    links: BTreeMap<u32, Link>,
}

impl Table {
    /// Takes in one message of the kernel; `device` finds the hardware under the link of
    /// that name. Messages about links without any change nothing.
    pub fn apply(
        &mut self,
        message: &RouteNetlinkMessage,
        device: impl Fn(&str) -> Option<Device>,
    ) -> Vec<Event> {
        match message {
            RouteNetlinkMessage::NewLink(link) => self.new_link(link, device),
            RouteNetlinkMessage::DelLink(link) => self.del_link(link),
            RouteNetlinkMessage::NewAddress(address) => self.new_address(address),
            RouteNetlinkMessage::DelAddress(address) => self.del_address(address),
            RouteNetlinkMessage::NewRoute(route) => self.new_route(route),
            RouteNetlinkMessage::DelRoute(route) => {
                if let Some((index, router)) = default_router(route)
                    && let Some(link) = self.links.get_mut(&index)
                {
                    link.routers.remove(&router);
                }
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// A table of these links.
    #[cfg(test)]
    pub(super) fn of(links: Vec<Link>) -> Self {
        Self {
            links: links.into_iter().map(|link| (link.index, link)).collect(),
        }
    }

    /// The links in the order of their indexes.
    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.values()
    }

    #[must_use]
    pub fn get(&self, index: u32) -> Option<&Link> {
        self.links.get(&index)
    }

    /// Notes why a link could not be brought up.
    pub fn set_problem(&mut self, index: u32, problem: String) {
        if let Some(link) = self.links.get_mut(&index) {
            link.problem = Some(problem);
        }
    }

    /// The first usable address: of a real card before a BMC's, lowest link index first.
    #[must_use]
    pub fn usable(&self) -> Option<UsableAddress> {
        let mut links: Vec<_> = self.links().collect();
        links.sort_by_key(|link| link.is_bmc());
        links.into_iter().find_map(|link| {
            let (address, details) = link.addresses.iter().find(|(_, a)| a.usable())?;
            Some(usable(link, *address, *details))
        })
    }

    /// Takes in what a router of a link said.
    pub fn advertised(
        &mut self,
        index: u32,
        router: Ipv6Addr,
        advertisement: Advertisement,
    ) -> Vec<Event> {
        let Some(link) = self.links.get_mut(&index) else {
            return Vec::new();
        };
        let known = link.advertisements.get(&router);
        if known == Some(&advertisement)
            || (known.is_none() && link.advertisements.len() >= REMEMBERED)
        {
            return Vec::new();
        }
        link.advertisements.insert(router, advertisement);
        let link = link.name.clone();
        vec![Event::Advertised { link, router }]
    }

    /// Forgets what a new dump will tell again, after events were lost.
    pub fn forget_state(&mut self) {
        for link in self.links.values_mut() {
            link.routers.clear();
            link.addresses
                .retain(|_, address| address.state == State::Duplicate);
        }
    }

    /// Removes the links that a complete dump did not name.
    pub fn retain_links(&mut self, present: &BTreeSet<u32>) {
        self.links.retain(|index, _| present.contains(index));
    }

    fn new_link(
        &mut self,
        message: &LinkMessage,
        device: impl Fn(&str) -> Option<Device>,
    ) -> Vec<Event> {
        let header = &message.header;
        // Bridges and IPv6 send NEWLINK and DELLINK of their own family about links that
        // neither appear nor go.
        if header.interface_family != AddressFamily::Unspec
            || header.link_layer_type != LinkLayerType::Ether
        {
            return Vec::new();
        }
        let (mut name, mut current, mut permanent) = (None, None, None);
        let mut mtu = 0;
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(text) => name = Some(text),
                LinkAttribute::Address(bytes) => current = MacAddress::from_bytes(bytes),
                LinkAttribute::PermAddress(bytes) => permanent = MacAddress::from_bytes(bytes),
                LinkAttribute::Mtu(bytes) => mtu = *bytes,
                _ => {}
            }
        }
        let (Some(name), Some(mac)) = (name, permanent.or(current)) else {
            return Vec::new();
        };
        let carrier = header.flags.contains(LinkFlags::LowerUp);
        let mut events = Vec::new();
        let (routers, advertisements, addresses, problem, device) =
            if let Some(before) = self.links.remove(&header.index) {
                if before.name != *name {
                    events.push(Event::Renamed {
                        index: header.index,
                        before: before.name,
                    });
                }
                if before.carrier != carrier {
                    events.push(Event::Carrier {
                        link: name.clone(),
                        present: carrier,
                    });
                }
                (
                    before.routers,
                    before.advertisements,
                    before.addresses,
                    before.problem,
                    before.device,
                )
            } else {
                let Some(device) = device(name) else {
                    return Vec::new();
                };
                events.push(Event::Appeared {
                    index: header.index,
                });
                if carrier {
                    events.push(Event::Carrier {
                        link: name.clone(),
                        present: true,
                    });
                }
                let nothing = Default::default();
                (nothing, BTreeMap::new(), BTreeMap::new(), None, device)
            };
        self.links.insert(
            header.index,
            Link {
                index: header.index,
                name: name.clone(),
                mac,
                device,
                up: header.flags.contains(LinkFlags::Up),
                carrier,
                mtu,
                advertisements,
                routers,
                addresses,
                problem,
            },
        );
        events
    }

    fn del_link(&mut self, message: &LinkMessage) -> Vec<Event> {
        if message.header.interface_family != AddressFamily::Unspec {
            return Vec::new();
        }
        let gone = self.links.remove(&message.header.index);
        gone.map(|link| Event::Disappeared { link: link.name })
            .into_iter()
            .collect()
    }

    fn new_address(&mut self, message: &AddressMessage) -> Vec<Event> {
        let Some((index, address, details)) = ipv6_address(message) else {
            return Vec::new();
        };
        let Some(link) = self.links.get_mut(&index) else {
            return Vec::new();
        };
        if details.state == State::Duplicate {
            return duplicate(link, address, details);
        }
        let before = link.addresses.get(&address).copied();
        if details.state == State::Tentative
            && before.is_some_and(|before| before.state == State::Duplicate)
        {
            // The next router advertisement tries the address once more. It stays
            // `duplicate` here until the kernel says that it is not.
            return Vec::new();
        }
        link.addresses.insert(address, details);
        if details.usable() && !before.is_some_and(|before| before.usable()) {
            vec![Event::Usable(usable(link, address, details))]
        } else {
            Vec::new()
        }
    }

    /// The kernel takes a duplicate SLAAC address away at once: the flags of that very
    /// message are the only sign that it was there (`addrconf_dad_stop`).
    fn del_address(&mut self, message: &AddressMessage) -> Vec<Event> {
        let Some((index, address, details)) = ipv6_address(message) else {
            return Vec::new();
        };
        let Some(link) = self.links.get_mut(&index) else {
            return Vec::new();
        };
        if details.state == State::Duplicate {
            return duplicate(link, address, details);
        }
        link.addresses.remove(&address);
        Vec::new()
    }

    fn new_route(&mut self, message: &RouteMessage) -> Vec<Event> {
        let Some((index, router)) = default_router(message) else {
            return Vec::new();
        };
        let Some(link) = self.links.get_mut(&index) else {
            return Vec::new();
        };
        if link.routers.len() >= REMEMBERED || !link.routers.insert(router) {
            return Vec::new();
        }
        vec![Event::Router {
            link: link.name.clone(),
            router,
        }]
    }
}

fn usable(link: &Link, address: Ipv6Addr, details: Address) -> UsableAddress {
    UsableAddress {
        index: link.index,
        link: link.name.clone(),
        address,
        prefix_length: details.prefix_length,
    }
}

fn duplicate(link: &mut Link, address: Ipv6Addr, details: Address) -> Vec<Event> {
    let duplicates = |link: &Link| {
        let states = link.addresses.values();
        states.filter(|a| a.state == State::Duplicate).count()
    };
    let known = link.addresses.get(&address).map(|before| before.state);
    if known == Some(State::Duplicate) {
        return Vec::new();
    }
    if duplicates(link) >= REMEMBERED {
        link.addresses.remove(&address);
        return Vec::new();
    }
    link.addresses.insert(address, details);
    vec![Event::Duplicate {
        index: link.index,
        link: link.name.clone(),
        address,
    }]
}

/// Link index, address and state; nothing for other families.
fn ipv6_address(message: &AddressMessage) -> Option<(u32, Ipv6Addr, Address)> {
    let header = &message.header;
    if header.family != AddressFamily::Inet6 {
        return None;
    }
    // The 8 flags of the header are the low bits of the 32 of the attribute.
    let mut flags = AddressFlags::from_bits_retain(header.flags.bits().into());
    let (mut address, mut local) = (None, None);
    let mut over = false;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(std::net::IpAddr::V6(ip)) => address = Some(*ip),
            AddressAttribute::Local(std::net::IpAddr::V6(ip)) => local = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            // A preferred lifetime of zero: the kernel sets the flag a moment later.
            AddressAttribute::CacheInfo(life) => over = life.ifa_preferred == 0,
            _ => {}
        }
    }
    let state = if flags.contains(AddressFlags::Dadfailed) {
        State::Duplicate
    } else if flags.contains(AddressFlags::Tentative) {
        State::Tentative
    } else if over || flags.contains(AddressFlags::Deprecated) {
        State::Deprecated
    } else {
        State::Preferred
    };
    let scope = match header.scope {
        AddressScope::Universe => Scope::Global,
        AddressScope::Link => Scope::Link,
        _ => Scope::Other,
    };
    let details = Address {
        prefix_length: header.prefix_len,
        scope,
        state,
    };
    Some((header.index, local.or(address)?, details))
}

/// Link index and gateway of a default route that a router advertisement made.
fn default_router(message: &RouteMessage) -> Option<(u32, Ipv6Addr)> {
    let header = &message.header;
    if header.address_family != AddressFamily::Inet6
        || header.destination_prefix_length != 0
        || header.protocol != RouteProtocol::Ra
    {
        return None;
    }
    let (mut index, mut gateway) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(oif) => index = Some(*oif),
            RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => gateway = Some(*ip),
            _ => {}
        }
    }
    index.zip(gateway)
}

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;
