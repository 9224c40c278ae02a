//! Router advertisements of every kind, and the address that comes of them or does not.

use super::lab::Lab;

/// A radvd section for leaf `number` (0 or 1) with `options` beside its usual ones.
pub fn router(number: usize, options: &str) -> String {
    format!(
        "interface tap{number} {{ AdvSendAdvert on; MinRtrAdvInterval 3; MaxRtrAdvInterval 4; {options} }};\n"
    )
}

/// A radvd prefix.
pub fn prefix(text: &str, options: &str) -> String {
    format!("prefix {text} {{ {options} }};")
}

#[test]
fn a_prefix_makes_an_address() {
    let mut lab = Lab::new("prefix");
    lab.routers(&[router(0, &prefix("2001:db8:a::/64", ""))]);
    let mut node = lab.boot("guest.run=address");
    let address = node.event("address");
    assert_eq!(address["link"], "eth0", "{address}");
    assert_eq!(
        address["address"],
        lab.eui64(0, "2001:db8:a:0:"),
        "{address}"
    );
}
