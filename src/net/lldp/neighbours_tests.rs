use super::*;
use crate::net::lldp::frame::Capabilities;

fn mac(last: u8) -> MacAddress {
    MacAddress([0x52, 0x54, 0, 0, 0, last])
}

fn link(index: u32, carrier: bool) -> Link {
    Link {
        index,
        name: format!("eth{}", index - 2),
        mac: mac(index as u8),
        up: true,
        carrier,
        mtu: 9000,
        advertisements: [].into(),
        device: crate::net::device::Device {
            bus_path: String::new(),
            driver: String::new(),
        },
        routers: [].into(),
        addresses: [].into(),
        problem: None,
    }
}

fn frame(chassis: u8) -> Frame {
    Frame {
        source: mac(0x50),
        chassis: Id::Mac(mac(chassis)),
        port: Id::Text("swp1".to_owned()),
        ttl: 120,
        port_description: "Ethernet1".to_owned(),
        system_name: format!("leaf{chassis}"),
        system_description: String::new(),
        capabilities: Some(Capabilities {
            system: Capabilities::BRIDGE,
            enabled: Capabilities::BRIDGE,
        }),
        management: Vec::new(),
    }
}

fn after(seconds: u64, now: Instant) -> Instant {
    now + Duration::from_secs(seconds)
}

#[test]
fn requirements() {
    let links = [link(2, true), link(3, true), link(4, true)];
    let two = Requirement::default();
    let need = |interfaces, chassis| Requirement {
        interfaces,
        chassis,
        ..two
    };
    // heard (link, chassis), requirement, met
    type Row<'a> = (&'a [(u32, u8)], Requirement, bool);
    let table: [Row<'_>; 9] = [
        (&[], Requirement::NONE, true),
        (&[], two, false),
        (&[(2, 1)], two, false),
        (&[(2, 1), (3, 2)], two, true),
        (&[(2, 1), (3, 1)], two, false),
        (&[(2, 1), (2, 2)], two, false),
        (&[(2, 1), (3, 1), (4, 2)], two, true),
        (&[(2, 1), (3, 1)], need(2, 1), true),
        (&[(2, 1)], need(1, 1), true),
    ];
    for (heard, requirement, met) in table {
        let now = Instant::now();
        let mut neighbours = Neighbours::default();
        for (index, chassis) in heard {
            let news = neighbours.learn(*index, frame(*chassis), now);
            assert_eq!(news, Some(News::New));
        }
        let switches = neighbours.switches(&links, now);
        assert_eq!(requirement.met(&switches), met, "{heard:?} {requirement:?}");
    }
}

#[test]
fn only_switches_on_links_that_exist_count() {
    let now = Instant::now();
    let mut neighbours = Neighbours::default();
    let mut host = frame(1);
    host.capabilities = Some(Capabilities {
        system: Capabilities::BRIDGE,
        enabled: Capabilities::STATION_ONLY,
    });
    let mut silent = frame(2);
    silent.capabilities = None;
    neighbours.learn(2, host, now);
    neighbours.learn(2, silent, now);
    neighbours.learn(9, frame(3), now);
    assert_eq!(neighbours.switches(&[link(2, true)], now), []);
}

#[test]
fn neighbours_live_as_long_as_they_say() {
    let now = Instant::now();
    let links = [link(2, true)];
    let mut neighbours = Neighbours::default();
    assert_eq!(neighbours.next_expiry(), None);
    assert_eq!(neighbours.learn(2, frame(1), now), Some(News::New));
    assert_eq!(neighbours.learn(2, frame(1), after(100, now)), None);
    assert_eq!(neighbours.next_expiry(), Some(after(220, now)));
    assert_eq!(neighbours.switches(&links, after(219, now)).len(), 1);
    assert_eq!(neighbours.switches(&links, after(220, now)).len(), 0);

    let mut renamed = frame(1);
    renamed.system_name = "leaf-new".to_owned();
    assert_eq!(
        neighbours.learn(2, renamed.clone(), now),
        Some(News::Changed)
    );
    let goodbye = Frame { ttl: 0, ..frame(1) };
    assert_eq!(neighbours.learn(2, goodbye.clone(), now), Some(News::Gone));
    assert_eq!(neighbours.learn(2, goodbye, now), None);
    assert_eq!(neighbours.switches(&links, now).len(), 0);

    neighbours.learn(2, renamed.clone(), now);
    assert_eq!(neighbours.expire(after(119, now)), []);
    assert_eq!(neighbours.expire(after(120, now)), [renamed]);
    assert_eq!(neighbours.expire(after(120, now)), []);
}

#[test]
fn a_flood_on_one_link_takes_nothing_from_another() {
    let now = Instant::now();
    let mut neighbours = Neighbours::default();
    for chassis in 0..=255 {
        neighbours.learn(2, frame(chassis), now);
    }
    assert_eq!(neighbours.learn(3, frame(1), now), Some(News::New));
    assert_eq!(neighbours.heard.len(), KEPT + 1);
}

#[test]
fn what_the_control_plane_gets() {
    let port_mac = Id::Mac(mac(0x77));
    let text = |text: &str| Id::Text(text.to_owned());
    // chassis, port, description; mac, name, identifier
    let table = [
        (
            Id::Mac(mac(1)),
            port_mac.clone(),
            "swp1",
            "52:54:00:00:00:77",
            "swp1",
            "52:54:00:00:00:77",
        ),
        (
            Id::Mac(mac(1)),
            port_mac,
            "",
            "52:54:00:00:00:77",
            "52:54:00:00:00:77",
            "52:54:00:00:00:77",
        ),
        (
            Id::Mac(mac(1)),
            text("Ethernet4"),
            "x",
            "52:54:00:00:00:01",
            "Ethernet4",
            "Ethernet4",
        ),
        (
            text("rack"),
            text("7"),
            "",
            "52:54:00:00:00:50",
            "port 7",
            "7",
        ),
        (
            text("rack"),
            text("7"),
            "uplink",
            "52:54:00:00:00:50",
            "uplink",
            "7",
        ),
    ];
    for (chassis, port, description, mac_text, name, identifier) in table {
        let neighbour = PortNeighbour {
            index: 2,
            interface: "eth0".to_owned(),
            mac: mac(2),
            frame: Frame {
                chassis,
                port,
                port_description: description.to_owned(),
                ..frame(1)
            },
        };
        let nic = neighbour.to_nic();
        assert_eq!(
            (
                nic.mac.as_str(),
                nic.name.as_str(),
                nic.identifier.as_str(),
                nic.hostname.as_str()
            ),
            (mac_text, name, identifier, "leaf1")
        );
        nic.mac.parse::<MacAddress>().unwrap();
    }
}

#[test]
fn long_names_are_cut() {
    let neighbour = PortNeighbour {
        index: 2,
        interface: "eth0".to_owned(),
        mac: mac(2),
        frame: Frame {
            port: Id::Text("ö".repeat(200)),
            port_description: "ü".repeat(200),
            system_name: "x".repeat(255),
            ..frame(1)
        },
    };
    let nic = neighbour.to_nic();
    for text in [nic.name, nic.identifier, nic.hostname] {
        assert_eq!(text.chars().count(), 128);
    }
}

#[test]
fn the_report_has_a_line_for_each_port() {
    let now = Instant::now();
    let links = [
        link(2, true),
        link(3, true),
        link(4, false),
        link(5, true),
        link(6, true),
    ];
    let mut neighbours = Neighbours::default();
    let mut host = frame(7);
    host.capabilities = None;
    let mut managed = frame(1);
    managed.management = vec!["2001:db8::5".parse().unwrap()];
    neighbours.learn(2, managed, now);
    neighbours.learn(3, host, now);
    neighbours.set_problem(4, "no LLDP socket: y".to_owned());
    neighbours.set_problem(6, "only broken LLDP heard: x".to_owned());
    let report = neighbours.report(&links, Requirement::default(), now);
    let lines: Vec<_> = report.lines().collect();
    let expected = [
        "1 of 2 interfaces hear a switch, 1 of 2 different switches are heard",
        "  eth0 52:54:00:00:00:02: switch \"leaf1\", chassis 52:54:00:00:00:01, port swp1 \
         \"Ethernet1\", management 2001:db8::5",
        "  eth1 52:54:00:00:00:03: not a switch (sends no capabilities) \"leaf7\"",
        "  eth2 52:54:00:00:00:04: no carrier",
        "  eth3 52:54:00:00:00:05: nothing heard",
        "  eth4 52:54:00:00:00:06: only broken LLDP heard: x",
    ];
    assert_eq!(lines.len(), expected.len(), "{report}");
    for (line, start) in lines.iter().zip(expected) {
        assert!(line.starts_with(start), "{line}");
    }
}
