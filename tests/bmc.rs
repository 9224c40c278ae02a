//! The BMC, from a guest with our kernel: set up, reported, and logged in to from outside.
//!
//! Two tests run the agent against the stand-in apiserver; the others a small init that sets the
//! BMC up as the agent does.

mod support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use serde_json::Value;

use support::bed::Bed;
use support::disk::{Bus, Disk};
use support::guest::End;
use support::initrd::{built, newc};
use support::ipmi::{self, BMC_ADDRESS, BMC_MAC, FACTORY, FRU};
use support::machine::{Machine, Start};
use support::media::{self, CONSOLE, NO_TIMER_CHECK};
use support::mock_bmc::MockBmc;
use support::root;

const UUID: &str = "0c7d3c57-5e0e-4f0a-9f5b-5a1e6f2b7c10";
/// The password of the stand-in's super-user.
const SUPER_SECRET: &str = "standin-superuser";

/// The Register that the agent would send from a machine with these devices, the machine user's
/// password, and all of the console.
fn light_guest(name: &str, devices: Vec<String>) -> (Value, String, String) {
    let dir = directory(name);
    let initrd = dir.join("initrd");
    let init = newc(&[("init", built("--example", "guest_bmc"))]);
    fs::write(&initrd, init).expect("write the initrd");
    let start = Start::Direct {
        kernel: media::part("vmlinuz"),
        initrd,
        append: format!("{CONSOLE} {NO_TIMER_CHECK} panic=-1"),
    };
    let secrets = Disk::empty(&dir, "secrets", Bus::Virtio, 1);
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(&secrets.path);
    let file = file.expect("own disk");
    file.write_all_at(SUPER_SECRET.as_bytes(), 0)
        .expect("write a secret");
    let mut machine = Machine::new(&dir, UUID, start, vec![secrets]);
    machine.cards.clear();
    machine.memory = 512;
    machine.extra = devices;
    let qemu = std::process::Command::new("qemu-system-x86_64");
    let mut guest = machine.power_on(qemu, &dir);
    let line = guest.wait_for("GUEST REGISTER ", 120);
    guest.wait_for("GUEST DONE", 10);
    assert_eq!(guest.wait_end(30), End::PowerOff);
    let (_, json) = line.split_once("GUEST REGISTER ").expect("as waited for");
    let register = serde_json::from_str(json).expect("a Register");
    let mut sector = [0; 512];
    file.read_exact_at(&mut sector, 512).expect("own disk");
    let length = sector.iter().position(|byte| *byte == 0).expect("an end");
    let password = String::from_utf8(sector[..length].to_vec()).expect("a password");
    let text = guest.text();
    assert_no_secret(&text, &[&password, SUPER_SECRET]);
    (register, password, text)
}

fn directory(name: &str) -> PathBuf {
    let dir = root().join("target/e2e").join(name);
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).expect("directory for the guest");
    dir
}

fn assert_no_secret(text: &str, secrets: &[&str]) {
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        assert!(!text.contains(secret), "a secret is on the console");
    }
}

/// The agent, with every line of its log.
fn agent() -> Start {
    match media::agent() {
        Start::Direct {
            kernel,
            initrd,
            append,
        } => Start::Direct {
            kernel,
            initrd,
            append: format!("{append} DEBUG=1"),
        },
        other => other,
    }
}

#[test]
fn the_control_plane_can_log_in_to_the_bmc_that_is_registered() {
    let mut bed = Bed::plan("bmc_registered").start();
    let dir = bed.dir.clone();
    let sim = ipmi::ipmi_sim(bed.netns(), &dir);
    bed.also(sim);
    let mut machine = bed.machine(agent(), vec![]);
    machine.extra = ipmi::external();
    let guest = bed.power_on(&machine);
    let call = bed.standin.wait_call(&bed.machine, "Register", 1, 180);
    let message = &call["message"];
    let bmc = &message["bmc"];
    let address = bmc["address"].as_str().expect("an address");
    assert_eq!(address, format!("{BMC_ADDRESS}:623"));
    for (field, wanted) in [
        ("mac", BMC_MAC),
        ("user", "metal"),
        ("interface", "lanplus"),
        ("powerState", "ON"),
        ("version", "9.08"),
    ] {
        assert_eq!(bmc[field], wanted, "{field}");
    }
    for (field, wanted) in FRU {
        assert_eq!(message["fru"][field], wanted, "{field}");
    }
    let refusals = bed.standin.refusals();
    assert!(refusals.is_empty(), "{refusals:?}");

    let password = bmc["password"].as_str().expect("a password");
    let log_in = |user, password, words: &[&str]| {
        ipmi::ipmitool(bed.netns(), address, user, password, words)
    };
    let info = log_in("metal", password, &["mc", "info"]).expect("metal logs in");
    assert!(info.contains("Firmware Revision         : 9.08"), "{info}");
    let users = log_in("metal", password, &["user", "list", "1"]).expect("metal may list users");
    for name in ["metal", "root", FACTORY.0] {
        let row = users.lines().find(|line| line.contains(name));
        let row = row.unwrap_or_else(|| panic!("no {name} in {users}"));
        assert!(row.contains("ADMINISTRATOR"), "{row}");
    }
    let fru = log_in("metal", password, &["fru"]).expect("metal may read the FRU");
    for (_, value) in FRU {
        assert!(fru.contains(value), "ipmitool reads no {value}: {fru}");
    }
    // ipmi_sim stores 16 bytes of a password and tests none, so the super-user's is checked with them.
    assert!(log_in("root", &SUPER_SECRET[..16], &["mc", "info"]).is_some());
    let (name, factory) = FACTORY;
    assert!(
        log_in(name, factory, &["mc", "info"]).is_some(),
        "{name} is as it was"
    );
    let mut wrong = password.to_owned();
    wrong.replace_range(..1, if wrong.starts_with('x') { "y" } else { "x" });
    assert!(log_in("metal", &wrong, &["mc", "info"]).is_none());

    assert_no_secret(&guest.text(), &[password, SUPER_SECRET, factory]);
    for log in ["metal-boot.log", "ipmi_sim.log", "apiserver.log"] {
        let text = fs::read_to_string(dir.join(log)).expect("own log");
        assert_no_secret(&text, &[password, SUPER_SECRET]);
    }
}

#[test]
fn a_bmc_that_is_busy_or_refuses_is_a_warning_and_the_boot_goes_on() {
    let bed = Bed::plan("bmc_broken").start();
    let mock = MockBmc::start(|netfn, _, _| match netfn {
        // FRU: an error; channels and users: busy without end.
        0x0a => vec![0xff],
        _ => vec![0xc0],
    });
    let disk = Disk::empty(&bed.dir, "disk", Bus::Virtio, 64);
    let mut machine = bed.machine(agent(), vec![disk]);
    machine.extra = mock.arguments();
    let guest = bed.power_on(&machine);
    let warning = bed.standin.wait_event(&bed.machine, "REGISTERING", 1, 180);
    let busy = "the BMC answers Get Channel Info with 0xc0 (busy)";
    assert_eq!(warning, format!("BMC: {busy}"));
    let call = bed.standin.wait_call(&bed.machine, "Register", 1, 30);
    assert!(call["message"].get("bmc").is_none(), "{call}");
    bed.standin.wait_event(&bed.machine, "WAITING", 1, 60);
    for said in [
        busy,
        "the BMC answers Get FRU Inventory Area Info with 0xff (unspecified error)",
    ] {
        guest.see(said, 1);
    }
    // One question is asked six times, and then no other of its kind.
    let again = guest.text().matches("asking again").count();
    assert_eq!(again, 5);
}

#[test]
fn qemus_own_bmc_gives_its_fru_and_no_user() {
    let dir = directory("bmc_sim_fru");
    let file = dir.join("fru.bin");
    fs::write(&file, ipmi::fru()).expect("write the inventory");
    let (register, password, text) = light_guest("bmc_sim", ipmi::internal(&file));
    assert!(register.get("bmc").is_none(), "{register}");
    assert_eq!(password, "");
    for (field, wanted) in FRU {
        assert_eq!(register["fru"][field], wanted, "{field}");
    }
    assert!(
        text.contains("GUEST FAULT no LAN channel of the BMC"),
        "{text}"
    );
    assert!(
        text.contains("GUEST WARNING \"BMC: no LAN channel"),
        "{text}"
    );
}

#[test]
fn a_machine_without_a_bmc_is_registered_without_and_without_a_warning() {
    let (register, password, text) = light_guest("bmc_none", vec![]);
    assert!(register.get("bmc").is_none(), "{register}");
    assert_eq!(password, "");
    assert!(
        text.contains("GUEST FAULT this machine has no BMC"),
        "{text}"
    );
    assert!(text.contains("GUEST WARNING \"\""), "{text}");
}

#[test]
fn a_busy_bmc_with_an_ipv6_address_is_set_up_all_the_same() {
    let mut bmc = Ipv6Bmc::default();
    let mut asked = 0;
    let mock = MockBmc::start(move |netfn, command, data| {
        asked += 1;
        match asked % 3 {
            1 => vec![0xc0],
            2 if command == 0x47 => vec![0xcf],
            _ => bmc.answer(netfn, command, data),
        }
    });
    let (register, password, _) = light_guest("bmc_ipv6", mock.arguments());
    assert_eq!(register["bmc"]["address"], "[2001:db8:5::17]:623");
    assert_eq!(register["bmc"]["mac"], BMC_MAC);
    assert_eq!(register["bmc"]["user"], "metal");
    assert_eq!(register["bmc"]["version"], "2.45");
    assert_eq!(password.len(), 16);
}

/// A BMC of our own: LAN on channel 2 with IPv6 by router advertisement, eight users, passwords of
/// 20 bytes only, no FRU inventory.
#[derive(Default)]
struct Ipv6Bmc {
    names: [[u8; 16]; 9],
    passwords: [Vec<u8>; 9],
    access: [u8; 9],
}

impl Ipv6Bmc {
    fn answer(&mut self, netfn: u8, command: u8, data: &[u8]) -> Vec<u8> {
        let at = |index: usize| usize::from(data[index] & 0x3f).min(8);
        match (netfn, command, data) {
            (0x06, 0x42, [2]) => vec![0, 2, 0x04, 1, 0x80, 0xf2, 0x1b, 0, 0, 0],
            (0x06, 0x42, _) => vec![0xcc],
            (0x06, 0x41, _) => vec![0, 2, 4],
            (0x0c, 0x02, [2, parameter, set, _]) => self.lan(*parameter, *set),
            (0x06, 0x43, [rights, _, privilege]) => {
                self.access[at(1)] = rights & 0x70 | privilege;
                vec![0]
            }
            (0x06, 0x44, _) => vec![0, 8, 1, 1, self.access[at(1)]],
            (0x06, 0x45, [_, name @ ..]) => {
                self.names[at(0)].copy_from_slice(name);
                vec![0]
            }
            (0x06, 0x46, _) => [&[0], &self.names[at(0)][..]].concat(),
            (0x06, 0x47, [_, 1]) => vec![0],
            (0x06, 0x47, [_, 2, password @ ..]) if password.len() == 20 => {
                self.passwords[at(0)] = password.to_vec();
                vec![0]
            }
            (0x06, 0x47, [_, 3, password @ ..]) if password.len() == 20 => {
                vec![if self.passwords[at(0)] == password {
                    0
                } else {
                    0x80
                }]
            }
            (0x06, 0x47, _) => vec![0xc7],
            _ => vec![0xc1],
        }
    }

    fn lan(&self, parameter: u8, set: u8) -> Vec<u8> {
        let address = |text: &str, source: u8| {
            let address: std::net::Ipv6Addr = text.parse().expect("an address");
            [&[0, 0x11, set, source][..], &address.octets(), &[64, 0]].concat()
        };
        match (parameter, set) {
            (3, 0) => vec![0, 0x11, 192, 0, 2, 77],
            (5, 0) => vec![0, 0x11, 0x3c, 0xec, 0xef, 1, 2, 3],
            (51, 0) => vec![0, 0x11, 2],
            (55, 0) => vec![0, 0x11, 1, 2, 3],
            (56, 0) => address("::", 0),
            (59, 0) => address("fe80::17", 1),
            (59, 1) => address("2001:db8:5::17", 1),
            _ => vec![0x80],
        }
    }
}
