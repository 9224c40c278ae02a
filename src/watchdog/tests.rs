use std::sync::Arc;

use tokio::time::advance;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// What a driver was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Did {
    Timeout(u32),
    Pet,
    Disarm,
}

/// A driver that writes down what it is asked for.
#[derive(Clone, Default)]
struct Fake {
    did: Arc<Mutex<Vec<Did>>>,
    nowayout: bool,
    /// The longest timeout that it knows.
    longest: Option<u32>,
    /// It takes no timeout at all.
    fixed: bool,
}

impl Fake {
    fn note(&self, did: Did) {
        self.did.lock().unwrap().push(did);
    }

    /// What it was asked for since this was called last.
    fn take(&self) -> Vec<Did> {
        std::mem::take(&mut *self.did.lock().unwrap())
    }
}

impl Timer for Fake {
    fn set_timeout(&mut self, seconds: u32) -> io::Result<u32> {
        self.note(Did::Timeout(seconds));
        if self.fixed {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(seconds.min(self.longest.unwrap_or(u32::MAX)))
    }

    fn pet(&mut self) -> io::Result<()> {
        self.note(Did::Pet);
        Ok(())
    }

    fn disarm(&mut self) -> io::Result<()> {
        self.note(Did::Disarm);
        match self.nowayout {
            true => Err(io::ErrorKind::ResourceBusy.into()),
            false => Ok(()),
        }
    }
}

/// A watchdog over a fake driver, and what its alarm was told.
fn guard(fake: &Fake, identity: &str) -> (Watchdog, Arc<Mutex<Vec<&'static str>>>) {
    let alarms = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&alarms);
    let watchdog = Watchdog::new(
        Vital::default(),
        Some(Box::new(fake.clone())),
        identity.to_owned(),
        TIMEOUT,
        Box::new(move |name, _| told.lock().unwrap().push(name)),
    );
    (watchdog, alarms)
}

#[tokio::test(start_paused = true)]
async fn progress_is_petted_and_silence_never_again() {
    let fake = Fake::default();
    let (watchdog, alarms) = guard(&fake, "iTCO_wdt");
    let step = watchdog.vital.expect("wipe", 40 * SECOND);
    for _ in 0..3 {
        assert_eq!(watchdog.round(), 15 * SECOND);
        assert_eq!(fake.take(), [Did::Pet]);
        advance(30 * SECOND).await;
        step.beat();
    }
    advance(41 * SECOND).await;
    watchdog.round();
    assert_eq!(fake.take(), []);
    assert_eq!(*alarms.lock().unwrap(), ["wipe"]);
    // Too late: failure handling is at work, and has the timeout for it.
    step.beat();
    watchdog.round();
    watchdog.before_reset();
    assert_eq!(fake.take(), []);
    assert_eq!(alarms.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn settings_change_the_timeout_and_cap_every_silence() {
    let fake = Fake {
        longest: Some(300),
        ..Fake::default()
    };
    let (watchdog, _) = guard(&fake, "iTCO_wdt");
    let _step = watchdog.vital.expect("network", 1000 * SECOND);
    let rules = Rules {
        timeout: 4000,
        silence: Some(5 * SECOND),
        ..Rules::default()
    };
    watchdog.follow(rules);
    assert_eq!(fake.take(), [Did::Timeout(600), Did::Pet]);
    // What the driver made of it counts.
    assert_eq!(watchdog.round(), 75 * SECOND);
    assert_eq!(fake.take(), [Did::Pet]);
    advance(6 * SECOND).await;
    watchdog.round();
    assert_eq!(fake.take(), []);
}

#[tokio::test(start_paused = true)]
async fn a_watchdog_that_is_not_wanted_stands_still_if_it_can() {
    let off = Rules {
        enabled: false,
        ..Rules::default()
    };
    let fake = Fake::default();
    let (watchdog, _) = guard(&fake, "iTCO_wdt");
    let _step = watchdog.vital.expect("network", 1000 * SECOND);
    watchdog.follow(off);
    watchdog.round();
    assert_eq!(fake.take(), [Did::Disarm]);
    watchdog.follow(Rules::default());
    assert_eq!(fake.take(), [Did::Pet]);

    let stubborn = Fake {
        nowayout: true,
        ..Fake::default()
    };
    let (watchdog, _) = guard(&stubborn, "iTCO_wdt");
    let _step = watchdog.vital.expect("network", 1000 * SECOND);
    watchdog.follow(off);
    stubborn.take();
    watchdog.round();
    assert_eq!(stubborn.take(), [Did::Pet], "it would reset a good machine");
}

#[tokio::test(start_paused = true)]
async fn the_ways_out() {
    let keep = Rules {
        over_kexec: Some(180),
        ..Rules::default()
    };
    let kexec = Watchdog::before_kexec as fn(&Watchdog);
    let reset = Watchdog::before_reset as fn(&Watchdog);
    let hour = [Did::Disarm, Did::Timeout(600), Did::Pet];
    type Row<'a> = (&'a str, bool, Rules, fn(&Watchdog), &'a [Did]);
    let table: [Row; 6] = [
        ("iTCO_wdt", false, Rules::default(), kexec, &[Did::Disarm]),
        ("iTCO_wdt", true, Rules::default(), kexec, &hour),
        (
            "iTCO_wdt",
            false,
            keep,
            kexec,
            &[Did::Timeout(180), Did::Pet],
        ),
        ("iTCO_wdt", false, Rules::default(), reset, &[Did::Pet]),
        (choose::IPMI, false, Rules::default(), reset, &[Did::Disarm]),
        (choose::IPMI, true, Rules::default(), reset, &hour),
    ];
    for (identity, nowayout, rules, way_out, expected) in table {
        let fake = Fake {
            nowayout,
            ..Fake::default()
        };
        let (watchdog, alarms) = guard(&fake, identity);
        let step = watchdog.vital.expect("report", SECOND);
        watchdog.follow(rules);
        fake.take();
        way_out(&watchdog);
        assert_eq!(fake.take(), expected, "{identity}, nowayout {nowayout}");
        // Nothing is petted behind it, and nobody alarmed.
        drop(step);
        advance(1000 * SECOND).await;
        watchdog.round();
        assert_eq!(fake.take(), []);
        assert!(alarms.lock().unwrap().is_empty());
    }
}

#[test]
fn one_that_does_not_open_or_take_a_timeout_is_passed_over() {
    let candidate = |name: &str| Candidate {
        device: name.into(),
        identity: name.to_owned(),
        nowayout: false,
    };
    let all = [candidate("broken"), candidate("good"), candidate("other")];
    let open = |path: &Path| match path.to_str() {
        Some("broken") => Err(io::ErrorKind::ResourceBusy.into()),
        _ => Ok(Fake::default()),
    };
    let (_, chosen, timeout) = open_first(&all, open).unwrap();
    assert_eq!((chosen.identity.as_str(), timeout), ("good", TIMEOUT));
    assert!(open_first(&all[..1], open).is_none());
}

#[test]
fn one_that_is_given_up_is_stopped_first() {
    let fixed = Fake {
        fixed: true,
        ..Fake::default()
    };
    let all = ["fixed", "good"].map(|name| Candidate {
        device: name.into(),
        identity: name.to_owned(),
        nowayout: false,
    });
    let open = |path: &Path| match path.to_str() {
        Some("fixed") => Ok(fixed.clone()),
        _ => Ok(Fake::default()),
    };
    let (_, chosen, _) = open_first(&all, open).unwrap();
    assert_eq!(chosen.identity, "good");
    // Opened, it runs: nobody would pet it.
    assert_eq!(fixed.take(), [Did::Timeout(TIMEOUT), Did::Disarm]);
}
