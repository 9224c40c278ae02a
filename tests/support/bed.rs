//! A whole bed: one namespace, its services, one machine's identity.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use uuid::Uuid;

use super::allocation::Allocation;
use super::disk::Disk;
use super::guest::Guest;
use super::images::Image;
use super::machine::{Machine, Start};
use super::netns::{LEAVES, Leaf, Netns, SERVICE};
use super::process::Process;
use super::root;
use super::services::{self, Helper, IMAGE_PORT, TLS_APISERVER_PORT};
use super::standin::Standin;

/// What a bed is made of, before it runs.
pub struct Plan {
    name: String,
    helper: Helper,
    helper_options: Vec<String>,
    wait_seconds: f64,
    tls: bool,
    ntp: Option<(u16, bool)>,
}

impl Plan {
    /// Apiserver and boot helper are there by TLS too; machines are sent to that apiserver.
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// An NTP server on this port of the service address, that knows the time or does not.
    pub fn ntp(mut self, port: u16, sure: bool) -> Self {
        self.ntp = Some((port, sure));
        self
    }

    /// What answers for the boot helper.
    pub fn helper(mut self, helper: Helper) -> Self {
        self.helper = helper;
        self
    }

    /// More options for the real boot helper.
    pub fn helper_options(mut self, options: &[&str]) -> Self {
        self.helper_options = options.iter().map(|&option| option.to_owned()).collect();
        self
    }

    /// After how many seconds the stand-in cuts a Wait (60 as the real server, when not told).
    pub fn wait_seconds(mut self, seconds: f64) -> Self {
        self.wait_seconds = seconds;
        self
    }

    /// Starts everything.
    pub fn start(self) -> Bed {
        let dir = root().join("target/e2e").join(&self.name);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("create {}: {e}", dir.display()));
        let token = dir.join("infra-token");
        fs::write(&token, format!("infra-secret-{}\n", Uuid::new_v4())).expect("write the token");
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).expect("token's mode");
        let ns = Netns::create();
        // A socket path has 107 bytes at most; the clone's own path may be longer.
        let control = PathBuf::from(format!("/tmp/{}.control", ns.name()));
        let mut services = vec![
            services::radvd(&ns, &dir),
            services::nginx(&ns, &dir, &self.helper),
        ];
        services.extend(LEAVES.iter().map(|leaf| services::lldpd(&ns, leaf, &dir)));
        services.push(services::standin(
            &ns,
            &dir,
            &control,
            &token,
            self.wait_seconds,
        ));
        let mut arguments = self.helper_options;
        let pki = self.tls.then(|| services::pki(&dir));
        if let Some(pki) = &pki {
            services.push(services::tls(&ns, &dir, pki));
            arguments.push(format!("--ca-cert={}", pki.authority.display()));
            arguments.push(format!(
                "--machine-apiserver-url=https://[{SERVICE}]:{TLS_APISERVER_PORT}"
            ));
        }
        if let Some((port, sure)) = self.ntp {
            services.push(services::chronyd(&ns, &dir, port, sure));
        }
        if matches!(self.helper, Helper::Real) {
            services.push(services::metal_boot(&ns, &dir, &token, &arguments));
        }
        // The first ones have had a second by now in which a bad configuration shows.
        services.iter_mut().for_each(Process::assert_alive);
        Bed {
            token,
            arguments,
            helper: self.helper,
            dir,
            machine: Uuid::new_v4().to_string(),
            standin: Standin::new(control.clone()),
            control,
            wait_seconds: self.wait_seconds,
            services,
            ns,
        }
    }
}

/// A running bed. Fields drop in order: services first, the namespace last.
pub struct Bed {
    /// Files and logs of this test.
    pub dir: PathBuf,
    /// The machine's uuid.
    pub machine: String,
    /// Orders for the apiserver, and its record.
    pub standin: Standin,
    control: PathBuf,
    token: PathBuf,
    arguments: Vec<String>,
    helper: Helper,
    wait_seconds: f64,
    services: Vec<Process>,
    ns: Netns,
}

impl Bed {
    /// A bed for the test `name`, with the real boot helper.
    pub fn plan(name: &str) -> Plan {
        Plan {
            name: name.to_owned(),
            helper: Helper::Real,
            helper_options: Vec::new(),
            wait_seconds: 60.0,
            tls: false,
            ntp: None,
        }
    }

    /// Offers an image and answers its URL.
    pub fn publish(&self, name: &str, image: &Image) -> String {
        image.publish(&self.dir.join("www"), name);
        format!("http://[{SERVICE}]:{IMAGE_PORT}/{name}/img.tar.lz4")
    }

    /// The same image's URL at 300 kB/s: time for a power cut in the middle.
    pub fn slow(&self, url: &str) -> String {
        url.replacen(
            &format!(":{IMAGE_PORT}/"),
            &format!(":{IMAGE_PORT}/slow/"),
            1,
        )
    }

    /// Gives the bed's machine an allocation.
    pub fn allocate(&self, allocation: &Allocation) {
        self.standin.allocate(&self.machine, &allocation.0);
    }

    /// The bed's machine with these disks.
    pub fn machine(&self, start: Start, disks: Vec<Disk>) -> Machine {
        Machine::new(&self.dir, &self.machine, start, disks)
    }

    /// Powers a machine on inside the namespace.
    pub fn power_on(&self, machine: &Machine) -> Guest {
        machine.power_on(self.ns.command("qemu-system-x86_64"), &self.dir)
    }

    /// The namespace, for services that one test alone needs.
    pub fn netns(&self) -> &Netns {
        &self.ns
    }

    /// One more service: it ends with the bed, and its log is shown when the test fails.
    pub fn also(&mut self, service: Process) {
        self.services.push(service);
    }

    /// A command inside the namespace.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.ns.command(program)
    }

    /// Runs a program inside the namespace and answers its output.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        services::run_inside(&self.ns, program, arguments)
    }

    /// Asks one leaf switch's lldpd.
    pub fn lldp(&self, leaf: &Leaf, arguments: &[&str]) -> String {
        let socket = services::lldp_socket(&self.ns, leaf);
        let mut all = vec!["-u", socket.as_str()];
        all.extend(arguments);
        self.run("lldpcli", &all)
    }

    /// What the image server was asked for, one line a request.
    pub fn downloads(&self) -> String {
        fs::read_to_string(self.dir.join("nginx-access.log")).unwrap_or_default()
    }

    /// Writes the stand-in's record into the bed's directory and answers it.
    pub fn save_record(&self) -> Vec<Value> {
        let record = self.standin.record();
        let text = serde_json::to_string_pretty(&record).unwrap_or_default();
        let _ = fs::write(self.dir.join("record.json"), text);
        record
    }

    /// Kills a service, without a farewell.
    pub fn kill(&mut self, name: &str) {
        self.signal(name, libc::SIGKILL);
        self.services.retain(|service| service.name() != name);
    }

    /// Starts a killed service again.
    pub fn revive(&mut self, name: &str) {
        self.services.push(match name {
            "radvd" => services::radvd(&self.ns, &self.dir),
            "nginx" => services::nginx(&self.ns, &self.dir, &self.helper),
            "metal-boot" => services::metal_boot(&self.ns, &self.dir, &self.token, &self.arguments),
            "apiserver" => services::standin(
                &self.ns,
                &self.dir,
                &self.control,
                &self.token,
                self.wait_seconds,
            ),
            other => panic!("{other} cannot be started again"),
        });
    }

    /// The image server again, so many bytes a second for each connection.
    pub fn revive_dripping(&mut self, rate: u64) {
        let nginx = services::nginx_at(&self.ns, &self.dir, &self.helper, Some(rate));
        self.services.push(nginx);
    }

    /// Sends a service a signal.
    pub fn signal(&self, name: &str, signal: i32) {
        let service = self.services.iter().find(|service| service.name() == name);
        let service = service.unwrap_or_else(|| panic!("no service {name}"));
        service.signal(signal);
    }

    /// The directory for messages.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for service in &self.services {
                eprintln!(
                    "--- {} ({}) ---\n{}",
                    service.name(),
                    service.log().display(),
                    service.tail(25)
                );
            }
        }
        for service in &mut self.services {
            service.stop();
        }
        let _ = fs::remove_file(&self.control);
        for leaf in &LEAVES {
            let _ = fs::remove_file(services::lldp_socket(&self.ns, leaf));
        }
    }
}
