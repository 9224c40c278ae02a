//! What happens to a machine that waits for its allocation while the network changes.

use serde_json::json;

use crate::support::allocation::Allocation;
use crate::support::netns::SERVICE;

use super::lab::{Lab, Node, SOON, prefix, router};
use super::web::Web;

const WAIT: &str = "/Wait HTTP/1.1";
const A: &str = "2001:db8:a:0:";
const B: &str = "2001:db8:b:0:";
const C: &str = "2001:db8:c:0:";

/// A guest that waits at its boot helper, over the first card.
fn waiting(lab: &mut Lab, words: &str) -> (Web, Node) {
    lab.routers(&[
        router(0, &prefix("2001:db8:a::/64", "")),
        router(1, &prefix("2001:db8:b::/64", "")),
    ]);
    let web = lab.web("[::]:4242");
    web.config(json!({"partition": "test-part"}));
    let node = lab.boot(&format!(
        "guest.run=wait guest.helper=http://[{SERVICE}]:4242 {words}"
    ));
    (web, node)
}

/// The Wait that is open in the end is heard.
fn assert_allocated(web: &Web, node: &mut Node) {
    let allocation = Allocation::new("http://[2001:db8::1]/image", "/dev/vda");
    web.allocate(allocation.0.clone());
    assert_eq!(node.event("allocation")["uuid"], allocation.uuid());
}

/// The address that the first Wait came from.
fn first_wait(web: &Web) -> String {
    let hit = web.wait_hit(WAIT, SOON, |_| true);
    hit.from.ip().to_string()
}

#[test]
fn link_flap_during_wait_moves_to_the_other_card() {
    let mut lab = Lab::new("flap");
    let (web, mut node) = waiting(&mut lab, "");
    let from = first_wait(&web);
    let (card, other) = if from == lab.eui64(0, A) {
        (0, lab.eui64(1, B))
    } else {
        (1, lab.eui64(0, A))
    };
    node.guest.set_cable(card, false);
    web.wait_hit(WAIT, SOON, |hit| hit.from.ip().to_string() == other);
    node.guest.set_cable(card, true);
    assert_allocated(&web, &mut node);
}

#[test]
fn link_flap_of_the_only_card_during_wait_is_survived() {
    let mut lab = Lab::new("flap_alone");
    lab.cards.truncate(1);
    let (web, mut node) = waiting(&mut lab, "");
    first_wait(&web);
    node.guest.set_cable(0, false);
    node.guest.see("eth0: no carrier", SOON);
    node.guest.set_cable(0, true);
    assert_allocated(&web, &mut node);
}

#[test]
fn prefix_renumbered_during_wait_is_followed() {
    let mut lab = Lab::new("renumbered");
    lab.cards.truncate(1);
    let (web, mut node) = waiting(&mut lab, "");
    assert_eq!(first_wait(&web), lab.eui64(0, A));
    lab.ns.ip("address add 2001:db8:c::1/64 dev tap0 nodad");
    let old = prefix("2001:db8:a::/64", "AdvPreferredLifetime 0;");
    lab.routers(&[router(0, &[old, prefix("2001:db8:c::/64", "")].concat())]);
    let new = lab.eui64(0, C);
    web.wait_hit(WAIT, SOON, |hit| hit.from.ip().to_string() == new);
    // The old network is gone: what still hung on it would never hear of the allocation.
    lab.ns.ip("address del 2001:db8:a::1/64 dev tap0");
    assert_allocated(&web, &mut node);
}

#[test]
fn renamed_link_during_wait_is_the_same_path() {
    let mut lab = Lab::new("renamed");
    lab.cards.truncate(1);
    let (web, mut node) = waiting(&mut lab, "guest.rename=uplink0");
    node.event("renamed");
    first_wait(&web);
    node.guest.see("eth0 is called uplink0 now", SOON);
    node.guest.see("uplink0 from", SOON);
    assert_allocated(&web, &mut node);
}
