//! The boot helper's client against a stand-in.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use url::Url;
use uuid::Uuid;

use super::boot_helper_client::{HelperError, fetch_within};
use super::helper_answer::HelperAnswer;
use super::http::{self, FailureKind, Trust};
use super::retry::Policy;
use super::stand_in::{Act, Seen, StandIn, json, nobody, response};

const POLICY: Policy = Policy {
    base: Duration::from_millis(5),
    cap: Duration::from_millis(20),
    attempt: Duration::from_millis(400),
    budget: Duration::from_secs(1),
};
const JSON: &str = "content-type: application/json\r\n";

async fn fetch(url: &Url, ticket: Option<&str>) -> Result<HelperAnswer, HelperError> {
    let client = http::control_client(Trust::Public).unwrap();
    let machine: Uuid = "7b0b6ad5-6a4f-4f7e-a0e7-0c2a8a8f8f10".parse().unwrap();
    let ticket = ticket.map(SecretString::from);
    let answer = fetch_within(&client, url, machine, ticket.as_ref(), POLICY).await;
    if let Err(error) = &answer {
        let texts = format!("{error}\n{error:?}");
        assert!(!texts.contains("s3cret"), "{texts}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
    answer.map(|fetched| fetched.answer)
}

async fn fail(act: impl Fn(&Seen, usize) -> Act + Send + Sync + 'static) -> (HelperError, usize) {
    let stand_in = StandIn::start(act).await;
    let error = fetch(&stand_in.url, None).await.unwrap_err();
    (error, stand_in.seen().len())
}

#[tokio::test]
async fn an_answer_is_fetched_with_the_ticket() {
    let stand_in = StandIn::start(|_, _| {
        json(
            200,
            r#"{"metal_apiserver_url":"https://a","metal_apiserver_token_for_hammer":"tok-s3cret","unknown":1}"#,
        )
    })
    .await;
    let answer = fetch(&stand_in.url, Some("tick-s3cret")).await.unwrap();
    let token = answer.metal_apiserver_token_for_hammer.unwrap();
    assert_eq!(token.expose_secret(), "tok-s3cret");
    let head = stand_in.seen()[0].head.to_ascii_lowercase();
    let line = "get /config/7b0b6ad5-6a4f-4f7e-a0e7-0c2a8a8f8f10 http/1.1\r\n";
    assert!(head.starts_with(line), "{head}");
    assert!(head.contains("\r\nauthorization: bearer tick-s3cret\r\n"));
    fetch(&stand_in.url, None).await.unwrap();
    let head = stand_in.seen()[1].head.to_ascii_lowercase();
    assert!(!head.contains("authorization"), "{head}");
    let error = fetch(&stand_in.url, Some("s3cret\nline"))
        .await
        .unwrap_err();
    assert!(matches!(error, HelperError::BadTicket));
}

#[tokio::test]
async fn the_helpers_clock_is_heard() {
    let client = http::control_client(Trust::Public).unwrap();
    let dates = [
        "date: Thu, 01 Jan 2099 00:00:00 GMT\r\n",
        "date: noon\r\n",
        "",
    ];
    let client = &client;
    let [far, wrong, none] = dates.map(|date| async move {
        let stand_in = StandIn::start(move |_, _| Act::Raw(response(200, date, b"{}"))).await;
        let fetched = fetch_within(client, &stand_in.url, Uuid::nil(), None, POLICY).await;
        fetched.unwrap().clock_offset
    });
    let there = Timestamp::now() + far.await.unwrap();
    assert!((there.as_second() - 4_070_908_800).abs() < 60, "{there}");
    assert_eq!((wrong.await, none.await), (None, None));
}

#[tokio::test]
async fn a_helper_that_starts_late_is_waited_for() {
    let stand_in = StandIn::start(|_, nth| match nth {
        0 => Act::Raw(Vec::new()),
        1 => Act::Raw(response(503, JSON, b"{\"error\":\"starting\"}")),
        2 => Act::Raw(response(502, "content-type: text/html\r\n", b"<html>")),
        _ => json(200, "{}"),
    })
    .await;
    fetch(&stand_in.url, None).await.unwrap();
    assert_eq!(stand_in.seen().len(), 4);
}

#[tokio::test]
async fn answers_of_others_are_refused_at_once() {
    let (error, calls) = fail(|_, _| Act::Raw(response(200, JSON, b"<html>\nhello"))).await;
    assert!(
        matches!(error, HelperError::NotJson { line: 1, .. }),
        "{error}"
    );
    assert_eq!(calls, 1);
    let (error, calls) = fail(|_, _| json(404, r#"{"error":"nothing here"}"#)).await;
    assert!(error.to_string().contains("nothing here"), "{error}");
    assert_eq!(calls, 1);
    // Larger than the limit: told by the length, and found out while reading.
    let (error, _) = fail(|_, _| Act::Raw(response(200, JSON, &vec![b' '; (1 << 20) + 1]))).await;
    assert!(matches!(error, HelperError::TooLarge { .. }), "{error}");
    let (error, calls) = fail(|_, _| {
        let mut bytes = format!("HTTP/1.1 200 OK\r\n{JSON}\r\n").into_bytes();
        bytes.extend(vec![b' '; (1 << 20) + 1]);
        Act::Raw(bytes)
    })
    .await;
    assert!(matches!(error, HelperError::TooLarge { .. }), "{error}");
    assert!(error.to_string().contains("1048576"), "{error}");
    assert_eq!(calls, 1);
    let (error, calls) =
        fail(|_, _| Act::Raw(response(302, "location: http://[::1]:1/s3cret\r\n", b""))).await;
    assert!(error.to_string().contains("HTTP 302"), "{error}");
    assert_eq!(calls, 1);
}

#[tokio::test]
async fn trouble_that_lasts_is_reported_within_the_budget() {
    let begin = Instant::now();
    let drip = response(200, JSON, &[b' '; 5000]);
    let (error, calls) = fail(move |_, _| Act::Drip(Duration::from_millis(5), drip.clone())).await;
    let HelperError::Unreachable(failure) = &error else {
        panic!("{error:?}")
    };
    assert_eq!(failure.kind, FailureKind::Timeout);
    assert!(calls >= 2);
    assert!(begin.elapsed() < 2 * POLICY.budget);

    let (_socket, mut url) = nobody();
    let address = url.to_string();
    url.set_username("user").unwrap();
    url.set_password(Some("s3cret")).unwrap();
    let error = fetch(&url, None).await.unwrap_err().to_string();
    for text in [
        "cannot be reached",
        "refused",
        &address,
        "check its address",
    ] {
        assert!(error.contains(text), "{text}: {error}");
    }
}
