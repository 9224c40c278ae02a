//! The boot VRF of a leaf, as docs/boot-vrf.md describes it. The VRF is a network namespace, since the
//! kernel of a test host may have no VRF device; routes, radvd and the nftables ACL of contrib/boot-vrf
//! are real. The route leak is a pair of veths to the control plane's namespace.

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use support::allocation::PARTITION;
use support::netns::{Netns, SERVICE};
use support::process::{Process, run};
use support::root;
use support::services::{self, APISERVER_PORT, HELPER_PORT};
use support::standin::Standin;

/// metal-boot and the image cache, in the VRF, as contrib/boot-vrf/acl.nft names them. The apiserver
/// is SERVICE, in the control plane's namespace.
const HELPER: &str = "2001:db8:b0:ff::42";
const CACHE: &str = "2001:db8:b0:ff::80";
/// A service of the control plane that no machine may reach.
const OTHER_PORT: u16 = 9000;
/// What a machine itself listens on.
const MACHINE_PORT: u16 = 8000;
const LIMIT: Duration = Duration::from_secs(60);

/// Namespaces, from the leaf outwards, and what runs in them.
struct Fabric {
    leaf: Netns,
    machines: [Netns; 2],
    standin: Standin,
    _services: Vec<Process>,
    _rest: [Netns; 2],
}

impl Fabric {
    fn build() -> Self {
        let dir = root().join("target/e2e/boot_vrf");
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("a directory of our own");
        let leaf = Netns::bare();
        let [one, two, service, control] = std::array::from_fn(|_| Netns::bare());
        sysctl(&leaf, "all.forwarding=1");
        sysctl(&leaf, "default.accept_dad=0");
        sysctl(&leaf, "all.accept_dad=0");

        for (port, address, other) in [
            ("swp1", "2001:db8:b0:1::1/64", &one),
            ("swp2", "2001:db8:b0:2::1/64", &two),
            ("swp47", "2001:db8:b0:ff::1/64", &service),
            ("leak", "fe80::1/64", &control),
        ] {
            let peer = other.name();
            leaf.ip(&format!(
                "link add {port} type veth peer name eth0 netns {peer}"
            ));
            leaf.ip(&format!("address add {address} dev {port} nodad"));
            leaf.ip(&format!("link set {port} up"));
        }
        // The helper's own calls come from HELPER, as the ACL wants it: the other address is deprecated.
        for (address, lifetime) in [(HELPER, "forever"), (CACHE, "0")] {
            service.ip(&format!(
                "address add {address}/64 dev eth0 nodad preferred_lft {lifetime}"
            ));
        }
        service.ip("link set eth0 up");
        service.ip("route add default via 2001:db8:b0:ff::1");
        // The leak: one host route into the control plane, the VRF's aggregate back.
        control.ip(&format!("address add {SERVICE}/128 dev lo nodad"));
        control.ip("address add fe80::2/64 dev eth0 nodad");
        control.ip("link set eth0 up");
        control.ip("route add 2001:db8:b0::/48 via fe80::1 dev eth0");
        leaf.ip(&format!("route add {SERVICE}/128 via fe80::2 dev leak"));
        acl(&leaf);

        let token = dir.join("infra-token");
        fs::write(&token, "infra-secret-of-the-boot-vrf\n").expect("write the token");
        run(Command::new("chmod").arg("600").arg(&token));
        let socket = PathBuf::from(format!("/tmp/{}.control", control.name()));
        let radvd = fs::read_to_string(contrib("radvd.conf")).expect("radvd.conf");
        let services = vec![
            services::radvd_with(&leaf, &dir, &radvd),
            services::standin(&control, &dir, &socket, &token, 60.0),
            metal_boot(&service, &dir, &token),
            files(&service, &dir, "cache", CACHE, 80),
            files(&control, &dir, "other", SERVICE, OTHER_PORT),
            files(&one, &dir, "machine1", "::", MACHINE_PORT),
            files(&two, &dir, "machine2", "::", MACHINE_PORT),
        ];
        for machine in [&one, &two] {
            machine.ip("link set eth0 up");
        }
        Self {
            leaf,
            machines: [one, two],
            standin: Standin::new(socket),
            _services: services,
            _rest: [service, control],
        }
    }

    /// The address that machine `number` has formed from its port's advertisement.
    fn address(&self, number: usize) -> String {
        let machine = &self.machines[number];
        let mut found = None;
        until("an address by SLAAC", || {
            let list = machine.ip("-json -6 address show dev eth0 scope global -tentative");
            let list: Value = serde_json::from_str(&list).expect("ip's JSON");
            let of = |address: &Value| address["local"].as_str().map(str::to_owned);
            found = list[0]["addr_info"]
                .as_array()
                .and_then(|all| all.iter().find_map(of));
            found.is_some()
        });
        found.expect("waited for")
    }

    /// `curl OPTIONS` on machine `number`.
    fn curl(&self, number: usize, options: &[&str]) -> Output {
        let mut command = self.machines[number].command("curl");
        command.args(["--silent", "--show-error", "--fail", "--max-time", "10"]);
        command.args(options).output().expect("curl runs")
    }

    fn reaches(&self, number: usize, host: &str, port: u16) -> bool {
        self.curl(number, &[&format!("http://[{host}]:{port}/")])
            .status
            .success()
    }

    /// Packets that one of the ACL's counters has seen.
    fn counted(&self, counter: &str) -> u64 {
        let text = run(self
            .leaf
            .command("nft")
            .args(["-j", "list", "counter", "inet", "boot_vrf", counter]));
        let list: Value = serde_json::from_str(&text).expect("nft's JSON");
        let counters = list["nftables"].as_array().expect("a list");
        let packets = counters
            .iter()
            .find_map(|entry| entry["counter"]["packets"].as_u64());
        packets.expect("the counter's packets")
    }

    /// The leaf's port towards `host`, for what comes in at swp1.
    fn way(&self, host: &str, from: &str) -> String {
        let route = self
            .leaf
            .ip(&format!("-json -6 route get {host} from {from} iif swp1"));
        let route: Value = serde_json::from_str(&route).expect("ip's JSON");
        route[0]["dev"].as_str().expect("a device").to_owned()
    }
}

fn contrib(name: &str) -> PathBuf {
    root().join("contrib/boot-vrf").join(name)
}

fn acl(leaf: &Netns) {
    run(leaf.command("nft").arg("-f").arg(contrib("acl.nft")));
}

fn sysctl(ns: &Netns, assignment: &str) {
    let assignment = format!("net.ipv6.conf.{assignment}");
    run(ns.command("sysctl").args(["-q", "-w", &assignment]));
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not within {LIMIT:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Something that answers HTTP: an empty directory.
fn files(ns: &Netns, dir: &std::path::Path, name: &str, address: &str, port: u16) -> Process {
    let content = dir.join(format!("{name}-files"));
    fs::create_dir(&content).expect("a directory of our own");
    let mut command = ns.command("python3");
    command.args(["-m", "http.server", &port.to_string(), "--bind", address]);
    command.arg("--directory").arg(content);
    let mut process = Process::start(name, command, dir);
    process.wait_until("listening", LIMIT, || listens(ns, port));
    process
}

fn metal_boot(ns: &Netns, dir: &std::path::Path, token: &std::path::Path) -> Process {
    let program = root().join("target/x86_64-unknown-linux-gnu/release/metal-boot");
    let mut command = ns.command(program);
    command.args(["--listen", &format!("[{HELPER}]:{HELPER_PORT}")]);
    command.args([
        "--apiserver-url",
        &format!("http://[{SERVICE}]:{APISERVER_PORT}"),
    ]);
    command.arg("--token-file").arg(token);
    command.args(["--partition", PARTITION, "--allow", "2001:db8:b0::/48"]);
    let mut process = Process::start("metal-boot", command, dir);
    process.wait_until("listening", LIMIT, || listens(ns, HELPER_PORT));
    process
}

fn listens(ns: &Netns, port: u16) -> bool {
    let sockets = run(ns
        .command("ss")
        .args(["-Hltn", &format!("sport = :{port}")]));
    !sockets.trim().is_empty()
}

#[test]
fn machines_reach_what_they_boot_from_and_nothing_else() {
    let fabric = Fabric::build();
    let addresses = [fabric.address(0), fabric.address(1)];
    for (number, address) in addresses.iter().enumerate() {
        let port = format!("2001:db8:b0:{}:", number + 1);
        assert!(
            address.starts_with(&port),
            "{address} is not of the port's own /64"
        );
    }

    // The helper, inside the VRF, mints by the leaked route; the machine takes that route itself.
    let machine = "0b1e55ed-0000-4000-8000-000000000001";
    let config = fabric.curl(
        0,
        &[&format!("http://[{HELPER}]:{HELPER_PORT}/config/{machine}")],
    );
    assert!(
        config.status.success(),
        "{}",
        String::from_utf8_lossy(&config.stderr)
    );
    let config: Value = serde_json::from_slice(&config.stdout).expect("the helper's JSON");
    let token = config["metal_apiserver_token_for_hammer"]
        .as_str()
        .expect("a token");
    let event = json!({"uuid": machine, "event": {"time": "2026-11-25T00:00:00Z",
        "event": "MACHINE_PROVISIONING_EVENT_TYPE_PREPARING", "message": "in the boot VRF"}});
    let call =
        format!("http://[{SERVICE}]:{APISERVER_PORT}/metalstack.infra.v2.BootService/SendEvent");
    let bearer = format!("Authorization: Bearer {token}");
    let event = event.to_string();
    let send = || {
        let json = "Content-Type: application/json";
        fabric.curl(0, &["-H", &bearer, "-H", json, "-d", &event, &call])
    };
    let answer = send();
    assert!(
        answer.status.success(),
        "{}",
        String::from_utf8_lossy(&answer.stderr)
    );
    assert_eq!(fabric.standin.events(machine), ["PREPARING"]);
    assert!(fabric.reaches(0, CACHE, 80), "the image cache");
    assert_eq!(fabric.way(HELPER, &addresses[0]), "swp47");
    assert_eq!(fabric.way(SERVICE, &addresses[0]), "leak");

    // Neither each other, nor the rest of the control plane, nor under a neighbour's address.
    assert_eq!(
        (fabric.counted("refused"), fabric.counted("spoofed")),
        (0, 0)
    );
    assert!(
        !fabric.reaches(0, &addresses[1], MACHINE_PORT),
        "machine 1 reaches machine 2"
    );
    assert!(
        !fabric.reaches(1, &addresses[0], MACHINE_PORT),
        "machine 2 reaches machine 1"
    );
    assert!(
        !fabric.reaches(0, SERVICE, OTHER_PORT),
        "machine 1 reaches the control plane's other services"
    );
    assert!(fabric.counted("refused") >= 3);
    // Deprecated, so that the machine takes it only when it is told to.
    let foreign = "2001:db8:b0:2::bad";
    fabric.machines[0].ip(&format!(
        "address add {foreign}/128 dev eth0 nodad preferred_lft 0"
    ));
    let as_neighbour = |host: &str, port: u16| {
        let url = format!("http://[{host}]:{port}/");
        fabric
            .curl(0, &["--interface", foreign, &url])
            .status
            .success()
    };
    assert!(
        !as_neighbour(CACHE, 80),
        "machine 1 is answered under an address of port 2"
    );
    assert!(fabric.counted("spoofed") >= 1);

    // It is the ACL that refuses: without it all are reached.
    run(fabric.leaf.command("nft").args(["flush", "ruleset"]));
    assert!(fabric.reaches(0, &addresses[1], MACHINE_PORT));
    assert!(fabric.reaches(1, &addresses[0], MACHINE_PORT));
    assert!(fabric.reaches(0, SERVICE, OTHER_PORT));
    acl(&fabric.leaf);

    // Two paths: without the leak the helper is still there, the apiserver is not.
    fabric.leaf.ip("link set leak down");
    let alive = format!("http://[{HELPER}]:{HELPER_PORT}/healthz");
    assert!(
        fabric.curl(0, &[&alive]).status.success(),
        "the helper without the leak"
    );
    assert!(
        !send().status.success(),
        "the apiserver is reached without the leak"
    );
}
