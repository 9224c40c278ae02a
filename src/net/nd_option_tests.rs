use proptest::prelude::*;

use super::*;

fn rdnss(lifetime: u32, servers: &[&str]) -> Vec<u8> {
    let units = 1 + 2 * servers.len();
    let mut option = vec![RDNSS, units as u8, 0, 0];
    option.extend(lifetime.to_be_bytes());
    for server in servers {
        option.extend(server.parse::<Ipv6Addr>().unwrap().octets());
    }
    option
}

fn dnssl(names: &[u8]) -> Vec<u8> {
    let mut option = vec![DNSSL, 0, 0, 0, 0, 0, 0, 60];
    option.extend(names);
    option.resize(option.len().next_multiple_of(8), 0);
    option[1] = (option.len() / 8) as u8;
    option
}

/// `struct nlmsghdr` and `struct nduseroptmsg` around the options.
fn message(family: u8, icmp_type: u8, options: &[u8]) -> Vec<u8> {
    let length = NETLINK_HEADER + USER_OPTION_HEADER + options.len();
    let mut message = (length as u32).to_ne_bytes().to_vec();
    message.extend(RTM_NEWNDUSEROPT.to_ne_bytes());
    message.resize(NETLINK_HEADER, 0);
    message.extend([family, 0]);
    message.extend((options.len() as u16).to_ne_bytes());
    message.extend(7_u32.to_ne_bytes());
    message.extend([icmp_type, 0, 0, 0, 0, 0, 0, 0]);
    message.extend(options);
    message
}

fn search(names: &[u8]) -> Result<Vec<String>, Error> {
    match parse_options(&dnssl(names))?.as_slice() {
        [DnsOption::Search { domains, .. }] => {
            Ok(domains.iter().map(ToString::to_string).collect())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn servers_and_lifetimes() {
    let seconds = |seconds| Lifetime::For(Duration::from_secs(seconds));
    for (lifetime, expected) in [
        (0, seconds(0)),
        (1800, seconds(1800)),
        (u32::MAX, Lifetime::Forever),
    ] {
        let parsed = parse_options(&rdnss(lifetime, &["fe80::1", "2001:db8::1"])).unwrap();
        let servers = vec!["fe80::1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        let lifetime = expected;
        assert_eq!(parsed, [DnsOption::Servers { lifetime, servers }]);
    }
}

#[test]
fn search_lists() {
    let two = b"\x03Lab\x07example\x00\x04_tcp\x03a-b\x00";
    assert_eq!(search(two).unwrap(), ["lab.example", "_tcp.a-b"]);
    let long_label = [&[63][..], &[b'a'; 63], &[0]].concat();
    assert_eq!(search(&long_label).unwrap(), ["a".repeat(63)]);
}

#[test]
fn bad_search_lists() {
    let too_long = [&[63][..], &[b'a'; 63]].concat().repeat(4);
    let long_label = [&[64][..], &[b'a'; 64], &[0]].concat();
    let table: [(&[u8], Error); 10] = [
        (b"\x04a b.\x00", Error::Character),
        (b"\x03a\nb\x00", Error::Character),
        (b"\x02-a\x00", Error::Character),
        (b"\x02a-\x00", Error::Character),
        // A dot inside a label is not two labels.
        (b"\x03a.b\x00", Error::Character),
        // Compression and everything above 63.
        (b"\xc0\x0cxxxxxx", Error::Label),
        (b"\x3fabc\x00", Error::Label),
        (b"\x01a\x00\x00\x01b\x00", Error::Padding(5)),
        (&long_label, Error::Label),
        (&too_long, Error::NameTooLong),
    ];
    for (names, expected) in table {
        assert_eq!(search(names), Err(expected), "{names:?}");
    }
    // No terminating zero before the option ends.
    assert_eq!(search(b"\x07abcdefg"), Err(Error::Label));
    let nothing = [DNSSL, 2, 0, 0, 0, 0, 0, 60, 0, 0, 0, 0, 0, 0, 0, 0];
    assert!(parse_options(&nothing).is_err());
}

#[test]
fn bad_servers() {
    for server in ["::", "::1", "ff02::1", "::ffff:192.0.2.1"] {
        let error = parse_options(&rdnss(60, &["2001:db8::1", server])).unwrap_err();
        assert_eq!(error, Error::Server(server.parse().unwrap()));
    }
}

#[test]
fn bad_lengths() {
    let good = rdnss(60, &["2001:db8::1"]);
    for cut in 1..good.len() {
        assert!(parse_options(&good[..cut]).is_err(), "{cut}");
    }
    for units in [0, 1, 2, 4, 255] {
        let mut option = good.clone();
        option[1] = units;
        option.resize(24.max(usize::from(units) * 8), 0);
        assert!(parse_options(&option).is_err(), "{units}");
    }
    assert_eq!(parse_options(&[]), Ok(vec![]));
}

#[test]
fn other_options_are_passed_over() {
    // PREF64 (38), then RDNSS.
    let mut options = vec![38, 2];
    options.resize(16, 0xaa);
    options.extend(rdnss(60, &["2001:db8::1"]));
    assert_eq!(parse_options(&options).unwrap().len(), 1);
}

#[test]
fn datagrams() {
    let option = rdnss(60, &["2001:db8::1"]);
    let good = message(FAMILY_INET6, ROUTER_ADVERTISEMENT, &option);
    let two = [good.clone(), good.clone()].concat();
    let parsed = parse_datagram(&two);
    assert_eq!(parsed.len(), 2);
    assert_eq!(parsed[0].as_ref().unwrap().index, 7);
    assert_eq!(parsed[0].as_ref().unwrap().options.len(), 1);

    assert_eq!(
        parse_datagram(&message(2, ROUTER_ADVERTISEMENT, &option)),
        []
    );
    assert_eq!(parse_datagram(&message(FAMILY_INET6, 137, &option)), []);
    let mut other_type = good.clone();
    other_type[4] = 16;
    assert_eq!(parse_datagram(&other_type), []);

    let short = parse_datagram(&good[..good.len() - 1]);
    assert!(matches!(short.as_slice(), [Err(Error::Short { .. })]));
    // The inner length runs past the message.
    let mut inner = good.clone();
    inner[NETLINK_HEADER + 2..NETLINK_HEADER + 4].copy_from_slice(&100_u16.to_ne_bytes());
    assert!(matches!(
        parse_datagram(&inner).as_slice(),
        [Err(Error::Short { .. })]
    ));
    // A length that is smaller than its own header must not loop for ever.
    let mut zero = good;
    zero[..4].copy_from_slice(&0_u32.to_ne_bytes());
    assert!(parse_datagram(&zero).len() <= zero.len() / NETLINK_HEADER);
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse_datagram(&bytes);
        let _ = parse_options(&bytes);
        let _ = parse_datagram(&message(FAMILY_INET6, ROUTER_ADVERTISEMENT, &bytes));
    }

    #[test]
    fn no_names_break_a_line(names in proptest::collection::vec(any::<u8>(), 0..80)) {
        for name in search(&names).into_iter().flatten() {
            prop_assert!(!name.contains(char::is_whitespace));
            prop_assert!(!name.contains(char::is_control));
        }
    }
}
