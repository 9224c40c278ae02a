//! The screens of the main states, as a technician sees them.

use uuid::uuid;

use super::*;
use crate::report::timeline::Timeline;

const MIB: u64 = 1 << 20;

struct Boot {
    dashboard: Dashboard,
    timeline: Timeline,
    at: Duration,
}

impl Boot {
    fn new() -> Self {
        let mut boot = Self {
            dashboard: Dashboard::default(),
            timeline: Timeline::new(),
            at: Duration::from_secs(2),
        };
        boot.begin(Step::Start, 0);
        boot.tell(Event::Machine(Machine {
            id: uuid!("4c4c4544-0044-4810-8031-b4c04f4a3533"),
            hardware: "Dell Inc. PowerEdge R6525, BIOS 2.3.6".to_owned(),
        }));
        boot
    }

    fn tell(&mut self, event: Event) {
        let at = self.at;
        self.dashboard.apply(&Record { at, event });
    }

    fn begin(&mut self, step: Step, seconds: u64) {
        self.at += Duration::from_secs(seconds);
        let events = self.timeline.begin(step, self.at);
        events.into_iter().for_each(|event| self.tell(event));
    }

    fn doing(&mut self, what: &str, limit: Option<u64>) {
        self.tell(Event::Doing {
            what: what.to_owned(),
            limit: limit.map(Duration::from_secs),
        });
    }

    fn fail(&mut self, cause: &str) {
        let failed = self.timeline.fail(cause, self.at).unwrap();
        self.tell(failed);
    }

    fn log(&mut self, level: Level, origin: Origin, text: &str) {
        self.tell(Event::Line(Line::new(level, origin, text)));
    }

    /// Whether a row of that screen has this.
    fn shows(&self, seconds: u64, text: &str) -> bool {
        self.screen(seconds).iter().any(|row| row.contains(text))
    }

    /// What 80 by 25 show some seconds later.
    fn screen(&self, seconds: u64) -> Vec<String> {
        let now = self.at + Duration::from_secs(seconds);
        self.dashboard.render(now, 80, 25).text()
    }
}

fn port(name: &str, carrier: bool, address: Option<&str>, switch: Option<&str>) -> Port {
    Port {
        name: name.to_owned(),
        mac: "52:54:00:00:00:01".to_owned(),
        carrier,
        address: address.map(ToOwned::to_owned),
        switch: switch.map(ToOwned::to_owned),
        check: "cable, transceiver, and whether the switch port is enabled".to_owned(),
    }
}

#[test]
fn waiting_for_an_address_shows_what_each_port_lacks() {
    let mut boot = Boot::new();
    boot.begin(Step::Network, 1);
    boot.doing("waiting for an IPv6 address", Some(120));
    boot.tell(Event::Ports(vec![
        port("eth0", false, None, None),
        port("eth1", true, None, None),
    ]));
    boot.log(Level::INFO, Origin::Agent, "eth1 is up");
    let expected = "\
Dell Inc. PowerEdge R6525, BIOS 2.3.6
> waiting for an IPv6 address: 12 of 120 s
-- ports -----------------------------------------------------------------------
eth0     52:54:00:00:00:01 no carrier no address
         check: cable, transceiver, and whether the switch port is enabled
eth1     52:54:00:00:00:01 carrier    no address
         check: cable, transceiver, and whether the switch port is enabled
-- steps -----------------------------------------------------------------------
ok start           1.0 s                  wait
>  network         12 s                   preflight
   boot helper                            partitioning
   switch ports                           image
   registration                           installer
   allocation                             boot entry
   wipe                                   success report
-- log -------------------------------------------------------------------------
eth1 is up";
    let screen = boot.screen(12);
    let expected: Vec<&str> = expected.lines().collect();
    assert_eq!(screen[1..=expected.len()], expected);
    let title = format!("{PROGRAM}  machine 4c4c4544-0044-4810-8031-b4c04f4a3533");
    assert!(screen[0].starts_with(&title), "{}", screen[0]);
    assert!(screen[0].ends_with(" 0:00:15    2%"), "{}", screen[0]);
}

#[test]
fn listening_for_switches_shows_which_port_hears_one() {
    let mut boot = Boot::new();
    boot.begin(Step::Network, 1);
    boot.begin(Step::BootHelper, 1);
    boot.begin(Step::Registration, 1);
    boot.begin(Step::SwitchPorts, 1);
    boot.doing("listening for switches on 2 ports", Some(32));
    let address = Some("2001:db8::1");
    boot.tell(Event::Ports(vec![
        port("eth0", true, address, Some("leaf1 Ethernet7")),
        port("eth1", true, Some("2001:db8:1::1"), None),
    ]));
    let screen = boot.screen(9);
    assert_eq!(
        screen[2..6],
        [
            "> listening for switches on 2 ports: 9 of 32 s",
            "-- ports -----------------------------------------------------------------------",
            "eth0     52:54:00:00:00:01 carrier    2001:db8::1  leaf1 Ethernet7",
            "eth1     52:54:00:00:00:01 carrier    2001:db8:1::1",
        ]
    );
    assert!(boot.shows(9, ">  switch ports    9 s"), "{screen:#?}");
    assert!(boot.shows(9, "ok boot helper     1.0 s"), "{screen:#?}");
}

#[test]
fn a_machine_that_registers_has_heard_its_switches() {
    let mut boot = Boot::new();
    for step in [Step::Network, Step::BootHelper, Step::Registration] {
        boot.begin(step, 1);
    }
    boot.begin(Step::SwitchPorts, 1);
    boot.begin(Step::Registration, 4);
    let screen = boot.screen(2);
    assert_eq!(screen[2], "> registration: 2 s");
    assert!(boot.shows(2, "ok switch ports    4.0 s"), "{screen:#?}");
    assert!(boot.shows(2, ">  registration    2 s"), "{screen:#?}");
    // Start, network, boot helper and switch ports lie behind.
    assert!(screen[0].ends_with(" 22%"), "{}", screen[0]);
}

#[test]
fn a_wipe_shows_how_long_it_takes_already() {
    let mut boot = Boot::new();
    for step in WAY.into_iter().skip(1).take(6) {
        boot.begin(step, 1);
    }
    boot.doing("wiping 12 disks", None);
    boot.log(Level::INFO, Origin::Agent, "/dev/nvme0n1 is wiped");
    let screen = boot.screen(75);
    assert_eq!(screen[2], "> wiping 12 disks: 75 s");
    assert!(boot.shows(75, ">  wipe            75 s"), "{screen:#?}");
    assert!(boot.shows(75, "/dev/nvme0n1 is wiped"), "{screen:#?}");
    assert!(screen[0].ends_with(" 34%"), "{}", screen[0]);
}

#[test]
fn a_rescue_stays_beside_the_way_of_an_install() {
    let mut boot = Boot::new();
    boot.begin(Step::Rescue, 1);
    let why = "rescue (metal.config): a shell on ttyS0 (press Enter)";
    boot.tell(Event::Holding { why: why.into() });
    let screen = boot.screen(30);
    assert_eq!(screen[2], format!("HOLDING for 30 s: {why}"));
    assert!(boot.shows(30, ">  rescue          30 s"), "{screen:#?}");
}

#[test]
fn an_install_shows_how_far_it_is() {
    let mut boot = Boot::new();
    for step in WAY
        .into_iter()
        .skip(1)
        .take_while(|step| *step != Step::Installer)
    {
        boot.begin(step, 1);
    }
    boot.tell(Event::Ports(vec![port(
        "eth0",
        true,
        Some("2001:db8::1"),
        Some("leaf1 Ethernet7"),
    )]));
    boot.tell(Event::Progress(Progress {
        downloaded: 50 * MIB,
        total: Some(100 * MIB),
        took: Duration::from_secs(2),
        ..Progress::default()
    }));
    let screen = boot.screen(3);
    // 50 percent lie behind, and half of the image's 38.
    assert!(screen[0].ends_with(" 69%"), "{}", screen[0]);
    assert_eq!(screen[2], "> image: 3 s");
    assert_eq!(
        screen[3],
        "[###############---------------] image: 50% of 100 MiB, 25 MiB/s, 2 s left"
    );
    assert_eq!(
        screen[5],
        "eth0     52:54:00:00:00:01 carrier    2001:db8::1  leaf1 Ethernet7"
    );
    // The next step has no progress of its own.
    boot.begin(Step::Installer, 1);
    assert!(!boot.screen(0).iter().any(|row| row.contains("[###")));
}

#[test]
fn a_failure_stays_and_counts_down() {
    let mut boot = Boot::new();
    boot.begin(Step::Network, 1);
    boot.fail("network: no usable IPv6 address after 5 s:\n  eth0 52:54:00:00:00:01 no carrier");
    boot.doing("reporting the failure", None);
    boot.tell(Event::Countdown { seconds: 20 });
    let screen = boot.screen(3);
    assert_eq!(
        screen[2],
        "FAILED: network: no usable IPv6 address after 5 s:"
    );
    assert_eq!(screen[3], "rebooting in 17 s");
    assert!(
        screen
            .iter()
            .any(|row| row.starts_with("!! network         0.0 s"))
    );
    assert!(boot.screen(60)[3].ends_with("in 0 s"));
}

#[test]
fn a_machine_that_holds_says_so() {
    let mut boot = Boot::new();
    let why = "this machine has an allocation but no install journal, so its disks may be in use; \
               nothing was written";
    boot.tell(Event::Holding { why: why.into() });
    let screen = boot.screen(5);
    assert_eq!(
        screen[2..4],
        [
            "HOLDING for 5 s: this machine has an allocation but no install journal, so its",
            "disks may be in use; nothing was written"
        ]
    );
}

#[test]
fn the_last_lines_of_the_log_are_there_and_long_ones_go_on_below() {
    let mut boot = Boot::new();
    for number in 0..1000 {
        boot.log(Level::INFO, Origin::Agent, &format!("line {number}"));
    }
    let kernel = Origin::Kernel { unseen: true };
    boot.log(Level::WARN, kernel, &"word ".repeat(20));
    let screen = boot.screen(0);
    assert_eq!(screen[22], "line 999");
    assert!(
        screen[23].starts_with("kernel: word word"),
        "{}",
        screen[23]
    );
    assert!(screen[24].starts_with("word word"), "{}", screen[24]);
    assert_eq!(boot.dashboard.log.len(), LOG_LINES);
}

#[test]
fn only_the_kernels_warnings_have_a_place() {
    let line = |level| Event::Line(Line::new(level, Origin::Kernel { unseen: false }, "x"));
    assert!(Dashboard::wants(&line(Level::WARN)));
    assert!(!Dashboard::wants(&line(Level::INFO)));
}

#[test]
fn every_size_is_drawn_on() {
    let mut boot = Boot::new();
    let ports = (0..40).map(|number| port(&format!("eth{number}"), false, None, None));
    boot.tell(Event::Ports(ports.collect()));
    boot.fail(&"cause ".repeat(200));
    for (columns, rows) in [(1, 1), (40, 12), (80, 25), (160, 50), (240, 67)] {
        let grid = boot.dashboard.render(boot.at, columns, rows);
        let text = grid.text().join("\n");
        assert!(text.contains("FAILED: cause"), "{columns}x{rows}: {text}");
        if rows >= 25 {
            assert!(text.contains("more") && text.contains("-- steps"), "{text}");
        }
    }
}

#[test]
fn texts_are_cut_at_blanks() {
    for (text, columns, expected) in [
        ("one two three", 8, vec!["one two", "three"]),
        ("unbreakable", 4, vec!["unbr", "eaka", "ble"]),
        ("", 8, vec![""]),
        ("12345678", 8, vec!["12345678"]),
        ("äöü äöü", 4, vec!["äöü", "äöü"]),
    ] {
        assert_eq!(wrapped(text, columns), expected, "{text:?}");
    }
}
