//! The calls of a machine against a stand-in: what is sent, and what each answer means.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use url::Url;
use uuid::Uuid;

use super::api::{EventType, Hardware, Register};
use super::apiserver::{Apiserver, Completion};
use super::code::Code;
use super::error::Error;
use super::http::{self, FailureKind, Trust};
use super::stand_in::{Act, Seen, StandIn, json, nobody, refuse, response};

const MACHINE: &str = "7b0b6ad5-6a4f-4f7e-a0e7-0c2a8a8f8f10";
pub const TOKEN: &str = "tok-s3cret";

/// An apiserver client with times that suit a test.
pub fn apiserver(url: &Url) -> Apiserver {
    let client = http::control_client(Trust::Public).unwrap();
    let machine: Uuid = MACHINE.parse().unwrap();
    let server = Apiserver::new(url, SecretString::from(TOKEN), machine, client).unwrap();
    server.with_times(|times| {
        times.call.base = Duration::from_millis(5);
        times.call.cap = Duration::from_millis(20);
        times.call.attempt = Duration::from_millis(500);
        times.call.budget = Duration::from_secs(2);
        times.normal_wait = Duration::from_millis(100);
        times.reopen = Duration::from_millis(5);
        times.wait_base = Duration::from_millis(5);
        times.wait_cap = Duration::from_millis(20);
        times.probe_patience = Duration::from_secs(1);
        times.unanswered = Duration::from_millis(300);
    })
}

async fn serve(act: impl Fn(&Seen, usize) -> Act + Send + Sync + 'static) -> (StandIn, Apiserver) {
    let stand_in = StandIn::start(act).await;
    let server = apiserver(&stand_in.url);
    (stand_in, server)
}

fn register() -> Register {
    Register {
        uuid: MACHINE.parse().unwrap(),
        hardware: Hardware::default(),
        bios: None,
        bmc: None,
        fru: None,
        tags: Vec::new(),
        metal_hammer_version: "metal-anvil".into(),
        partition: "fra-equ01".into(),
    }
}

/// No text made from an error may hold the token.
fn texts(error: &Error) -> String {
    let texts = format!("{error}\n{error:?}");
    assert!(!texts.contains("s3cret"), "{texts}");
    texts
}

#[tokio::test]
async fn an_event_is_a_connect_call() {
    let (stand_in, server) = serve(|_, _| json(200, "{}")).await;
    server
        .send_event(EventType::Crashed, "image\nnot \u{1b}[31mfound")
        .await
        .unwrap();
    let seen = &stand_in.seen()[0];
    let head = seen.head.to_ascii_lowercase();
    for line in [
        "post /metalstack.infra.v2.bootservice/sendevent http/1.1\r\n",
        "\r\nauthorization: bearer tok-s3cret\r\n",
        "\r\ncontent-type: application/json\r\n",
        "\r\nconnect-protocol-version: 1\r\n",
        "\r\nuser-agent: metal-anvil/",
    ] {
        assert!(head.contains(line), "{line:?} in {head}");
    }
    let body = seen.json();
    assert_eq!(body["uuid"], MACHINE);
    let event = &body["event"];
    assert_eq!(event["event"], "MACHINE_PROVISIONING_EVENT_TYPE_CRASHED");
    assert_eq!(event["message"], "image not [31mfound");
    let time: jiff::Timestamp = event["time"].as_str().unwrap().parse().unwrap();
    assert!(jiff::Timestamp::now().as_second() - time.as_second() < 60);
}

#[tokio::test]
async fn register_tells_the_servers_clock() {
    let body = br#"{"uuid":"x","size":"c1-large","partition":"fra-equ01","future":1}"#;
    let headers = "content-type: application/json; charset=utf-8\r\n";
    let dated = format!("{headers}date: Sun, 22 Nov 2026 08:00:01 GMT\r\n");
    let (_stand_in, server) = serve(move |_, nth| {
        let headers = if nth == 0 { &dated } else { headers };
        Act::Raw(response(200, headers, body))
    })
    .await;
    let registered = server.register(&register()).await.unwrap();
    assert_eq!(registered.size, "c1-large");
    assert_eq!(registered.server_date, "2026-11-22T08:00:01Z".parse().ok());
    let undated = server.register(&register()).await.unwrap();
    assert_eq!(undated.server_date, None);
}

#[tokio::test]
async fn register_refused_is_reported_at_once() {
    let (stand_in, server) = serve(|_, _| {
        refuse(
            400,
            "invalid_argument",
            "partition: must be within 2 and 128",
        )
    })
    .await;
    let error = server.register(&register()).await.unwrap_err();
    assert!(texts(&error).contains("invalid_argument: partition: must be within"));
    assert!(texts(&error).contains("BootService/Register"));
    assert_eq!(stand_in.seen().len(), 1);
}

#[tokio::test]
async fn the_super_user_password_may_be_disabled() {
    let bodies = [
        (r#"{"superUserPassword":"pw-s3cret"}"#, Some("pw-s3cret")),
        (r#"{"super_user_password":"pw-s3cret"}"#, Some("pw-s3cret")),
        (
            r#"{"featureDisabled":true,"superUserPassword":"pw-s3cret"}"#,
            None,
        ),
        (r#"{"featureDisabled":true}"#, None),
        ("{}", None),
    ];
    let (_stand_in, server) = serve(move |_, nth| json(200, bodies[nth].0)).await;
    for (body, expected) in bodies {
        let password = server.super_user_password().await.unwrap();
        assert!(!format!("{password:?}").contains("s3cret"));
        let password = password.as_ref().map(ExposeSecret::expose_secret);
        assert_eq!(password, expected, "{body}");
    }
    let (_stand_in, server) = serve(|_, _| json(200, r#"{"superUserPassword":["s3cret"]}"#)).await;
    let error = server.super_user_password().await.unwrap_err();
    assert!(texts(&error).contains("expected text where a secret stands"));
}

#[tokio::test]
async fn passing_trouble_is_bridged() {
    let (stand_in, server) = serve(|_, nth| match nth {
        0 => Act::Raw(Vec::new()),
        1 => Act::Raw(response(
            502,
            "content-type: text/html\r\n",
            b"<html>bad gateway",
        )),
        2 => refuse(503, "unavailable", "starting"),
        3 => Act::Raw(b"HTTP/9 nonsense\r\n\r\n".to_vec()),
        _ => json(200, "{}"),
    })
    .await;
    server.send_event(EventType::Preparing, "").await.unwrap();
    assert_eq!(stand_in.seen().len(), 5);
}

#[tokio::test]
async fn a_refused_token_is_told_apart_and_replaced_in_every_clone() {
    let (stand_in, server) = serve(|seen, _| {
        if seen.head.contains("Bearer tok-new") {
            json(200, "{}")
        } else {
            refuse(401, "unauthenticated", "token expired")
        }
    })
    .await;
    let clone = server.clone();
    let error = clone.send_event(EventType::Alive, "").await.unwrap_err();
    assert!(error.is_unauthenticated());
    assert!(texts(&error).contains("token expired"));
    assert_eq!(stand_in.seen().len(), 1);
    server.set_token(SecretString::from("tok-new"));
    clone.send_event(EventType::Alive, "").await.unwrap();

    let (_stand_in, server) =
        serve(|_, _| Act::Raw(response(401, "content-type: text/plain\r\n", b"no"))).await;
    let error = server.send_event(EventType::Alive, "").await.unwrap_err();
    assert!(error.is_unauthenticated(), "a proxy's 401 too");
}

#[tokio::test]
async fn answers_no_apiserver_gives() {
    type Check = fn(&Error) -> bool;
    let html = "content-type: text/html\r\n";
    let huge = "content-type: application/json\r\ncontent-length: 99999999\r\n";
    let endless = [
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{\"a\":\"".to_vec(),
        vec![b'x'; 5 << 20],
    ]
    .concat();
    let cases: Vec<(Vec<u8>, Check, &str)> = vec![
        (
            response(404, html, b"<html>s3cret"),
            |error| matches!(error, Error::NotConnect { status: 404, .. }),
            "HTTP 404 with text/html",
        ),
        (
            response(200, html, b"<html>log in"),
            |error| matches!(error, Error::NotConnect { status: 200, .. }),
            "HTTP 200 with text/html",
        ),
        (
            response(302, "location: http://[::1]:1/\r\n", b""),
            |error| matches!(error, Error::NotConnect { status: 302, .. }),
            "HTTP 302 with no content type",
        ),
        (
            response(200, "content-type: application/json\r\n", b"{\"a\":"),
            |error| matches!(error, Error::BadMessage { .. }),
            "line 1",
        ),
        (
            response(200, "content-type: application/json\r\n", b"[]"),
            |error| matches!(error, Error::BadMessage { .. }),
            "expected a JSON object",
        ),
        (
            format!("HTTP/1.1 200 OK\r\n{huge}\r\n").into_bytes(),
            |error| matches!(error, Error::TooLarge { .. }),
            "larger than 4194304 bytes",
        ),
        (
            endless,
            |error| matches!(error, Error::TooLarge { .. }),
            "larger than 4194304 bytes",
        ),
    ];
    for (bytes, check, text) in cases {
        let (stand_in, server) = serve(move |_, _| Act::Raw(bytes.clone())).await;
        let error = server.send_event(EventType::Alive, "").await.unwrap_err();
        assert!(check(&error), "{error:?}");
        assert!(texts(&error).contains(text), "{error}");
        assert!(texts(&error).contains("BootService/SendEvent"), "{error}");
        assert_eq!(stand_in.seen().len(), 1, "{error}");
    }
}

#[tokio::test]
async fn a_slow_drip_ends_at_the_deadline() {
    let answer = response(200, "content-type: application/json\r\n", &[b' '; 1000]);
    let (_stand_in, server) =
        serve(move |_, _| Act::Drip(Duration::from_millis(10), answer.clone())).await;
    let budget = Duration::from_millis(400);
    let begin = std::time::Instant::now();
    let error = server
        .send_event_within(EventType::Alive, "", budget)
        .await
        .unwrap_err();
    assert!(begin.elapsed() < 2 * budget, "{:?}", begin.elapsed());
    let Error::Failed(failure) = &error else {
        panic!("{error:?}")
    };
    assert_eq!(failure.kind, FailureKind::Timeout);
    texts(&error);
}

#[tokio::test]
async fn nobody_there() {
    let (_socket, url) = nobody();
    let server = apiserver(&url);
    let budget = Duration::from_millis(100);
    let error = server
        .send_event_within(EventType::Alive, "", budget)
        .await
        .unwrap_err();
    assert!(texts(&error).contains("cannot be reached"), "{error}");
    assert!(texts(&error).contains("refused"), "{error}");
}

#[tokio::test]
async fn a_token_that_cannot_be_sent_is_not_sent() {
    let (stand_in, server) = serve(|_, _| json(200, "{}")).await;
    server.set_token(SecretString::from("line\nbreak-s3cret"));
    let error = server.send_event(EventType::Alive, "").await.unwrap_err();
    assert!(matches!(error, Error::BadToken(_)));
    texts(&error);
    assert!(stand_in.seen().is_empty());
}

/// Reports a success; a report that failed is not out, and any other is.
async fn reported(server: &Apiserver, password: &SecretString) -> Result<Completion, Error> {
    let is_out = AtomicBool::new(false);
    let result = server.installation_succeeded(password, &is_out).await;
    assert_eq!(is_out.load(Ordering::SeqCst), result.is_ok(), "{result:?}");
    result
}

#[tokio::test]
async fn success_is_reported_once_it_is_answered() {
    let (stand_in, server) = serve(|_, nth| match nth {
        0 => refuse(503, "unavailable", "busy"),
        _ => json(200, "{}"),
    })
    .await;
    let password = SecretString::from("pw-s3cret");
    let completion = reported(&server, &password).await.unwrap();
    assert_eq!(completion, Completion::Answered);
    let seen = stand_in.seen();
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0].json()["consolePassword"], "pw-s3cret");
    let head = seen[0].head.to_ascii_lowercase();
    assert!(!head.contains("transfer-encoding"), "{head}");
}

#[tokio::test]
async fn no_answer_to_the_success_report_is_a_success() {
    let silent: fn() -> Act = || Act::Hold(Vec::new());
    let cut: fn() -> Act = || Act::Raw(Vec::new());
    for act in [silent, cut] {
        let (_stand_in, server) = serve(move |_, _| act()).await;
        let begin = std::time::Instant::now();
        let password = SecretString::from("pw-s3cret");
        let completion = reported(&server, &password).await.unwrap();
        assert_eq!(completion, Completion::Unanswered);
        let lasted = begin.elapsed();
        assert!(lasted >= Duration::from_millis(300), "{lasted:?}");
        assert!(lasted < Duration::from_millis(900), "{lasted:?}");
    }
}

#[tokio::test]
async fn whoever_gives_the_report_up_knows_that_it_is_out() {
    let password = SecretString::from("pw-s3cret");
    let (_stand_in, server) = serve(|_, _| Act::Hold(Vec::new())).await;
    let server = server.with_times(|times| times.unanswered = Duration::from_secs(60));
    let is_out = AtomicBool::new(false);
    let report = server.installation_succeeded(&password, &is_out);
    let watch = async {
        while !is_out.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        result = report => panic!("nobody answered: {result:?}"),
        () = watch => {}
    }
}

#[tokio::test]
async fn silence_after_a_refusal_is_a_success_too() {
    let password = SecretString::from("pw-s3cret");
    let (stand_in, server) = serve(|_, nth| match nth {
        0 => refuse(500, "internal", "database"),
        _ => Act::Raw(Vec::new()),
    })
    .await;
    let begin = std::time::Instant::now();
    let completion = reported(&server, &password).await.unwrap();
    assert_eq!(completion, Completion::Unanswered);
    assert!(begin.elapsed() >= Duration::from_millis(300));
    assert!(stand_in.seen().len() > 2);
}

#[tokio::test]
async fn a_refused_or_unsent_success_report_is_a_failure() {
    let password = SecretString::from("pw-s3cret");
    for (status, code, expected) in [
        (400, "invalid_argument", Code::InvalidArgument),
        (500, "internal", Code::Internal),
    ] {
        let (_stand_in, server) = serve(move |_, _| refuse(status, code, "no")).await;
        // Longer than the silence that would be a success.
        let server = server.with_times(|times| times.call.budget = Duration::from_millis(700));
        let error = reported(&server, &password).await.unwrap_err();
        assert!(matches!(&error, Error::Refused { code, .. } if *code == expected));
        texts(&error);
    }
    let (_socket, url) = nobody();
    let server = apiserver(&url).with_times(|times| times.call.budget = Duration::from_millis(200));
    let error = reported(&server, &password).await.unwrap_err();
    assert!(matches!(error, Error::Failed(_)), "{error:?}");
}
