//! One run: a machine, its bed, the faults of a schedule, and the verdict.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::schedule::{Fault, PHASES, Planned, Schedule};
use crate::support::allocation::Allocation;
use crate::support::bed::Bed;
use crate::support::disk::{Bus, Disk, Store};
use crate::support::guest::{BrokenDisk, End, Guest};
use crate::support::images::Image;
use crate::support::machine::{Media, Order};
use crate::support::media::{self, helper_url};
use crate::support::netns::LEAVES;
use crate::support::wire::{Rules, Weather, Wiring};

/// From the end of the last fault to the installed OS, at most.
pub const BOUND: Duration = Duration::from_secs(8 * 60);
/// An installed OS that does not come up because its disk failed is switched off and on after this.
const HANDS: Duration = Duration::from_secs(60);
/// Starts that one run may take: more is a loop.
const MAX_STARTS: usize = 25;
/// How often the run is looked at.
const ROUND: Duration = Duration::from_millis(100);
/// What shows that the installed OS runs.
const BOOTED: &str = "TINY-OS BOOTED";
/// How the agent says that a failure was reported, or could not be.
const REPORTED: [&str; 3] = [
    "the control plane knows (CRASHED)",
    "cannot report the failure",
    "there is no control plane yet to report this to",
];

/// What a run that ended well was like.
pub struct Report {
    pub seconds: u64,
    /// From the end of the last fault to the OS.
    pub after: u64,
    pub starts: usize,
    pub failures: usize,
    /// Faults that happened; the others' phase never came.
    pub happened: usize,
    /// The faults and what became of each.
    pub faults: Vec<String>,
}

/// A fault on its way.
struct Coming {
    planned: Planned,
    /// When its phase began.
    due: Option<Instant>,
    state: State,
    /// What it can be counted by, when it began, and then what it has hit.
    hits: Option<u64>,
}

impl Coming {
    fn story(&self) -> String {
        let became = match (self.state, self.hits) {
            (State::Waiting, _) => "never".to_owned(),
            (_, Some(hits)) => format!("{hits} hits"),
            (_, None) => "happened".to_owned(),
        };
        format!("{} = {became}", self.planned)
    }
}

#[derive(PartialEq, Eq, Clone, Copy)]
enum State {
    Waiting,
    Acting(Instant),
    Over,
}

/// Does the run of a schedule.
///
/// # Errors
/// What went wrong: stuck, not reported, a disk that was written, an image that must not boot.
pub fn run(schedule: &Schedule) -> Result<Report, String> {
    let mut run = Run::start(schedule);
    let result = run.drive();
    run.answer_again();
    run.bed.save_record();
    result
}

struct Run {
    bed: Bed,
    allocation: Allocation,
    allocated: bool,
    image: Image,
    coming: Vec<Coming>,
    begin: Instant,
    /// When the last fault so far ended.
    calm: Instant,
    data: Disk,
    disk: Disk,
    /// What `disk` lies on.
    store: Store,
    weather: Arc<Weather>,
    /// `disk` while its requests fail.
    broken: Option<BrokenDisk>,
    /// Requests of disks that failed in starts that are over.
    disk_errors: usize,
    seed: u64,
    clock: Option<&'static str>,
    /// What the consoles of all starts said.
    consoles: Vec<String>,
}

impl Run {
    fn start(schedule: &Schedule) -> Self {
        let bed = Bed::plan(&format!("faults-{}", schedule.seed)).start();
        let store = Store::mount(bed.dir.join("store"), 640);
        let disk = Disk::with_pattern(&store.dir, "disk", Bus::Virtio, 512);
        let data = Disk::with_pattern(&bed.dir, "data", Bus::Virtio, 64);
        let image = Image::built("tiny");
        let url = bed.publish("tiny", &image);
        let url = if schedule.slow_image {
            bed.slow(&url)
        } else {
            url
        };
        let allocation = Allocation::new(&url, "/dev/vda").fresh();
        if !schedule.waits {
            bed.allocate(&allocation);
        }
        let coming = schedule.faults.iter().map(|&planned| Coming {
            planned,
            due: None,
            state: State::Waiting,
            hits: None,
        });
        Self {
            allocated: !schedule.waits,
            coming: coming.collect(),
            seed: schedule.seed,
            clock: schedule.clock,
            begin: Instant::now(),
            calm: Instant::now(),
            consoles: Vec::new(),
            bed,
            allocation,
            image,
            data,
            disk,
            store,
            weather: Arc::default(),
            broken: None,
            disk_errors: 0,
        }
    }

    fn drive(&mut self) -> Result<Report, String> {
        // The BMC was told to boot the medium, whenever the firmware has no other order.
        let config = json!({
            "boot_helper_url": helper_url(),
            "policy": {"exclude_disks": ["virt1"], "boot_helper_timeout_seconds": 40,
                       "slaac_timeout_seconds": 60},
        });
        let start = media::iso(&self.bed.dir, &config, Media::SataCd);
        let disks = vec![self.disk.clone(), self.data.clone()];
        let data = self.data.hash();
        let mut machine = self.bed.machine(start, disks);
        machine.order = Some(Order::MediaFirst);
        machine.extra = vec!["-device".into(), "i6300esb".into()];
        machine.drive_words = ",werror=report,rerror=report";
        machine.wiring = Some(Wiring {
            namespace: self.bed.netns().name().to_owned(),
            weather: Arc::clone(&self.weather),
            seed: self.seed,
        });
        if let Some(clock) = self.clock {
            machine
                .extra
                .extend(["-rtc".into(), format!("base={clock}")]);
        }
        for number in 1..=MAX_STARTS {
            machine.name = format!("start-{number:02}");
            let mut guest = self.bed.power_on(&machine);
            self.go_on(&guest);
            let booted = self.follow(&mut guest)?;
            self.consoles.push(guest.text());
            self.disk_errors += guest.disk_errors();
            if booted {
                let after = self.calm.elapsed();
                drop(guest);
                if self.data.hash() != data {
                    return Err("a disk that must not be written was".to_owned());
                }
                return self.judge(number, after);
            }
        }
        Err(format!("{MAX_STARTS} starts, and the OS does not run"))
    }

    /// Follows one start; true when the installed OS runs.
    fn follow(&mut self, guest: &mut Guest) -> Result<bool, String> {
        loop {
            let text = guest.text();
            if text.contains(BOOTED) {
                return Ok(true);
            }
            let can_order = !self.acts_on("apiserver");
            if !self.allocated && can_order && text.contains("waiting for an allocation") {
                self.bed.allocate(&self.allocation);
                self.allocated = true;
            }
            if let Some(end) = guest.ended() {
                self.guest_is_gone();
                // What was said since.
                let text = guest.text();
                if text.contains(BOOTED) {
                    return Ok(true);
                }
                return match end {
                    End::Reset if is_explained(&text) => Ok(false),
                    // What was installed is no business of the agent's.
                    End::Reset if guest.disk_errors() > 0 && is_in_the_os(&text) => Ok(false),
                    End::Reset => Err("a reset that nobody told why".to_owned()),
                    // The reset button.
                    End::Other => Ok(false),
                    End::PowerOff => Err("the machine powered itself off".to_owned()),
                };
            }
            if self.faults(guest, &text) {
                self.guest_is_gone();
                return Ok(false);
            }
            let acting = self
                .coming
                .iter()
                .any(|it| matches!(it.state, State::Acting(_)));
            let calm = self.calm.elapsed();
            if !acting && calm > HANDS && guest.disk_errors() > 0 && is_in_the_os(&text) {
                // The installed kernel waits for a root that it could not read: no business of the
                // agent's, which is to bring it up again.
                self.guest_is_gone();
                return Ok(false);
            }
            if !acting && calm > BOUND {
                return Err(format!("stuck: {} s after the last fault", BOUND.as_secs()));
            }
            std::thread::sleep(ROUND);
        }
    }

    /// Begins and ends the faults that are due; true when the power is gone.
    fn faults(&mut self, guest: &Guest, text: &str) -> bool {
        let now = Instant::now();
        for index in 0..self.coming.len() {
            let Planned {
                fault,
                phase,
                after,
                lasts,
            } = self.coming[index].planned;
            match self.coming[index].state {
                State::Waiting => {
                    let (_, words) = PHASES[phase];
                    let due = &mut self.coming[index].due;
                    if due.is_none() && text.contains(words) {
                        *due = Some(now + after);
                    }
                    if due.is_none_or(|due| now < due)
                        || fault.works_on().is_some_and(|what| self.acts_on(what))
                    {
                        continue;
                    }
                    self.coming[index].state = match fault {
                        Fault::PowerCut | Fault::Reset | Fault::TokensRevoked => State::Over,
                        _ => State::Acting(now + lasts),
                    };
                    self.calm = now;
                    self.coming[index].hits = self.count(fault, Some(guest));
                    match fault {
                        Fault::PowerCut => return true,
                        Fault::Reset => told(guest, guest.try_control("system_reset", json!({}))),
                        fault => self.begin_fault(guest, fault),
                    }
                }
                State::Acting(until) if now >= until => {
                    self.coming[index].hits = self.hits(index, Some(guest));
                    self.end_fault(guest, fault);
                    self.coming[index].state = State::Over;
                    // What ends a fault may take its time.
                    self.calm = Instant::now();
                }
                State::Acting(_) | State::Over => {}
            }
        }
        false
    }

    fn acting(&self) -> impl Iterator<Item = Fault> {
        self.coming
            .iter()
            .filter(|it| matches!(it.state, State::Acting(_)))
            .map(|it| it.planned.fault)
    }

    fn acts_on(&self, what: &str) -> bool {
        self.acting().any(|fault| fault.works_on() == Some(what))
    }

    /// A counter that a fault drives, whatever it was before.
    fn count(&self, fault: Fault, guest: Option<&Guest>) -> Option<u64> {
        let counts = &self.weather.counts;
        Some(match fault {
            Fault::Loss(_) => counts.lost.load(Relaxed),
            Fault::Delay(_) => counts.delayed.load(Relaxed),
            Fault::Reorder(_) => counts.overtaken.load(Relaxed),
            Fault::Duplicate(_) => counts.doubled.load(Relaxed),
            Fault::DiskErrors(..) | Fault::DiskFull => {
                let now = guest.map_or(0, Guest::disk_errors);
                (self.disk_errors + now) as u64
            }
            Fault::ConnectionsReset(_) => {
                let tables = self.bed.run("nft", &["list", "ruleset"]);
                let packets = tables.split("counter packets ").nth(1);
                let packets = packets.and_then(|rest| rest.split(' ').next()?.parse().ok());
                packets.unwrap_or(0)
            }
            _ => return None,
        })
    }

    /// What an acting fault has hit by now.
    fn hits(&self, index: usize, guest: Option<&Guest>) -> Option<u64> {
        let it = &self.coming[index];
        let now = self.count(it.planned.fault, guest)?;
        Some(now - it.hits?)
    }

    /// What waited for a phase of this start waits for the next one's.
    fn guest_is_gone(&mut self) {
        self.broken = None;
        for it in &mut self.coming {
            if it.state == State::Waiting {
                it.due = None;
            }
        }
    }

    /// What was done to the machine itself is done to the new one too, until its time is over.
    fn go_on(&mut self, guest: &Guest) {
        let own = |fault: &Fault| {
            matches!(
                fault,
                Fault::Cable(_) | Fault::DiskSlow(_) | Fault::DiskErrors(..)
            )
        };
        let own: Vec<Fault> = self.acting().filter(own).collect();
        for fault in own {
            self.begin_fault(guest, fault);
        }
    }

    /// The apiserver answers, whatever was done to it.
    fn answer_again(&mut self) {
        let acting: Vec<Fault> = self.acting().collect();
        for fault in acting {
            match fault {
                Fault::ApiserverHangs => self.bed.signal("apiserver", libc::SIGCONT),
                Fault::ApiserverDies => self.bed.revive("apiserver"),
                _ => {}
            }
        }
    }

    fn begin_fault(&mut self, guest: &Guest, fault: Fault) {
        match fault {
            Fault::NoRouter => self.bed.kill("radvd"),
            Fault::Cable(number) => told(guest, guest.try_set_cable(number, false)),
            Fault::HelperDies => self.bed.kill("metal-boot"),
            Fault::ApiserverHangs => self.bed.signal("apiserver", libc::SIGSTOP),
            Fault::ApiserverDies => {
                self.bed.save_record();
                let record = self.bed.dir.join("record.json");
                let _ = fs::rename(
                    &record,
                    record.with_file_name("record-before-the-kill.json"),
                );
                self.bed.kill("apiserver");
            }
            Fault::ApiserverFails(method, status) => {
                self.bed.standin.order(
                    json!({"do": "error", "method": method, "status": status, "message": "campaign"}),
                );
            }
            Fault::TokensRevoked => {
                let machine = self.bed.machine.clone();
                self.bed
                    .standin
                    .order(json!({"do": "revoke", "uuid": machine}));
            }
            Fault::TokensShort(seconds) => {
                self.bed.standin.set(json!({"token_seconds": seconds}));
            }
            Fault::ImageServerDies => self.bed.kill("nginx"),
            Fault::ImageDrips(rate) => {
                self.bed.kill("nginx");
                self.bed.revive_dripping(rate);
            }
            Fault::ImageDamaged => {
                // The checksum stays that of the good one.
                let damaged = self.image.clone().with_flipped_byte(100_000);
                self.bed.publish("tiny", &damaged);
            }
            Fault::ConnectionsReset(permille) => {
                let rules = format!(
                    "add table inet faults; \
                     add chain inet faults in {{ type filter hook input priority 0; }}; \
                     add rule inet faults in iifname \"tap*\" meta l4proto tcp \
                     numgen random mod 1000 < {permille} counter reject with tcp reset"
                );
                self.bed.run("nft", &[&rules]);
            }
            Fault::Loss(percent) => self.weather.change(|rules| rules.lost = percent),
            Fault::Delay(ms) => self.weather.change(|rules| rules.delayed = ms),
            Fault::Reorder(percent) => self.weather.change(|rules| rules.overtaken = percent),
            Fault::Duplicate(percent) => self.weather.change(|rules| rules.doubled = percent),
            Fault::Narrow(kbit) => {
                for leaf in &LEAVES {
                    let rule = format!(
                        "qdisc add dev {} root tbf rate {kbit}kbit burst 16kb latency 500ms",
                        leaf.tap
                    );
                    self.bed
                        .run("tc", &rule.split_whitespace().collect::<Vec<_>>());
                }
            }
            Fault::DiskSlow(iops) => told(guest, throttle(guest, iops)),
            Fault::DiskErrors(kind, times) => {
                let times = (times > 0).then_some(times as usize);
                match guest.break_disk(0, kind, times) {
                    Ok(broken) => self.broken = Some(broken),
                    failed => told(guest, failed.map(drop)),
                }
            }
            Fault::DiskFull => self.store.fill(),
            Fault::PowerCut | Fault::Reset => {}
        }
    }

    fn end_fault(&mut self, guest: &Guest, fault: Fault) {
        let calm = Rules::default();
        match fault {
            Fault::NoRouter => self.bed.revive("radvd"),
            Fault::HelperDies => self.bed.revive("metal-boot"),
            Fault::ApiserverHangs => self.bed.signal("apiserver", libc::SIGCONT),
            Fault::ApiserverDies => self.bed.revive("apiserver"),
            Fault::ApiserverFails(..) => {
                self.bed.standin.order(json!({"do": "clear_errors"}));
            }
            Fault::TokensShort(_) => self.bed.standin.set(json!({"token_seconds": null})),
            Fault::ImageServerDies => self.bed.revive("nginx"),
            Fault::ImageDrips(_) => {
                self.bed.kill("nginx");
                self.bed.revive("nginx");
            }
            Fault::ImageDamaged => {
                self.bed.publish("tiny", &self.image);
            }
            Fault::ConnectionsReset(_) => {
                self.bed.run("nft", &["delete table inet faults"]);
            }
            Fault::Loss(_) => self.weather.change(|rules| rules.lost = calm.lost),
            Fault::Delay(_) => self.weather.change(|rules| rules.delayed = calm.delayed),
            Fault::Reorder(_) => self
                .weather
                .change(|rules| rules.overtaken = calm.overtaken),
            Fault::Duplicate(_) => self.weather.change(|rules| rules.doubled = calm.doubled),
            Fault::Narrow(_) => {
                for leaf in &LEAVES {
                    self.bed
                        .run("tc", &["qdisc", "del", "dev", leaf.tap, "root"]);
                }
            }
            Fault::Cable(number) => told(guest, guest.try_set_cable(number, true)),
            Fault::DiskSlow(_) => told(guest, throttle(guest, 0)),
            Fault::DiskErrors(..) => {
                if let Some(broken) = self.broken.take() {
                    told(guest, guest.mend_disk(&broken));
                }
            }
            Fault::DiskFull => self.store.relieve(),
            Fault::TokensRevoked | Fault::PowerCut | Fault::Reset => {}
        }
    }

    /// The OS runs: was everything on the way as it should be?
    fn judge(&mut self, starts: usize, after: Duration) -> Result<Report, String> {
        let digest = self.image.md5.clone().unwrap_or_default();
        let digest = digest.split_whitespace().next().unwrap_or_default();
        let mut failures = 0;
        let mut verified = 0;
        for (index, text) in self.consoles.iter().enumerate() {
            for line in text
                .lines()
                .filter(|line| line.contains("image verified: "))
            {
                verified += 1;
                if !line.contains(digest) {
                    return Err(format!("start {}: {line}", index + 1));
                }
            }
            let failed = text.matches(" FAILED: ").count();
            failures += failed;
            let reported = REPORTED.iter().map(|words| text.matches(words).count());
            // A fault may cut a start between the failure and its report.
            if failed > reported.sum::<usize>() && !self.was_cut(index) {
                return Err(format!("start {}: a failure was not reported", index + 1));
            }
        }
        if verified == 0 {
            return Err("an OS runs that was never verified".to_owned());
        }
        for index in 0..self.coming.len() {
            if matches!(self.coming[index].state, State::Acting(_)) {
                self.coming[index].hits = self.hits(index, None);
            }
        }
        Ok(Report {
            seconds: self.begin.elapsed().as_secs(),
            after: after.as_secs(),
            faults: self.coming.iter().map(Coming::story).collect(),
            starts,
            failures,
            happened: self
                .coming
                .iter()
                .filter(|it| it.state != State::Waiting)
                .count(),
        })
    }

    /// Whether a start may have ended by a fault of the run: then its last words are missing.
    fn was_cut(&self, index: usize) -> bool {
        let cuts = |it: &&Coming| matches!(it.planned.fault, Fault::PowerCut | Fault::Reset);
        self.coming
            .iter()
            .any(|it| cuts(&it) && it.state == State::Over)
            && index + 1 < self.consoles.len()
    }
}

/// Whether the agent said what a reset is for.
fn is_explained(text: &str) -> bool {
    [
        "FAILED: ",
        "booting its disk",
        "booting the disk by a reset instead",
    ]
    .iter()
    .any(|words| text.contains(words))
}

/// Whether the kernel that was installed has started.
fn is_in_the_os(text: &str) -> bool {
    text.lines()
        .any(|line| line.contains("Kernel command line: ") && line.contains("tiny.boot="))
}

/// A machine that ends at the same moment cannot be told anything, and need not be.
fn told(guest: &Guest, result: Result<(), String>) {
    if let Err(error) = result {
        assert!(guest.is_ending(), "{error}");
    }
}

fn throttle(guest: &Guest, iops: u64) -> Result<(), String> {
    guest.try_control(
        "block_set_io_throttle",
        json!({"device": "disk0", "bps": 0, "bps_rd": 0, "bps_wr": 0,
               "iops": iops, "iops_rd": 0, "iops_wr": 0}),
    )
}

/// Where a run's files are.
pub fn directory(seed: u64) -> PathBuf {
    crate::support::root().join(format!("target/e2e/faults-{seed}"))
}

/// Forgets the files of a run that went well.
pub fn forget(seed: u64) {
    let _ = fs::remove_dir_all(directory(seed));
}
