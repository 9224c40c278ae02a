//! A server that is booted by its BMC: `metal-boot bmc` against the Redfish emulator of sushy-tools, whose
//! driver (`tests/bmc/server.py`) runs the bed's QEMU.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::*;
use crate::support::allocation::Allocation;
use crate::support::bed::Bed;
use crate::support::images::Image;
use crate::support::machine::{Media, Order, Start};
use crate::support::media::{self, helper_url};
use crate::support::netns::SERVICE;
use crate::support::process::Process;
use crate::support::root;
use crate::support::services::IMAGE_PORT;

const PASSWORD: &str = "bmc-s3cret";
/// `root` and that password, as bcrypt with the least work.
const HTPASSWD: &str = "root:$2b$04$B4pHcMB8bnFw01Lh.yvr2Owi3rzmjIhV.7ynYcGZv29u2MSQdLqFa\n";

/// `metal-boot bmc VERB`: what it prints.
fn bmc(bed: &Bed, verb: &str, iso: Option<&str>) -> Value {
    let program = root().join("target/x86_64-unknown-linux-gnu/release/metal-boot");
    let password = bed.dir.join("bmc-password").display().to_string();
    let url = format!("http://[{SERVICE}]:8000");
    let mut arguments = vec!["bmc", verb, "--bmc", &url, "--password-file", &password];
    if let Some(iso) = iso {
        arguments.extend(["--iso", iso]);
    }
    let said = bed.run(&program.display().to_string(), &arguments);
    serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}"))
}

#[test]
fn the_iso_is_booted_once_and_then_the_disk() {
    let bed = Bed::plan("bmc").start();
    let config = json!({"boot_helper_url": helper_url()});
    let Start::Iso(iso, _) = media::iso(&bed.dir, &config, Media::SataCd) else {
        panic!("an ISO is an ISO");
    };
    fs::copy(iso, bed.dir.join("www/metal-anvil.iso")).expect("publish the ISO");
    fs::write(bed.dir.join("bmc-password"), PASSWORD).expect("password");
    fs::write(bed.dir.join("htpasswd"), HTPASSWD).expect("htpasswd");

    let mut machine = bed.machine(Start::Disks, vec![used_disk(&bed, "disk")]);
    machine.order = Some(Order::MediaFirst);
    for word in [
        "-action",
        "reboot=reset,shutdown=pause",
        "-device",
        "ide-cd,bus=ide.5,id=cd,bootindex=99",
    ] {
        machine.extra.push(word.to_owned());
    }
    // A socket's path has 107 bytes at most.
    let sockets = tempfile::Builder::new()
        .prefix("ma-")
        .tempdir_in("/tmp")
        .expect("directory");
    let qmp: PathBuf = sockets.path().join("qmp");
    let mut command = bed.command(root().join("target/venv-bmc/bin/python"));
    command.arg("-B").arg(root().join("tests/bmc/server.py"));
    command.args(["--listen", SERVICE, "--uuid", &bed.machine]);
    command
        .arg("--command")
        .arg(json!(machine.command_line(&qmp)).to_string());
    command
        .arg("--qmp")
        .arg(&qmp)
        .arg("--state-dir")
        .arg(&bed.dir);
    command.arg("--auth-file").arg(bed.dir.join("htpasswd"));
    // The guest's console is this process's output.
    let mut process = Process::start("bmc", command, &bed.dir);
    process.wait_until("listening", Duration::from_secs(60), || {
        let filter = ["-6", "-H", "-l", "-t", "-n", "sport = :8000"];
        !bed.run("ss", &filter).trim().is_empty()
    });
    let log = process.log().to_owned();
    let says = |text: &str| {
        // A guest's console need not be UTF-8.
        let bytes = fs::read(&log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).contains(text)
    };

    let off = bmc(&bed, "status", None);
    assert_eq!(
        (&off["power"], &off["medium"]["inserted"]),
        (&json!("Off"), &json!(false))
    );
    let url = format!("http://[{SERVICE}]:{IMAGE_PORT}/metal-anvil.iso");
    let on = bmc(&bed, "boot-once", Some(&url));
    assert_eq!(
        (&on["power"], &on["medium"]["image"]),
        (&json!("On"), &json!(url))
    );
    bed.standin
        .wait_event(&bed.machine, "WAITING", 1, 2 * TO_WAITING);
    let image = bed.publish("tiny", &Image::built("tiny"));
    bed.allocate(&Allocation::new(&image, "/dev/vda"));
    process.wait_until(
        "tiny's start by kexec",
        Duration::from_secs(2 * TO_INSTALLED),
        || says("TINY-OS DONE"),
    );
    assert!(says("TINY-OS BOOTED via kexec"));

    let empty = bmc(&bed, "eject", None);
    assert_eq!(empty["medium"]["inserted"], false);
    // The next power-on: from the disk.
    let mut power = bed.command("curl");
    power.args([
        "-sfg",
        "-u",
        &format!("root:{PASSWORD}"),
        "-H",
        "Content-Type: application/json",
    ]);
    power.args(["-d", r#"{"ResetType":"On"}"#]);
    power.arg(format!(
        "http://[{SERVICE}]:8000/redfish/v1/Systems/{}/Actions/ComputerSystem.Reset",
        bed.machine
    ));
    crate::support::process::run(&mut power);
    process.wait_until(
        "tiny's start by the firmware",
        Duration::from_secs(2 * TO_WAITING),
        || says("TINY-OS BOOTED via firmware"),
    );
    assert_eq!(bed.standin.events(&bed.machine), GOOD);
    assert!(!says(PASSWORD));
}
