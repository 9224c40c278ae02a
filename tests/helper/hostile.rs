//! Requests that nobody honest sends.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::bed::{
    Helper, address, connect, get, hang, machine, post, read_all, read_head, response, server,
    standin, status, until, wait,
};

/// A helper that survived still gives tokens.
fn assert_well(helper: &Helper) {
    helper.token(&machine());
}

#[test]
fn wrong_forms_of_a_uuid_are_refused_before_the_apiserver_hears_of_them() {
    let helper = Helper::start(&[]);
    let before = standin().record().len();
    let good = machine();
    for wrong in [
        good.to_uppercase(),
        good.replace('-', ""),
        format!("urn:uuid:{good}"),
        format!("%7B{good}%7D"),
        format!("{good}/"),
        format!("{good}/.."),
        format!("{good}%00"),
        format!("{good}%0d%0aset-cookie:a=b"),
        "00000000-0000-0000-0000-000000000000".into(),
        "ffffffff-ffff-ffff-ffff-ffffffffffff".into(),
        "..%2f..%2fetc%2fpasswd".into(),
        "%ff%fe".into(),
        "x".repeat(8000),
    ] {
        let answer = helper.get(&format!("/config/{wrong}"));
        assert!(matches!(status(&answer), 400 | 404), "{wrong}: {answer}");
        assert!(!answer.contains("machine-secret"), "{wrong}");
        assert!(
            !answer.to_ascii_lowercase().contains("set-cookie"),
            "{wrong}"
        );
    }
    let record = standin().record();
    let tokens = record[before..]
        .iter()
        .filter(|line| line["method"] == "MachineToken");
    // Other tests ask for tokens of good machines at the same time.
    assert!(tokens.into_iter().all(|line| line["uuid"] != good.as_str()));
    assert_well(&helper);
}

#[test]
fn ten_megabytes_of_headers_are_not_read() {
    let helper = Helper::start(&[]);
    let path = format!("/config/{}", machine());
    let long = format!("x-long: {}\r\n", "x".repeat(10 << 20));
    let answer = helper.get_with(&path, &long);
    assert!(
        matches!(status(&answer), 431 | 0),
        "{}",
        &answer[..answer.len().min(200)]
    );
    let many: String = (0..5000)
        .map(|number| format!("x-{number}: 1\r\n"))
        .collect();
    let answer = helper.get_with(&path, &many);
    assert!(matches!(status(&answer), 431 | 0), "{answer}");
    // Few bytes, but too many lines.
    let lines = |count| {
        (0..count)
            .map(|number| format!("x-{number}: 1\r\n"))
            .collect::<String>()
    };
    assert_eq!(status(&helper.get_with("/healthz", &lines(60))), 200);
    let answer = helper.get_with("/healthz", &lines(70));
    assert_eq!(status(&answer), 431, "{answer}");
    let answer = helper.get(&format!("/config/{}", "x".repeat(1 << 20)));
    assert!(matches!(status(&answer), 414 | 431 | 400 | 0), "{answer}");
    let (rss, _) = helper.size();
    assert!(rss < 64 << 10, "{rss} KiB");
    assert_well(&helper);
}

#[test]
fn a_slow_head_loses_its_connection() {
    let helper = Helper::start(&[]);
    let mut silent = helper.connect();
    let mut slow = helper.connect();
    slow.write_all(b"GET /config/").expect("first bytes");
    let begin = Instant::now();
    let dripping = std::thread::spawn(move || {
        while slow.write_all(b"a").is_ok() {
            std::thread::sleep(Duration::from_millis(200));
        }
        begin.elapsed()
    });
    read_all(&mut silent);
    assert!(
        begin.elapsed() < Duration::from_secs(30),
        "{:?}",
        begin.elapsed()
    );
    let lasted = dripping.join().expect("thread");
    assert!(lasted < Duration::from_secs(30), "{lasted:?}");
    assert!(
        lasted > Duration::from_secs(5),
        "{lasted:?}: honest machines may be slow"
    );
    assert_well(&helper);
}

#[test]
fn one_source_cannot_have_all_connections() {
    let silent = server(|mut stream, _| hang(&mut stream));
    let helper = Helper::before(
        &silent,
        &[
            "--proxy-apiserver",
            "--connections-per-address",
            "3",
            "--connections-per-network",
            "5",
        ],
    );
    let greedy = address();
    let near = std::net::Ipv6Addr::from_bits(greedy.to_bits() + 1);
    let refused = |from: &std::net::Ipv6Addr| {
        let mut stream = helper.connect_from(from);
        let _ = stream.write_all(get("/healthz", "").as_bytes());
        status(&read_all(&mut stream)) == 0
    };
    // A Wait that nobody answers keeps its place; an idle connection would lose it.
    let hold = |from: &std::net::Ipv6Addr, count| -> Vec<_> {
        let open = |_| {
            let mut stream = helper.connect_from(from);
            stream.write_all(&wait("t", &machine())).expect("a Wait");
            stream
        };
        (0..count).map(open).collect()
    };
    // An ended connection has its place for a moment more. The one that asks counts, too.
    let settled = |count: u64| {
        until("all others are gone", || {
            helper.metric("metal_boot_connections") == count + 1
        });
    };
    let held = hold(&greedy, 3);
    settled(3);
    assert!(refused(&greedy), "the address is full");
    assert!(!refused(&near), "its neighbour is not");
    settled(3);
    let more = hold(&near, 2);
    settled(5);
    let next = std::net::Ipv6Addr::from_bits(greedy.to_bits() + 2);
    assert!(refused(&next), "the network is full");
    assert!(!refused(&address()), "another network is not");
    drop((held, more));
    settled(0);
    assert!(!refused(&greedy), "there is room again");
}

#[test]
fn a_request_body_is_bounded_in_size_in_time_and_in_what_it_may_say() {
    let arrived = Arc::new(AtomicUsize::new(0));
    let counter = arrived.clone();
    // Believes everything: whatever it is sent is good.
    let url = server(move |mut stream, _| {
        let head = read_head(&mut stream);
        let length = head.split("content-length: ").nth(1);
        let length = length.and_then(|rest| rest.lines().next()?.parse().ok());
        let mut left: usize = length.unwrap_or(0);
        let mut buffer = vec![0; 65536];
        while left > 0 {
            match stream.read(&mut buffer) {
                Ok(count) if count > 0 => {
                    counter.fetch_add(count, Ordering::SeqCst);
                    left = left.saturating_sub(count);
                }
                _ => return,
            }
        }
        let kind = "content-type: application/json\r\n";
        let _ = stream.write_all(&response(200, kind, br#"{"secret":"machine-secret-1"}"#));
    });
    let helper = Helper::before(&url, &["--proxy-apiserver"]);
    let small = helper.ask(&post("Register", "t", &"x".repeat(1 << 20)));
    assert_eq!(status(&small), 200, "{small}");
    arrived.store(0, Ordering::SeqCst);
    let large = helper.ask(&post("Register", "t", &"x".repeat(3 << 20)));
    assert!(status(&large) != 200, "{large}");
    let got = arrived.load(Ordering::SeqCst);
    assert!(got <= 1 << 20, "{got} bytes reached the apiserver");
    // Two lengths, or a length and chunks: what a proxy behind would read is not decided here.
    for headers in [
        "content-length: 2\r\ncontent-length: 5\r\n",
        "content-length: 2\r\ntransfer-encoding: chunked\r\n",
        "content-length: -1\r\n",
        "transfer-encoding: gzip\r\n",
    ] {
        let request = post("SendEvent", "t", "{}").replace("content-length: 2\r\n", headers);
        let answer = helper.ask(&request);
        assert!(status(&answer) != 200, "{headers}: {answer}");
    }
    // A body that never ends, a byte at a time.
    let mut slow = helper.connect();
    let request = post("SendEvent", "t", "{}").replace("length: 2\r\n", "length: 100000\r\n");
    slow.write_all(request.as_bytes()).expect("head");
    let begin = Instant::now();
    let mut dripping = slow.try_clone().expect("a second handle");
    let drip = std::thread::spawn(move || {
        while dripping.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let answer = read_all(&mut slow);
    let lasted = begin.elapsed();
    let _ = slow.shutdown(std::net::Shutdown::Both);
    drip.join().expect("thread");
    assert!(status(&answer) != 200, "{answer}");
    assert!(lasted < Duration::from_secs(45), "{lasted:?}");
    assert_well(&helper);
}

/// Clients whose window stays closed: they hold no memory to speak of, and not for ever.
#[test]
fn a_client_that_stops_reading_is_let_go() {
    let files = tempfile::tempdir().expect("directory");
    let big = std::fs::File::create(files.path().join("big")).expect("file");
    big.set_len(256 << 20).expect("length");
    let helper = Helper::start(&["--static-dir", &files.path().display().to_string()]);
    let stuck: Vec<_> = (0..20)
        .map(|_| {
            let mut stream = helper.connect_from(&address());
            stream
                .write_all(get("/static/big", "").as_bytes())
                .expect("request");
            let mut some = [0; 1000];
            stream.read_exact(&mut some).expect("it begins");
            assert!(some.starts_with(b"HTTP/1.1 200 "));
            stream
        })
        .collect();
    assert!(helper.metric("metal_boot_connections") > 20);
    assert_well(&helper);
    let mut most = 0;
    until("they are let go", || {
        most = most.max(helper.size().0);
        helper.metric("metal_boot_connections") == 1
    });
    assert!(most < 64 << 10, "{most} KiB");
    drop(stuck);
    assert_well(&helper);
}

#[test]
fn calls_with_the_helpers_own_token_are_few_at_once() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let peak = most.clone();
    let url = server(move |mut stream, _| {
        read_head(&mut stream);
        peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        // Long enough for all of them to be here at once, if they may.
        std::thread::sleep(Duration::from_millis(1500));
        now.fetch_sub(1, Ordering::SeqCst);
        let kind = "content-type: application/json\r\n";
        let _ = stream.write_all(&response(200, kind, br#"{"secret":"machine-secret-1"}"#));
    });
    let helper = Helper::before(&url, &[]);
    let open: Vec<_> = (0..100)
        .map(|_| {
            let mut stream = helper.connect_from(&address());
            let request = get(&format!("/config/{}", machine()), "");
            stream.write_all(request.as_bytes()).expect("request");
            stream
        })
        .collect();
    for mut stream in open {
        let answer = read_all(&mut stream);
        assert_eq!(status(&answer), 200, "{answer}");
    }
    let most = most.load(Ordering::SeqCst);
    assert!((20..=64).contains(&most), "{most} at once");
}

#[test]
fn what_is_not_http_is_not_answered_as_if_it_were() {
    let helper = Helper::start(&[]);
    for bytes in [
        "\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET /config/x\r\n\r\n",
        "GET http://other/config/x HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n",
        "CONNECT h:80 HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nhost: h\r\nbad header\r\n\r\n",
        "\0\0\0\0\r\n\r\n",
    ] {
        let mut stream = connect(helper.address.ip(), helper.address).expect("connect");
        let _ = stream.write_all(bytes.as_bytes());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let answer = read_all(&mut stream);
        assert!(status(&answer) != 200, "{bytes:?}: {answer}");
    }
    assert_well(&helper);
}

#[test]
fn paths_that_climb_find_nothing() {
    let files = tempfile::tempdir().expect("directory");
    let inside = files.path().join("static");
    std::fs::create_dir_all(inside.join("sub")).expect("directory");
    std::fs::write(files.path().join("outside"), "OUTSIDE").expect("file");
    std::fs::write(inside.join(".hidden"), "OUTSIDE").expect("file");
    std::os::unix::fs::symlink("../outside", inside.join("link")).expect("link");
    std::os::unix::fs::symlink("/etc/passwd", inside.join("absolute")).expect("link");
    let helper = Helper::start(&["--static-dir", &inside.display().to_string()]);
    for path in [
        "/static/../outside",
        "/static/sub/../../outside",
        "/static/%2e%2e/outside",
        "/static/..%2foutside",
        "/static/%2e%2e%2foutside",
        "/static//etc/passwd",
        "/static/%2fetc/passwd",
        "/static/link",
        "/static/absolute",
        "/static/.hidden",
        "/static/sub",
        "/static/",
        "/static/a%00b",
        "/static/..\\outside",
    ] {
        let answer = helper.get(path);
        assert!(matches!(status(&answer), 400 | 404), "{path}: {answer}");
        assert!(
            !answer.contains("OUTSIDE") && !answer.contains("root:"),
            "{path}"
        );
    }
    assert_well(&helper);
}
