//! The apiserver over HTTPS behind the helper, for machines that speak plain HTTP: honest, and not.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::json;

use crate::bed::{
    Helper, INFRA, address, body, get, hang, header, machine, post, read_head, read_until,
    response, server_at, status, until, wait,
};
use crate::support::services::pki_for;

type Tls = StreamOwned<ServerConnection, TcpStream>;

/// A server with a certificate of an authority of its own.
struct Secure {
    url: String,
    /// PEM file.
    authority: String,
    _dir: tempfile::TempDir,
}

/// Its TCP connections and TLS settings, for `act`.
fn raw(act: impl Fn(TcpStream, usize, &Arc<ServerConfig>) + Send + Sync + 'static) -> Secure {
    let dir = tempfile::tempdir().expect("directory");
    let address = address();
    let pki = pki_for(dir.path(), &address.to_string());
    let certificates = CertificateDer::pem_file_iter(&pki.certificate).expect("certificate");
    let certificates = certificates.map(|certificate| certificate.expect("PEM"));
    let key = PrivateKeyDer::from_pem_file(&pki.key).expect("key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(certificates.collect(), key)
        .expect("certificate and key");
    let config = Arc::new(config);
    let url = server_at(address, move |stream, number| act(stream, number, &config));
    Secure {
        url: url.replacen("http", "https", 1),
        authority: pki.authority.display().to_string(),
        _dir: dir,
    }
}

fn secure(act: impl Fn(Tls, usize) + Send + Sync + 'static) -> Secure {
    raw(move |stream, number, config| act(tls(stream, config), number))
}

fn tls(stream: TcpStream, config: &Arc<ServerConfig>) -> Tls {
    StreamOwned::new(
        ServerConnection::new(config.clone()).expect("a connection"),
        stream,
    )
}

impl Secure {
    fn helper(&self) -> Helper {
        Helper::before(
            &self.url,
            &["--proxy-apiserver", "--ca-cert", &self.authority],
        )
    }
}

const JSON: &str = "content-type: application/json\r\ndate: Sun, 22 Nov 2026 08:00:01 GMT\r\n";

#[test]
fn machines_need_no_authority_and_the_helper_does() {
    let heard = Arc::new(AtomicUsize::new(0));
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let gone = std::sync::Mutex::new(gone);
    let counter = heard.clone();
    let apiserver = secure(move |mut stream, _| {
        let head = read_head(&mut stream);
        if head.is_empty() {
            return;
        }
        counter.fetch_add(1, Ordering::SeqCst);
        if head.contains("/Wait ") {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/connect+json\r\n\
                        transfer-encoding: chunked\r\n\r\n7\r\nFIRST--\r\n";
            let _ = stream.write_all(head.as_bytes());
            let _ = gone.lock().expect("lock").recv();
            let _ = stream.write_all(b"8\r\n--SECOND\r\n0\r\n\r\n");
        } else if head.contains("/MachineToken ") && head.contains(INFRA) {
            let _ = stream.write_all(&response(200, JSON, br#"{"secret":"machine-secret-9"}"#));
        } else if head.contains("machine-secret-9") {
            let _ = stream.write_all(&response(200, JSON, b"{}"));
        }
    });
    let helper = apiserver.helper();
    let token = helper.token(&machine());
    let answer = helper.call("SendEvent", &token, &json!({}));
    assert_eq!((status(&answer), body(&answer)), (200, "{}"));
    assert_eq!(
        header(&answer, "date"),
        Some("Sun, 22 Nov 2026 08:00:01 GMT")
    );
    let mut stream = helper.connect();
    stream.write_all(&wait(&token, &machine())).expect("Wait");
    read_until(&mut stream, "FIRST--");
    go.send(()).expect("server");
    read_until(&mut stream, "--SECOND");

    // Not known to any public authority: nothing is said to it, least of all a token.
    let before = heard.load(Ordering::SeqCst);
    let stranger = Helper::before(&apiserver.url, &["--proxy-apiserver"]);
    let config = stranger.get(&format!("/config/{}", machine()));
    assert!(matches!(status(&config), 502 | 503), "{config}");
    let call = stranger.call("SendEvent", &token, &json!({}));
    assert!(matches!(status(&call), 502 | 503), "{call}");
    assert_eq!(heard.load(Ordering::SeqCst), before);
}

/// What it does, and whether a unary call through the proxy is worth waiting for.
type Mischief = (&'static str, fn(TcpStream, &Arc<ServerConfig>), bool);

const MISCHIEF: [Mischief; 7] = [
    ("hangs before TLS", |mut s, _| hang(&mut s), false),
    (
        "hangs behind TLS",
        |s, config| hang(&mut tls(s, config)),
        false,
    ),
    ("resets at once", |s, _| drop(s), true),
    (
        "resets behind TLS",
        |s, config| drop(read_head(&mut tls(s, config))),
        true,
    ),
    (
        "speaks plain HTTP",
        |mut s, _| {
            let _ = s.write_all(&response(200, JSON, br#"{"secret":"machine-secret-1"}"#));
            hang(&mut s);
        },
        true,
    ),
    (
        "ends in the middle of its answer",
        |s, config| {
            let mut s = tls(s, config);
            read_head(&mut s);
            let whole = response(200, JSON, br#"{"secret":"machine-secret-1"}"#);
            let _ = s.write_all(&whole[..whole.len() - 5]);
        },
        true,
    ),
    (
        "answers with garbage",
        |s, config| {
            let mut s = tls(s, config);
            read_head(&mut s);
            let _ = s.write_all(&[0x16; 5000]);
        },
        true,
    ),
];

#[test]
fn an_apiserver_that_misbehaves_over_https_harms_nobody() {
    thread::scope(|scope| {
        for (what, act, is_quick) in MISCHIEF {
            scope.spawn(move || {
                let apiserver = raw(move |stream, _, config| act(stream, config));
                let helper = apiserver.helper();
                let begin = Instant::now();
                let config = helper.get(&format!("/config/{}", machine()));
                assert!(matches!(status(&config), 502 | 503), "{what}: {config}");
                assert!(!config.contains("machine-secret"), "{what}: {config}");
                let took = begin.elapsed();
                assert!(took < Duration::from_secs(28), "{what}: {took:?}");
                if is_quick {
                    let call = helper.ask(&post("SendEvent", "t", "{}"));
                    // What was cut off is cut off for the machine too.
                    let is_whole = status(&call) == 200 && body(&call).ends_with('}');
                    assert!(!is_whole, "{what}: {call}");
                }
                // A Wait ends with the machine, whatever the apiserver does.
                let mut stream = helper.connect();
                stream.write_all(&wait("t", &machine())).expect("Wait");
                drop(stream);
                until(what, || helper.metric("metal_boot_proxied_waits") == 0);
                assert_eq!(status(&helper.ask(&get("/healthz", ""))), 200, "{what}");
            });
        }
    });
}

/// A Wait has no end of its own; what it brings is bounded all the same.
#[test]
fn a_wait_that_never_stops_talking_is_cut() {
    let apiserver = secure(|mut stream, _| {
        read_head(&mut stream);
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/connect+json\r\n\r\n";
        let _ = stream.write_all(head.as_bytes());
        while stream.write_all(&[b'x'; 65536]).is_ok() {}
    });
    let helper = apiserver.helper();
    let mut stream = helper.connect();
    stream.write_all(&wait("t", &machine())).expect("Wait");
    let answer = crate::bed::read_all(&mut stream);
    assert_eq!(status(&answer), 200);
    assert!(answer.len() < 17 << 20, "{} bytes", answer.len());
    let (rss, _) = helper.size();
    assert!(rss < 64 << 10, "{rss} KiB");
}
