//! The bad wire itself: its rules, without a machine.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::support::wire::{Counts, LONGEST, Lane, Rules, Sent, Weather};

/// The numbers that come out when 200 go in, a millisecond apart.
fn through(rules: Rules) -> (Vec<u8>, Weather) {
    let weather = Weather::default();
    weather.change(|it| *it = rules);
    let mut lane = Lane::new(7);
    let begin = Instant::now();
    let mut out = Vec::new();
    let mut give = |lane: &mut Lane, now| {
        lane.give(now, |frame| {
            out.push(frame[0]);
            Sent::Done
        })
    };
    for number in 0..200_u8 {
        let now = begin + Duration::from_millis(number.into());
        lane.take(&[number], now, &weather);
        give(&mut lane, now);
    }
    give(&mut lane, begin + Duration::from_secs(2));
    assert!(lane.waiting() == 0);
    (out, weather)
}

#[test]
fn a_calm_wire_changes_nothing() {
    let (out, weather) = through(Rules::default());
    assert!(out.iter().copied().eq(0..200));
    assert_eq!(
        format!("{:?}", weather.counts),
        format!("{:?}", Counts::default())
    );
}

#[test]
fn each_rule_does_what_it_says_and_counts_it() {
    let percent = 20;
    let (out, weather) = through(Rules {
        lost: percent,
        ..Rules::default()
    });
    let lost = weather.counts.lost.load(Relaxed);
    assert!((20..=60).contains(&lost) && out.len() as u64 == 200 - lost);
    assert!(out.is_sorted());

    let (mut out, weather) = through(Rules {
        doubled: percent,
        ..Rules::default()
    });
    let doubled = weather.counts.doubled.load(Relaxed);
    assert!((20..=60).contains(&doubled) && out.len() as u64 == 200 + doubled);
    out.sort_unstable();
    out.dedup();
    assert_eq!(out.len(), 200);

    let (mut out, weather) = through(Rules {
        overtaken: percent,
        ..Rules::default()
    });
    assert!((20..=60).contains(&weather.counts.overtaken.load(Relaxed)));
    let late = out.windows(2).filter(|pair| pair[0] > pair[1]).count();
    assert!(late >= 15, "{late}: {out:?}");
    out.sort_unstable();
    assert!(out.iter().copied().eq(0..200));

    let (out, weather) = through(Rules {
        delayed: 100,
        ..Rules::default()
    });
    assert_eq!(weather.counts.delayed.load(Relaxed), 200);
    assert!(out.iter().copied().eq(0..200));
}

#[test]
fn a_full_end_loses_nothing_that_fits_and_no_lane_grows_without_end() {
    let mut lane = Lane::new(1);
    let weather = Weather::default();
    let now = Instant::now();
    for _ in 0..LONGEST + 10 {
        lane.take(&[1], now, &weather);
    }
    assert_eq!(lane.waiting(), LONGEST);
    assert!(!lane.give(now, |_| Sent::Full));
    assert_eq!(lane.waiting(), LONGEST);
}
