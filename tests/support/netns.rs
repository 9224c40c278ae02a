//! One network namespace per guest: two "leaf switches" as taps, and a service address behind them.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::process::run;

/// Where every service of the bed listens: reached through either leaf, on neither's prefix.
pub const SERVICE: &str = "2001:db8:ff::1";

/// The leaf switches: tap, its MAC (chassis ID), its /64, its name in LLDP, its port.
pub const LEAVES: [Leaf; 2] = [
    Leaf {
        tap: "tap0",
        mac: "02:00:00:00:00:10",
        prefix: "2001:db8:a::",
        name: "leaf01",
        port: "swp7",
    },
    Leaf {
        tap: "tap1",
        mac: "02:00:00:00:00:11",
        prefix: "2001:db8:b::",
        name: "leaf02",
        port: "swp7",
    },
];

/// Namespaces are called `ma-<pid of the test program>-<number>`.
const PREFIX: &str = "ma-";

static NEXT: AtomicUsize = AtomicUsize::new(0);

/// One switch that the guest is cabled to.
pub struct Leaf {
    /// The tap that is the switch's port.
    pub tap: &'static str,
    /// The switch's MAC address, its LLDP chassis ID.
    pub mac: &'static str,
    /// The /64 that it advertises (without the length).
    pub prefix: &'static str,
    /// Its system name.
    pub name: &'static str,
    /// The port's ID.
    pub port: &'static str,
}

/// A namespace with the taps up; deleted when dropped, with whatever still runs in it.
pub struct Netns {
    name: String,
}

impl Netns {
    /// A namespace with nothing but `lo`. Needs root.
    pub fn bare() -> Self {
        static SWEEP: std::sync::Once = std::sync::Once::new();
        SWEEP.call_once(sweep);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]));
        let ns = Self { name };
        ns.ip("link set lo up");
        ns
    }

    /// Makes the namespace, the taps and the addresses.
    pub fn create() -> Self {
        let ns = Self::bare();
        ns.ip(&format!("address add {SERVICE}/128 dev lo"));
        for key in ["all/forwarding=1", "default/accept_dad=0"] {
            ns.sysctl(key);
        }
        for leaf in &LEAVES {
            ns.ip(&format!("tuntap add dev {} mode tap", leaf.tap));
            ns.ip(&format!("link set {} address {}", leaf.tap, leaf.mac));
            ns.ip(&format!("link set {} up", leaf.tap));
            ns.ip(&format!(
                "address add {}1/64 dev {} nodad",
                leaf.prefix, leaf.tap
            ));
        }
        ns
    }

    /// A command that runs inside the namespace; its process id is the program's own.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.name])
            .arg(program.as_ref());
        command
    }

    /// Runs `ip ARGUMENTS` inside.
    pub fn ip(&self, arguments: &str) -> String {
        run(self.command("ip").args(arguments.split_whitespace()))
    }

    fn sysctl(&self, assignment: &str) {
        let (key, value) = assignment.split_once('=').expect("key=value");
        let assignment = format!("net.ipv6.conf.{}={value}", key.replace('/', "."));
        run(self.command("sysctl").args(["-q", "-w", &assignment]));
    }

    /// The namespace's name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Ends what runs in the namespace and deletes it; says nothing when it is gone already.
fn remove(name: &str) {
    if let Ok(output) = Command::new("ip").args(["netns", "pids", name]).output() {
        for pid in String::from_utf8_lossy(&output.stdout).lines() {
            if let Ok(pid) = pid.trim().parse::<i32>() {
                // SAFETY: a process inside a namespace that this bed made.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
    }
    let _ = Command::new("ip").args(["netns", "del", name]).output();
}

/// Removes namespaces of test programs that no longer run.
fn sweep() {
    let Ok(output) = Command::new("ip").args(["netns", "list"]).output() else {
        return;
    };
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Some(name) = line.split_whitespace().next() else {
            continue;
        };
        let pid = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next())
            .and_then(|pid| pid.parse::<u32>().ok());
        if let Some(pid) = pid
            && !Path::new(&format!("/proc/{pid}")).exists()
        {
            remove(name);
        }
    }
}
