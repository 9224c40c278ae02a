//! No Loki can be installed here: a server of this test judges every push by the documented protocol.

use std::net::UdpSocket as StdUdpSocket;
use std::sync::Mutex as StdMutex;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use super::*;
use crate::control::http::{Trust, control_client};

const AUTHORIZATION: &str = "Basic bG9nZ2VyOmh1bnRlcjI=";

fn logging(json: Value) -> Logging {
    serde_json::from_value(json).unwrap()
}

fn labels() -> Labels {
    Labels {
        machine: Uuid::from_u128(7),
        partition: "fra-equ01".into(),
    }
}

fn record(millis: u64, level: Level, text: &str) -> Arc<Record> {
    Arc::new(Record {
        at: Duration::from_millis(millis),
        event: Event::Line(LogLine::new(level, Origin::Agent, text)),
    })
}

/// A push as the API reference wants it: an object of streams, each with labels and with
/// `[nanoseconds, line]` pairs of texts, in order.
fn judge(headers: &HeaderMap, body: &[u8]) -> Result<Vec<(i128, String)>, String> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if header("content-type") != Some("application/json") {
        return Err("content type".into());
    }
    if header("authorization") != Some(AUTHORIZATION) {
        return Err("credentials".into());
    }
    let body: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let streams = body["streams"].as_array().ok_or("no streams")?;
    let mut lines = Vec::new();
    for stream in streams {
        let expected = json!({"component": "metal-anvil", "machine_id": labels().machine,
            "partition": "fra-equ01"});
        if stream["stream"] != expected {
            return Err(format!("labels {}", stream["stream"]));
        }
        for value in stream["values"].as_array().ok_or("no values")? {
            let [Value::String(nanos), Value::String(line)] =
                value.as_array().map_or(&[][..], Vec::as_slice)
            else {
                return Err(format!("value {value}"));
            };
            lines.push((nanos.parse().map_err(|_| "nanoseconds")?, line.clone()));
        }
    }
    Ok(lines)
}

#[derive(Default)]
struct Server {
    /// Answers before the good ones.
    faults: StdMutex<Vec<u16>>,
    lines: StdMutex<Vec<(i128, String)>>,
    wrong: StdMutex<Vec<String>>,
}

async fn answer(
    State(server): State<Arc<Server>>,
    headers: HeaderMap,
    body: axum::body::Bytes,
) -> StatusCode {
    match judge(&headers, &body) {
        Err(wrong) => {
            server.wrong.lock().unwrap().push(wrong);
            StatusCode::BAD_REQUEST
        }
        Ok(lines) => match server.faults.lock().unwrap().pop() {
            Some(status) => StatusCode::from_u16(status).unwrap(),
            None => {
                server.lines.lock().unwrap().extend(lines);
                StatusCode::NO_CONTENT
            }
        },
    }
}

/// A log server that answers with these statuses first, and its URL.
fn serve(runtime: &tokio::runtime::Runtime, faults: &[u16]) -> (Arc<Server>, String) {
    let server = Arc::new(Server::default());
    server.faults.lock().unwrap().extend(faults);
    let app = Router::new()
        .route("/loki/api/v1/push", axum::routing::post(answer))
        .with_state(Arc::clone(&server));
    let listener = runtime.block_on(tokio::net::TcpListener::bind("[::1]:0"));
    let listener = listener.unwrap();
    let url = format!("http://{}/loki/api/v1/push", listener.local_addr().unwrap());
    runtime.spawn(async move { axum::serve(listener, app).await });
    (server, url)
}

fn sink(endpoint: &str, log_type: &str) -> Sink {
    let target = Target::new(&logging(json!({"endpoint": endpoint, "log_type": log_type,
        "basic_auth": {"user": "logger", "password": "hunter2"}})));
    let line = Line::from(control_client(Trust::Public).unwrap());
    Sink::new(target.unwrap(), labels(), line)
}

fn runtime() -> tokio::runtime::Runtime {
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Runtime::new().unwrap()
}

/// Runs the sink on a queue, as in the agent, until all is delivered.
fn deliver(sink: Sink, records: &[Arc<Record>]) {
    let hub = stream::Hub::new();
    let queue = Arc::new(Queue::new(WAITING, is_sent));
    hub.subscribe(&queue);
    records
        .iter()
        .for_each(|record| hub.tell((**record).clone()));
    std::thread::spawn(move || {
        let own = tokio::runtime::Builder::new_current_thread();
        sink.run(&queue, &{ own }.enable_all().build().unwrap());
    });
    assert!(hub.flush(Duration::from_secs(60)), "not delivered");
}

#[test]
fn lines_arrive_in_order_once_whatever_the_server_says_first() {
    let runtime = runtime();
    let (server, url) = serve(&runtime, &[503, 429, 500]);
    let records = [
        record(2000, Level::INFO, "second"),
        // The kernel's lines of before come later, and two lines may have one time.
        record(1000, Level::INFO, "first"),
        record(2000, Level::ERROR, "FAILED: network:\n  eth0 no carrier"),
    ];
    deliver(sink(&url, "loki"), &records);
    assert_eq!(server.wrong.lock().unwrap().as_slice(), &[] as &[String]);
    let lines = server.lines.lock().unwrap();
    let texts: Vec<_> = lines.iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(
        texts,
        [
            " INFO first",
            " INFO second",
            "ERROR FAILED: network:\n  eth0 no carrier"
        ]
    );
    let times: Vec<_> = lines.iter().map(|(nanos, _)| *nanos).collect();
    assert!(times.is_sorted_by(|a, b| a < b), "{times:?}");
    assert_eq!(times[2], times[1] + 1);
    // The time of day, found from the time since the kernel's start.
    let expected = since_1970() + 2_000_000_000;
    assert!((times[1] - expected).abs() < 60_000_000_000, "{times:?}");
}

#[test]
fn what_the_server_refuses_is_not_sent_for_ever() {
    let runtime = runtime();
    let (server, url) = serve(&runtime, &[400]);
    deliver(sink(&url, "loki"), &[record(1, Level::INFO, "x")]);
    assert!(server.lines.lock().unwrap().is_empty());
}

/// Counts warnings.
struct Warnings(Arc<StdMutex<usize>>);

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Warnings {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        if *event.metadata().level() == Level::WARN {
            *self.0.lock().unwrap() += 1;
        }
    }
}

#[test]
fn that_lines_are_refused_is_told_once_until_some_are_taken() {
    use tracing_subscriber::layer::SubscriberExt;
    let runtime = runtime();
    // From the last one on: the third batch is taken.
    let (_server, url) = serve(&runtime, &[400, 200, 400, 400]);
    let mut sink = sink(&url, "loki");
    let count = Arc::default();
    let queue = Queue::new(WAITING, is_sent);
    let subscriber = tracing_subscriber::registry().with(Warnings(Arc::clone(&count)));
    tracing::subscriber::with_default(subscriber, || {
        let told = [1, 2, 3, 4].map(|at| {
            let entries = sink.entries(&[record(at, Level::INFO, "x")], 0, 0);
            sink.deliver(&queue, &runtime, &entries);
            *count.lock().unwrap()
        });
        // What tells of it is itself to be sent: a line for each would never end.
        assert_eq!(told, [1, 1, 1, 2]);
    });
}

#[test]
fn progress_is_not_sent_and_what_was_lost_is_told() {
    let mut sink = sink("http://[::1]:1/", "loki");
    assert!(!is_sent(
        &Event::Progress(crate::image::Progress::default())
    ));
    let entries = sink.entries(&[record(5, Level::WARN, "x")], 3, 100);
    let texts: Vec<_> = entries.iter().map(Entry::line).collect();
    assert_eq!(
        texts,
        [" WARN x", " WARN 3 lines were too many for the log server"]
    );
    // A clock that is set back does not turn the order round.
    let later = sink.entries(&[record(6, Level::WARN, "y")], 0, -1_000_000_000);
    assert!(later[0].nanos > entries[1].nanos);
}

#[test]
fn syslog_goes_over_tcp_and_over_udp() {
    let runtime = runtime();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("[::1]:0"));
    let listener = listener.unwrap();
    let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
    let heard = runtime.spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut bytes = vec![0; 1024];
        let length = stream.read(&mut bytes).await.unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    });
    let records = [record(1, Level::INFO, "one"), record(2, Level::WARN, "two")];
    deliver(sink(&endpoint, "syslog"), &records);
    let heard = runtime.block_on(heard).unwrap();
    let mut rest = heard.as_str();
    let mut messages = Vec::new();
    while let Some((length, after)) = rest.split_once(' ') {
        let (message, next) = after.split_at(length.parse().unwrap());
        messages.push(message);
        rest = next;
    }
    assert_eq!(messages.len(), 2, "{heard:?}");
    assert!(messages[0].starts_with("<30>1 ") && messages[0].ends_with(" one"));
    assert!(messages[1].starts_with("<28>1 ") && messages[1].ends_with(" two"));

    let socket = StdUdpSocket::bind("[::1]:0").unwrap();
    let endpoint = format!("udp://{}", socket.local_addr().unwrap());
    deliver(sink(&endpoint, "syslog"), &records);
    let mut bytes = [0; 1500];
    let length = socket.recv(&mut bytes).unwrap();
    assert!(bytes[..length].starts_with(b"<30>1 ") && bytes[..length].ends_with(b" one"));
}

#[test]
fn settings_that_name_no_server_say_what_is_wrong() {
    for (json, expected) in [
        (json!({}), "no endpoint"),
        (json!({"endpoint": "not a url"}), "is no URL"),
        (json!({"endpoint": "tcp://[::1]:1"}), "expected http://"),
        (
            json!({"endpoint": "https://u:hunter2@h/", "log_type": "syslog"}),
            "is https://h/; expected udp://",
        ),
        (
            json!({"endpoint": "tcp://name:1", "log_type": "syslog"}),
            "an IPv6 address",
        ),
        (
            json!({"endpoint": "http://h/", "log_type": "gelf"}),
            "\"gelf\"; expected loki or syslog",
        ),
    ] {
        let error = Target::new(&logging(json)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    let udp = Target::new(&logging(
        json!({"endpoint": "udp://[2001:db8::1]", "log_type": "syslog"}),
    ));
    assert!(matches!(udp, Ok(Target::Udp(to)) if to.port() == 514));
}

/// An authority, and what it signed for a server and for a client, made with openssl.
struct Pki {
    dir: tempfile::TempDir,
}

impl Pki {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let openssl = |arguments: &str| {
            let mut command = std::process::Command::new("openssl");
            let output = command
                .args(arguments.split(' '))
                .current_dir(&dir)
                .output();
            let output = output.expect("openssl (package openssl)");
            assert!(output.status.success(), "{arguments}: {output:?}");
        };
        let new = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        openssl(&format!(
            "req -x509 {new} -keyout ca.key -out ca.pem -days 30 -subj /CN=ca"
        ));
        std::fs::write(dir.path().join("san"), "subjectAltName=IP:::1\n").unwrap();
        for who in ["server", "client"] {
            openssl(&format!(
                "req {new} -keyout {who}.key -out {who}.csr -subj /CN={who}"
            ));
            openssl(&format!(
                "x509 -req -in {who}.csr -CA ca.pem -CAkey ca.key -CAcreateserial \
                 -out {who}.pem -days 30 -extfile san"
            ));
        }
        Self { dir }
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap()
    }
}

/// Answers one request, of whoever has a certificate of the authority, with 204.
fn serve_tls(pki: &Pki) -> std::net::SocketAddr {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use std::io::{Read, Write};

    let certificate = |name: &str| CertificateDer::from_pem_slice(pki.read(name).as_bytes());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate("ca.pem").unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        Arc::clone(&provider),
    );
    let key = PrivateKeyDer::from_pem_slice(pki.read("server.key").as_bytes()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(vec![certificate("server.pem").unwrap()], key)
        .unwrap();
    let listener = std::net::TcpListener::bind("[::1]:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = rustls::ServerConnection::new(Arc::new(config.clone())).unwrap();
            let mut tls = rustls::StreamOwned::new(connection, stream.unwrap());
            let mut request = [0; 4096];
            // Whoever has no certificate gets no further than the handshake.
            if tls.read(&mut request).is_ok_and(|length| length > 0) {
                let answer = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
                tls.write_all(answer).unwrap();
                tls.conn.send_close_notify();
                let _ = tls.flush();
            }
        }
    });
    address
}

#[test]
fn a_log_server_may_want_a_certificate() {
    let pki = Pki::new();
    let (runtime, address) = (runtime(), serve_tls(&pki));
    let identity = http::Identity {
        certificates: pki.read("client.pem"),
        key: pki.read("client.key").into(),
    };
    let attempt = |identity: Option<&http::Identity>| {
        let (ca, route) = (pki.read("ca.pem"), http::Route::default());
        let client = http::log_client_on(Trust::PublicAnd(&ca), identity, &route).unwrap();
        let url = format!("https://{address}/loki/api/v1/push")
            .parse()
            .unwrap();
        let target = Target::Loki { url, auth: None };
        let mut sink = Sink::new(target, labels(), Line::from(client));
        runtime.block_on(async move { sink.attempt(&[]).await })
    };
    attempt(Some(&identity)).unwrap();
    assert!(attempt(None).is_err());
    let broken = http::Identity {
        key: "no key".to_owned().into(),
        ..identity
    };
    let route = http::Route::default();
    let error = http::log_client_on(Trust::Public, Some(&broken), &route).unwrap_err();
    assert!(error.to_string().contains("not PEM"), "{error}");
}
