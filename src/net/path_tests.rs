use super::*;
use crate::net::MacAddress;
use crate::net::device::Device;
use crate::net::link::{Address, Scope, State};

fn link(index: u32, name: &str, addresses: &[(&str, State)]) -> Link {
    let usb = name.starts_with("usb");
    let addresses = addresses.iter().map(|(text, state)| {
        let ip: Ipv6Addr = text.parse().unwrap();
        let scope = if ip.is_unicast_link_local() {
            Scope::Link
        } else {
            Scope::Global
        };
        let details = Address {
            prefix_length: 64,
            scope,
            state: *state,
        };
        (ip, details)
    });
    Link {
        index,
        name: name.into(),
        mac: MacAddress([0x52, 0x54, 0, 0, 0, 1]),
        device: Device {
            bus_path: if usb {
                "usb1/1-2"
            } else {
                "pci0000:00/0000:00:03.0"
            }
            .into(),
            driver: if usb { "cdc_ether" } else { "ice" }.into(),
        },
        up: true,
        carrier: true,
        mtu: 1500,
        advertisements: [].into(),
        routers: [].into(),
        addresses: addresses.collect(),
        problem: None,
    }
}

fn names(links: Vec<Link>, zone: Option<&str>, first: Option<u32>, seconds: u64) -> Vec<String> {
    let table = Table::of(links);
    let last = (first == Some(9)).then_some(2);
    let preference = Preference { first, last };
    candidates(&table, zone, preference, Duration::from_secs(seconds))
        .into_iter()
        .map(|candidate| match candidate.source {
            Some(source) => format!("{} {source}", candidate.link),
            None => candidate.link,
        })
        .collect()
}

const GOOD: (&str, State) = ("2001:db8::1", State::Preferred);

#[test]
fn real_links_with_a_router_come_first_and_bmcs_last() {
    let mut routed = link(4, "eth2", &[GOOD]);
    routed.routers.insert("fe80::1".parse().unwrap());
    let links = || {
        vec![
            link(1, "usb0", &[GOOD]),
            link(2, "eth0", &[GOOD]),
            link(
                3,
                "eth1",
                &[
                    ("2001:db8::2", State::Tentative),
                    ("fe80::3", State::Preferred),
                ],
            ),
            routed.clone(),
        ]
    };
    assert_eq!(names(links(), None, None, 59), ["eth2", "eth0"]);
    assert_eq!(names(links(), None, None, 60), ["eth2", "eth0", "usb0"]);
    assert_eq!(names(links(), None, Some(2), 0), ["eth0", "eth2"]);
    // Link 2 last.
    assert_eq!(names(links(), None, Some(9), 60), ["eth2", "usb0", "eth0"]);
}

#[test]
fn a_bmcs_card_alone_waits_a_moment_only() {
    let mut dark = link(2, "eth0", &[]);
    dark.carrier = false;
    let links = || vec![link(1, "usb0", &[GOOD]), dark.clone()];
    assert_eq!(names(links(), None, None, 4), [] as [&str; 0]);
    assert_eq!(names(links(), None, None, 5), ["usb0"]);
}

#[test]
fn several_addresses_are_tried_one_by_one_after_all_links() {
    let two = [
        GOOD,
        ("fd00::1", State::Preferred),
        ("2001:db8:1::1", State::Deprecated),
    ];
    let links = vec![link(2, "eth0", &two), link(3, "eth1", &[GOOD])];
    assert_eq!(
        names(links, None, None, 0),
        ["eth0", "eth1", "eth0 2001:db8::1", "eth0 fd00::1"]
    );
}

#[test]
fn a_zone_means_that_link_alone() {
    let local = [("fe80::3", State::Preferred)];
    let links = || vec![link(2, "eth0", &[GOOD]), link(3, "eth1", &local)];
    assert_eq!(names(links(), Some("eth1"), None, 0), ["eth1"]);
    assert_eq!(names(links(), Some("eth7"), None, 0), [] as [&str; 0]);
}

#[test]
fn a_path_is_sound_while_its_link_and_address_are() {
    let path = Path {
        candidate: Candidate {
            index: 2,
            link: "eth0".into(),
            source: None,
        },
        address: "2001:db8::1".parse().unwrap(),
    };
    let sound = |link: Link| path.is_sound(&Table::of(vec![link]));
    assert!(sound(link(2, "eth0", &[GOOD])));
    assert!(!sound(link(2, "eth9", &[GOOD])), "renamed");
    assert!(!sound(link(
        2,
        "eth0",
        &[("2001:db8::1", State::Deprecated)]
    )));
    assert!(!sound(link(
        2,
        "eth0",
        &[("2001:db8::2", State::Preferred)]
    )));
    assert!(!sound(link(3, "eth0", &[GOOD])), "another device");
    let mut dark = link(2, "eth0", &[GOOD]);
    dark.carrier = false;
    assert!(!sound(dark));
}

#[test]
fn a_target_is_an_ipv6_host() {
    let of = |url: &str, zone| Target::of(&Url::parse(url).unwrap(), zone);
    for (url, zone, expected) in [
        ("http://[2001:db8::1]:4242", None, "[2001:db8::1]:4242"),
        ("https://helper.example/", None, "helper.example:443"),
        ("http://[fe80::1]:8080", Some("eth0"), "[fe80::1%eth0]:8080"),
    ] {
        assert_eq!(of(url, zone).unwrap().to_string(), expected);
    }
    let wrong = |url: &str| of(url, None).unwrap_err().to_string();
    assert!(wrong("http://192.0.2.1/").contains("IPv4"));
    assert!(wrong("http://[fe80::1]/").contains("%25eth0"));
    assert!(wrong("data:text/plain,x").contains("no host"));
}
