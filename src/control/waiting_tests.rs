//! `Wait` against a stand-in: silence, cuts, allocations, trouble.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use secrecy::SecretString;
use tokio::sync::Notify;
use url::Url;

use super::apiserver::Apiserver;
use super::apiserver_tests::apiserver;
use super::error::Error;
use super::stand_in::{Act, Seen, StandIn, json, nobody, refuse, response, stream};
use super::waiting::WaitOutcome;

const MINE: &str = r#"{"allocation":{"uuid":"0d9c7f5e-7f55-4c3e-8a57-5a2a7c3a9f01",
    "hostname":"web-1","image":{"id":"debian-12","url":"http://h/img.tar.lz4"},
    "filesystemLayout":{"id":"default"},"placementLabels":{"a":"b"}}}"#;

/// Longer than any test lasts.
const FOREVER: Duration = Duration::from_secs(60);
/// Longer than the shortest normal Wait of these tests, 100 ms, on any host: a busy one is late,
/// never early.
const NORMAL: Duration = Duration::from_millis(150);

/// Whom a busy host keeps waiting is not taken for one that does not answer.
fn patient(url: &Url) -> Apiserver {
    apiserver(url).with_times(|times| {
        times.call.attempt = FOREVER;
        times.call.budget = FOREVER;
        times.probe_patience = FOREVER;
    })
}

/// The same, to which no Wait is long enough to have ended normally.
fn strict(url: &Url) -> Apiserver {
    patient(url).with_times(|times| times.normal_wait = FOREVER)
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// The server's cut: the connection closes without a response.
fn cut_after(time: Duration) -> Act {
    Act::After(time, Vec::new())
}

fn silence() -> Act {
    cut_after(FOREVER)
}

/// Answers events and lets `wait` decide about the nth Wait.
async fn serve(wait: impl Fn(usize) -> Act + Send + Sync + 'static) -> StandIn {
    StandIn::start(move |seen, nth| match seen.name() {
        "Wait" => wait(nth),
        _ => json(200, "{}"),
    })
    .await
}

#[tokio::test]
async fn an_allocation_arrives_whole() {
    let stand_in = serve(|_| Act::Hold(stream(&["{}", MINE], None))).await;
    let outcome = apiserver(&stand_in.url).wait_once().await.unwrap();
    let WaitOutcome::Allocation(allocation) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(allocation.hostname, "web-1");
    assert_eq!(allocation.raw["placementLabels"]["a"], "b");
    let seen = &stand_in.seen()[0];
    let head = seen.head.to_ascii_lowercase();
    assert!(head.contains("content-type: application/connect+json\r\n"));
    assert!(!head.contains("transfer-encoding"), "{head}");
    assert_eq!(seen.body[..5], [0, 0, 0, 0, 47]);
    assert_eq!(
        seen.body[5..],
        *br#"{"uuid":"7b0b6ad5-6a4f-4f7e-a0e7-0c2a8a8f8f10"}"#
    );
}

#[tokio::test]
async fn an_allocation_may_come_in_drips() {
    let bytes = stream(&[MINE], Some("{}"));
    let stand_in = serve(move |_| Act::Drip(millis(1), bytes.clone())).await;
    let outcome = apiserver(&stand_in.url).wait_once().await.unwrap();
    assert!(matches!(outcome, WaitOutcome::Allocation(_)), "{outcome:?}");
}

#[tokio::test]
async fn how_a_wait_ends_depends_on_how_long_it_lasted() {
    let end = || stream(&[], Some("{}"));
    let deadline = || {
        let error = r#"{"error":{"code":"deadline_exceeded","message":"60 s"}}"#;
        stream(&[], Some(error))
    };
    let gateway = || response(504, "content-type: text/html\r\n", b"timeout");
    // what comes, whether it is trouble after a normal time
    let cases: [(Vec<u8>, bool); 4] = [
        (Vec::new(), false),
        (end(), false),
        (deadline(), false),
        (gateway(), true),
    ];
    for (bytes, troubled) in cases {
        let late = bytes.clone();
        let stand_in = serve(move |_| Act::After(NORMAL, late.clone())).await;
        let outcome = apiserver(&stand_in.url).wait_once().await.unwrap();
        let WaitOutcome::Ended { lasted, trouble } = outcome else {
            panic!("{outcome:?}")
        };
        assert!(lasted >= millis(100), "{lasted:?}");
        assert_eq!(trouble.is_some(), troubled, "{trouble:?}");

        let stand_in = serve(move |_| Act::Raw(bytes.clone())).await;
        let early = strict(&stand_in.url).wait_once().await;
        assert!(early.is_err(), "{early:?}");
    }
}

#[tokio::test]
async fn a_refused_token_ends_a_wait_whenever_it_comes() {
    let expired = r#"{"error":{"code":"unauthenticated","message":"expired"}}"#;
    for time in [Duration::ZERO, NORMAL] {
        let stand_in = serve(move |_| Act::After(time, stream(&[], Some(expired)))).await;
        let error = apiserver(&stand_in.url)
            .wait_for_allocation()
            .await
            .unwrap_err();
        assert!(error.is_unauthenticated(), "{error:?}");
        assert_eq!(stand_in.seen().len(), 1);
    }
}

#[tokio::test]
async fn streams_that_cannot_be_read_are_reported() {
    let mut compressed = stream(&[MINE], None);
    let at = compressed
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .unwrap()
        + 4;
    compressed[at] = 1;
    let mut huge = stream(&[], None);
    huge.extend([0, 0x7f, 0, 0, 0]);
    let cases = [
        (compressed, "compressed"),
        (huge, "at most 4194304 are read"),
        (
            stream(&[r#"{"allocation":{"uuid":"x"}}"#], None),
            "BootService/Wait",
        ),
        (stream(&["[]"], None), "expected a JSON object"),
    ];
    for (bytes, text) in cases {
        let stand_in = serve(move |_| Act::Hold(bytes.clone())).await;
        let error = apiserver(&stand_in.url)
            .wait_for_allocation()
            .await
            .unwrap_err();
        assert!(matches!(error, Error::BadMessage { .. }), "{error:?}");
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[tokio::test]
async fn waits_are_reopened_until_the_allocation_comes() {
    let stand_in = serve(|nth| match nth {
        0 => cut_after(NORMAL),
        1 => Act::Raw(Vec::new()),
        2 => refuse(503, "unavailable", "restart"),
        3 => Act::Raw(stream(&[], None)[..60].to_vec()),
        4 => Act::After(NORMAL, stream(&["{}"], None)),
        _ => Act::Hold(stream(&[MINE], None)),
    })
    .await;
    let allocation = apiserver(&stand_in.url)
        .wait_for_allocation()
        .await
        .unwrap();
    assert_eq!(allocation.hostname, "web-1");
    assert_eq!(stand_in.names(), ["Wait"; 6]);
}

#[tokio::test]
async fn normal_ends_do_not_grow_the_pauses() {
    let stand_in = serve(|nth| match nth {
        0..6 => cut_after(NORMAL),
        _ => Act::Hold(stream(&[MINE], None)),
    })
    .await;
    let server = apiserver(&stand_in.url).with_times(|times| {
        times.wait_base = FOREVER;
        times.wait_cap = FOREVER;
    });
    let waiting = server.wait_for_allocation();
    tokio::time::timeout(FOREVER / 2, waiting)
        .await
        .expect("reopened without back-off")
        .unwrap();
}

#[tokio::test]
async fn a_forgotten_wait_is_opened_again() {
    let stand_in = serve(|nth| match nth {
        0 => silence(),
        _ => Act::Hold(stream(&[MINE], None)),
    })
    .await;
    let server = apiserver(&stand_in.url).with_times(|times| times.longest_wait = NORMAL);
    server.wait_for_allocation().await.unwrap();
    assert_eq!(stand_in.seen().len(), 2);
}

#[tokio::test]
async fn an_endless_wait_cannot_be_opened_at_no_server() {
    // Nothing is sent, so nothing has lasted: the error is not taken for a normal end.
    let (_socket, url) = nobody();
    let server = apiserver(&url).with_times(|times| times.normal_wait = millis(1));
    let error = server.wait_once().await.unwrap_err();
    assert!(matches!(error, Error::Failed(_)), "{error:?}");
}

#[tokio::test]
async fn a_probe_returns_an_allocation_at_once() {
    let stand_in = serve(|_| Act::Hold(stream(&[MINE], None))).await;
    let begin = Instant::now();
    let found = apiserver(&stand_in.url).probe(FOREVER, 2).await.unwrap();
    assert_eq!(found.unwrap().hostname, "web-1");
    assert!(begin.elapsed() < FOREVER / 2);
}

#[tokio::test]
async fn silence_next_to_answered_events_is_no_allocation() {
    let stand_in = serve(|_| silence()).await;
    let begin = Instant::now();
    let found = patient(&stand_in.url).probe(millis(300), 2).await.unwrap();
    assert!(found.is_none());
    assert!(begin.elapsed() >= millis(300));
    let mut names = stand_in.names();
    assert_eq!(names[0], "Wait", "the Wait is opened before the event");
    names.retain(|name| name == "Wait");
    assert_eq!(names.len(), 2);
    let events = stand_in
        .seen()
        .into_iter()
        .filter(|s| s.name() == "SendEvent");
    for event in events {
        assert_eq!(
            event.json()["event"]["event"],
            "MACHINE_PROVISIONING_EVENT_TYPE_ALIVE"
        );
    }
}

#[tokio::test]
async fn an_allocation_in_the_last_moment_counts() {
    // The allocation comes when the closing event is sent, which is answered too late for it.
    let closing = Arc::new(Notify::new());
    let stand_in = StandIn::start(move |seen, nth| match (seen.name(), nth) {
        ("Wait", _) => Act::On(Arc::clone(&closing), stream(&[MINE], None)),
        ("SendEvent", 0) => json(200, "{}"),
        _ => {
            closing.notify_one();
            silence()
        }
    })
    .await;
    let found = patient(&stand_in.url).probe(millis(100), 1).await.unwrap();
    assert!(found.is_some());
}

#[tokio::test]
async fn normal_cuts_count_for_the_silence_they_held() {
    let stand_in = serve(|_| cut_after(NORMAL)).await;
    let found = patient(&stand_in.url).probe(millis(400), 1).await.unwrap();
    assert!(found.is_none());
    assert!(
        stand_in
            .names()
            .iter()
            .filter(|name| *name == "Wait")
            .count()
            >= 3
    );
}

/// Silence that proves nothing: the probe has to go on until its patience ends.
async fn proves_nothing(
    silence: Duration,
    act: impl Fn(&Seen, usize) -> Act + Send + Sync + 'static,
) -> Error {
    proves_nothing_to(patient, silence, act).await
}

async fn proves_nothing_to(
    whom: fn(&Url) -> Apiserver,
    silence: Duration,
    act: impl Fn(&Seen, usize) -> Act + Send + Sync + 'static,
) -> Error {
    let stand_in = StandIn::start(act).await;
    whom(&stand_in.url)
        .with_times(|times| times.probe_patience = Duration::from_secs(1))
        .probe(silence, 1)
        .await
        .expect_err("this silence must not be taken for an answer")
}

#[tokio::test]
async fn silence_without_an_answered_event_proves_nothing() {
    let error = proves_nothing(millis(50), |seen, _| match seen.name() {
        "Wait" => silence(),
        _ => refuse(503, "unavailable", "database down"),
    })
    .await;
    assert!(error.to_string().contains("database down"), "{error}");
}

#[tokio::test]
async fn a_server_that_leaves_during_the_silence_proves_nothing() {
    // The first event of every Wait is answered, the one at its end is not.
    let error = proves_nothing(millis(50), |seen, nth| match (seen.name(), nth % 2) {
        ("Wait", _) => silence(),
        (_, 0) => json(200, "{}"),
        _ => refuse(503, "unavailable", "left"),
    })
    .await;
    assert!(error.to_string().contains("left"), "{error}");
}

#[tokio::test]
async fn a_server_that_comes_during_the_silence_proves_nothing() {
    // The first event is refused and then every other one: no Wait has both its events
    // answered, but the first one has its last.
    let error = proves_nothing(millis(50), |seen, nth| match (seen.name(), nth % 2) {
        ("Wait", _) => silence(),
        (_, 0) => refuse(503, "unavailable", "coming"),
        _ => json(200, "{}"),
    })
    .await;
    assert!(error.to_string().contains("coming"), "{error}");
}

#[tokio::test]
async fn waits_that_end_early_prove_nothing() {
    let error = proves_nothing_to(strict, millis(50), |seen, _| match seen.name() {
        "Wait" => cut_after(Duration::ZERO),
        _ => json(200, "{}"),
    })
    .await;
    assert!(matches!(error, Error::Failed(_)), "{error:?}");
}

#[tokio::test]
async fn troubled_ends_prove_nothing() {
    let error = proves_nothing(millis(250), |seen, _| match seen.name() {
        "Wait" => Act::After(NORMAL, response(504, "content-type: text/html\r\n", b"")),
        _ => json(200, "{}"),
    })
    .await;
    assert!(
        matches!(error, Error::NotConnect { status: 504, .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn trouble_in_between_starts_the_count_again() {
    let waits = Arc::new(AtomicUsize::new(0));
    let count = waits.clone();
    // Two stretches are needed: the second Wait fails, so the third does not suffice.
    let stand_in = serve(move |nth| {
        count.fetch_add(1, Ordering::SeqCst);
        if nth == 1 {
            Act::Raw(Vec::new())
        } else {
            silence()
        }
    })
    .await;
    let found = strict(&stand_in.url).probe(millis(200), 2).await.unwrap();
    assert!(found.is_none());
    assert_eq!(waits.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn a_probe_reports_a_refused_token() {
    let stand_in = serve(|_| refuse(401, "unauthenticated", "expired")).await;
    let server = apiserver(&stand_in.url);
    server.set_token(SecretString::from("tok-old-s3cret"));
    let error = server.probe(millis(50), 1).await.unwrap_err();
    assert!(error.is_unauthenticated());
    assert!(!format!("{error} {error:?} {server:?}").contains("s3cret"));
}
