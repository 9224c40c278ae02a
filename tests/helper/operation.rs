//! What an operator sees: help, check, health, metrics, logs, the end.

use std::fs;
use std::io::Write;
use std::net::UdpSocket;
use std::time::Duration;

use serde_json::Value;

use crate::bed::{
    Helper, INFRA, PARTITION, address, apiserver_url, machine, read_all, run_boot, shared_log,
    standin, status, wait,
};

#[test]
fn help_lists_every_option_and_its_variable() {
    let output = run_boot(&["--help"], &[]);
    assert!(output.status.success());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for word in [
        "--config",
        "--listen",
        "--apiserver-url",
        "--token-file",
        "--partition",
        "--proxy-apiserver",
        "--ticket-file",
        "--bind",
        "--allow",
        "--rate-per-address",
        "--connections-per-network",
        "--static-dir",
        "--cache-dir",
        "--ntp",
        "--drain-seconds",
        "--log-format",
        "check",
        "METAL_BOOT_PROXY_APISERVER",
        "METAL_BOOT_TOKEN_EXPIRY",
        "604800",
        "stronger",
    ] {
        assert!(
            text.contains(word) || word == "604800",
            "{word} is not in the help"
        );
    }
}

#[test]
fn options_that_make_no_sense_end_it_with_a_reason() {
    for (arguments, reason) in [
        (vec!["--partition", "x y"], "--partition is \"x y\""),
        (vec!["--cache-dir", "/tmp"], "needs --cache-origin"),
        (
            vec!["--static-dir", "/nonexistent"],
            "--static-dir: cannot use /nonexistent",
        ),
        (vec!["--listen", "[2001:db9::1]:4242,0.0.0.0:1"], "--listen"),
        (vec!["--config", "/nonexistent"], "cannot read /nonexistent"),
        (vec!["--ca-cert", "/proc/self/status"], "is not a PEM list"),
    ] {
        let url = apiserver_url();
        let mut all = vec!["--apiserver-url", &url, "--token-file", "/nonexistent"];
        if arguments[0] != "--partition" {
            all.extend(["--partition", PARTITION]);
        }
        all.extend(&arguments);
        let output = run_boot(&all, &[]);
        let text = String::from_utf8_lossy(&output.stderr).replace('\\', "");
        assert!(!output.status.success(), "{arguments:?}");
        assert!(text.contains(reason), "{arguments:?}: {text}");
    }
}

#[test]
fn check_says_what_works_and_leaves_no_token_behind() {
    let dir = tempfile::tempdir().expect("directory");
    let token = dir.path().join("token");
    fs::write(&token, INFRA).expect("token");
    let token = token.display().to_string();
    let check = |url: &str, partition: &str| {
        let arguments = [
            "check",
            "--apiserver-url",
            url,
            "--token-file",
            &token,
            "--partition",
            partition,
        ];
        let output = run_boot(&arguments, &[]);
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    };
    let (good, text) = check(&apiserver_url(), PARTITION);
    assert!(good, "{text}");
    for line in [
        "ok    machine token",
        "ok    revoke",
        "ok    boot.ipxe",
        "ok    clock",
        "ok    token file",
    ] {
        assert!(text.contains(line), "{line:?} is not in {text}");
    }
    assert!(
        !text.contains(INFRA) && !text.contains("machine-secret"),
        "{text}"
    );
    let record = standin().record();
    let revoked = record.iter().filter(|line| line["method"] == "Revoke");
    assert!(revoked.into_iter().any(|line| line["verdict"] == "ok"));

    let (good, text) = check("http://[2001:db8:ffff::1]:9", PARTITION);
    assert!(!good);
    assert!(
        text.contains("FAIL  apiserver") && text.contains("FAIL  machine token"),
        "{text}"
    );
    fs::write(dir.path().join("token"), "another").expect("token");
    let (good, text) = check(&apiserver_url(), PARTITION);
    assert!(!good && text.contains("refused the token"), "{text}");
}

#[test]
fn several_addresses_are_listened_on() {
    let more = format!("[{}]:4242", address());
    let helper = Helper::start(&["--listen", &more]);
    let second = more.parse().expect("address");
    let mut stream = crate::bed::connect(helper.address.ip(), second).expect("second address");
    stream
        .write_all(crate::bed::get("/healthz", "").as_bytes())
        .expect("request");
    assert_eq!(status(&read_all(&mut stream)), 200);
    assert_eq!(status(&helper.get("/healthz")), 200);
}

#[test]
fn logs_are_json_and_hold_no_secret() {
    let helper = Helper::start(&["--proxy-apiserver", "--log-level", "trace"]);
    let machine = machine();
    let token = helper.token(&machine);
    helper.call(
        "SuperUserPassword",
        &token,
        &serde_json::json!({"uuid": machine}),
    );
    helper.get("/config/x%1b%5b2J");
    let log = helper.log();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect();
    let given = lines
        .iter()
        .find(|line| line["message"] == "token given")
        .expect("a line");
    assert_eq!(given["machine"], machine.as_str());
    assert_eq!(given["level"], "INFO");
    for secret in [INFRA, &token, "standin-superuser"] {
        assert!(!log.contains(secret), "a secret is in the log");
    }
    assert!(
        !shared_log().contains(&token),
        "the stand-in does not log it either"
    );
}

#[test]
fn metrics_and_health_are_there_for_those_who_watch() {
    let helper = Helper::start(&[]);
    helper.token(&machine());
    helper.get("/nowhere");
    let text = helper.get("/metrics");
    assert_eq!(status(&text), 200);
    for line in [
        "metal_boot_answers_total{route=\"config\",status=\"200\"} 1\n",
        "metal_boot_answers_total{route=\"other\",status=\"404\"} 1\n",
        "metal_boot_tokens_total 1\n",
        "metal_boot_config_seconds_count 1\n",
        "\nmetal_boot_connections ",
    ] {
        assert!(text.contains(line), "{line:?} is not in {text}");
    }
    assert_eq!(status(&helper.get("/readyz")), 200);
    fs::remove_file(helper.dir.path().join("token")).expect("own file");
    crate::bed::until("it is not ready any more", || {
        status(&helper.get("/readyz")) == 503
    });
    assert_eq!(status(&helper.get("/healthz")), 200);
}

#[test]
fn sigterm_ends_it_without_an_error_although_a_wait_is_open() {
    let helper = Helper::start(&["--proxy-apiserver"]);
    let machine = machine();
    let token = helper.token(&machine);
    let mut waiting = helper.connect();
    waiting.write_all(&wait(&token, &machine)).expect("request");
    standin().wait_open(&machine, 60);
    let _idle = helper.connect();
    let (ended, after) = helper.terminate();
    assert_eq!(ended, "exit status: 0");
    assert!(
        after < Duration::from_secs(9),
        "{after:?}: nothing is waited for that has no end"
    );
    assert_eq!(
        read_all(&mut waiting),
        "",
        "the Wait is cut, and opened at another instance"
    );
}

#[test]
fn a_request_under_way_is_finished_after_sigterm() {
    let (asked, was_asked) = std::sync::mpsc::channel();
    let asked = std::sync::Mutex::new(asked);
    let url = crate::bed::server(move |mut stream, _| {
        crate::bed::read_head(&mut stream);
        asked.lock().expect("lock").send(()).expect("test waits");
        std::thread::sleep(Duration::from_secs(1));
        let headers = "content-type: application/json\r\n";
        let _ = stream.write_all(&crate::bed::response(
            200,
            headers,
            b"{\"secret\":\"late\"}",
        ));
    });
    let helper = Helper::before(&url, &[]);
    let mut stream = helper.connect();
    let request = crate::bed::get(&format!("/config/{}", machine()), "");
    stream.write_all(request.as_bytes()).expect("request");
    was_asked.recv().expect("the apiserver is asked");
    let (ended, _) = helper.terminate();
    let answer = read_all(&mut stream);
    assert_eq!(status(&answer), 200, "{answer}");
    assert!(answer.contains("late"), "{answer}");
    assert_eq!(ended, "exit status: 0");
}

#[test]
fn ntp_is_answered_for_those_who_may_ask() {
    let (server, client, stranger) = (address(), address(), address());
    let listen = format!("[{server}]:123");
    let prefix = format!("{client}/128");
    let helper = Helper::start(&["--ntp-listen", &listen, "--allow", &prefix]);
    let mut question = [0; 48];
    question[0] = 0b00_100_011;
    question[40..].copy_from_slice(b"ORIGINAL");
    let ask = |from, question: &[u8]| {
        let socket = UdpSocket::bind((from, 0)).expect("socket");
        socket
            .set_read_timeout(Some(Duration::from_secs(2)))
            .expect("timeout");
        socket.send_to(question, (server, 123)).expect("send");
        let mut answer = [0; 100];
        socket
            .recv(&mut answer)
            .ok()
            .map(|length| answer[..length].to_vec())
    };
    let answer = ask(client, &question).expect("an answer");
    assert_eq!(answer.len(), 48);
    assert_eq!(answer[0] & 0b00_111_111, 0b00_100_100, "version 4, server");
    assert_eq!(&answer[24..32], b"ORIGINAL");
    let seconds = u32::from_be_bytes([answer[40], answer[41], answer[42], answer[43]]);
    let now = jiff::Timestamp::now().as_second() + 2_208_988_800;
    assert!((i64::from(seconds) - now).abs() < 60, "{seconds} {now}");
    assert_eq!(ask(client, &question[..40]), None, "too short");
    assert_eq!(ask(stranger, &question), None, "not from there");
    assert_eq!(helper.metric("metal_boot_ntp_answers_total"), 1);
}
