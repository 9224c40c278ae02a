//! Requests that nobody honest sends.

use std::io::Write;
use std::time::{Duration, Instant};

use crate::bed::{Helper, address, connect, get, machine, post, read_all, standin, status, until};

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
    let helper = Helper::start(&[
        "--connections-per-address",
        "3",
        "--connections-per-network",
        "5",
        "--connections",
        "7",
    ]);
    let greedy = address();
    let near = std::net::Ipv6Addr::from_bits(greedy.to_bits() + 1);
    let refused = |from: &std::net::Ipv6Addr| {
        let mut stream = helper.connect_from(from);
        let _ = stream.write_all(get("/healthz", "").as_bytes());
        status(&read_all(&mut stream)) == 0
    };
    let hold = |from: &std::net::Ipv6Addr, count| -> Vec<_> {
        (0..count).map(|_| helper.connect_from(from)).collect()
    };
    let held = hold(&greedy, 3);
    until("the address is full", || refused(&greedy));
    assert!(!refused(&near), "its neighbour is not");
    let more = hold(&near, 2);
    let next = std::net::Ipv6Addr::from_bits(greedy.to_bits() + 2);
    until("the network is full", || refused(&next));
    assert!(!refused(&address()), "another network is not");
    drop((held, more));
    until("there is room again", || !refused(&greedy));
}

#[test]
fn a_request_body_is_bounded_in_size_and_in_what_it_may_say() {
    let helper = Helper::start(&["--proxy-apiserver"]);
    let large = "x".repeat(3 << 20);
    let answer = helper.ask(&post("Register", "t", &large));
    assert!(status(&answer) != 200, "{answer}");
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
    assert_well(&helper);
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
