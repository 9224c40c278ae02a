use super::super::testing::{FakeBmc, Quirks};
use super::*;

/// Sets IPv6 of channel 1: which protocols, static and dynamic addresses with their first byte and status.
fn with_ipv6(enables: u8, fixed: &[(&str, u8, u8)], dynamic: &[(&str, u8, u8)]) -> FakeBmc {
    let mut bmc = FakeBmc::good();
    bmc.lan.insert((1, 51, 0), vec![enables]);
    let counts = vec![fixed.len() as u8, dynamic.len() as u8, 3];
    bmc.lan.insert((1, 55, 0), counts);
    for (parameter, addresses) in [(56, fixed), (59, dynamic)] {
        for (set, (address, source, status)) in addresses.iter().enumerate() {
            let address: Ipv6Addr = address.parse().unwrap();
            let bytes = [&[set as u8, *source][..], &address.octets(), &[64, *status]].concat();
            bmc.lan.insert((1, parameter, set as u8), bytes);
        }
    }
    bmc
}

fn address_of(bmc: FakeBmc) -> Option<String> {
    let (channels, error) = channels(&mut Talk::impatient(bmc));
    assert!(error.is_none(), "{error:?}");
    choose(&channels).map(|(_, _, address)| address.to_string())
}

#[test]
fn ipv6_is_preferred_where_it_can_be_reached() {
    let v4 = Some("192.0.2.7:623");
    let slaac = ("2001:db8:1::9", 1, 0);
    let local = ("fe80::1", 1, 0);
    let table = [
        // A BMC from before IPv6: neither parameter exists.
        (FakeBmc::good(), v4),
        (
            with_ipv6(2, &[], &[local, slaac]),
            Some("[2001:db8:1::9]:623"),
        ),
        (
            with_ipv6(2, &[("2001:db8::5", 0x80, 0)], &[slaac]),
            Some("[2001:db8::5]:623"),
        ),
        // Not enabled, or not active yet.
        (
            with_ipv6(2, &[("2001:db8::5", 0, 0)], &[slaac]),
            Some("[2001:db8:1::9]:623"),
        ),
        (with_ipv6(2, &[("2001:db8::5", 0x80, 2)], &[]), v4),
        (
            with_ipv6(2, &[("fd00::5", 0x80, 0)], &[]),
            Some("[fd00::5]:623"),
        ),
        (with_ipv6(2, &[], &[local]), v4),
        (
            with_ipv6(
                2,
                &[("::", 0x80, 0), ("ff02::1", 0x80, 0), ("::1", 0x80, 0)],
                &[],
            ),
            v4,
        ),
        // Switched off although there is an address; and IPv4 switched off.
        (with_ipv6(0, &[], &[slaac]), v4),
        (with_ipv6(1, &[], &[]), None),
    ];
    for (number, (bmc, expected)) in table.into_iter().enumerate() {
        assert_eq!(address_of(bmc).as_deref(), expected, "row {number}");
    }
}

#[test]
fn addresses_that_lead_nowhere_do_not_count() {
    for bytes in [
        [0, 0, 0, 0],
        [127, 0, 0, 1],
        [169, 254, 1, 2],
        [255; 4],
        [224, 0, 0, 1],
    ] {
        let mut bmc = FakeBmc::good();
        bmc.lan.insert((1, 3, 0), bytes.to_vec());
        assert_eq!(address_of(bmc), None, "{bytes:?}");
    }
    let mut bmc = FakeBmc::good();
    bmc.lan.insert((1, 5, 0), vec![0; 6]);
    assert_eq!(address_of(bmc), None, "no MAC");
}

#[test]
fn the_lan_channel_is_found_by_its_medium() {
    // HPE: serial on 1, LAN on 2. Lenovo: an internal port without address before the real one.
    let mut bmc = FakeBmc::good();
    bmc.media = [(1, 5), (2, 4), (3, 4)].into();
    let mac = bmc.lan[&(1, 5, 0)].clone();
    bmc.lan = [
        ((2, 5, 0), mac.clone()),
        ((2, 3, 0), vec![169, 254, 95, 118]),
        ((3, 5, 0), mac),
        ((3, 3, 0), vec![198, 51, 100, 4]),
    ]
    .into();
    let (found, _) = channels(&mut Talk::impatient(bmc));
    assert_eq!(found.len(), 2);
    let (lan, _, address) = choose(&found).unwrap();
    assert_eq!(
        (lan.channel, address.to_string()),
        (3, "198.51.100.4:623".into())
    );
    assert_eq!(
        found[0].to_string(),
        "LAN channel 2, MAC 3c:ec:ef:01:02:03, no usable address"
    );
}

#[test]
fn a_claim_of_many_addresses_is_not_believed() {
    let mut bmc = with_ipv6(2, &[], &[]);
    bmc.lan.insert((1, 55, 0), vec![255, 255, 3]);
    let mut talk = Talk::impatient(bmc);
    let _ = channels(&mut talk);
    assert!(
        talk.transport().answered < 60,
        "{}",
        talk.transport().answered
    );
}

#[test]
fn busy_is_waited_for_and_endless_busy_is_an_error() {
    let quirks = |code| Quirks {
        every_second: Some(code),
        ..Quirks::default()
    };
    let bmc = FakeBmc {
        quirks: quirks(0xc0),
        ..with_ipv6(2, &[], &[("2001:db8:1::9", 1, 0)])
    };
    assert_eq!(address_of(bmc).as_deref(), Some("[2001:db8:1::9]:623"));
    let mut talk = Talk::impatient(super::super::testing::Scripted::answers(vec![
        vec![0xc0];
        100
    ]));
    let (found, error) = channels(&mut talk);
    assert_eq!(found, []);
    let error = error.unwrap();
    assert!(error.to_string().contains("(busy)"), "{error}");
}
