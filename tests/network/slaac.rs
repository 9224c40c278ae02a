//! Router advertisements of every kind, and the address that comes of them or does not.

use std::time::{Duration, Instant};

use super::lab::{Lab, SOON, prefix, router};

/// How long a guest looks for an address that must not come: every advertisement has come by then.
const PATIENCE: &str = "guest.slaac=15";
/// The first leaf's prefix, and the second's.
const A: &str = "2001:db8:a:0:";
const B: &str = "2001:db8:b:0:";

/// The guest finds no usable address, and its report of the first card holds every word of `wanted`.
fn assert_no_address(name: &str, options: &str, wanted: &[&str]) {
    let mut lab = Lab::new(name);
    lab.routers(&[router(0, options)]);
    let mut node = lab.boot(&format!("guest.run=address {PATIENCE}"));
    let (event, data) = node.any_event(&["failed", "address"], SOON);
    assert_eq!(event, "failed", "{data}");
    let error = data["error"].as_str().unwrap_or_default();
    let line = error.lines().find(|line| line.contains("eth0"));
    let line = line.unwrap_or_else(|| panic!("no line for eth0 in {error}"));
    for word in wanted {
        assert!(line.contains(word), "{word:?} is not in {line:?}");
    }
}

/// The guest takes the address that card `number` makes of `network` by EUI-64.
fn assert_address(lab: &Lab, words: &str, number: usize, network: &str) {
    let mut node = lab.boot(&format!("guest.run=address {words}"));
    let address = node.event("address");
    assert_eq!(address["link"], format!("eth{number}"), "{address}");
    assert_eq!(address["address"], lab.eui64(number, network), "{address}");
}

#[test]
fn no_ra_is_reported_for_each_card() {
    let lab = Lab::new("no_ra");
    let mut node = lab.boot("guest.run=address guest.slaac=8");
    node.guest.set_cable(1, false);
    let failed = node.event("failed");
    let error = failed["error"].as_str().unwrap_or_default();
    for (card, wanted) in [
        (
            "eth0",
            ["carrier", "no router advertisement", "spanning tree"],
        ),
        ("eth1", ["no carrier", "no router advertisement", "cable"]),
    ] {
        let line = error.lines().find(|line| line.contains(card));
        let line = line.unwrap_or_else(|| panic!("no line for {card} in {error}"));
        for word in wanted {
            assert!(line.contains(word), "{word:?} is not in {line:?}");
        }
    }
}

#[test]
fn ra_after_60_s_still_counts() {
    let mut lab = Lab::new("late_ra");
    let mut node = lab.boot("guest.run=address guest.slaac=120");
    node.event("link");
    let up = Instant::now();
    // The time itself is what is tested: nothing happens before it is over.
    std::thread::sleep(Duration::from_secs(60));
    lab.routers(&[router(0, &prefix("2001:db8:a::/64", ""))]);
    let address = node.event("address");
    assert!(up.elapsed() >= Duration::from_secs(60));
    assert_eq!(address["address"], lab.eui64(0, A), "{address}");
}

#[test]
fn ra_without_a_prefix_gives_no_address() {
    assert_no_address("no_prefix", "", &["no prefix", "must advertise a /64"]);
}

#[test]
fn ra_with_a_48_gives_no_address() {
    let wanted = ["2001:db8::/48 (L A", "it is not a /64"];
    assert_no_address("prefix_48", &prefix("2001:db8::/48", ""), &wanted);
}

#[test]
fn ra_with_a_128_gives_no_address() {
    let wanted = ["2001:db8:a::1/128 (L A", "it is not a /64"];
    assert_no_address("prefix_128", &prefix("2001:db8:a::1/128", ""), &wanted);
}

#[test]
fn ra_with_the_a_bit_off_gives_no_address() {
    let off = prefix("2001:db8:a::/64", "AdvAutonomous off;");
    let wanted = ["2001:db8:a::/64 (L valid", "autonomous flag (A) is off"];
    assert_no_address("a_bit_off", &off, &wanted);
}

#[test]
fn ra_with_preferred_lifetime_0_gives_no_address() {
    let zero = prefix("2001:db8:a::/64", "AdvPreferredLifetime 0;");
    let wanted = ["preferred 0 s", "preferred lifetime is zero"];
    assert_no_address("preferred_0", &zero, &wanted);
}

#[test]
fn ra_with_valid_lifetime_0_gives_no_address() {
    let zero = prefix(
        "2001:db8:a::/64",
        "AdvValidLifetime 0; AdvPreferredLifetime 0;",
    );
    assert_no_address("valid_0", &zero, &["valid 0 s", "valid lifetime is zero"]);
}

#[test]
fn ra_with_the_l_bit_off_works() {
    let mut lab = Lab::new("l_bit_off");
    lab.routers(&[router(0, &prefix("2001:db8:a::/64", "AdvOnLink off;"))]);
    assert_address(&lab, "", 0, A);
}

#[test]
fn ra_with_router_lifetime_0_works() {
    let mut lab = Lab::new("router_lifetime_0");
    let options = format!("AdvDefaultLifetime 0; {}", prefix("2001:db8:a::/64", ""));
    lab.routers(&[router(0, &options)]);
    assert_address(&lab, "", 0, A);
}

#[test]
fn ra_only_on_the_second_card_works() {
    let mut lab = Lab::new("second_card");
    lab.routers(&[router(1, &prefix("2001:db8:b::/64", ""))]);
    assert_address(&lab, "", 1, B);
}

#[test]
fn several_prefixes_make_several_addresses() {
    let mut lab = Lab::new("prefixes");
    let both = [prefix("2001:db8:a::/64", ""), prefix("fd00:a::/64", "")].concat();
    lab.routers(&[router(0, &both)]);
    let mut node = lab.boot("guest.run=address");
    let mut wanted = vec![lab.eui64(0, A), lab.eui64(0, "fd00:a:0:0:")];
    while !wanted.is_empty() {
        let usable = node.event("usable");
        wanted.retain(|address| usable["address"] != *address);
    }
}

#[test]
fn stable_privacy_addresses_are_the_same_in_every_boot() {
    let mut lab = Lab::new("stable_privacy");
    lab.routers(&[router(0, &prefix("2001:db8:a::/64", ""))]);
    let take = || {
        let mut node = lab.boot("guest.run=address guest.addressing=stable-privacy");
        let address = node.event("address")["address"].clone();
        address.as_str().unwrap_or_default().to_owned()
    };
    let first = take();
    assert!(first.starts_with("2001:db8:a:"), "{first}");
    assert_ne!(first, lab.eui64(0, A), "the MAC is in it");
    assert_eq!(take(), first);
}

#[test]
fn duplicate_address_on_one_card_is_reported_and_the_other_card_used() {
    let mut lab = Lab::new("duplicate");
    let taken = lab.eui64(0, A);
    lab.ns.ip(&format!("address add {taken}/64 dev tap0 nodad"));
    lab.routers(&[
        router(0, &prefix("2001:db8:a::/64", "")),
        router(1, &prefix("2001:db8:b::/64", "")),
    ]);
    let mut node = lab.boot("guest.run=address");
    let line = node.guest.see(&format!("{taken} is a duplicate"), SOON);
    assert!(line.contains("eth0"), "{line}");
    let usable = lab.eui64(1, B);
    while node.event("usable")["address"] != *usable {}
}

#[test]
fn duplicate_address_on_the_only_card_gives_way_to_another() {
    let mut lab = Lab::new("duplicate_alone");
    lab.cards.truncate(1);
    let taken = lab.eui64(0, A);
    lab.ns.ip(&format!("address add {taken}/64 dev tap0 nodad"));
    lab.routers(&[router(0, &prefix("2001:db8:a::/64", ""))]);
    let mut node = lab.boot("guest.run=address");
    let address = node.event("address");
    let text = address["address"].as_str().unwrap_or_default();
    assert!(
        text.starts_with("2001:db8:a:") && text != taken,
        "{address}"
    );
    node.guest.see(&format!("{taken} is a duplicate"), SOON);
}
