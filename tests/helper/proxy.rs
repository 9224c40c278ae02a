//! The apiserver through the helper.

use std::io::Write;
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::bed::{
    Helper, INFRA, body, body_json, get, header, machine, post, read_head, read_until, response,
    server, standin, status, until, wait,
};
use crate::support::allocation::Allocation;

#[test]
fn five_methods_are_passed_on_and_nothing_else() {
    let helper = Helper::start(&["--proxy-apiserver"]);
    let machine = machine();
    let token = helper.token(&machine);
    let event = json!({"uuid": machine, "event": {"time": "2026-11-22T00:00:00Z", "message": "m",
        "event": "MACHINE_PROVISIONING_EVENT_TYPE_PREPARING"}});
    let sent = helper.call("SendEvent", &token, &event);
    assert_eq!(status(&sent), 200, "{sent}");
    assert!(
        header(&sent, "date").is_some(),
        "the apiserver's clock is passed on"
    );
    let success = json!({"uuid": machine, "consolePassword": "secret"});
    assert_eq!(
        status(&helper.call("InstallationSucceeded", &token, &success)),
        200
    );
    // The apiserver's own refusal, not the helper's: a machine without switches.
    let register = json!({"uuid": machine, "partition": "test-part", "metalHammerVersion": "v0",
        "hardware": {"memory": "1"}});
    let refused = helper.call("Register", &token, &register);
    assert_eq!(
        body_json(&refused)["code"],
        "failed_precondition",
        "{refused}"
    );

    let before = standin().record().len();
    for path in [
        "/metalstack.infra.v2.BootService/MachineToken",
        "/metalstack.infra.v2.BootService/Boot",
        "/metalstack.infra.v2.BootService/Dhcp",
        "/metalstack.infra.v2.BootService/sendevent",
        "/metalstack.infra.v2.BootService/",
        "/metalstack.infra.v2.BootService/x/SendEvent",
        "/metalstack.infra.v2.BootService/%2e%2e%2fSendEvent",
        "/metalstack.infra.v2.SwitchService/Register",
        "/metalstack.api.v2.TokenService/Create",
        "/metalstack.admin.v2.TokenService/List",
    ] {
        let request = post("SendEvent", &token, "{}")
            .replace("/metalstack.infra.v2.BootService/SendEvent", path);
        assert_eq!(status(&helper.ask(&request)), 404, "{path}");
    }
    let got = helper.get("/metalstack.infra.v2.BootService/SendEvent");
    assert_eq!((status(&got), header(&got, "allow")), (405, Some("POST")));
    // Other tests talk to the stand-in at the same time, of machines of their own.
    let record = standin().record();
    let reached: Vec<_> = record[before..]
        .iter()
        .filter(|line| {
            let uuid = line["uuid"].as_str().unwrap_or_default();
            uuid.is_empty() || uuid == machine
        })
        .collect();
    assert!(reached.is_empty(), "reached the apiserver: {reached:?}");
}

#[test]
fn a_helper_that_is_no_proxy_passes_nothing_on() {
    let helper = Helper::start(&[]);
    let machine = machine();
    let token = helper.token(&machine);
    let answer = helper.call("SuperUserPassword", &token, &json!({"uuid": machine}));
    assert_eq!(status(&answer), 404, "{answer}");
}

#[test]
fn the_machines_own_token_goes_on_and_the_infra_token_never() {
    let (heads, seen) = std::sync::mpsc::channel();
    let heads = std::sync::Mutex::new(heads);
    let url = server(move |mut stream, _| {
        let head = read_head(&mut stream);
        heads.lock().expect("lock").send(head).expect("test waits");
        let headers = "content-type: application/json\r\nset-cookie: a=b\r\nserver: x\r\n\
                       keep-alive: timeout=5\r\nconnect-own: 1\r\ndate: Sun, 22 Nov 2026 08:00:01 GMT\r\n";
        let _ = stream.write_all(&response(200, headers, b"{}"));
    });
    let helper = Helper::before(&url, &["--proxy-apiserver"]);
    let more = "cookie: a=b\r\nx-forwarded-for: ::1\r\nte: trailers\r\nauthorization: Bearer machine-own\r\n";
    let request = post("SendEvent", "x", "{}").replace("authorization: Bearer x\r\n", more);
    let answer = helper.ask(&request);
    assert_eq!(status(&answer), 200, "{answer}");
    assert_eq!(
        header(&answer, "date"),
        Some("Sun, 22 Nov 2026 08:00:01 GMT")
    );
    assert_eq!(header(&answer, "connect-own"), Some("1"));
    for name in ["set-cookie", "server", "keep-alive"] {
        assert_eq!(header(&answer, name), None, "{name}");
    }
    let head = seen.recv().expect("a request").to_ascii_lowercase();
    assert!(
        head.contains("authorization: bearer machine-own\r\n"),
        "{head}"
    );
    for name in ["cookie", "x-forwarded-for", "te:", INFRA] {
        assert!(!head.contains(name), "{name} went on: {head}");
    }
    let none = post("SendEvent", "x", "{}").replace("authorization: Bearer x\r\n", "");
    let refused = helper.ask(&none);
    assert_eq!(status(&refused), 401, "{refused}");
    assert_eq!(body_json(&refused)["code"], "unauthenticated");
    assert!(
        seen.try_recv().is_err(),
        "a call without a token reached the apiserver"
    );
}

#[test]
fn a_wait_is_held_open_and_brings_the_allocation_as_it_comes() {
    let helper = Helper::start(&["--proxy-apiserver"]);
    let machine = machine();
    let token = helper.token(&machine);
    let mut stream = helper.connect();
    stream.write_all(&wait(&token, &machine)).expect("request");
    standin().wait_open(&machine, 60);
    assert_eq!(helper.metric("metal_boot_proxied_waits"), 1);
    // Other calls go on meanwhile.
    let answer = helper.call("SuperUserPassword", &token, &json!({"uuid": machine}));
    assert_eq!(status(&answer), 200);
    let allocation = Allocation::new("http://[2001:db8:ff::1]/img.tar.lz4", "/dev/vda");
    standin().allocate(&machine, &allocation.0);
    let text = read_until(&mut stream, allocation.uuid());
    assert!(
        text.contains("content-type: application/connect+json"),
        "{text}"
    );
    until("the Wait is over", || {
        helper.metric("metal_boot_proxied_waits") == 0
    });
}

#[test]
fn a_machine_that_goes_away_ends_its_wait_at_the_apiserver() {
    let helper = Helper::start(&["--proxy-apiserver"]);
    let machine = machine();
    let token = helper.token(&machine);
    let mut stream = helper.connect();
    stream.write_all(&wait(&token, &machine)).expect("request");
    standin().wait_open(&machine, 60);
    drop(stream);
    until("the stand-in sees it leave", || {
        let record = standin().record();
        record
            .iter()
            .any(|line| line["uuid"] == machine.as_str() && line["verdict"] == "left")
    });
    until("it is not counted any more", || {
        helper.metric("metal_boot_proxied_waits") == 0
    });
}

#[test]
fn a_wait_that_the_apiserver_cuts_is_cut_for_the_machine_too() {
    let url = server(|mut stream, _| {
        read_head(&mut stream);
        thread::sleep(Duration::from_millis(200));
    });
    let helper = Helper::before(&url, &["--proxy-apiserver"]);
    let mut stream = helper.connect();
    stream.write_all(&wait("t", &machine())).expect("request");
    assert_eq!(
        crate::bed::read_all(&mut stream),
        "",
        "no answer of the helper's own"
    );
}

#[test]
fn messages_of_a_stream_are_not_held_back() {
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let gone = std::sync::Mutex::new(gone);
    let url = server(move |mut stream, _| {
        read_head(&mut stream);
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/connect+json\r\ntransfer-encoding: chunked\r\n\r\n";
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.write_all(b"7\r\nFIRST--\r\n");
        let _ = gone.lock().expect("lock").recv();
        let _ = stream.write_all(b"8\r\n--SECOND\r\n0\r\n\r\n");
    });
    let helper = Helper::before(&url, &["--proxy-apiserver"]);
    let mut stream = helper.connect();
    stream.write_all(&wait("t", &machine())).expect("request");
    read_until(&mut stream, "FIRST--");
    go.send(()).expect("server");
    read_until(&mut stream, "--SECOND");
}

#[test]
fn an_apiserver_that_resets_is_unavailable() {
    let url = server(|stream, _| drop(stream));
    let helper = Helper::before(&url, &["--proxy-apiserver"]);
    let answer = helper.call("SendEvent", "t", &json!({}));
    assert_eq!(status(&answer), 503, "{answer}");
    assert_eq!(body_json(&answer)["code"], "unavailable");
    assert!(header(&answer, "retry-after").is_some());
    assert_eq!(status(&helper.get(&format!("/config/{}", machine()))), 503);
    assert_eq!(status(&helper.get("/healthz")), 200);
}

#[test]
fn an_apiserver_that_hangs_holds_nobody_for_ever() {
    let url = server(|mut stream, _| {
        read_head(&mut stream);
        thread::sleep(Duration::from_secs(100));
    });
    let helper = Helper::before(&url, &[]);
    let begin = std::time::Instant::now();
    let answer = helper.get(&format!("/config/{}", machine()));
    assert_eq!(status(&answer), 503, "{answer}");
    assert!(
        begin.elapsed() < Duration::from_secs(28),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(status(&helper.get("/healthz")), 200);
}

#[test]
fn an_apiserver_that_lies_is_not_believed() {
    type Lie = fn(&mut std::net::TcpStream);
    fn send(stream: &mut std::net::TcpStream, bytes: &[u8]) {
        let _ = stream.write_all(bytes);
    }
    let lies: [(Lie, u16); 5] = [
        (
            |s| send(s, &response(200, "content-type: text/html\r\n", b"<html>")),
            502,
        ),
        (
            |s| send(s, &response(302, "location: http://evil/\r\n", b"")),
            502,
        ),
        (
            |s| {
                send(
                    s,
                    &response(200, "content-type: application/json\r\n", b"[]"),
                )
            },
            502,
        ),
        (
            // No end, and more than any honest answer has.
            |s| {
                let head =
                    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{\"secret\":\"";
                send(s, head.as_bytes());
                while s.write_all(&[b'x'; 65536]).is_ok() {}
            },
            502,
        ),
        (
            |s| {
                send(
                    s,
                    b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 7\r\n\r\n{}",
                )
            },
            503,
        ),
    ];
    for (number, (lie, expected)) in lies.into_iter().enumerate() {
        let url = server(move |mut stream, _| {
            read_head(&mut stream);
            lie(&mut stream);
        });
        let helper = Helper::before(&url, &["--proxy-apiserver"]);
        let answer = helper.get(&format!("/config/{}", machine()));
        assert_eq!(status(&answer), expected, "lie {number}: {answer}");
        // Through the proxy what is passed on is bounded.
        let passed = helper.call("SendEvent", "t", &json!({}));
        assert!(
            body(&passed).len() < 5 << 20,
            "lie {number}: {} bytes",
            passed.len()
        );
        assert_ne!(status(&passed), 302, "lie {number}");
        assert_eq!(status(&helper.get("/healthz")), 200, "lie {number}");
    }
}

#[test]
fn proxied_calls_have_a_rate_of_their_own() {
    let helper = Helper::start(&["--proxy-apiserver", "--proxy-rate-per-address", "1"]);
    let machine = machine();
    let token = helper.token(&machine);
    let ask = || helper.call("SuperUserPassword", &token, &json!({"uuid": machine}));
    assert_eq!(status(&ask()), 200);
    let refused = ask();
    assert_eq!(status(&refused), 429, "{refused}");
    assert_eq!(body_json(&refused)["code"], "resource_exhausted");
    assert_eq!(status(&helper.ask(&get("/healthz", ""))), 200);
}
