//! A QEMU guest: power-on, and a handle on the running one.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use super::console::Console;
use super::machine::Machine;
use super::netns::LEAVES;
use super::process;
use super::qmp::Qmp;
use super::wire::Wire;

impl Machine {
    /// Power-on: runs QEMU by `base` (a command inside the namespace, or QEMU itself).
    pub fn power_on(&self, mut base: Command, dir: &Path) -> Guest {
        self.make_vars();
        // Socket paths are limited to 107 bytes: they live in a short directory of their own.
        let sockets = tempfile::Builder::new()
            .prefix("ma-")
            .tempdir_in("/tmp")
            .expect("directory for the QMP socket");
        let qmp_path = sockets.path().join("qmp");
        let wires = self.wiring.iter().flat_map(|wiring| {
            let numbers = 0..self.cards.len().min(LEAVES.len());
            numbers.map(|number| Wire::plug(wiring, sockets.path(), number))
        });
        let wires = wires.collect();
        self.arguments(&mut base, &qmp_path);
        let errors = dir.join(format!("{}.qemu", self.name));
        let stderr = std::fs::File::create(&errors)
            .unwrap_or_else(|e| panic!("create {}: {e}", errors.display()));
        base.stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr);
        let mut child = process::spawn("qemu-system-x86_64", base);
        let log = dir.join(format!("{}.console", self.name));
        let output = child.stdout.take().expect("piped stdout");
        let console = Console::read(output, &log, self.show.clone());
        let qmp = match Qmp::connect(&qmp_path, Duration::from_secs(90)) {
            Ok(qmp) => qmp,
            Err(error) => {
                process::end(&mut child);
                panic!("{error}\nQEMU says: {}", process::tail(&errors, 20));
            }
        };
        Guest {
            name: self.name.clone(),
            child,
            console,
            place: 0,
            qmp,
            started: Instant::now(),
            log,
            errors,
            _wires: wires,
            _sockets: sockets,
        }
    }
}

/// How a guest ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// It asked for a reset.
    Reset,
    /// It powered itself off.
    PowerOff,
    /// It crashed the firmware's or QEMU's way.
    Other,
}

/// A disk whose requests fail (`Guest::break_disk`).
pub struct BrokenDisk {
    device: serde_json::Value,
    whole: serde_json::Value,
    bad: String,
}

/// A running guest; powered off hard when dropped, with its console shown when the test fails.
pub struct Guest {
    name: String,
    child: Child,
    console: Console,
    place: usize,
    qmp: Qmp,
    started: Instant,
    log: PathBuf,
    errors: PathBuf,
    _wires: Vec<Wire>,
    _sockets: tempfile::TempDir,
}

impl Guest {
    /// Waits for a console line that holds `pattern`, behind all lines waited for before.
    pub fn wait_for(&mut self, pattern: &str, seconds: u64) -> String {
        self.wait_for_any(&[pattern], seconds)
    }

    /// Waits for a console line that holds one of `patterns`.
    pub fn wait_for_any(&mut self, patterns: &[&str], seconds: u64) -> String {
        match self
            .console
            .find(patterns, self.place, Duration::from_secs(seconds))
        {
            Ok((line, place)) => {
                self.place = place;
                line
            }
            Err(why) => panic!("console: {why}"),
        }
    }

    /// Waits for a line anywhere since power-on, before or behind those waited for.
    pub fn see(&self, pattern: &str, seconds: u64) -> String {
        let limit = Duration::from_secs(seconds);
        match self.console.find(&[pattern], 0, limit) {
            Ok((line, _)) => line,
            Err(why) => panic!("console: {why}"),
        }
    }

    /// Waits until the guest ends by itself.
    pub fn wait_end(&mut self, seconds: u64) -> End {
        let limit = Duration::from_secs(seconds);
        let Some(event) = self.qmp.event("SHUTDOWN", limit) else {
            panic!("the guest did not end within {limit:?}");
        };
        // QEMU ends right after the event; then its files are complete.
        process::end(&mut self.child);
        match event["data"]["reason"].as_str() {
            Some("guest-reset") => End::Reset,
            Some("guest-shutdown") => End::PowerOff,
            _ => End::Other,
        }
    }

    /// Waits until the guest sets its hardware clock by about `offset` seconds. The firmware sets
    /// it too, to the time that it has.
    pub fn wait_clock_set(&self, offset: i64, seconds: u64) {
        // QEMU 7.2 counts in 32 bits.
        let fits = |event: &serde_json::Value| {
            let by = event["data"]["offset"].as_i64();
            by.is_some_and(|by| (by as i32).wrapping_sub(offset as i32).abs() < 86_400)
        };
        let limit = Duration::from_secs(seconds);
        assert!(
            self.qmp.event_where("RTC_CHANGE", limit, fits).is_some(),
            "the hardware clock was not set by {offset} s within {limit:?}"
        );
    }

    /// Waits until the machine's watchdog resets it.
    pub fn wait_watchdog(&self, seconds: u64) {
        let limit = Duration::from_secs(seconds);
        assert!(
            self.qmp.event("WATCHDOG", limit).is_some(),
            "the watchdog did not bite within {limit:?}"
        );
    }

    /// How the guest ended, if it has.
    pub fn ended(&mut self) -> Option<End> {
        let event = self.qmp.event("SHUTDOWN", Duration::ZERO)?;
        process::end(&mut self.child);
        Some(match event["data"]["reason"].as_str() {
            Some("guest-reset") => End::Reset,
            Some("guest-shutdown") => End::PowerOff,
            _ => End::Other,
        })
    }

    /// Pulls the plug: no flush, no farewell.
    pub fn power_cut(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Stops the whole machine between two instructions, also what it has on the way to its disks.
    pub fn freeze(&self) {
        self.signal(libc::SIGSTOP);
        let pid = self.child.id() as libc::pid_t;
        let mut status = 0;
        // SAFETY: asks about our own child; it is stopped, not gone, so nothing is reaped.
        let pid = unsafe { libc::waitpid(pid, &mut status, libc::WUNTRACED) };
        assert!(pid > 0 && libc::WIFSTOPPED(status), "QEMU did not stop");
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(libc::SIGCONT);
    }

    fn signal(&self, signal: i32) {
        // SAFETY: a signal to our own child, which has not been waited for.
        unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
    }

    /// Plugs the cable of network card `number` in or out.
    pub fn set_cable(&self, number: usize, plugged: bool) {
        self.control(
            "set_link",
            json!({"name": format!("card{number}"), "up": plugged}),
        );
    }

    /// The same; an error when QEMU is just ending.
    pub fn try_set_cable(&self, number: usize, plugged: bool) -> Result<(), String> {
        self.try_control(
            "set_link",
            json!({"name": format!("card{number}"), "up": plugged}),
        )
    }

    /// Gives QEMU a command over QMP.
    pub fn control(&self, command: &str, arguments: serde_json::Value) {
        self.try_control(command, arguments)
            .unwrap_or_else(|error| panic!("{error}"));
    }

    /// The same; an error when QEMU refuses it, or is just ending.
    pub fn try_control(&self, command: &str, arguments: serde_json::Value) -> Result<(), String> {
        self.qmp.execute(command, arguments).map(drop)
    }

    /// Presses keys of the keyboard together, by their names in QEMU (`QKeyCode`).
    pub fn press(&self, keys: &[&str]) {
        let keys: Vec<_> = keys
            .iter()
            .map(|key| json!({"type": "qcode", "data": key}))
            .collect();
        self.control("send-key", json!({"keys": keys}));
    }

    /// Whether the machine has ended, or does so in a moment.
    pub fn is_ending(&self) -> bool {
        self.qmp.event("SHUTDOWN", Duration::from_secs(5)).is_some()
    }

    /// Lets requests of disk `number` fail: the first `times` reads or writes (`kind`) from now
    /// on, or all of them, until [`Self::mend_disk`]. The machine needs `werror=report`.
    ///
    /// # Errors
    /// QEMU refuses it, or is just ending.
    pub fn break_disk(
        &self,
        number: usize,
        kind: &str,
        times: Option<usize>,
    ) -> Result<BrokenDisk, String> {
        let drives = self.qmp.execute("query-block", json!({}))?;
        let name = format!("disk{number}");
        let mut drives = drives.as_array().into_iter().flatten();
        let drive = drives.find(|drive| drive["device"] == name.as_str());
        let drive = drive.ok_or_else(|| format!("there is no {name}"))?;
        let broken = BrokenDisk {
            device: drive["qdev"].clone(),
            whole: drive["inserted"]["node-name"].clone(),
            bad: format!("bad{number}"),
        };
        let rule = json!({"event": "none", "iotype": kind, "errno": libc::EIO,
                          "once": times.is_some()});
        self.try_control(
            "blockdev-add",
            json!({"driver": "blkdebug", "node-name": broken.bad, "image": broken.whole,
                   "inject-error": vec![rule; times.unwrap_or(1)]}),
        )?;
        self.put_drive(&broken.device, &json!(broken.bad))?;
        Ok(broken)
    }

    /// Lets them succeed again.
    ///
    /// # Errors
    /// QEMU refuses it, or is just ending.
    pub fn mend_disk(&self, broken: &BrokenDisk) -> Result<(), String> {
        self.put_drive(&broken.device, &broken.whole)?;
        self.try_control("blockdev-del", json!({"node-name": broken.bad}))
    }

    fn put_drive(
        &self,
        device: &serde_json::Value,
        node: &serde_json::Value,
    ) -> Result<(), String> {
        self.try_control(
            "qom-set",
            json!({"path": device, "property": "drive", "value": node}),
        )
    }

    /// Requests of the disks that failed since power-on.
    pub fn disk_errors(&self) -> usize {
        self.qmp.events("BLOCK_IO_ERROR")
    }

    /// Bytes and requests that the machine has read from its medium since power-on.
    pub fn read_from_medium(&self) -> (u64, u64) {
        let answer = self.qmp.execute("query-blockstats", json!({}));
        let answer = answer.unwrap_or_else(|error| panic!("query-blockstats: {error}"));
        let drives = answer.as_array().expect("a list of drives");
        let stats = drives.iter().find(|drive| drive["device"] == "iso");
        let stats = &stats.expect("a medium is attached")["stats"];
        let number = |name: &str| stats[name].as_u64().expect("a number");
        (number("rd_bytes"), number("rd_operations"))
    }

    /// Presses the power button (ACPI).
    pub fn power_button(&self) {
        self.qmp
            .execute("system_powerdown", json!({}))
            .expect("power button");
    }

    /// Types into the serial console.
    pub fn type_in(&mut self, text: &str) {
        use std::io::Write;
        if let Some(input) = self.child.stdin.as_mut() {
            input
                .write_all(text.as_bytes())
                .expect("guest's console input");
            input.flush().expect("guest's console input");
        }
    }

    /// Saves what the guest's screen shows as a PPM picture.
    pub fn screendump(&self, path: &Path) {
        self.qmp
            .execute(
                "screendump",
                json!({"filename": path.display().to_string()}),
            )
            .expect("screendump");
    }

    /// Saves the guest's memory (ELF), to be searched for secrets.
    pub fn dump_memory(&self, path: &Path) {
        self.qmp
            .execute(
                "dump-guest-memory",
                json!({"paging": false, "protocol": format!("file:{}", path.display())}),
            )
            .expect("memory dump");
    }

    /// Where its processors are: the lines of `info registers` that tell.
    fn at(&self) -> String {
        let order = json!({"command-line": "info registers -a"});
        match self.qmp.execute("human-monitor-command", order) {
            Ok(registers) => {
                let lines = registers.as_str().unwrap_or_default().lines();
                let lines: Vec<&str> = lines.filter(|line| line.starts_with("RIP=")).collect();
                format!("still running at {lines:?}")
            }
            Err(error) => format!("still running; where: {error}"),
        }
    }

    /// All console text so far.
    pub fn text(&self) -> String {
        self.console.text()
    }

    /// Time since power-on.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// A power-on's console log.
    pub fn log(&self) -> &Path {
        &self.log
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let state = match self.child.try_wait() {
            Ok(None) if std::thread::panicking() => self.at(),
            Ok(Some(status)) => status.to_string(),
            _ => String::new(),
        };
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!(
                "--- console of {} ({}) ---\n{}\n--- QEMU ({}) ---\n{}\n{state}",
                self.name,
                self.log.display(),
                self.console.tail(120),
                self.errors.display(),
                process::tail(&self.errors, 10),
            );
        }
    }
}
