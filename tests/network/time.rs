//! The clock: SNTP and the boot helper's `Date`, before TLS.
//!
//! The whole agent boots with a hardware clock that is wrong; the apiserver is reached by TLS, so
//! its PREPARING is the proof that the clock was set, and set in time.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::support::bed::Bed;
use crate::support::guest::Guest;
use crate::support::machine::{Media, Start};
use crate::support::media;
use crate::support::netns::SERVICE;
use crate::support::services::TLS_HELPER_PORT;

/// Power-on to the first word with the control plane, with all cores busy.
const TO_PREPARING: u64 = 240;
/// A port that is not NTP's own: nobody finds it by guessing.
const NAMED_PORT: u16 = 1123;

/// The agent, powered on at this time by its hardware clock.
fn boot(bed: &Bed, clock: &str) -> Guest {
    let mut machine = bed.machine(media::agent(), Vec::new());
    machine.extra = rtc(clock);
    bed.power_on(&machine)
}

/// OVMF takes no year after 2097 for true. The guest's own time goes on from there; by the host's,
/// QEMU 7.2 is 68 years off at most.
fn rtc(clock: &str) -> Vec<String> {
    vec!["-rtc".to_owned(), format!("base={clock},clock=vm")]
}

/// The clock was set from `year` by `source`, and TLS worked.
fn assert_set(bed: &Bed, guest: &mut Guest, year: &str, source: &str) {
    let line = guest.wait_for("clock set from ", TO_PREPARING);
    assert!(line.contains(&format!("clock set from {year}-")), "{line}");
    assert!(line.contains(source), "{line}");
    bed.standin
        .wait_event(&bed.machine, "PREPARING", 1, TO_PREPARING);
    // The hardware clock too, by the years between.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let then = jiff::civil::date(year.parse().unwrap(), 1, 1);
    let then = then.to_zoned(jiff::tz::TimeZone::UTC).unwrap();
    guest.wait_clock_set(now.as_secs() as i64 - then.timestamp().as_second(), 10);
}

#[test]
fn a_clock_of_2019_is_set_by_the_server_that_the_helper_names() {
    let bed = Bed::plan("network_time_2019_named")
        .tls()
        .ntp(NAMED_PORT, true)
        .helper_options(&[&format!("--ntp-server=[{SERVICE}]:{NAMED_PORT}")])
        .start();
    let mut guest = boot(&bed, "2019-01-01");
    let source = format!("NTP server [{SERVICE}]:{NAMED_PORT}, stratum 10");
    assert_set(&bed, &mut guest, "2019", &source);
}

#[test]
fn a_clock_of_2097_is_set_by_the_host_that_answers_dns() {
    let bed = Bed::plan("network_time_2097_guessed")
        .tls()
        .ntp(123, true)
        .start();
    let mut guest = boot(&bed, "2097-01-01");
    let source = format!("NTP server [{SERVICE}]:123, stratum 10");
    assert_set(&bed, &mut guest, "2097", &source);
}

#[test]
fn without_any_ntp_server_the_helpers_date_helps_in_2019() {
    let bed = Bed::plan("network_time_2019_date").tls().start();
    let mut guest = boot(&bed, "2019-01-01");
    assert_set(&bed, &mut guest, "2019", "Date of the boot helper's answer");
}

#[test]
fn a_dead_ntp_server_in_2097_leaves_it_to_the_helpers_date() {
    let bed = Bed::plan("network_time_2097_date")
        .tls()
        .helper_options(&[&format!("--ntp-server=[{SERVICE}]:{NAMED_PORT}")])
        .start();
    let mut guest = boot(&bed, "2097-01-01");
    guest.wait_for("no NTP server gave the time", TO_PREPARING);
    assert_set(&bed, &mut guest, "2097", "Date of the boot helper's answer");
}

#[test]
fn a_server_that_does_not_know_the_time_changes_nothing() {
    let bed = Bed::plan("network_time_unsure")
        .tls()
        .ntp(123, false)
        .start();
    // Two hours ahead: less than the day from which on the helper's Date counts.
    let ahead = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(2);
    let ahead = ahead.strftime("%Y-%m-%dT%H:%M:%S").to_string();
    let mut guest = boot(&bed, &ahead);
    guest.wait_for("the server is not synchronised itself", TO_PREPARING);
    bed.standin
        .wait_event(&bed.machine, "PREPARING", 1, TO_PREPARING);
    assert!(!guest.text().contains("clock set"), "the clock was set");
}

/// A medium that sends the agent to the helper by TLS.
fn medium(bed: &Bed, more: serde_json::Value) -> Start {
    let ca = std::fs::read_to_string(bed.dir.join("ca.pem")).expect("the bed's authority");
    let mut config = json!({
        "boot_helper_url": format!("https://[{SERVICE}]:{TLS_HELPER_PORT}"),
        "ca_cert": ca,
        "policy": {"boot_helper_timeout_seconds": 20},
    });
    for (key, value) in more.as_object().expect("an object") {
        config[key] = value.clone();
    }
    media::iso(&bed.dir, &config, Media::SataCd)
}

#[test]
fn before_a_helper_by_tls_the_mediums_server_sets_the_clock() {
    let bed = Bed::plan("network_time_tls_helper")
        .tls()
        .ntp(NAMED_PORT, true)
        .start();
    let server = json!({"ntp_servers": [format!("[{SERVICE}]:{NAMED_PORT}")]});
    let mut machine = bed.machine(medium(&bed, server), Vec::new());
    machine.extra = rtc("2019-01-01");
    let mut guest = bed.power_on(&machine);
    let source = format!("NTP server [{SERVICE}]:{NAMED_PORT}, stratum 10");
    assert_set(&bed, &mut guest, "2019", &source);
}

#[test]
fn a_helper_by_tls_and_no_time_at_all_is_said_clearly() {
    let bed = Bed::plan("network_time_tls_none").tls().start();
    let mut machine = bed.machine(medium(&bed, json!({})), Vec::new());
    machine.extra = rtc("2019-01-01");
    let mut guest = bed.power_on(&machine);
    let line = guest.wait_for("FAILED: boot helper", TO_PREPARING);
    for word in [
        "not valid at this machine's time",
        "set ntp_servers",
        "here it is 2019-01-01T",
    ] {
        assert!(line.contains(word), "{word:?} is not in {line:?}");
    }
    assert!(!guest.text().contains("clock set"), "the clock was set");
}
