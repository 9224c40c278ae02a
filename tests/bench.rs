//! The benchmarks: figures of this machine, from one run, beside a peer or a limit of the same run.
//!
//! A program, not a test (`harness = false`, `test = false`): `scripts/bench` runs it. Nothing is
//! asserted about speed.

#[path = "bench/image.rs"]
mod image;
mod support;

#[path = "bench/boot_helper.rs"]
mod boot_helper;
#[path = "bench/media.rs"]
mod boot_media;
#[path = "network/lab.rs"]
#[allow(dead_code)]
mod lab;
#[path = "network/web.rs"]
#[allow(dead_code)]
mod web;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use support::allocation::Allocation;
use support::bed::Bed;
use support::disk::{Bus, Disk};
use support::images::Image;
use support::light;
use support::machine::Media;
use support::media::{self, helper_url};
use support::process::run;
use support::root;

/// What the ISO may weigh, in bytes: over a BMC's virtual media every MiB is seconds.
const ISO_LIMIT: f64 = 16.0 * MIB;
const MIB: f64 = 1_048_576.0;
/// Runs of each figure; the median counts.
const RUNS: usize = 3;
/// Rounds of each kind on one running guest.
const SLAAC_ROUNDS: usize = 20;

/// Measures and gives its figures.
type Bench = fn() -> Vec<Row>;

/// One figure.
struct Row {
    bench: &'static str,
    what: String,
    value: f64,
    unit: &'static str,
    /// What it is compared with, in the same unit.
    against: Option<(&'static str, f64)>,
}

fn main() {
    let mut names: Vec<String> = std::env::args().skip(1).collect();
    let as_json = names.iter().any(|name| name == "--json");
    names.retain(|name| name != "--json");
    // The soak only when it is asked for: it takes half an hour.
    let wanted = |name: &str| {
        (names.is_empty() && name != "soak") || names.iter().any(|wanted| wanted == name)
    };
    let benches: [(&str, Bench); 9] = [
        ("size", size),
        ("slaac", slaac),
        ("boot", boot),
        ("media", boot_media::media),
        ("install", install),
        ("inventory", inventory),
        ("image", image::image),
        ("storm", boot_helper::storm),
        ("soak", soak),
    ];
    if let Some(unknown) = names
        .iter()
        .find(|name| !benches.iter().any(|(known, _)| known == name))
    {
        let known: Vec<&str> = benches.iter().map(|(name, _)| *name).collect();
        eprintln!(
            "there is no bench {unknown:?}; there are {}",
            known.join(", ")
        );
        std::process::exit(2);
    }
    let rows: Vec<Row> = benches
        .iter()
        .filter(|(name, _)| wanted(name))
        .flat_map(|(name, bench)| {
            eprintln!("bench {name} …");
            bench()
        })
        .collect();
    if as_json {
        let rows: Vec<Value> = rows.iter().map(Row::json).collect();
        println!("{}", json!({ "benches": rows }));
    } else {
        rows.iter().for_each(|row| println!("{}", row.line()));
    }
}

impl Row {
    fn ratio(&self) -> Option<f64> {
        self.against.map(|(_, other)| self.value / other)
    }

    fn line(&self) -> String {
        let against = match (self.against, self.ratio()) {
            (Some((name, other)), Some(ratio)) => {
                format!("  {ratio:>5.2}x of {name} ({other:.2} {})", self.unit)
            }
            _ => String::new(),
        };
        let Self {
            bench,
            what,
            value,
            unit,
            ..
        } = self;
        format!("{bench:<9} {what:<34} {value:>9.2} {unit:<6}{against}")
    }

    fn json(&self) -> Value {
        json!({
            "bench": self.bench, "what": self.what, "value": self.value, "unit": self.unit,
            "against": self.against.map(|(name, _)| name),
            "against_value": self.against.map(|(_, value)| value),
            "ratio": self.ratio(),
        })
    }
}

/// metal-boot under load for METAL_ANVIL_SOAK_SECONDS.
fn soak() -> Vec<Row> {
    let seconds = std::env::var("METAL_ANVIL_SOAK_SECONDS").ok();
    boot_helper::soak(seconds.and_then(|text| text.parse().ok()).unwrap_or(1800))
}

/// The ISO and its parts.
fn size() -> Vec<Row> {
    let bytes = |path: &Path| {
        fs::metadata(path)
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
            .len() as f64
    };
    let part = |name: &str| bytes(&media::part(name));
    let iso = part("metal-anvil.iso");
    let (kernel, initrd) = (part("vmlinuz"), part("initrd.img"));
    let agent = root().join("target/x86_64-unknown-linux-gnu/release/metal-anvil");
    let row = |what: &str, value: f64, limit| Row {
        bench: "size",
        what: what.to_owned(),
        value: value / MIB,
        unit: "MiB",
        against: limit,
    };
    vec![
        row("ISO", iso, Some(("the limit", ISO_LIMIT / MIB))),
        row("kernel", kernel, Some(("the ISO", iso / MIB))),
        row(
            "initrd (agent, tools, libraries)",
            initrd,
            Some(("the ISO", iso / MIB)),
        ),
        row(
            "boot loader and file systems",
            iso - kernel - initrd,
            Some(("the ISO", iso / MIB)),
        ),
        row("agent, not compressed", bytes(&agent), None),
    ]
}

/// A virtio link in the guest, from going up to an address whose duplicate address detection has
/// ended, with radvd answering solicitations: the agent's settings and the kernel's own in turns.
fn slaac() -> Vec<Row> {
    let mut lab = lab::Lab::new("bench_slaac");
    lab.cards.truncate(1);
    let prefix = lab::prefix("2001:db8:a::/64", "");
    // Unsolicited advertisements would help whoever waits long.
    lab.routers(&[format!(
        "interface tap0 {{ AdvSendAdvert on; MinRtrAdvInterval 450; MaxRtrAdvInterval 600; {prefix} }};\n"
    )]);
    let mut node = lab.boot(&format!("guest.run=slaac guest.rounds={SLAAC_ROUNDS}"));
    let times = node.event_within("slaac", 900);
    let of = |who: &str| {
        let times = times[who].as_array().expect("a list of times");
        median(times.iter().filter_map(Value::as_f64).collect())
    };
    vec![Row {
        bench: "slaac",
        what: format!("link up to address, median of {SLAAC_ROUNDS}"),
        value: of("agent"),
        unit: "s",
        against: Some(("the kernel's defaults", of("kernel"))),
    }]
}

/// The ISO under OVMF: from the kernel's start to the milestones, as the agent's own lines date them.
fn boot() -> Vec<Row> {
    let milestones = [
        ("kernel start to agent", " INFO metal-anvil "),
        ("kernel start to address", "address 2001:db8:"),
        ("kernel start to registered", "registered as size"),
        ("kernel start to waiting", "waiting for an allocation"),
        ("kernel start to kexec", " INFO kexec"),
    ];
    let mut seen: Vec<Vec<f64>> = vec![Vec::new(); milestones.len()];
    for _ in 0..RUNS {
        let bed = Bed::plan("bench_boot").start();
        let config = json!({"boot_helper_url": helper_url()});
        let disk = Disk::empty(&bed.dir, "disk", Bus::Virtio, 512);
        let machine = bed.machine(media::iso(&bed.dir, &config, Media::SataCd), vec![disk]);
        let url = bed.publish("tiny", &Image::built("tiny"));
        let mut guest = bed.power_on(&machine);
        bed.standin.wait_event(&bed.machine, "WAITING", 1, 240);
        bed.allocate(&Allocation::new(&url, "/dev/vda"));
        guest.wait_for("TINY-OS BOOTED via kexec", 240);
        let text = guest.text();
        for ((_, pattern), times) in milestones.iter().zip(&mut seen) {
            times.push(stamp(&text, pattern));
        }
    }
    let medians: Vec<f64> = seen.into_iter().map(median).collect();
    let total = medians.last().copied().unwrap_or(f64::NAN);
    milestones
        .iter()
        .zip(medians)
        .map(|((what, _), value)| Row {
            bench: "boot",
            what: (*what).to_owned(),
            value,
            unit: "s",
            against: Some(("the boot", total)),
        })
        .collect()
}

/// The stamp of the first line with this pattern: `[   12.345]`, seconds since the kernel started.
fn stamp(console: &str, pattern: &str) -> f64 {
    let line = console
        .lines()
        .find(|line| line.contains(pattern))
        .unwrap_or_else(|| panic!("no line with {pattern:?} on the console"));
    line.split(['[', ']'])
        .nth(1)
        .and_then(|stamp| stamp.trim().parse().ok())
        .unwrap_or_else(|| panic!("no stamp in {line:?}"))
}

/// `metal-anvil inventory` in a guest with 64 SCSI disks and 16 network cards.
fn inventory() -> Vec<Row> {
    let dir = root().join("target/e2e/bench_inventory");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).expect("a directory of our own");
    let agent = root().join("target/x86_64-unknown-linux-gnu/release/metal-anvil");
    let uuid = "5b1c4f5e-7a0e-4f5c-9a51-00000000b3ec";
    let arguments = ["inventory", "--json"];
    let mut machine = light::machine(&dir, uuid, &agent, &arguments, "");
    let mut add = |text: String| {
        machine
            .extra
            .extend(text.split_whitespace().map(str::to_owned))
    };
    add("-device virtio-scsi-pci,id=scsi".to_owned());
    for number in 0..64 {
        add(format!(
            "-blockdev driver=null-co,node-name=d{number},size=1073741824,read-zeroes=on \
             -device scsi-hd,bus=scsi.0,scsi-id={number},serial=S{number},drive=d{number}"
        ));
    }
    for number in 0..16 {
        let model = ["e1000e", "virtio-net-pci"][number % 2];
        add(format!("-device {model},mac=52:54:00:00:01:{number:02x}"));
    }
    let times = (0..RUNS).map(|_| {
        let output = light::output(&machine, &dir, 300);
        for (what, count) in [("\"transport\": \"SCSI\"", 64), ("\"switchPorts\"", 16)] {
            let seen = output.text.matches(what).count();
            assert_eq!(seen, count, "{what} in the guest's inventory");
        }
        output.took / 1000.0
    });
    vec![Row {
        bench: "inventory",
        what: "64 disks, 16 NICs".to_owned(),
        value: median(times.collect()),
        unit: "s",
        against: Some(("the limit", 1.0)),
    }]
}

/// The Debian image from an HTTP server on this host to a directory: the agent's pipeline beside the
/// usual shell pipeline, run in turns.
fn install() -> Vec<Row> {
    let bed = Bed::plan("bench_install").start();
    let url = bed.publish("debian", &Image::built("debian"));
    let agent = root().join("target/x86_64-unknown-linux-gnu/release/metal-anvil");
    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    let mut bytes = 0.0;
    for run_number in 0..RUNS {
        let target = |who: &str| {
            let dir = bed.dir.join(format!("{who}-{run_number}"));
            fs::create_dir(&dir).expect("a directory of our own");
            dir
        };
        let dir = target("agent");
        ours.push(timed(|| {
            bed.run(
                &agent.display().to_string(),
                &["image", "write", &url, &dir.display().to_string()],
            );
        }));
        bytes = unpacked(&dir);
        fs::remove_dir_all(&dir).expect("remove our own directory");
        let dir = target("peer");
        // What a script does: checksum on the side, then compared; `sync` as the agent does it.
        let script = format!(
            "set -e -o pipefail; cd {dir}; curl -sgf '{url}' | tee >(md5sum >../sum-{run_number}) | \
             lz4 -dc | tar -x --xattrs --xattrs-include='*' --numeric-owner; sync -f .",
            dir = dir.display()
        );
        peers.push(timed(|| {
            bed.run("bash", &["-c", &script]);
        }));
        fs::remove_dir_all(&dir).expect("remove our own directory");
    }
    let rate = |times: Vec<f64>| bytes / MIB / median(times);
    let peer = rate(peers);
    vec![Row {
        bench: "install",
        what: "unpacked image, agent".to_owned(),
        value: rate(ours),
        unit: "MiB/s",
        against: Some(("curl | tee md5sum | lz4 | tar", peer)),
    }]
}

fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().max(Duration::from_millis(1)).as_secs_f64()
}

/// Bytes of a tree, as `du` counts what the files hold.
fn unpacked(dir: &Path) -> f64 {
    let out = run(Command::new("du")
        .args(["-s", "--apparent-size", "-B1"])
        .arg(dir));
    let bytes = out
        .split_whitespace()
        .next()
        .and_then(|n| n.parse::<f64>().ok());
    bytes.unwrap_or_else(|| panic!("du says {out:?}"))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
