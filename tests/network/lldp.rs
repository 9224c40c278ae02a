//! LLDP: what the switches say, and what is done when they say too little. The switches are
//! lldpd, one process each.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::{Value, json};

use super::lab::{Lab, MACHINE};
use crate::support::netns::{LEAVES, Leaf};
use crate::support::process::{Process, spawn};
use crate::support::services;

/// Seconds; what an unmet requirement is given where nothing else will come.
const SHORT: u64 = 12;

/// A leaf's own switch.
fn leaf(lab: &mut Lab, number: usize) {
    let switch = services::lldpd(&lab.ns, &LEAVES[number], &lab.dir);
    lab.keep(switch);
}

/// One lldpd on several ports, with more configuration.
fn lldpd(lab: &mut Lab, name: &str, ports: &str, configuration: &str) {
    let file = lab.dir.join(format!("{name}.conf"));
    let text = format!(
        "configure system hostname {name}\nconfigure lldp tx-interval 1\n\
         configure lldp tx-hold 10\n{configuration}"
    );
    fs::write(&file, text).expect("write the lldpd configuration");
    let chassis = ports.split(',').next().expect("a port");
    let mut command = lab.ns.command("lldpd");
    command
        .args(["-d", "-I", ports, "-C", chassis, "-O"])
        .arg(&file);
    // A socket's path has 107 bytes at most.
    command.args(["-u", &format!("/tmp/{}-{name}.lldp", lab.ns.name())]);
    let process = Process::start(name, command, &lab.dir);
    lab.keep(process);
}

fn listen(lab: &Lab, words: &str) -> super::lab::Node {
    lab.boot(&format!("guest.run=lldp guest.name={MACHINE} {words}"))
}

fn by_interface(event: &Value, interface: &str) -> Vec<Value> {
    let heard = event["heard"].as_array().expect("a list");
    let mut found = heard.clone();
    found.retain(|switch| switch["interface"] == interface);
    found
}

/// What `lldpcli` of a leaf shows of its neighbours.
fn neighbours(lab: &Lab, leaf: &Leaf) -> String {
    let socket = services::lldp_socket(&lab.ns, leaf);
    let arguments = [
        "-u",
        &socket,
        "-f",
        "keyvalue",
        "show",
        "neighbors",
        "details",
    ];
    services::run_inside(&lab.ns, "lldpcli", &arguments)
}

#[test]
fn two_switches_are_heard_and_hear_the_machine() {
    let mut lab = Lab::new("lldp_two");
    leaf(&mut lab, 0);
    leaf(&mut lab, 1);
    let mut node = listen(&lab, "");
    let event = node.event("switches");
    for (interface, leaf) in ["eth0", "eth1"].into_iter().zip(&LEAVES) {
        let heard = by_interface(&event, interface);
        assert_eq!(heard.len(), 1, "{event}");
        assert_eq!(heard[0]["hostname"], leaf.name, "{event}");
        // The port ID is a text, so the chassis' MAC stands in for the port's.
        assert_eq!(heard[0]["mac"], leaf.mac, "{event}");
        assert_eq!(heard[0]["identifier"], leaf.port, "{event}");
        let name = format!("port {} of {}", leaf.port, leaf.name);
        assert_eq!(heard[0]["name"], name, "{event}");
    }
    // lldpd notes a neighbour before it speaks the next time: what it heard is there by now.
    for leaf in &LEAVES {
        let seen = neighbours(&lab, leaf);
        assert!(seen.contains(&format!("chassis.name={MACHINE}")), "{seen}");
        assert!(seen.contains("chassis.descr=metal-anvil test, "), "{seen}");
        assert!(seen.contains(", listening for "), "{seen}");
        assert!(seen.contains("port.descr=eth"), "{seen}");
    }
}

#[test]
fn one_switch_is_too_few_and_the_table_says_which_port_hears_what() {
    let mut lab = Lab::new("lldp_one");
    leaf(&mut lab, 0);
    let mut node = listen(&lab, &format!("guest.timeout={SHORT}"));
    let error = node.event("unmet")["error"]
        .as_str()
        .expect("a text")
        .to_owned();
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines.len(), 3, "{error}");
    assert!(
        lines[0].contains("1 of 2 interfaces hear a switch, 1 of 2"),
        "{error}"
    );
    for word in ["eth0", "switch \"leaf01\"", LEAVES[0].mac, "swp7"] {
        assert!(lines[1].contains(word), "{word}: {error}");
    }
    assert!(
        lines[2].contains("eth1") && lines[2].contains("nothing heard"),
        "{error}"
    );
}

#[test]
fn no_switch_at_all_is_enough_for_a_lab_only() {
    let lab = Lab::new("lldp_none");
    let mut node = listen(&lab, &format!("guest.timeout={SHORT}"));
    let event = node.event("unmet");
    let error = event["error"].as_str().expect("a text");
    assert_eq!(error.matches("nothing heard").count(), 2, "{error}");
    assert!(event["seconds"].as_u64() >= Some(SHORT), "{event}");
    drop(node);
    let mut node = listen(&lab, "guest.interfaces=0 guest.chassis=0");
    let event = node.event("switches");
    assert_eq!(
        (&event["heard"], &event["seconds"]),
        (&json!([]), &json!(0))
    );
}

#[test]
fn switches_that_are_silent_for_20_seconds_are_waited_for() {
    let mut lab = Lab::new("lldp_silent");
    let mut node = listen(&lab, "guest.quiet=20");
    node.event("quiet");
    leaf(&mut lab, 0);
    leaf(&mut lab, 1);
    let event = node.event("switches");
    assert!(event["seconds"].as_u64() >= Some(20), "{event}");
    assert_eq!(event["heard"].as_array().map(Vec::len), Some(2), "{event}");
}

#[test]
fn one_switch_on_two_ports_is_one() {
    let mut lab = Lab::new("lldp_same");
    lldpd(
        &mut lab,
        "spine",
        "tap0,tap1",
        "configure system capabilities enabled bridge\n",
    );
    let mut node = listen(&lab, &format!("guest.timeout={SHORT}"));
    let error = node.event("unmet")["error"]
        .as_str()
        .expect("a text")
        .to_owned();
    assert!(
        error.contains("2 of 2 interfaces hear a switch, 1 of 2 different"),
        "{error}"
    );
    assert_eq!(error.matches("switch \"spine\"").count(), 2, "{error}");
    drop(node);
    let mut node = listen(&lab, "guest.chassis=1");
    assert_eq!(
        node.event("switches")["heard"].as_array().map(Vec::len),
        Some(2)
    );
}

#[test]
fn a_host_is_no_switch_and_a_port_may_be_named_in_every_way() {
    let mut lab = Lab::new("lldp_ports");
    lldpd(
        &mut lab,
        "neighbour",
        "tap0",
        "configure system capabilities enabled station\n",
    );
    // lldpd's own port ID is the MAC; and an address to manage it by.
    lldpd(
        &mut lab,
        "leaf",
        "tap1",
        "configure system capabilities enabled router\n\
         configure system ip management pattern 2001:db8:ff::1\n",
    );
    let mut node = listen(&lab, &format!("guest.timeout={SHORT}"));
    let error = node.event("unmet")["error"]
        .as_str()
        .expect("a text")
        .to_owned();
    assert!(
        error.contains("not a switch (neither bridge nor router is enabled) \"neighbour\""),
        "{error}"
    );
    assert!(error.contains("switch \"leaf\""), "{error}");
    drop(node);
    let mut node = listen(&lab, "guest.interfaces=1 guest.chassis=1");
    let heard = by_interface(&node.event("switches"), "eth1");
    assert_eq!(heard[0]["mac"], LEAVES[1].mac, "{heard:?}");
    assert_eq!(heard[0]["identifier"], LEAVES[1].mac, "{heard:?}");
    assert_eq!(
        heard[0]["management"],
        json!(["2001:db8:ff::1"]),
        "{heard:?}"
    );
}

/// A frame with a priority tag (VLAN 0), sent again and again. Cards drop other VLANs themselves.
const TAGGED: &str = "
import socket, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(('tap0', 0))
def tlv(kind, value): return (kind << 9 | len(value)).to_bytes(2, 'big') + value
frame = bytes.fromhex('0180c200000e' '020000000010' '8100' 'e000' '88cc')
frame += tlv(1, b'\\x04' + bytes.fromhex('020000000010')) + tlv(2, b'\\x05swp1') + tlv(3, b'\\0\\x78')
frame += tlv(5, b'tagged') + tlv(7, b'\\0\\x04\\0\\x04') + tlv(0, b'')
while True:
    s.send(frame)
    time.sleep(0.5)
";

#[test]
fn frames_with_a_vlan_tag_are_heard() {
    let mut lab = Lab::new("lldp_vlan");
    let mut command = lab.ns.command("/usr/bin/python3");
    command.args(["-c", TAGGED]);
    let sender = Process::start("tagged", command, &lab.dir);
    lab.keep(sender);
    let mut node = listen(&lab, "guest.interfaces=1 guest.chassis=1");
    let heard = by_interface(&node.event("switches"), "eth0");
    assert_eq!(heard[0]["hostname"], "tagged", "{heard:?}");
    assert_eq!(heard[0]["identifier"], "swp1", "{heard:?}");
}

#[test]
fn the_command_line_shows_neighbours_as_they_come_and_go() {
    let mut lab = Lab::new("lldp_cli");
    lab.ns.ip("link add port0 type veth peer name host0");
    lab.ns.ip("link set port0 up");
    lab.ns.ip("link set host0 up");
    let start = |arguments: &[&str]| {
        let mut command = lab.ns.command(env!("CARGO_BIN_EXE_metal-anvil"));
        command.args(["lldp", "listen", "host0"]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        spawn("metal-anvil", command)
    };
    let mut children = [start(&[]), start(&["--json"])];
    let mut outputs = children
        .each_mut()
        .map(|child| BufReader::new(child.stdout.take().expect("piped stdout")).lines());
    let mut next = |number: usize| outputs[number].next().expect("a line").expect("a line");
    let bridge = "configure system capabilities enabled bridge\n";
    lldpd(&mut lab, "leaf", "port0", bridge);
    let line = next(0);
    assert!(
        line.contains(" host0 new: switch \"leaf\", chassis "),
        "{line}"
    );
    let object: Value = serde_json::from_str(&next(1)).expect("JSON");
    assert_eq!(
        (&object["event"], &object["system_name"], &object["switch"]),
        (&json!("new"), &json!("leaf"), &json!(true)),
        "{object}"
    );
    // It says goodbye, or is silent for longer than it said it would be.
    lab.stop("leaf");
    let gone = |line: &str| line.contains("gone") || line.contains("silent");
    assert!((0..10).any(|_| gone(&next(0))));
    assert!((0..10).any(|_| gone(&next(1))));
    for child in &mut children {
        crate::support::process::end(child);
    }
}
