use std::net::IpAddr;

use rtnetlink::packet_route::address::{AddressHeaderFlags, CacheInfo};
use rtnetlink::packet_route::route::RouteType;

use super::*;

const TENTATIVE: u32 = 0x40;
const DADFAILED: u32 = 0x08;
const DEPRECATED: u32 = 0x20;
const PERMANENT: u32 = 0x80;

const UP: LinkFlags = LinkFlags::Up;
const CARRIER: LinkFlags = LinkFlags::LowerUp;
const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 1]);

fn link(index: u32, name: &str, flags: LinkFlags) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = flags;
    message.header.link_layer_type = LinkLayerType::Ether;
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(MAC.0.to_vec()),
        LinkAttribute::Mtu(1500),
    ];
    message
}

fn address(text: &str, flags: u32) -> AddressMessage {
    let ip: Ipv6Addr = text.parse().unwrap();
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.index = 2;
    message.header.prefix_len = 64;
    message.header.flags = AddressHeaderFlags::from_bits_retain(flags as u8);
    message.header.scope = if ip.is_unicast_link_local() {
        AddressScope::Link
    } else {
        AddressScope::Universe
    };
    message.attributes = vec![
        AddressAttribute::Address(IpAddr::V6(ip)),
        AddressAttribute::Flags(AddressFlags::from_bits_retain(flags)),
    ];
    message
}

fn route(gateway: &str, protocol: RouteProtocol, length: u8) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet6;
    message.header.destination_prefix_length = length;
    message.header.protocol = protocol;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        RouteAttribute::Oif(2),
        RouteAttribute::Gateway(RouteAddress::Inet6(gateway.parse().unwrap())),
    ];
    message
}

fn hardware(name: &str) -> Option<Device> {
    name.starts_with("eth").then(|| Device {
        bus_path: "pci0000:00/0000:00:03.0/virtio0".into(),
        driver: "virtio_net".into(),
    })
}

fn with_eth0() -> Table {
    let mut table = Table::default();
    new_link(&mut table, link(2, "eth0", UP | CARRIER));
    table
}

fn new_link(table: &mut Table, message: LinkMessage) -> Vec<Event> {
    table.apply(&RouteNetlinkMessage::NewLink(message), hardware)
}

fn new_address(table: &mut Table, text: &str, flags: u32) -> Vec<Event> {
    let message = RouteNetlinkMessage::NewAddress(address(text, flags));
    table.apply(&message, hardware)
}

fn del_address(table: &mut Table, text: &str, flags: u32) -> Vec<Event> {
    let message = RouteNetlinkMessage::DelAddress(address(text, flags));
    table.apply(&message, hardware)
}

#[test]
fn only_ethernet_links_with_hardware_count() {
    let mut table = Table::default();
    assert_eq!(new_link(&mut table, link(5, "br0", UP)), []);
    let mut infiniband = link(6, "eth6", UP);
    infiniband.header.link_layer_type = LinkLayerType::Infiniband;
    assert_eq!(new_link(&mut table, infiniband), []);
    let appeared = Event::Appeared { index: 2 };
    assert_eq!(new_link(&mut table, link(2, "eth0", UP)), [appeared]);
    assert_eq!(table.links().count(), 1);
}

#[test]
fn a_link_keeps_its_addresses_through_carrier_changes_and_renames() {
    let mut table = with_eth0();
    new_address(&mut table, "2001:db8::1", 0);
    let carrier = |link: &str, present| {
        let link = link.to_owned();
        [Event::Carrier { link, present }]
    };
    assert_eq!(
        new_link(&mut table, link(2, "eth0", UP)),
        carrier("eth0", false)
    );
    assert_eq!(new_link(&mut table, link(2, "eth0", UP)), []);
    let renamed = Event::Renamed {
        index: 2,
        before: "eth0".to_owned(),
    };
    let [carrier] = carrier("uplink", true);
    assert_eq!(
        new_link(&mut table, link(2, "uplink", UP | CARRIER)),
        [renamed, carrier]
    );
    let after = table.get(2).unwrap();
    assert_eq!(
        (after.name.as_str(), after.addresses.len(), after.carrier),
        ("uplink", 1, true)
    );
    let gone = RouteNetlinkMessage::DelLink(link(2, "uplink", UP));
    let link = "uplink".to_owned();
    assert_eq!(table.apply(&gone, hardware), [Event::Disappeared { link }]);
    assert_eq!(table.usable(), None);
}

#[test]
fn a_bridges_own_messages_do_not_remove_a_port() {
    let mut table = with_eth0();
    let mut message = link(2, "eth0", LinkFlags::empty());
    message.header.interface_family = AddressFamily::Bridge;
    for message in [
        RouteNetlinkMessage::NewLink(message.clone()),
        RouteNetlinkMessage::DelLink(message),
    ] {
        assert_eq!(table.apply(&message, hardware), []);
    }
    assert!(table.get(2).unwrap().carrier);
}

#[test]
fn the_permanent_address_wins() {
    let permanent = MacAddress([0x52, 0x54, 0, 0, 0, 0xaa]);
    let mut message = link(2, "eth0", UP);
    let attribute = LinkAttribute::PermAddress(permanent.0.to_vec());
    message.attributes.push(attribute);
    let mut table = Table::default();
    new_link(&mut table, message);
    assert_eq!(table.get(2).unwrap().mac, permanent);
}

#[test]
fn which_addresses_are_usable() {
    for (text, flags, usable) in [
        ("2001:db8::1", 0, true),
        ("2001:db8::1", PERMANENT, true),
        ("fd00::1", 0, true),
        ("fe80::1", PERMANENT, false),
        ("2001:db8::1", TENTATIVE, false),
        // Optimistic (0x04) is still tentative.
        ("2001:db8::1", TENTATIVE | 0x04, false),
        ("2001:db8::1", TENTATIVE | DADFAILED, false),
        ("2001:db8::1", DEPRECATED, false),
    ] {
        let mut table = with_eth0();
        let events = new_address(&mut table, text, flags);
        assert_eq!(table.usable().is_some(), usable, "{text} {flags:#x}");
        let said = events.iter().any(|event| matches!(event, Event::Usable(_)));
        assert_eq!(said, usable, "{text} {flags:#x}");
    }
}

#[test]
fn an_address_without_preferred_lifetime_is_deprecated_before_its_flag_says_so() {
    for (preferred, usable) in [(0, false), (1, true), (u32::MAX, true)] {
        let mut life = CacheInfo::default();
        life.ifa_preferred = preferred;
        let mut message = address("2001:db8::1", 0);
        message.attributes.push(AddressAttribute::CacheInfo(life));
        let mut table = with_eth0();
        table.apply(&RouteNetlinkMessage::NewAddress(message), hardware);
        assert_eq!(table.usable().is_some(), usable, "{preferred}");
    }
}

#[test]
fn detection_ends_and_the_address_is_usable_once() {
    let mut table = with_eth0();
    assert_eq!(new_address(&mut table, "2001:db8::1", TENTATIVE), []);
    assert_eq!(new_address(&mut table, "2001:db8::1", 0).len(), 1);
    assert_eq!(new_address(&mut table, "2001:db8::1", 0), []);
    let usable = table.usable().unwrap();
    assert_eq!(usable.to_string(), "2001:db8::1/64 on eth0");
    del_address(&mut table, "2001:db8::1", 0);
    assert_eq!(table.usable(), None);
}

#[test]
fn a_duplicate_is_said_once_and_remembered() {
    let mut table = with_eth0();
    let said = [Event::Duplicate {
        index: 2,
        link: "eth0".to_owned(),
        address: "2001:db8::1".parse().unwrap(),
    }];
    for round in 0..3 {
        assert_eq!(new_address(&mut table, "2001:db8::1", TENTATIVE), []);
        let events = del_address(&mut table, "2001:db8::1", TENTATIVE | DADFAILED);
        assert_eq!(events, if round == 0 { &said[..] } else { &[] });
        let address = table.get(2).unwrap().addresses.values().next().unwrap();
        assert_eq!(address.state, State::Duplicate);
    }
    // The other host has gone.
    new_address(&mut table, "2001:db8::1", TENTATIVE);
    assert_eq!(new_address(&mut table, "2001:db8::1", 0).len(), 1);
    assert!(table.usable().is_some());
}

#[test]
fn duplicates_and_routers_are_bounded() {
    let mut table = with_eth0();
    for number in 0..100 {
        let text = format!("2001:db8::{number:x}");
        del_address(&mut table, &text, TENTATIVE | DADFAILED);
        let message = route(&format!("fe80::{number:x}"), RouteProtocol::Ra, 0);
        table.apply(&RouteNetlinkMessage::NewRoute(message), hardware);
    }
    let link = table.get(2).unwrap();
    assert_eq!(link.addresses.len(), REMEMBERED);
    assert_eq!(link.routers.len(), REMEMBERED);
}

#[test]
fn routers_are_default_routes_of_advertisements() {
    let mut table = with_eth0();
    for other in [
        route("fe80::1", RouteProtocol::Static, 0),
        route("fe80::1", RouteProtocol::Ra, 64),
    ] {
        assert_eq!(
            table.apply(&RouteNetlinkMessage::NewRoute(other), hardware),
            []
        );
    }
    let message = route("fe80::1", RouteProtocol::Ra, 0);
    let new = RouteNetlinkMessage::NewRoute(message.clone());
    let router = "fe80::1".parse().unwrap();
    let link = "eth0".to_owned();
    assert_eq!(
        table.apply(&new, hardware),
        [Event::Router { link, router }]
    );
    assert_eq!(table.apply(&new, hardware), []);
    table.apply(&RouteNetlinkMessage::DelRoute(message), hardware);
    assert!(table.get(2).unwrap().routers.is_empty());
}

#[test]
fn what_routers_say_is_kept_and_bounded() {
    let mut table = with_eth0();
    let said = |lifetime| Advertisement {
        router_lifetime: lifetime,
        managed: false,
        other: false,
        mtu: None,
        prefixes: Vec::new(),
        dns: false,
    };
    let router: Ipv6Addr = "fe80::1".parse().unwrap();
    let event = [Event::Advertised {
        link: "eth0".to_owned(),
        router,
    }];
    assert_eq!(table.advertised(2, router, said(60)), event);
    assert_eq!(table.advertised(2, router, said(60)), []);
    assert_eq!(table.advertised(9, router, said(60)), []);
    for number in 2..100 {
        table.advertised(2, Ipv6Addr::from(number), said(60));
    }
    assert_eq!(table.advertised(2, router, said(0)), event, "a known one");
    let kept = &table.get(2).unwrap().advertisements;
    assert_eq!((kept.len(), kept[&router].router_lifetime), (REMEMBERED, 0));
}

#[test]
fn a_real_card_comes_before_a_bmcs() {
    let mut table = Table::default();
    let usb = |_: &str| {
        Some(Device {
            bus_path: "pci0000:00/0000:00:14.0/usb1/1-2/1-2:1.0".into(),
            driver: "cdc_ether".into(),
        })
    };
    let bmc = RouteNetlinkMessage::NewLink(link(1, "usb0", UP | CARRIER));
    table.apply(&bmc, usb);
    let mut first = address("2001:db8::1", 0);
    first.header.index = 1;
    table.apply(&RouteNetlinkMessage::NewAddress(first), hardware);
    assert_eq!(table.usable().unwrap().link, "usb0");
    new_link(&mut table, link(2, "eth0", UP | CARRIER));
    new_address(&mut table, "2001:db8::2", 0);
    assert_eq!(table.usable().unwrap().link, "eth0");
}

#[test]
fn a_new_dump_replaces_all_but_duplicates() {
    let mut table = with_eth0();
    new_link(&mut table, link(3, "eth1", UP));
    new_address(&mut table, "2001:db8::1", 0);
    del_address(&mut table, "2001:db8::2", TENTATIVE | DADFAILED);
    table.set_problem(2, "x".to_owned());
    table.forget_state();
    table.retain_links(&[2].into());
    let links: Vec<_> = table.links().collect();
    assert_eq!(links.len(), 1);
    assert_eq!(links[0].problem.as_deref(), Some("x"));
    let kept: Vec<_> = links[0].addresses.keys().map(ToString::to_string).collect();
    assert_eq!(kept, ["2001:db8::2"]);
}
