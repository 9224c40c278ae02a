//! Cards: late ones, and those of a BMC.

use serde_json::json;

use crate::support::netns::SERVICE;

use super::lab::{Lab, SOON, prefix, router};

#[test]
fn late_card_is_brought_up_when_it_appears() {
    let mut lab = Lab::new("late_card");
    lab.cards = Vec::new();
    lab.extra =
        "-device qemu-xhci,id=late -netdev tap,id=late0,ifname=tap0,script=no,downscript=no"
            .split_whitespace()
            .map(str::to_owned)
            .collect();
    lab.routers(&[router(0, &prefix("2001:db8:a::/64", ""))]);
    let mut node = lab.boot("guest.run=address");
    node.event("ready");
    let card = json!({"driver": "usb-net", "netdev": "late0", "bus": "late.0", "id": "card0",
        "mac": "52:54:00:5e:5f:00"});
    node.guest.control("device_add", card);
    let link = node.event("link");
    assert_eq!(link["bmc"], true, "{link}");
    assert!(
        link["place"].as_str().unwrap_or_default().contains("/usb"),
        "{link}"
    );
    node.event("address");
}

#[test]
fn bmc_card_with_a_network_of_its_own_gives_way_to_a_real_one() {
    let mut lab = Lab::new("bmc");
    lab.cards = vec!["usb-net", "virtio-net-pci"];
    // The BMC's network is there at once and leads to the helper as well; the real one is late.
    lab.routers(&[router(0, &prefix("2001:db8:a::/64", ""))]);
    let web = lab.web("[::]:4242");
    web.config(json!({"partition": "test-part"}));
    let mut node = lab.boot(&format!(
        "guest.run=helper guest.helper=http://[{SERVICE}]:4242"
    ));
    let address = node.event("address");
    let link = node.link(address["link"].as_str().unwrap_or_default());
    assert_eq!(link["bmc"], true, "the BMC's network comes first: {link}");
    lab.routers(&[
        router(0, &prefix("2001:db8:a::/64", "")),
        router(1, &prefix("2001:db8:b::/64", "")),
    ]);
    let helper = node.event_within("helper", SOON + 60);
    let link = node.link(helper["link"].as_str().unwrap_or_default());
    assert_eq!(link["driver"], "virtio_net", "{helper}: {link}");
    assert_eq!(web.hits().len(), 1);
}
