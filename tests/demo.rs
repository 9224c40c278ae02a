//! The demo: the real ISO, a real Debian, the serial console live, and what the apiserver heard.
//!
//! A program, not a test (`harness = false`, `test = false`): `scripts/demo` runs it. It fails, like
//! a test, when something that it announces does not happen.

mod support;

use serde_json::json;

use support::allocation::Allocation;
use support::bed::Bed;
use support::console::LOGIN;
use support::disk::{Bus, Disk};
use support::guest::{End, Guest};
use support::images::Image;
use support::machine::Media;
use support::media::{self, helper_url};

/// Legal order of a good boot's events.
const EVENTS: [&str; 5] = [
    "PREPARING",
    "REGISTERING",
    "WAITING",
    "INSTALLING",
    "BOOTING_NEW_KERNEL",
];

fn main() {
    let keep = std::env::args().any(|argument| argument == "--keep");
    let bed = Bed::plan("demo").start();
    let config = json!({"boot_helper_url": helper_url(), "hostname": "anvil"});
    let disk = Disk::empty(&bed.dir, "disk", Bus::Virtio, 4096);
    let mut machine = bed.machine(media::iso(&bed.dir, &config, Media::SataCd), vec![disk]);
    let url = bed.publish("debian", &Image::built("debian"));
    let allocation = Allocation::new(&url, "/dev/vda").with("/hostname", json!("demo"));

    title("power-on: an empty machine, the ISO in its CD drive");
    machine.show = Some("serial | ".to_owned());
    let mut first = bed.power_on(&machine);
    bed.standin.wait_event(&bed.machine, "WAITING", 1, 240);
    title("an operator allocates the machine");
    bed.allocate(&allocation);
    let memory = first.wait_for("peak RSS of the agent: ", 600);
    let kexec = first.wait_for("METAL-DEBIAN BOOTED via kexec", 400);
    // The prompt and the marker come in any order.
    first.see(LOGIN, 120);
    let took = first.age();
    shut_down(first);

    title("what the apiserver heard");
    print!("{}", bed.standin.story());
    let events = bed.standin.events(&bed.machine);
    assert_eq!(events, EVENTS, "the events of a good boot, in order");

    title("second power-on, the ISO still attached");
    machine.name = "second".to_owned();
    let mut second = bed.power_on(&machine);
    let firmware = second.wait_for("METAL-DEBIAN BOOTED via firmware", 400);
    let login = second.see(LOGIN, 120);
    assert_eq!(
        bed.standin.events(&bed.machine),
        EVENTS,
        "the agent stayed out of the way"
    );
    shut_down(second);
    bed.save_record();

    title("done");
    println!("after kexec    {kexec}");
    println!("from the disk  {firmware}");
    println!("login          {}", login.trim());
    println!("events         {}", events.join(", "));
    println!(
        "memory         {}",
        memory
            .split("peak")
            .last()
            .map_or_else(String::new, |m| format!("peak{m}"))
    );
    println!(
        "time           {} s from power-on to Debian's login, emulated",
        took.as_secs()
    );
    let dir = bed.dir.clone();
    drop(bed);
    if keep {
        println!("kept           {}", dir.display());
    } else if let Err(error) = std::fs::remove_dir_all(&dir) {
        eprintln!("cannot remove {}: {error}", dir.display());
    }
}

fn title(text: &str) {
    println!("\n=== {text}");
}

/// Presses the power button; a system that does not react within a minute is cut off.
fn shut_down(mut guest: Guest) {
    guest.power_button();
    let end = guest.wait_end(120);
    assert_eq!(end, End::PowerOff, "Debian reacts to the power button");
}
