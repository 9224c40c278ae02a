//! The fault campaign: machines that boot the ISO while things break, at random, from a seed.
//!
//! Without orders a short one of fixed seeds; `scripts/faults` gives orders by environment:
//! `FAULTS_SEED` (the first), `FAULTS_RUNS`, `FAULTS_JOBS`. What was done is in
//! `target/faults/results.tsv`: seeds that went well are not run again.

mod support;

#[path = "faults/run.rs"]
mod run;
#[path = "faults/schedule.rs"]
mod schedule;
#[path = "faults/wire_tests.rs"]
mod wire_tests;

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Mutex;

use sha2::{Digest, Sha256};

use schedule::{PHASES, Schedule};

/// The short campaign: seeds whose runs have hit each kind of fault but the damaged image, at every
/// phase, in few starts. The longest comes first.
const SHORT: [u64; 6] = [223, 68, 98, 188, 228, 239];

fn order(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|e| panic!("{name}={text}: {e}")),
    )
}

fn results() -> PathBuf {
    support::root().join("target/faults/results.tsv")
}

/// Seeds that went well before.
fn done() -> BTreeSet<u64> {
    let text = fs::read_to_string(results()).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split('\t');
            let seed = fields.next()?.parse().ok()?;
            (fields.next() == Some("ok")).then_some(seed)
        })
        .collect()
}

fn note(line: &str) {
    let path = results();
    fs::create_dir_all(path.parent().expect("a file in a directory"))
        .expect("create target/faults");
    let file = OpenOptions::new().create(true).append(true).open(&path);
    writeln!(file.expect("open the results"), "{line}").expect("write the results");
}

/// Runs one seed; true when it went well.
fn one(seed: u64) -> bool {
    let schedule = Schedule::new(seed);
    let faults: Vec<String> = schedule.faults.iter().map(ToString::to_string).collect();
    let faults = faults.join("; ");
    println!("seed {seed}: {faults}");
    let outcome = catch_unwind(AssertUnwindSafe(|| run::run(&schedule)));
    let (word, figures, faults) = match outcome {
        Ok(Ok(report)) => {
            run::forget(seed);
            let run::Report {
                seconds,
                after,
                starts,
                failures,
                happened,
                faults,
            } = report;
            let figures = format!("{seconds}\t{after}\t{starts}\t{failures}\t{happened}");
            ("ok", figures, faults.join("; "))
        }
        Ok(Err(why)) => ("FAILED", format!("-\t-\t-\t-\t{why}"), faults),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let why = text.unwrap_or_else(|| "the bed broke".to_owned());
            let first = why.lines().next().unwrap_or_default().to_owned();
            ("BROKEN", format!("-\t-\t-\t-\t{first}"), faults)
        }
    };
    println!("seed {seed}: {word} {figures} {faults}");
    note(&format!("{seed}\t{word}\t{figures}\t{faults}"));
    word == "ok"
}

#[test]
fn machines_get_through_random_faults() {
    let seeds: Vec<u64> = match (order("FAULTS_SEED"), order("FAULTS_RUNS")) {
        (None, None) => SHORT.to_vec(),
        (first, runs) => {
            let first = first.unwrap_or(1);
            let runs = runs.unwrap_or(1);
            let done = if runs > 1 { done() } else { BTreeSet::new() };
            (first..first + runs)
                .filter(|seed| !done.contains(seed))
                .collect()
        }
    };
    let jobs = order("FAULTS_JOBS").unwrap_or(3);
    let left = Mutex::new(seeds.iter().copied());
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|threads| {
        for _ in 0..jobs {
            threads.spawn(|| {
                loop {
                    let next = left.lock().expect("seeds").next();
                    let Some(seed) = next else { return };
                    if !one(seed) {
                        failed.lock().expect("failed seeds").push(seed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("failed seeds");
    assert!(
        failed.is_empty(),
        "seeds {failed:?} failed; again: scripts/faults --seed {} --runs 1, logs: {}",
        failed[0],
        run::directory(failed[0]).display()
    );
}

#[test]
fn a_seed_says_everything_and_seeds_differ() {
    let shown = |seed| format!("{:?}", Schedule::new(seed));
    assert_eq!(shown(7), shown(7));
    let all: BTreeSet<String> = (0..300).map(shown).collect();
    assert_eq!(all.len(), 300);
    let kinds: BTreeSet<String> = (0..300)
        .flat_map(|seed| Schedule::new(seed).faults)
        .map(|it| it.fault.kind())
        .collect();
    assert_eq!(kinds.len(), 22, "{kinds:?}");
}

/// What `docs/reliability.md` tells of seeds 1 to 300 is said of these schedules.
#[test]
fn seeds_mean_the_same_for_ever() {
    let all: String = (1..=300)
        .map(|seed| format!("{:?}\n", Schedule::new(seed)))
        .collect();
    let digest = Sha256::digest(all.as_bytes());
    assert_eq!(
        digest[..8],
        [0x03, 0xb2, 0xa5, 0xa6, 0xf9, 0xf7, 0x8d, 0xf4]
    );
}

/// A phase that the agent no longer tells of would take its faults out of every run, silently.
#[test]
fn every_phase_is_told_of_by_the_agent() {
    let mut left = vec![support::root().join("src")];
    let mut sources = String::new();
    while let Some(path) = left.pop() {
        match fs::read_dir(&path) {
            Ok(entries) => left.extend(entries.map(|entry| entry.expect("src").path())),
            Err(_) => sources += &fs::read_to_string(&path).expect("a source"),
        }
    }
    for (phase, words) in PHASES {
        assert!(sources.contains(words), "{phase}: nobody says {words:?}");
    }
}
