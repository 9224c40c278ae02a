//! What to tell a technician when no address came. Pure.

use std::fmt::Write as _;

use super::link::{Link, Scope, State};

/// One line for each link: name, MAC, carrier, addresses with their state, routers seen,
/// and what to check.
#[must_use]
pub fn describe<'a>(links: impl IntoIterator<Item = &'a Link>) -> String {
    let mut text = String::new();
    for link in links {
        let carrier = if link.carrier {
            "carrier"
        } else {
            "no carrier"
        };
        let _ = write!(
            text,
            "\n  {} {} {carrier}; addresses: {}; routers: {}; check: {}",
            link.name,
            link.mac,
            addresses(link),
            routers(link),
            advice(link)
        );
    }
    if text.is_empty() {
        text.push_str(
            "\n  no network device with hardware was found; check: is the card seated and \
             enabled in the firmware, and is its driver in this kernel",
        );
    }
    text
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

fn routers(link: &Link) -> String {
    let list: Vec<_> = link.routers.iter().map(ToString::to_string).collect();
    match (list.is_empty(), link.advertised) {
        (true, true) => "advertisement received, but from no default router".to_owned(),
        _ => or_none(list),
    }
}

fn or_none(list: Vec<String>) -> String {
    if list.is_empty() {
        "none".to_owned()
    } else {
        list.join(", ")
    }
}

/// The first thing that stands in the way on this link.
fn advice(link: &Link) -> &str {
    let has = |state| {
        link.addresses
            .values()
            .any(|address| address.state == state)
    };
    let global = |state| {
        let mut addresses = link.addresses.values();
        addresses.any(|address| address.scope == Scope::Global && address.state == state)
    };
    if let Some(problem) = &link.problem {
        problem
    } else if !link.up {
        "the link is administratively down"
    } else if !link.carrier {
        "cable, transceiver, and whether the switch port is enabled"
    } else if has(State::Duplicate) {
        "another device on this link has the same address: a duplicate MAC, or a loop in the wiring"
    } else if global(State::Tentative) {
        "nothing; duplicate address detection had not finished"
    } else if global(State::Deprecated) {
        "the preferred lifetime of the router's prefix: it is zero or over"
    } else if link.advertised || !link.routers.is_empty() {
        "the router's prefix: it must be a /64 with the autonomous flag (A) and a lifetime"
    } else {
        "whether the switch port forwards (spanning tree, LACP, VLAN) and its router sends advertisements"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::link::Address;
    use crate::net::mac::MacAddress;

    fn link() -> Link {
        Link {
            index: 2,
            name: "eth0".to_owned(),
            mac: MacAddress([0x52, 0x54, 0, 0, 0, 1]),
            up: true,
            carrier: true,
            mtu: 1500,
            advertised: false,
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
        let advertised = Link {
            advertised: true,
            ..with(Scope::Link, State::Preferred)
        };
        let table = [
            (no_carrier, "cable, transceiver"),
            (down, "administratively down"),
            (failed, "Input/output error"),
            (with(Scope::Link, State::Preferred), "sends advertisements"),
            (advertised, "autonomous flag"),
            (with(Scope::Global, State::Duplicate), "duplicate MAC"),
            (with(Scope::Global, State::Tentative), "had not finished"),
            (with(Scope::Global, State::Deprecated), "preferred lifetime"),
        ];
        for (link, expected) in table {
            let text = describe([&link]);
            let (_, check) = text.split_once("check: ").unwrap();
            assert!(check.contains(expected), "{link:?}: {check}");
        }
    }

    #[test]
    fn one_line_for_each_link() {
        let mut first = with(Scope::Link, State::Preferred);
        first.routers.insert("fe80::ff".parse().unwrap());
        let second = Link {
            index: 3,
            name: "eth1".to_owned(),
            carrier: false,
            ..link()
        };
        let text = describe([&first, &second]);
        let lines: Vec<_> = text.trim_start_matches('\n').lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(
            lines[0].starts_with(
                "  eth0 52:54:00:00:00:01 carrier; addresses: fe80::1/64 link-local preferred; \
                 routers: fe80::ff; check: "
            ),
            "{text}"
        );
        assert!(
            lines[1].starts_with(
                "  eth1 52:54:00:00:00:01 no carrier; addresses: none; routers: none; check: "
            ),
            "{text}"
        );
        assert!(describe([]).contains("driver"));
    }
}
