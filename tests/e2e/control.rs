//! Boot helper and apiserver that refuse, fail or talk nonsense: nothing is written, ever.

use serde_json::json;

use crate::common::*;
use crate::support::bed::Bed;
use crate::support::guest::End;
use crate::support::media;
use crate::support::services::Helper;

/// Longest time the agent may try its boot helper before it gives up.
const TO_GIVE_UP: u64 = 420;

/// Without a boot helper there is nobody to send an event to: the console has to say it.
fn helper_fails(name: &str, helper: Helper, wanted: &[&str]) {
    let bed = Bed::plan(name).helper(helper).start();
    let disk = used_disk(&bed, "disk");
    let before = disk.hash();
    let mut guest = bed.power_on(&bed.machine(media::agent(), vec![disk.clone()]));
    let line = guest.wait_for(FAILED, TO_GIVE_UP);
    for word in wanted {
        assert!(line.contains(word), "{word:?} is not in {line:?}");
    }
    assert_eq!(guest.wait_end(TO_RESET), End::Reset);
    assert_eq!(
        disk.hash(),
        before,
        "a disk was written without the control plane's word"
    );
    assert!(
        bed.standin.record().is_empty(),
        "the apiserver was reached without a token"
    );
}

#[test]
fn a_helper_that_is_not_there() {
    helper_fails(
        "control_helper_absent",
        Helper::Absent,
        &["boot helper: ", ":4242"],
    );
}

#[test]
fn a_helper_that_answers_503() {
    let helper = Helper::Canned(503, "maintenance\n".to_owned());
    helper_fails("control_helper_503", helper, &["boot helper: ", "503"]);
}

#[test]
fn a_helper_that_does_not_speak_json() {
    let helper = Helper::Canned(200, "<html>welcome</html>\n".to_owned());
    helper_fails("control_helper_html", helper, &["boot helper: ", "JSON"]);
}

#[test]
fn a_register_that_is_refused() {
    let bed = Bed::plan("control_register_refused").start();
    let disk = used_disk(&bed, "disk");
    let before = disk.hash();
    bed.standin
        .refuse("Register", "failed_precondition", "rack r17 is closed");
    let guest = bed.power_on(&bed.machine(media::agent(), vec![disk.clone()]));
    assert_crash(
        &bed,
        guest,
        &["registration: ", "rack r17 is closed"],
        TO_WAITING,
    );
    assert_eq!(disk.hash(), before);
}

#[test]
fn errors_that_pass_are_outlived_and_an_old_server_is_served() {
    let bed = Bed::plan("control_passing_errors").start();
    // No MachineToken: the helper falls back to TokenService.
    bed.standin.set(json!({"machine_token": false}));
    bed.standin.fail("Register", 503, 2);
    let mut guest = bed.power_on(&bed.machine(media::agent(), vec![used_disk(&bed, "disk")]));
    bed.standin
        .wait_event(&bed.machine, "WAITING", 1, TO_WAITING);
    guest.wait_for("waiting for an allocation", 10);
    let record = bed.standin.record();
    assert!(
        record
            .iter()
            .any(|l| l["method"] == "Create" && l["verdict"] == "ok")
    );
    let register = record.iter().filter(|l| l["method"] == "Register").count();
    assert_eq!(register, 3, "two failures and a success");
}

#[test]
fn a_revoked_token_is_replaced() {
    let bed = Bed::plan("control_revoked_token")
        .wait_seconds(11.0)
        .start();
    let mut guest = bed.power_on(&bed.machine(media::agent(), vec![used_disk(&bed, "disk")]));
    bed.standin
        .wait_event(&bed.machine, "WAITING", 1, TO_WAITING);
    bed.standin.wait_open(&bed.machine, 30);
    bed.standin
        .order(json!({"do": "revoke", "uuid": bed.machine}));
    bed.standin.wait_call(&bed.machine, "MachineToken", 2, 60);
    guest.wait_for("asking the boot helper for a new token", 30);
    let waits = bed.standin.cuts(&bed.machine);
    bed.standin.wait_cut(&bed.machine, waits + 1, 60);
}

#[test]
fn the_helper_gives_a_token_for_one_machine_and_keeps_its_own() {
    let bed = Bed::plan("control_helper_answer").start();
    let url = format!("{}/config/{}", media::helper_url(), bed.machine);
    let answer = bed.run("curl", &["-s", "-g", "-f", "-m", "20", &url]);
    let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON of the helper");
    let token = answer["metal_apiserver_token_for_hammer"]
        .as_str()
        .expect("a token");
    assert!(
        token.starts_with("machine-secret-"),
        "the stand-in's token for a machine"
    );
    let infra = std::fs::read_to_string(bed.dir.join("infra-token")).expect("own token");
    assert!(
        !answer.to_string().contains(infra.trim()),
        "the helper's own token went out"
    );
    assert_eq!(answer["partition"], "test-part");
    bed.standin.wait_call(&bed.machine, "MachineToken", 1, 5);
    assert_nothing_refused(&bed);
    assert_no_secret_in_logs(&bed);
    let methods: Vec<_> = bed
        .standin
        .record()
        .iter()
        .map(|l| l["method"].clone())
        .collect();
    assert_eq!(methods, ["MachineToken"], "GET /config calls nothing else");
}
