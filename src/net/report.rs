//! What to tell a technician when no address came. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::link::{Link, Scope, State};

/// What has been tried, by interface index.
pub type Tried = BTreeMap<u32, String>;

/// One line for each link: name, MAC, place, carrier, what routers said, addresses with their
/// state, what was tried, and what to check.
#[must_use]
pub fn describe<'a>(links: impl IntoIterator<Item = &'a Link>, tried: &Tried) -> String {
    let mut text = String::new();
    for link in links {
        let carrier = if link.carrier {
            "carrier"
        } else {
            "no carrier"
        };
        let _ = write!(
            text,
            "\n  {} {} ({}{}) {carrier}; {}; addresses: {}; ",
            link.name,
            link.mac,
            link.device.bus_path,
            if link.is_bmc() {
                ", a BMC's USB card"
            } else {
                ""
            },
            advertisements(link),
            addresses(link),
        );
        if let Some(tried) = tried.get(&link.index) {
            let _ = write!(text, "tried: {tried}; ");
        }
        let _ = write!(text, "check: {}", advice(link));
    }
    if text.is_empty() {
        text.push_str(
            "\n  no network device with hardware was found; check: is the card seated and \
             enabled in the firmware, and is its driver in this kernel",
        );
    }
    text
}

/// What each router said.
fn advertisements(link: &Link) -> String {
    let said = link.advertisements.iter();
    let said: Vec<_> = said
        .map(|(router, what)| format!("router {router}: {what}"))
        .collect();
    if said.is_empty() {
        "no router advertisement".to_owned()
    } else {
        said.join("; ")
    }
}

fn addresses(link: &Link) -> String {
    let list = link.addresses.iter().map(|(address, details)| {
        let length = details.prefix_length;
        match details.scope {
            Scope::Link => format!("{address}/{length} link-local {}", details.state),
            _ => format!("{address}/{length} {}", details.state),
        }
    });
    or_none(list.collect())
}

fn or_none(list: Vec<String>) -> String {
    if list.is_empty() {
        "none".to_owned()
    } else {
        list.join(", ")
    }
}

/// The first thing that stands in the way on this link, as what to check.
#[must_use]
pub fn advice(link: &Link) -> String {
    let has = |state| {
        link.addresses
            .values()
            .any(|address| address.state == state)
    };
    let global = |state| {
        let mut addresses = link.addresses.values();
        addresses.any(|address| address.scope == Scope::Global && address.state == state)
    };
    let prefixes = || link.advertisements.values().flat_map(|said| &said.prefixes);
    let advice = if let Some(problem) = &link.problem {
        problem
    } else if !link.up {
        "the link is administratively down"
    } else if !link.carrier {
        "cable, transceiver, and whether the switch port is enabled"
    } else if link.usable() {
        "the network behind the router: the link itself has all it needs"
    } else if has(State::Duplicate) {
        "another device on this link has the same address: a duplicate MAC, or a loop in the wiring"
    } else if global(State::Tentative) {
        "nothing; duplicate address detection had not finished"
    } else if let Some((prefix, why)) =
        prefixes().find_map(|prefix| Some((prefix, prefix.obstacle()?)))
    {
        return format!(
            "the router's prefix {}/{}: {why}",
            prefix.address, prefix.length
        );
    } else if global(State::Deprecated) {
        "the preferred lifetime of the router's prefix: it is zero or over"
    } else if link.advertisements.is_empty() {
        "whether the switch port forwards (spanning tree, LACP, VLAN) and its router sends advertisements"
    } else {
        "the router's configuration: it must advertise a /64 with the autonomous flag (A) and a lifetime"
    };
    advice.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::advert::{Advertisement, Prefix};
    use crate::net::device::Device;
    use crate::net::link::Address;
    use crate::net::mac::MacAddress;

    fn link() -> Link {
        Link {
            index: 2,
            name: "eth0".to_owned(),
            mac: MacAddress([0x52, 0x54, 0, 0, 0, 1]),
            device: Device {
                bus_path: "pci0000:00/0000:00:03.0".to_owned(),
                driver: "ice".to_owned(),
            },
            up: true,
            carrier: true,
            mtu: 1500,
            advertisements: [].into(),
            routers: [].into(),
            addresses: [].into(),
            problem: None,
        }
    }

    fn with(scope: Scope, state: State) -> Link {
        let mut link = link();
        let address = Address {
            prefix_length: 64,
            scope,
            state,
        };
        link.addresses.insert("fe80::1".parse().unwrap(), address);
        link
    }

    #[test]
    fn each_obstacle_has_its_own_advice() {
        let no_carrier = Link {
            carrier: false,
            ..with(Scope::Link, State::Tentative)
        };
        let down = Link {
            up: false,
            ..link()
        };
        let failed = Link {
            problem: Some("cannot be brought up: Input/output error".to_owned()),
            ..link()
        };
        let advertised = |prefixes| {
            let mut link = with(Scope::Link, State::Preferred);
            let said = Advertisement {
                router_lifetime: 60,
                managed: true,
                other: false,
                mtu: None,
                prefixes,
                dns: false,
            };
            link.advertisements
                .insert("fe80::ff".parse().unwrap(), said);
            link
        };
        let short = Prefix {
            address: "2001:db8::".parse().unwrap(),
            length: 48,
            on_link: true,
            autonomous: true,
            valid: 60,
            preferred: 60,
        };
        let table = [
            (no_carrier, "cable, transceiver"),
            (down, "administratively down"),
            (failed, "Input/output error"),
            (with(Scope::Link, State::Preferred), "sends advertisements"),
            (advertised(vec![]), "autonomous flag"),
            (
                advertised(vec![short]),
                "prefix 2001:db8::/48: it is not a /64",
            ),
            (with(Scope::Global, State::Preferred), "behind the router"),
            (with(Scope::Global, State::Duplicate), "duplicate MAC"),
            (with(Scope::Global, State::Tentative), "had not finished"),
            (with(Scope::Global, State::Deprecated), "preferred lifetime"),
        ];
        for (link, expected) in table {
            let text = describe([&link], &Tried::new());
            let (_, check) = text.split_once("check: ").unwrap();
            assert!(check.contains(expected), "{link:?}: {check}");
        }
    }

    #[test]
    fn one_line_for_each_link() {
        let first = with(Scope::Link, State::Preferred);
        let second = Link {
            index: 3,
            name: "usb0".to_owned(),
            carrier: false,
            device: Device {
                bus_path: "usb1/1-2".to_owned(),
                driver: "cdc_ether".to_owned(),
            },
            ..link()
        };
        let tried = Tried::from([(2, "http://[2001:db8::1]: timed out".to_owned())]);
        let text = describe([&first, &second], &tried);
        let lines: Vec<_> = text.trim_start_matches('\n').lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(
            lines[0].starts_with(
                "  eth0 52:54:00:00:00:01 (pci0000:00/0000:00:03.0) carrier; no router advertisement; \
                 addresses: fe80::1/64 link-local preferred; tried: http://[2001:db8::1]: timed out; check: "
            ),
            "{text}"
        );
        assert!(
            lines[1].starts_with(
                "  usb0 52:54:00:00:00:01 (usb1/1-2, a BMC's USB card) no carrier; \
                 no router advertisement; addresses: none; check: "
            ),
            "{text}"
        );
        assert!(describe([], &tried).contains("driver"));
    }
}
