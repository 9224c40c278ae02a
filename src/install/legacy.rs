//! `/etc/metal/install.yaml`, the format of the first metal-stack API.
//!
//! Older images, firewall-controller and lldpd read it. The field names are those of
//! os-installer's `InstallerConfig` (api/v1/legacy.go); enum values are the lower-case
//! names that the first API had.

use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::files::{Facts, console, known_nics};

/// The whole document.
pub fn install_yaml(facts: &Facts<'_>) -> Value {
    let allocation = &facts.allocation.raw;
    let list = |name: &str, convert: fn(&Value) -> Value| -> Vec<Value> {
        elements(field(allocation, name)).map(convert).collect()
    };
    json!({
        "hostname": facts.allocation.hostname,
        "networks": list("networks", network),
        "machineuuid": facts.machine.to_string(),
        "sshpublickey": facts.allocation.ssh_public_keys.join("\n"),
        "password": facts.password.expose_secret(),
        "console": console(facts),
        "timestamp": facts.timestamp.to_string(),
        "nics": known_nics(facts.nics).map(|nic| json!({
            "mac": nic.mac,
            "name": nic.name,
            "identifier": nic.identifier,
            "neighbors": nic.neighbors.iter().map(|neighbor| json!({
                "mac": neighbor.mac,
                "name": neighbor.name,
                "identifier": neighbor.identifier,
                "neighbors": [],
            })).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "vpn": match field(allocation, "vpn") {
            Value::Object(_) => vpn(field(allocation, "vpn")),
            _ => Value::Null,
        },
        "role": enum_name(&json!(facts.allocation.allocation_type), "MACHINE_ALLOCATION_TYPE_"),
        "raidenabled": facts.raid_enabled,
        "root_uuid": facts.root_uuid,
        "firewall_rules": match field(allocation, "firewallRules") {
            Value::Null => Value::Null,
            rules => json!({
                "egress": elements(field(rules, "egress")).map(rule).collect::<Vec<_>>(),
                "ingress": elements(field(rules, "ingress")).map(rule).collect::<Vec<_>>(),
            }),
        },
        "dns_servers": list("dnsServers", |server| json!({"ip": field(server, "ip")})),
        "ntp_servers": list("ntpServers", |server| json!({"address": field(server, "address")})),
    })
}

fn network(network: &Value) -> Value {
    let kind = enum_name(field(network, "networkType"), "NETWORK_TYPE_");
    let nat = enum_name(field(network, "natType"), "NAT_TYPE_");
    let old_kind = match kind.as_str() {
        "child" => "privateprimaryunshared",
        "child-shared" => "privateprimaryshared",
        other => other,
    };
    json!({
        "asn": number(field(network, "asn")),
        "destinationprefixes": array(field(network, "destinationPrefixes")),
        "ips": array(field(network, "ips")),
        "nat": nat == "ipv4-masquerade",
        "nattypev2": nat,
        "networkid": field(network, "network"),
        "networktype": old_kind,
        "networktypev2": kind,
        "prefixes": array(field(network, "prefixes")),
        "private": matches!(kind.as_str(), "child" | "child-shared"),
        "projectid": field(network, "project"),
        "underlay": kind == "underlay",
        "vrf": number(field(network, "vrf")),
    })
}

fn vpn(vpn: &Value) -> Value {
    json!({
        "address": field(vpn, "controlPlaneAddress"),
        "auth_key": field(vpn, "authKey"),
        "connected": false,
    })
}

fn rule(rule: &Value) -> Value {
    let mut converted = json!({
        "ports": elements(field(rule, "ports")).map(number).collect::<Vec<_>>(),
        "to": array(field(rule, "to")),
    });
    if let Some(fields) = converted.as_object_mut() {
        if let Value::String(comment) = field(rule, "comment") {
            fields.insert("comment".into(), json!(comment));
        }
        if let Value::Array(from) = field(rule, "from") {
            fields.insert("from".into(), json!(from));
        }
        let protocol = enum_name(field(rule, "protocol"), "IP_PROTOCOL_");
        if !protocol.is_empty() {
            fields.insert("protocol".into(), json!(protocol));
        }
    }
    converted
}

/// A field of a protobuf JSON message: lowerCamelCase, or the original snake_case name.
pub(super) fn field<'a>(message: &'a Value, name: &str) -> &'a Value {
    let snake: String = name
        .chars()
        .flat_map(|c| {
            let mark = c.is_ascii_uppercase().then_some('_');
            mark.into_iter().chain([c.to_ascii_lowercase()])
        })
        .collect();
    message
        .get(name)
        .or_else(|| message.get(snake))
        .unwrap_or(&Value::Null)
}

fn elements(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn array(value: &Value) -> Value {
    json!(elements(value).collect::<Vec<_>>())
}

/// 64-bit integers travel as text; absent is 0.
fn number(value: &Value) -> Value {
    match value {
        Value::String(text) => json!(text.parse::<i64>().unwrap_or_default()),
        Value::Number(number) => json!(number),
        _ => json!(0),
    }
}

/// `NETWORK_TYPE_CHILD_SHARED` as the first API said it: `child-shared`.
fn enum_name(value: &Value, prefix: &str) -> String {
    let name = value.as_str().unwrap_or_default();
    let name = name.strip_prefix(prefix).unwrap_or(name);
    match name {
        "UNSPECIFIED" => String::new(),
        name => name.to_ascii_lowercase().replace('_', "-"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::files::tests::{parsed, with_facts};
    use crate::install::files::{self, TargetFile};

    #[test]
    fn the_older_format() {
        let files: Vec<TargetFile> = with_facts(|facts| files::render(facts).unwrap());
        let seen = parsed(&files, "/etc/metal/install.yaml");
        let expected = json!({
            "hostname": "web-1",
            "networks": [{
                "asn": 4_200_000_001_u32, "destinationprefixes": ["::/0"],
                "ips": ["2001:db8::5"], "nat": true, "nattypev2": "ipv4-masquerade",
                "networkid": "internet", "networktype": "external",
                "networktypev2": "external", "prefixes": ["2001:db8::/32"],
                "private": false, "projectid": "p", "underlay": false, "vrf": 46,
            }],
            "machineuuid": "00000000-0000-0000-0000-ac1f6b7aabcd",
            "sshpublickey": "ssh-ed25519 AAAA a\nssh-ed25519 BBBB b",
            "password": "0123456789",
            "console": "ttyS0,115200n8",
            "timestamp": "2026-11-22T08:00:00Z",
            "nics": [{
                "mac": "00:00:5e:00:53:aa", "name": "eth0", "identifier": "00:00:5e:00:53:aa",
                "neighbors": [{
                    "mac": "00:00:5e:00:53:01", "name": "Ethernet0",
                    "identifier": "00:00:5e:00:53:01", "neighbors": [],
                }],
            }],
            "vpn": {"address": "https://vpn", "auth_key": "k3y", "connected": false},
            "role": "machine",
            "raidenabled": false,
            "root_uuid": "9e2f",
            "firewall_rules": {
                "egress": [{"ports": [443], "to": ["::/0"], "comment": "out", "protocol": "tcp"}],
                "ingress": [],
            },
            "dns_servers": [{"ip": "2001:db8::53"}],
            "ntp_servers": [{"address": "ntp.example"}],
        });
        assert_eq!(seen, expected);
    }

    #[test]
    fn network_types() {
        for (sent, old, new, private, underlay) in [
            (
                "NETWORK_TYPE_CHILD",
                "privateprimaryunshared",
                "child",
                true,
                false,
            ),
            (
                "NETWORK_TYPE_CHILD_SHARED",
                "privateprimaryshared",
                "child-shared",
                true,
                false,
            ),
            ("NETWORK_TYPE_UNDERLAY", "underlay", "underlay", false, true),
            ("NETWORK_TYPE_UNSPECIFIED", "", "", false, false),
        ] {
            let seen = network(&json!({"network_type": sent}));
            assert_eq!(seen["networktype"], old);
            assert_eq!(seen["networktypev2"], new);
            assert_eq!(seen["private"], private);
            assert_eq!(seen["underlay"], underlay);
            assert_eq!((&seen["vrf"], &seen["ips"]), (&json!(0), &json!([])));
        }
    }
}
