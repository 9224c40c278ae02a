//! Requests byte by byte, answers as vendors send them.

use proptest::prelude::*;

use super::*;

fn bytes(request: &Request) -> (u8, u8, Vec<u8>) {
    (request.netfn, request.command, request.data.to_vec())
}

#[test]
fn requests_are_those_of_the_standard() {
    let id = UserId(4);
    let name = b"metal\0\0\0\0\0\0\0\0\0\0\0";
    let table: [(Request, u8, u8, Vec<u8>); 11] = [
        (device_id(), 6, 0x01, vec![]),
        (channel_info(1), 6, 0x42, vec![1]),
        (channel_access(1), 6, 0x41, vec![1, 0x80]),
        (user_access(1, id), 6, 0x44, vec![1, 4]),
        (user_name(id), 6, 0x46, vec![4]),
        (
            set_user_name(id, "metal"),
            6,
            0x45,
            [&[4][..], name].concat(),
        ),
        // Change bits, link authentication, IPMI messaging; channel 2; administrator.
        (make_administrator(2, id), 6, 0x43, vec![0xb2, 4, 4]),
        (enable_user(id), 6, 0x47, vec![4, 1]),
        (
            lan_parameter(1, LanParameter::Ipv6DynamicAddress, 3),
            0x0c,
            0x02,
            vec![1, 59, 3, 0],
        ),
        (fru_info(), 0x0a, 0x10, vec![0]),
        (read_fru(0x0120, 16), 0x0a, 0x11, vec![0, 0x20, 0x01, 16]),
    ];
    for (request, netfn, command, data) in table {
        assert_eq!(bytes(&request), (netfn, command, data), "{request:?}");
    }
}

#[test]
fn passwords_fill_16_or_20_bytes_and_are_not_shown() {
    let short = set_password(UserId(3), PasswordSize::Sixteen, "s3cret");
    assert_eq!(
        bytes(&short),
        (6, 0x47, [&[3, 2][..], b"s3cret", &[0; 10]].concat())
    );
    let long = test_password(UserId(3), PasswordSize::Twenty, "0123456789abcdefghij");
    assert_eq!(
        bytes(&long),
        (6, 0x47, [&[0x83, 3][..], b"0123456789abcdefghij"].concat())
    );
    assert_eq!(
        format!("{short:?} {long:?}"),
        "Set User Password Set User Password (test)"
    );
}

#[test]
fn a_device_id_gives_the_version_as_ipmitool_does() {
    let table: [(&str, &[u8], &str, u32); 5] = [
        (
            "Supermicro",
            &[0x20, 1, 0x01, 0x73, 2, 0xbf, 0x7c, 0x2a, 0, 0x2a, 0x09],
            "1.73",
            10876,
        ),
        (
            "Dell iDRAC9",
            &[
                0x20, 1, 0x06, 0x10, 2, 0xdf, 0xa2, 0x02, 0, 0, 1, 0, 30, 0, 30,
            ],
            "6.10",
            674,
        ),
        (
            "HPE iLO 5",
            &[0x13, 1, 0x02, 0x72, 2, 0x8f, 0x0b, 0, 0, 0, 0x20],
            "2.72",
            11,
        ),
        // Bit 7: an update is going on.
        (
            "Lenovo XCC",
            &[0x20, 1, 0x8b, 0x05, 2, 0xbf, 0x66, 0x4a, 0, 0x2f, 0x02],
            "11.05",
            19046,
        ),
        ("shortest", &[0x20, 0, 0x09, 0x08], "9.08", 0),
    ];
    for (name, data, firmware, manufacturer) in table {
        let id = DeviceId::parse(data).unwrap();
        assert_eq!(
            (id.firmware.as_str(), id.manufacturer),
            (firmware, manufacturer),
            "{name}"
        );
    }
    assert!(DeviceId::parse(&[0x20, 1, 2]).is_err());
}

#[test]
fn channels() {
    assert!(is_lan(&[1, 0x04, 1]).unwrap());
    for medium in [0x01, 0x05, 0x06, 0x0c] {
        assert!(!is_lan(&[2, medium, 1]).unwrap(), "{medium}");
    }
    assert!(is_lan(&[1]).is_err());
    for (access, open) in [(0x20, false), (0x21, false), (0x2a, true), (0x03, true)] {
        assert_eq!(is_open(&[access, 4]).unwrap(), open, "{access:#x}");
    }
}

#[test]
fn lan_parameters() {
    assert_eq!(
        ipv4_address(&[0x11, 192, 0, 2, 9]).unwrap(),
        Ipv4Addr::new(192, 0, 2, 9)
    );
    let mac = |last: [u8; 6]| mac_address(&[&[0x11][..], &last].concat()).unwrap();
    assert_eq!(
        mac([0x3c, 0xec, 0xef, 1, 2, 3]).unwrap().to_string(),
        "3c:ec:ef:01:02:03"
    );
    assert_eq!(mac([0; 6]), None);
    assert_eq!(mac([0xff; 6]), None);
    for (byte, expected) in [(0, (true, false)), (1, (false, true)), (2, (true, true))] {
        assert_eq!(addressing_enables(&[0x11, byte]).unwrap(), expected);
    }
    // Revision alone, as from a BMC that knows the number but has no value.
    assert!(ipv4_address(&[0x11]).is_err() && mac_address(&[]).is_err());
}

#[test]
fn ipv6_addresses_count_when_they_are_in_use() {
    let address: Ipv6Addr = "2001:db8::17".parse().unwrap();
    let data = |source: u8, status: u8| {
        [&[0x11, 0, source][..], &address.octets(), &[64, status]].concat()
    };
    let fixed = LanParameter::Ipv6StaticAddress;
    let dynamic = LanParameter::Ipv6DynamicAddress;
    let table = [
        (fixed, 0x80, 0, Some(address)),
        (fixed, 0x00, 0, None),
        (fixed, 0x80, 1, None),
        (fixed, 0x80, 2, None),
        (fixed, 0x80, 3, None),
        (dynamic, 0x01, 0, Some(address)),
        (dynamic, 0x02, 0, Some(address)),
        (dynamic, 0x02, 4, None),
    ];
    for (kind, source, status, expected) in table {
        let found = ipv6_address(kind, &data(source, status)).unwrap();
        assert_eq!(found, expected, "{kind:?} {source:#x} {status}");
    }
}

#[test]
fn user_names_as_bmcs_write_them() {
    let table: [(&[u8], &str); 8] = [
        (b"metal\0\0\0\0\0\0\0\0\0\0\0", "metal"),
        (b"sixteen-letters-", "sixteen-letters-"),
        (b"metal           ", "metal"),
        (&[0xff; 16], ""),
        (&[0; 16], ""),
        (b"(Empty User)\0\0\0\0", ""),
        (b"", ""),
        (b"metal\0garbage\x07\x08\x09", "metal"),
    ];
    for (data, name) in table {
        assert_eq!(parse_user_name(data), name, "{data:?}");
    }
}

#[test]
fn fru_data_is_what_both_count_and_message_hold() {
    assert_eq!(fru_data(&[4, 1, 2, 3, 4], 1).unwrap(), [1, 2, 3, 4]);
    assert_eq!(fru_data(&[2, 1, 2, 3, 4], 1).unwrap(), [1, 2]);
    assert_eq!(fru_data(&[2, 1, 2, 3, 4], 2).unwrap(), [1, 2, 3, 4]);
    assert_eq!(fru_data(&[200, 1], 1).unwrap(), [1]);
    assert!(fru_data(&[], 1).is_err() && fru_data(&[0, 1], 1).is_err());
    assert!(fru_data(&[3], 1).is_err());
}

proptest! {
    #[test]
    fn no_answer_makes_a_parser_panic(data in proptest::collection::vec(any::<u8>(), 0..40)) {
        let _ = DeviceId::parse(&data);
        let _ = is_lan(&data);
        let _ = is_open(&data);
        let _ = ipv4_address(&data);
        let _ = mac_address(&data);
        let _ = addressing_enables(&data);
        let _ = ipv6_counts(&data);
        let _ = ipv6_address(LanParameter::Ipv6StaticAddress, &data);
        let _ = UserAccess::parse(&data);
        let _ = fru_size(&data);
        let _ = fru_data(&data, 2);
        prop_assert!(parse_user_name(&data).chars().count() <= NAME_BYTES);
    }
}
