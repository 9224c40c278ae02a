//! Which path is taken to the boot helper, and how its URL may look.

use serde_json::json;

use crate::support::netns::SERVICE;

use super::lab::{Lab, prefix, router, router_on};
use super::web::Web;

/// Both leaves with a prefix of their own.
fn two_routers(lab: &mut Lab) {
    lab.routers(&[
        router(0, &prefix("2001:db8:a::/64", "")),
        router(1, &prefix("2001:db8:b::/64", "")),
    ]);
}

fn boot_helper(lab: &Lab) -> Web {
    let web = lab.web("[::]:4242");
    web.config(json!({"partition": "test-part"}));
    web
}

/// The words that send a guest to the boot helper at its address.
fn literal() -> String {
    format!("guest.run=helper guest.helper=http://[{SERVICE}]:4242")
}

#[test]
fn helper_by_literal_address() {
    let mut lab = Lab::new("literal");
    two_routers(&mut lab);
    let web = boot_helper(&lab);
    let mut node = lab.boot(&literal());
    let helper = node.event("helper");
    assert_eq!(helper["partition"], "test-part", "{helper}");
    let hit = web.wait_hit("GET /config/", 30, |_| true);
    assert_eq!(hit.host, format!("[{SERVICE}]:4242"));
    assert_eq!(helper["address"], hit.from.ip().to_string(), "{hit:?}");
}

#[test]
fn helper_reachable_only_through_the_second_card() {
    let mut lab = Lab::new("only_second");
    // What comes in on the first leaf for the helper gets lost, as behind a broken spine.
    for rule in [
        format!("pref 10 iif tap0 to {SERVICE}/128 blackhole"),
        "pref 20 lookup local".to_owned(),
    ] {
        lab.ns.ip(&format!("-6 rule add {rule}"));
    }
    lab.ns.ip("-6 rule del pref 0");
    two_routers(&mut lab);
    let web = boot_helper(&lab);
    let mut node = lab.boot(&literal());
    let helper = node.event("helper");
    assert_eq!(helper["link"], "eth1", "{helper}");
    assert_eq!(helper["address"], lab.eui64(1, "2001:db8:b:0:"), "{helper}");
    web.wait_hit("GET /config/", 30, |hit| {
        hit.from.ip().to_string() == lab.eui64(1, "2001:db8:b:0:")
    });
}

#[test]
fn helper_that_nobody_reaches_is_reported_with_what_was_tried() {
    let mut lab = Lab::new("unreachable");
    two_routers(&mut lab);
    let mut node = lab.boot(&format!("{} guest.race=15", literal()));
    let failed = node.event("failed");
    let error = failed["error"].as_str().unwrap_or_default();
    for card in ["eth0", "eth1"] {
        let line = error.lines().find(|line| line.contains(card));
        let line = line.unwrap_or_else(|| panic!("no line for {card} in {error}"));
        let wanted = format!("tried: [{SERVICE}]:4242: {SERVICE}: Connection refused");
        assert!(line.contains(&wanted), "{line}");
    }
}

#[test]
fn helper_by_link_local_address_with_zone() {
    let mut lab = Lab::new("zone");
    two_routers(&mut lab);
    lab.ns.ip("address add fe80::42/64 dev tap1 nodad");
    let web = boot_helper(&lab);
    let mut node = lab.boot("guest.run=helper guest.helper=http://[fe80::42%25eth1]:4242");
    let helper = node.event("helper");
    assert_eq!(helper["link"], "eth1", "{helper}");
    let hit = web.wait_hit("GET /config/", 30, |_| true);
    assert_eq!(hit.host, "[fe80::42]:4242", "a Host header has no zone");
}

#[test]
fn ula_and_gua_side_by_side_reach_a_helper_of_either_kind() {
    let mut lab = Lab::new("ula_gua");
    lab.ns.ip("address add fd00:ff::1/128 dev lo nodad");
    let both = [prefix("2001:db8:a::/64", ""), prefix("fd00:a::/64", "")].concat();
    lab.routers(&[router(0, &both)]);
    let web = boot_helper(&lab);
    for (helper, network) in [(SERVICE, "2001:db8:a:0:"), ("fd00:ff::1", "fd00:a:0:0:")] {
        let mut node = lab.boot(&format!(
            "guest.run=helper guest.helper=http://[{helper}]:4242"
        ));
        // Both may not be there yet when the first one is used.
        let helper = node.event("helper");
        assert_eq!(helper["link"], "eth0", "{helper} ({network})");
    }
    assert_eq!(web.hits().len(), 2);
}

#[test]
fn several_routers_on_one_link_work() {
    let mut lab = Lab::new("routers");
    lab.cards.truncate(1);
    // Both leaves on one wire: the card hears two routers with two prefixes.
    lab.one_wire();
    lab.routers(&[
        router_on("leaf0", &prefix("2001:db8:a::/64", "")),
        router_on("leaf1", &prefix("2001:db8:b::/64", "")),
    ]);
    let web = boot_helper(&lab);
    let mut node = lab.boot(&literal());
    for network in ["2001:db8:a:0:", "2001:db8:b:0:"] {
        let usable = format!("\"address\":\"{}\"", lab.eui64(0, network));
        node.guest.see(&usable, 90);
    }
    let helper = node.event("helper");
    assert_eq!(helper["partition"], "test-part", "{helper}");
    assert_eq!(web.hits().len(), 1);
}

#[test]
fn mtu_1280_path_carries_long_requests() {
    let mut lab = Lab::new("mtu");
    let far = lab.far_away("2001:db8:fa::1");
    lab.routers(&[router(0, &prefix("2001:db8:a::/64", ""))]);
    let web = Web::start(&far, "[::]:4242");
    let upload = 100_000;
    let mut node = lab.boot(&format!(
        "guest.run=helper guest.helper=http://[2001:db8:fa::1]:4242 guest.upload={upload}"
    ));
    node.event("helper");
    let hit = web.wait_hit("POST /upload", 30, |_| true);
    assert_eq!(hit.body, upload);
}

#[test]
fn mtu_is_9000_where_the_card_takes_it_and_the_advertisements_for_ipv6() {
    let mut lab = Lab::new("ra_mtu");
    let options = format!("AdvLinkMTU 1400; {}", prefix("2001:db8:a::/64", ""));
    lab.routers(&[router(0, &options)]);
    let _web = boot_helper(&lab);
    lab.cards.truncate(1);
    let mut node = lab.boot(&literal());
    node.event_that("link", |link| link["mtu"] == 9000);
    let helper = node.event("helper");
    assert_eq!(helper["mtu"], "1400", "{helper}");
}
