use proptest::prelude::*;

use super::*;

const SOURCE: [u8; 6] = [0x52, 0x54, 0, 0xaa, 0, 1];
const CHASSIS: &[u8] = &[4, 0x52, 0x54, 0, 0xaa, 0, 0xff];
const PORT: &[u8] = &[5, b's', b'w', b'p', b'1'];
const TTL: &[u8] = &[0, 120];

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    let header = u16::from(kind) << 9 | value.len() as u16;
    [&header.to_be_bytes(), value].concat()
}

fn ethernet(ethertype: &[u8], lldpdu: &[u8]) -> Vec<u8> {
    [&DESTINATIONS[0].0, &SOURCE[..], ethertype, lldpdu].concat()
}

fn frame(tlvs: &[(u8, &[u8])]) -> Vec<u8> {
    let lldpdu: Vec<u8> = tlvs
        .iter()
        .flat_map(|(kind, value)| tlv(*kind, value))
        .collect();
    ethernet(&[0x88, 0xcc], &lldpdu)
}

fn with(more: &[(u8, &[u8])]) -> Vec<u8> {
    frame(&[&[(1, CHASSIS), (2, PORT), (3, TTL)], more].concat())
}

#[test]
fn a_whole_frame() {
    let management = [&[5, 1, 192, 0, 2, 1][..], &[2, 0, 0, 0, 7, 0]].concat();
    let bytes = with(&[
        (4, b"Ethernet1"),
        (5, b"leaf01"),
        (6, b"SONiC\n4.2"),
        (7, &[0, 0x14, 0, 0x14]),
        (8, &management),
        (127, b"\x00\x12\x0f\x01xyz"),
        (0, &[]),
    ]);
    let parsed = parse(&bytes).unwrap();
    assert_eq!(parsed.source, MacAddress(SOURCE));
    assert_eq!(parsed.chassis.to_string(), "52:54:00:aa:00:ff");
    assert_eq!(parsed.port, Id::Text("swp1".to_owned()));
    assert_eq!(parsed.ttl, 120);
    assert_eq!(parsed.port_description, "Ethernet1");
    assert_eq!(parsed.system_name, "leaf01");
    assert_eq!(parsed.system_description, "SONiC 4.2");
    assert!(parsed.capabilities.unwrap().switch());
    assert_eq!(parsed.management, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
}

#[test]
fn vlan_tags_padding_and_a_missing_end_are_tolerated() {
    let plain = with(&[(5, b"leaf01")]);
    let expected = parse(&plain).unwrap();
    let lldpdu = &plain[14..];
    let padded = [plain.clone(), vec![0; 30]].concat();
    let garbage_after_end = [plain.clone(), vec![0, 0, 0xff, 0xff, 0xff]].concat();
    let tagged = ethernet(&[0x81, 0, 0, 5, 0x88, 0xcc], lldpdu);
    let twice = ethernet(&[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 0x88, 0xcc], lldpdu);
    for bytes in [padded, garbage_after_end, tagged, twice] {
        assert_eq!(parse(&bytes).as_ref(), Ok(&expected));
    }
    let thrice = ethernet(
        &[0x81, 0, 0, 5, 0x81, 0, 0, 6, 0x81, 0, 0, 7, 0x88, 0xcc],
        lldpdu,
    );
    assert_eq!(parse(&thrice), Err(Error::NotLldp(0x8100)));
}

#[test]
fn every_id_subtype() {
    let text = |text: &str| Ok(Id::Text(text.to_owned()));
    let mac = || Ok(Id::Mac(MacAddress([2, 0, 0, 0, 0, 1])));
    let network = |text: &str| Ok(Id::Network(text.parse().unwrap()));
    let mac_bytes = [2, 0, 0, 0, 0, 1];
    let v6: &[u8] = &[2, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let v6_bytes = "02:20:01:0d:b8:00:00:00:00:00:00:00:00:00:00:00:01";
    let reserved = |kind, subtype| Err(Error::Subtype { kind, subtype });
    let length = |kind, length| Err(Error::Length { kind, length });
    // subtype, content; what it is as chassis ID and as port ID
    type Row<'a> = (u8, &'a [u8], Result<Id, Error>, Result<Id, Error>);
    let table: [Row<'_>; 15] = [
        (0, b"x", reserved(1, 0), reserved(2, 0)),
        (1, b"x1", text("x1"), text("x1")),
        (2, b"x1", text("x1"), text("x1")),
        (3, &mac_bytes, text("02:00:00:00:00:01"), mac()),
        (4, &mac_bytes, mac(), length(2, 7)),
        (4, &[1, 192, 0, 2, 1], length(1, 6), network("192.0.2.1")),
        (5, v6, network("2001:db8::1"), text(v6_bytes)),
        (5, &[9, b'1'], length(1, 3), text("09:31")),
        (6, b"eth0", text("eth0"), text("eth0")),
        (7, b"7", text("7"), text("7")),
        (7, b"swp1\0\0", text("swp1"), text("swp1")),
        (7, b"a  b", text("61:20:20:62"), text("61:20:20:62")),
        (7, b"\xff\x1b", text("ff:1b"), text("ff:1b")),
        (8, b"x", reserved(1, 8), reserved(2, 8)),
        (255, b"x", reserved(1, 255), reserved(2, 255)),
    ];
    for (subtype, body, chassis, port) in table {
        let value = [&[subtype], body].concat();
        assert_eq!(chassis_id(&value), chassis, "chassis {value:?}");
        assert_eq!(port_id(&value), port, "port {value:?}");
    }
}

#[test]
fn what_is_refused() {
    let missing = |kind| Error::Missing(kind);
    let order = |expected, found| Error::Order { expected, found };
    let length = |kind, length| Error::Length { kind, length };
    let long_id = [&[7][..], &[b'x'; 256]].concat();
    let table: [(Vec<u8>, Error); 15] = [
        (frame(&[]), missing(1)),
        (frame(&[(1, CHASSIS)]), missing(2)),
        (frame(&[(1, CHASSIS), (2, PORT)]), missing(3)),
        (frame(&[(2, PORT), (1, CHASSIS), (3, TTL)]), order(1, 2)),
        (frame(&[(1, CHASSIS), (3, TTL), (2, PORT)]), order(2, 3)),
        (frame(&[(1, CHASSIS), (2, PORT), (5, b"x")]), order(3, 5)),
        (frame(&[(1, CHASSIS), (2, PORT), (3, &[1])]), length(3, 1)),
        (frame(&[(1, &[4]), (2, PORT), (3, TTL)]), length(1, 1)),
        (frame(&[(1, &[]), (2, PORT), (3, TTL)]), length(1, 0)),
        (frame(&[(1, &long_id), (2, PORT), (3, TTL)]), length(1, 257)),
        (
            frame(&[(1, &[7, b' ', 0]), (2, PORT), (3, TTL)]),
            Error::EmptyId(1),
        ),
        (with(&[(1, CHASSIS)]), Error::Duplicate(1)),
        (with(&[(2, PORT)]), Error::Duplicate(2)),
        (with(&[(3, TTL)]), Error::Duplicate(3)),
        (with(&[(0, b"x")]), length(0, 1)),
    ];
    for (bytes, expected) in table {
        assert_eq!(parse(&bytes), Err(expected), "{bytes:02x?}");
    }
    let mut long = with(&[]);
    long.resize(14 + MAX_LLDPDU, 0);
    assert!(parse(&long).is_ok());
    long.push(0);
    assert_eq!(parse(&long), Err(Error::TooLong(1501)));
    assert_eq!(
        parse(&ethernet(&[0x08, 0], &[])),
        Err(Error::NotLldp(0x0800))
    );
    let mut group = with(&[]);
    group[6] = 1;
    assert_eq!(parse(&group), Err(Error::Source));
}

#[test]
fn truncated_frames_are_refused() {
    let whole = with(&[(5, b"leaf01"), (7, &[0, 4, 0, 4])]);
    let name = whole.len() - 6 - 8;
    for cut in 0..whole.len() {
        let parsed = parse(&whole[..cut]);
        // Cut exactly between optional TLVs it is a frame without them.
        let between = cut == name || cut == name + 8;
        assert_eq!(parsed.is_ok(), between, "{cut}: {parsed:?}");
    }
}

#[test]
fn broken_optional_tlvs_are_left_out() {
    for wrong in [
        (7, &[0, 4, 0][..]),
        (7, &[0, 4, 0, 4, 0]),
        (8, &[]),
        (8, &[5, 1, 192, 0]),
        (8, &[4, 1, 192, 0, 2, 2, 0, 0, 0, 7, 0]),
        (8, &[5, 1, 192, 0, 2, 1, 2, 0, 0, 0, 7, 3, 1]),
        (5, &[b'x'; 256]),
    ] {
        let parsed = parse(&with(&[wrong, (4, b"port")])).unwrap();
        assert_eq!(parsed.port_description, "port");
        assert_eq!(parsed.capabilities, None);
        assert!(parsed.management.is_empty() && parsed.system_name.is_empty());
    }
    let twice = parse(&with(&[(5, b"first"), (5, b"second")])).unwrap();
    assert_eq!(twice.system_name, "first");
}

#[test]
fn only_enabled_bridges_and_routers_are_switches() {
    for (enabled, switch) in [
        (0, false),
        (1 << 0, false),
        (1 << 1, false),
        (1 << 2, true),
        (1 << 3, false),
        (1 << 4, true),
        (1 << 7, false),
        (1 << 8, true),
        (1 << 9, true),
        (1 << 10, false),
    ] {
        let system = 0xffff;
        let capabilities = Capabilities { system, enabled };
        assert_eq!(capabilities.switch(), switch, "{enabled:#x}");
    }
}

#[test]
fn texts_are_harmless() {
    for (bytes, expected) in [
        (&b" leaf01\0\0"[..], "leaf01"),
        (b"a\x1b[2Jb", "a [2Jb"),
        (b"a\r\nb", "a b"),
        (b"\xff\xfe", "\u{fffd}\u{fffd}"),
        ("a\u{202e}b\u{9b}c".as_bytes(), "a b c"),
        ("Größe".as_bytes(), "Größe"),
    ] {
        let parsed = parse(&with(&[(5, bytes)])).unwrap();
        assert_eq!(parsed.system_name, expected);
    }
}

#[test]
fn what_is_switched_on_has_names() {
    let capabilities = Capabilities {
        system: 0xffff,
        enabled: Capabilities::BRIDGE | Capabilities::ROUTER | 1 << 15,
    };
    let names: Vec<_> = capabilities.names().collect();
    assert_eq!(names, ["bridge", "router"]);
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1600)) {
        let _ = parse(&bytes);
        let _ = parse(&ethernet(&[0x88, 0xcc], &bytes));
    }

    #[test]
    fn no_tlvs_panic(
        tlvs in proptest::collection::vec(
            (0_u8..10, proptest::collection::vec(any::<u8>(), 0..60)), 0..12),
        flip in any::<proptest::sample::Index>(),
        byte: u8,
    ) {
        let tlvs: Vec<_> = tlvs.iter().map(|(kind, value)| (*kind, value.as_slice())).collect();
        let mut bytes = with(&tlvs);
        let position = flip.index(bytes.len());
        bytes[position] = byte;
        if let Ok(frame) = parse(&bytes) {
            for text in [&frame.system_name, &frame.port_description, &frame.port.to_string()] {
                prop_assert!(!text.contains(char::is_control));
            }
        }
    }
}
