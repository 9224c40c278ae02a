//! One run: a machine, its bed, the faults of a schedule, and the verdict.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::schedule::{Fault, PHASES, Planned, Schedule};
use crate::support::allocation::Allocation;
use crate::support::bed::Bed;
use crate::support::disk::{Bus, Disk};
use crate::support::guest::{End, Guest, Media, Order};
use crate::support::images::Image;
use crate::support::media::{self, helper_url};

/// From the end of the last fault to the installed OS, at most.
pub const BOUND: Duration = Duration::from_secs(8 * 60);
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
    pub starts: usize,
    pub failures: usize,
    /// Faults that happened; the others' phase never came.
    pub happened: usize,
}

/// A fault on its way.
struct Coming {
    planned: Planned,
    /// When its phase began.
    due: Option<Instant>,
    state: State,
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
    clock: Option<&'static str>,
    /// What the consoles of all starts said.
    consoles: Vec<String>,
}

impl Run {
    fn start(schedule: &Schedule) -> Self {
        let bed = Bed::plan(&format!("faults-{}", schedule.seed)).start();
        let disk = Disk::with_pattern(&bed.dir, "disk", Bus::Virtio, 512);
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
        });
        Self {
            allocated: !schedule.waits,
            coming: coming.collect(),
            clock: schedule.clock,
            begin: Instant::now(),
            calm: Instant::now(),
            consoles: Vec::new(),
            bed,
            allocation,
            image,
            data,
            disk,
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
        if let Some(clock) = self.clock {
            machine
                .extra
                .extend(["-rtc".into(), format!("base={clock}")]);
        }
        for number in 1..=MAX_STARTS {
            machine.name = format!("start-{number:02}");
            let mut guest = self.bed.power_on(&machine);
            let booted = self.follow(&mut guest)?;
            self.consoles.push(guest.text());
            if booted {
                drop(guest);
                if self.data.hash() != data {
                    return Err("a disk that must not be written was".to_owned());
                }
                return self.judge(number);
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
            if !self.allocated && text.contains("waiting for an allocation") {
                self.bed.allocate(&self.allocation);
                self.allocated = true;
            }
            if let Some(end) = guest.ended() {
                self.guest_is_gone();
                return match end {
                    End::Reset => match text.contains("FAILED: ")
                        || text.contains("booting its disk")
                        || text.contains("booting the disk by a reset instead")
                    {
                        true => Ok(false),
                        false => Err("a reset that nobody told why".to_owned()),
                    },
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
            if !acting && self.calm.elapsed() > BOUND {
                return Err(format!("stuck: {} s after the last fault", BOUND.as_secs()));
            }
            std::thread::sleep(ROUND);
        }
    }

    /// Begins and ends the faults that are due; true when the power is gone.
    fn faults(&mut self, guest: &Guest, text: &str) -> bool {
        let now = Instant::now();
        for index in 0..self.coming.len() {
            let Coming {
                planned,
                due,
                state,
            } = &mut self.coming[index];
            match *state {
                State::Waiting => {
                    let (_, words) = PHASES[planned.phase];
                    if due.is_none() && text.contains(words) {
                        *due = Some(now + planned.after);
                    }
                    if due.is_none_or(|due| now < due) {
                        continue;
                    }
                    let fault = planned.fault;
                    *state = State::Acting(now + planned.lasts);
                    self.calm = now;
                    match fault {
                        Fault::PowerCut | Fault::Reset => {
                            self.coming[index].state = State::Over;
                            if fault == Fault::Reset {
                                guest.control("system_reset", json!({}));
                                continue;
                            }
                            return true;
                        }
                        fault => self.begin_fault(guest, fault),
                    }
                }
                State::Acting(until) if now >= until => {
                    let fault = planned.fault;
                    *state = State::Over;
                    self.calm = now;
                    self.end_fault(guest, fault);
                }
                State::Acting(_) | State::Over => {}
            }
        }
        false
    }

    /// What was done to the guest itself ends with it.
    fn guest_is_gone(&mut self) {
        for it in &mut self.coming {
            let own = matches!(
                it.planned.fault,
                Fault::Cable(_) | Fault::Delay(_) | Fault::DiskSlow(_)
            );
            if own && matches!(it.state, State::Acting(_)) {
                it.state = State::Over;
                self.calm = Instant::now();
            }
            // Its phase has to come again.
            if it.state == State::Waiting {
                it.due = None;
            }
        }
    }

    fn begin_fault(&mut self, guest: &Guest, fault: Fault) {
        match fault {
            Fault::NoRouter => self.bed.kill("radvd"),
            Fault::Cable(number) => guest.set_cable(number, false),
            Fault::HelperDies => self.bed.kill("metal-boot"),
            Fault::ApiserverHangs => self.bed.signal("apiserver", libc::SIGSTOP),
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
            Fault::ImageServerDies => self.bed.kill("nginx"),
            Fault::ImageDamaged => {
                // The checksum stays that of the good one.
                let damaged = self.image.clone().with_flipped_byte(100_000);
                self.bed.publish("tiny", &damaged);
            }
            Fault::Loss(percent) => {
                let rules = format!(
                    "add table inet faults; \
                     add chain inet faults out {{ type filter hook output priority 0; }}; \
                     add rule inet faults out numgen random mod 100 < {percent} drop"
                );
                self.bed.run("nft", &[&rules]);
            }
            Fault::Delay(ms) => {
                for number in 0..2 {
                    guest.control(
                        "object-add",
                        json!({"qom-type": "filter-buffer", "id": format!("delay{number}"),
                               "netdev": format!("net{number}"), "queue": "all",
                               "interval": ms * 1000}),
                    );
                }
            }
            Fault::Narrow(kbit) => {
                for tap in ["tap0", "tap1"] {
                    let rule = format!(
                        "qdisc add dev {tap} root tbf rate {kbit}kbit burst 16kb latency 500ms"
                    );
                    self.bed
                        .run("tc", &rule.split_whitespace().collect::<Vec<_>>());
                }
            }
            Fault::DiskSlow(iops) => throttle(guest, iops),
            Fault::PowerCut | Fault::Reset => {}
        }
    }

    fn end_fault(&mut self, guest: &Guest, fault: Fault) {
        match fault {
            Fault::NoRouter => self.bed.revive("radvd"),
            Fault::HelperDies => self.bed.revive("metal-boot"),
            Fault::ApiserverHangs => self.bed.signal("apiserver", libc::SIGCONT),
            Fault::ApiserverFails(..) => {
                self.bed.standin.order(json!({"do": "clear_errors"}));
            }
            Fault::ImageServerDies => self.bed.revive("nginx"),
            Fault::ImageDamaged => {
                self.bed.publish("tiny", &self.image);
            }
            Fault::Loss(_) => {
                self.bed.run("nft", &["delete table inet faults"]);
            }
            Fault::Narrow(_) => {
                for tap in ["tap0", "tap1"] {
                    self.bed.run("tc", &["qdisc", "del", "dev", tap, "root"]);
                }
            }
            Fault::Cable(number) => guest.set_cable(number, true),
            Fault::Delay(_) => {
                for number in 0..2 {
                    guest.control("object-del", json!({"id": format!("delay{number}")}));
                }
            }
            Fault::DiskSlow(_) => throttle(guest, 0),
            Fault::TokensRevoked | Fault::PowerCut | Fault::Reset => {}
        }
    }

    /// The OS runs: was everything on the way as it should be?
    fn judge(&self, starts: usize) -> Result<Report, String> {
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
        Ok(Report {
            seconds: self.begin.elapsed().as_secs(),
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

fn throttle(guest: &Guest, iops: u64) {
    guest.control(
        "block_set_io_throttle",
        json!({"device": "disk0", "bps": 0, "bps_rd": 0, "bps_wr": 0,
               "iops": iops, "iops_rd": 0, "iops_wr": 0}),
    );
}

/// Where a run's files are.
pub fn directory(seed: u64) -> PathBuf {
    crate::support::root().join(format!("target/e2e/faults-{seed}"))
}

/// Forgets the files of a run that went well.
pub fn forget(seed: u64) {
    let _ = fs::remove_dir_all(directory(seed));
}
