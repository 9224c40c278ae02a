//! A namespace with two leaf switches, the services of one test, and its guest.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use serde_json::Value;

use crate::support::guest::Guest;
use crate::support::initrd::{built, newc};
use crate::support::machine::{Machine, Start};
use crate::support::media::{CONSOLE, NO_TIMER_CHECK, part};
use crate::support::netns::{LEAVES, Netns};
use crate::support::process::{Process, run};
use crate::support::root;
use crate::support::services;

use super::web::Web;

/// The machine of every test; each has a namespace of its own.
pub const MACHINE: &str = "3b0e7c52-6f1d-4a7e-9c88-5a1b2c3d4e5f";
/// How long an event may take on a machine that is busy with other guests. Seconds.
pub const SOON: u64 = 240;

/// Everything around one guest. Fields drop in order: services first, the namespace last.
pub struct Lab {
    /// Files and logs of this test.
    pub dir: PathBuf,
    /// The card's QEMU devices, the first on the first leaf.
    pub cards: Vec<&'static str>,
    /// More QEMU arguments.
    pub extra: Vec<String>,
    services: Vec<Process>,
    radvd: Option<Process>,
    pub ns: Netns,
}

impl Lab {
    /// A lab for the test `name`, without any service.
    pub fn new(name: &str) -> Self {
        let dir = root().join("target/e2e").join(format!("network_{name}"));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("create {}: {e}", dir.display()));
        Self {
            dir,
            cards: vec!["virtio-net-pci"; LEAVES.len()],
            extra: Vec::new(),
            services: Vec::new(),
            radvd: None,
            ns: Netns::create(),
        }
    }

    /// Routers on the leaves from now on: radvd's interface sections. Replaces the ones before.
    pub fn routers(&mut self, sections: &[String]) {
        match &self.radvd {
            Some(radvd) => {
                fs::write(self.dir.join("radvd.conf"), sections.concat()).expect("radvd.conf");
                radvd.signal(libc::SIGHUP);
            }
            None => {
                self.radvd = Some(services::radvd_with(
                    &self.ns,
                    &self.dir,
                    &sections.concat(),
                ));
            }
        }
    }

    /// A service that ends with the lab.
    pub fn keep(&mut self, service: Process) {
        self.services.push(service);
    }

    /// Ends the service of this name now.
    pub fn stop(&mut self, name: &str) {
        self.services.retain(|service| service.name() != name);
    }

    /// An HTTP server in the namespace.
    pub fn web(&self, listen: &str) -> Web {
        Web::start(&self.ns, listen)
    }

    /// Puts two routers on the wire of the first card: tap0 becomes a port of a bridge, `leaf0` and
    /// `leaf1` are the routers' own interfaces on it.
    pub fn one_wire(&self) {
        let leaf = |number: usize| {
            let prefix = LEAVES[number].prefix;
            [
                format!("address flush dev {} scope global", LEAVES[number].tap),
                format!("link add leaf{number} type veth peer name end{number}"),
                format!("link set end{number} up master wire"),
                format!("link set leaf{number} up"),
                format!("address add {prefix}1/64 dev leaf{number} nodad"),
            ]
        };
        let bridge = ["link add wire type bridge", "link set wire up"].map(str::to_owned);
        let card = "link set tap0 master wire".to_owned();
        for order in bridge
            .into_iter()
            .chain([card])
            .chain(leaf(0))
            .chain(leaf(1))
        {
            self.ns.ip(&order);
        }
    }

    /// A host with `address` behind a link of MTU 1280, which its own side does not know of.
    pub fn far_away(&self, address: &str) -> Netns {
        let far = Netns::bare();
        for order in [
            format!("link add near type veth peer name far netns {}", far.name()),
            "link set near mtu 1280 up".to_owned(),
            "address add 2001:db8:f::1/64 dev near nodad".to_owned(),
            format!("route add {address}/128 via 2001:db8:f::2"),
        ] {
            self.ns.ip(&order);
        }
        for order in [
            "link set far up".to_owned(),
            "address add 2001:db8:f::2/64 dev far nodad".to_owned(),
            format!("address add {address}/128 dev lo nodad"),
            "route add default via 2001:db8:f::1".to_owned(),
        ] {
            far.ip(&order);
        }
        far
    }

    /// The address that the guest's card `number` makes of `prefix` by EUI-64 (RFC 4291 appendix A).
    pub fn eui64(&self, number: usize, prefix: &str) -> String {
        let mac = self.machine("").mac(number);
        let b: Vec<u8> = mac
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16).expect("a MAC of our own"))
            .collect();
        let text = format!(
            "{prefix}{:x}:{:x}:{:x}:{:x}",
            u16::from_be_bytes([b[0] ^ 2, b[1]]),
            u16::from_be_bytes([b[2], 0xff]),
            u16::from_be_bytes([0xfe, b[3]]),
            u16::from_be_bytes([b[4], b[5]]),
        );
        // The form in which addresses are compared.
        text.parse::<std::net::Ipv6Addr>()
            .unwrap_or_else(|e| panic!("{text}: {e}"))
            .to_string()
    }

    /// The guest's machine with `words` on its command line.
    pub fn machine(&self, words: &str) -> Machine {
        let start = Start::Direct {
            kernel: part("vmlinuz"),
            initrd: initrd().clone(),
            append: format!("{CONSOLE} quiet loglevel=2 panic=-1 {NO_TIMER_CHECK} {words}"),
        };
        let mut machine = Machine::new(&self.dir, MACHINE, start, Vec::new());
        machine.uefi = false;
        machine.memory = 512;
        machine.cards = self.cards.clone();
        machine.extra = self.extra.clone();
        machine
    }

    /// Powers the guest on.
    pub fn boot(&self, words: &str) -> Node {
        let qemu = self.ns.command("qemu-system-x86_64");
        Node {
            guest: self.machine(words).power_on(qemu, &self.dir),
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for service in self.services.iter().chain(&self.radvd) {
                eprintln!("--- {} ---\n{}", service.name(), service.tail(25));
            }
        }
    }
}

/// A radvd section for leaf `number` (0 or 1) with `options` beside its usual ones.
pub fn router(number: usize, options: &str) -> String {
    router_on(LEAVES[number].tap, options)
}

/// The same for any interface.
pub fn router_on(interface: &str, options: &str) -> String {
    format!(
        "interface {interface} {{ AdvSendAdvert on; MinRtrAdvInterval 3; MaxRtrAdvInterval 4; {options} }};\n"
    )
}

/// A radvd prefix.
pub fn prefix(text: &str, options: &str) -> String {
    format!("prefix {text} {{ {options} }};")
}

/// The running guest.
pub struct Node {
    pub guest: Guest,
}

impl Node {
    /// What the guest said of the link `name`: MAC, place, driver.
    pub fn link(&self, name: &str) -> Value {
        let text = self.guest.text();
        let links = text
            .lines()
            .filter_map(|line| line.split_once("EVENT link "));
        let mut links = links.filter_map(|(_, json)| serde_json::from_str::<Value>(json).ok());
        let found = links.find(|link| link["link"] == name);
        found.unwrap_or_else(|| panic!("the guest said nothing of {name}"))
    }

    /// Waits for the next event of this name and answers what it says.
    pub fn event(&mut self, name: &str) -> Value {
        self.event_within(name, SOON)
    }

    /// Waits for the next event of this name, `seconds` at most.
    pub fn event_within(&mut self, name: &str, seconds: u64) -> Value {
        self.any_event(&[name], seconds).1
    }

    /// Waits for an event of this name that says what `fits`.
    pub fn event_that(&mut self, name: &str, fits: impl Fn(&Value) -> bool) -> Value {
        loop {
            let event = self.event(name);
            if fits(&event) {
                return event;
            }
        }
    }

    /// Waits for the next event of one of these names; answers its name too.
    pub fn any_event(&mut self, names: &[&str], seconds: u64) -> (String, Value) {
        let marks: Vec<String> = names.iter().map(|name| format!("EVENT {name} ")).collect();
        let marks: Vec<&str> = marks.iter().map(String::as_str).collect();
        let line = self.guest.wait_for_any(&marks, seconds);
        let (_, event) = line.split_once("EVENT ").expect("the mark that was found");
        let (name, json) = event.split_once(' ').expect("a name and its data");
        let value = serde_json::from_str(json).unwrap_or_else(|e| panic!("{line}: {e}"));
        (name.to_owned(), value)
    }
}

/// The initramfs of all guests: one static program, made once.
fn initrd() -> &'static PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let dir = root().join("target/e2e");
        fs::create_dir_all(&dir).expect("directory for the guests");
        let program = dir.join("network_guest");
        // Unpacking debug information takes an emulated machine longer than booting.
        run(std::process::Command::new("strip")
            .arg("-o")
            .arg(&program)
            .arg(built("--example", "network_guest")));
        let path = dir.join("network_guest.initrd");
        fs::write(&path, newc(&[("init", program)]))
            .unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
        path
    })
}
