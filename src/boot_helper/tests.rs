//! metal-boot as a machine sees it, in front of a stand-in for the apiserver.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser;
use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use url::Url;
use uuid::Uuid;

use super::listener::{self, Door};
use super::metrics::Metrics;
use super::options::Options;
use super::source::{Open, Quota};
use super::{Parts, server};
use crate::control::boot_helper_client;
use crate::control::http::{self, Trust};
use crate::control::stand_in::{Act, Seen, StandIn, json, refuse, response};

const MACHINE: &str = "7b0b6ad5-6a4f-4f7e-a0e7-0c2a8a8f8f10";
/// For an answer of the boot helper.
const BUDGET: Duration = Duration::from_secs(20);
const MINTED: &str = r#"{"token":{"uuid":"x"},"secret":"machine-s3cret"}"#;

/// Header lines of every request.
const HEAD: &str = "host: h\r\nconnection: close\r\n";

/// metal-boot on `[::1]`, its token file, and the apiserver behind it.
struct Bed {
    apiserver: StandIn,
    token_file: tempfile::NamedTempFile,
    address: SocketAddr,
    stop: watch::Sender<bool>,
    gone: mpsc::Receiver<()>,
}

impl Bed {
    async fn start(act: impl Fn(&Seen, usize) -> Act + Send + Sync + 'static) -> Self {
        Self::with(&[], act).await
    }

    async fn with(
        more: &[&str],
        act: impl Fn(&Seen, usize) -> Act + Send + Sync + 'static,
    ) -> Self {
        Self::patient(Duration::from_millis(300), more, act).await
    }

    /// With so much time for what the apiserver has to do.
    async fn patient(
        budget: Duration,
        more: &[&str],
        act: impl Fn(&Seen, usize) -> Act + Send + Sync + 'static,
    ) -> Self {
        let apiserver = StandIn::start(act).await;
        let mut token_file = tempfile::NamedTempFile::new().unwrap();
        token_file.write_all(b"infra-s3cret\n").unwrap();
        let url = format!("--apiserver-url={}", apiserver.url);
        let token = format!("--token-file={}", token_file.path().display());
        let base = [
            "metal-boot",
            &url,
            &token,
            "--partition=fra-equ01",
            "--machine-apiserver-url=https://api.example.org",
        ];
        let options = Options::try_parse_from(base.iter().chain(more)).unwrap();
        let metrics = Arc::new(Metrics::default());
        let (stop, stopped) = watch::channel(false);
        let mut parts = Parts::new(&options).unwrap();
        parts.infra = parts.infra.with_budget(budget);
        let helper = parts
            .helper(&options, metrics.clone(), stopped.clone())
            .unwrap();
        let (alive, gone) = mpsc::channel(1);
        let quota = Quota {
            address: options.connections_per_address,
            network: options.connections_per_network,
        };
        let door = Door {
            router: server::router(helper),
            open: Arc::new(Open::new(options.connections as usize, quota)),
            metrics,
            stop: stopped,
            alive,
        };
        let listener = listener::bind("[::1]:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(listener::serve(listener, door));
        Self {
            apiserver,
            token_file,
            address,
            stop,
            gone,
        }
    }

    /// One request as written here; the whole response as text.
    async fn ask(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn get(&self, path: &str) -> String {
        self.ask(&format!("GET {path} HTTP/1.1\r\n{HEAD}\r\n"))
            .await
    }

    async fn config(&self) -> String {
        self.get(&format!("/config/{MACHINE}")).await
    }
}

#[tokio::test]
async fn a_machine_gets_its_configuration() {
    let bed = Bed::start(|_, _| json(200, MINTED)).await;
    let base = Url::parse(&format!("http://{}", bed.address)).unwrap();
    let client = http::control_client(Trust::Public).unwrap();
    let machine: Uuid = MACHINE.parse().unwrap();
    let answer = boot_helper_client::fetch(&client, &base, machine, None, BUDGET)
        .await
        .unwrap()
        .answer;
    assert_eq!(answer.partition.as_deref(), Some("fra-equ01"));
    assert_eq!(
        answer.metal_apiserver_url.as_deref(),
        Some("https://api.example.org")
    );
    let token = answer.metal_apiserver_token_for_hammer.unwrap();
    assert_eq!(token.expose_secret(), "machine-s3cret");
    let seen = &bed.apiserver.seen()[0];
    let head = seen.head.to_ascii_lowercase();
    assert!(head.starts_with("post /metalstack.infra.v2.bootservice/machinetoken "));
    assert!(head.contains("\r\nauthorization: bearer infra-s3cret\r\n"));
    let expected =
        serde_json::json!({"uuid": MACHINE, "user": "metal-hammer", "expires": "259200s"});
    assert_eq!(seen.json(), expected);

    let raw = bed.config().await.to_ascii_lowercase();
    assert!(raw.starts_with("http/1.1 200 "), "{raw}");
    for line in [
        "\r\ncache-control: no-store\r\n",
        "\r\ncontent-type: application/json\r\n",
        "\r\nserver-timing: apiserver;dur=",
        "\r\ndate: ",
    ] {
        assert!(raw.contains(line), "{line:?} in {raw}");
    }
}

#[tokio::test]
async fn older_apiservers_are_asked_in_their_own_way() {
    let unknown: [fn() -> Act; 3] = [
        || refuse(501, "unimplemented", "no such method"),
        || {
            let headers = "content-type: text/plain\r\n";
            Act::Raw(response(404, headers, b"404 page not found\n"))
        },
        || refuse(404, "unimplemented", "no such method"),
    ];
    for act in unknown {
        let bed = Bed::start(move |seen, _| match seen.name() {
            "MachineToken" => act(),
            _ => json(200, MINTED),
        })
        .await;
        assert!(bed.config().await.contains("machine-s3cret"));
        let seen = bed.apiserver.seen();
        assert_eq!(bed.apiserver.names(), ["MachineToken", "Create"]);
        assert!(
            seen[1]
                .head
                .starts_with("POST /metalstack.api.v2.TokenService/Create ")
        );
        let expected = serde_json::json!({
            "description": format!("machine token for {MACHINE}"),
            "expires": "259200s",
            "machineRoles": {MACHINE: "MACHINE_ROLE_EDITOR"},
        });
        assert_eq!(seen[1].json(), expected);
    }
}

#[tokio::test]
async fn a_new_token_in_the_file_is_used_at_once() {
    let bed = Bed::start(|seen, _| {
        if seen.head.contains("Bearer rotated") {
            json(200, MINTED)
        } else {
            refuse(401, "unauthenticated", "expired")
        }
    })
    .await;
    let refused = bed.config().await;
    assert!(refused.starts_with("HTTP/1.1 502 "), "{refused}");
    assert!(refused.contains("the boot helper's own token"), "{refused}");
    std::fs::write(bed.token_file.path(), " rotated \n").unwrap();
    assert!(bed.config().await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn each_failure_has_its_status() {
    type Case = (fn() -> Act, &'static str, &'static str);
    let cases: [Case; 6] = [
        (|| refuse(503, "unavailable", "starting"), "503", "starting"),
        (|| Act::Raw(Vec::new()), "503", "broke off"),
        (|| Act::Raw(response(502, "", b"")), "503", "HTTP 502"),
        (
            || refuse(403, "permission_denied", "machine roles"),
            "502",
            "permission_denied: machine roles",
        ),
        (|| json(200, r#"{"token":{}}"#), "502", "without a secret"),
        (
            || json(200, r#"{"secret":["machine-s3cret"]}"#),
            "502",
            "expected text where a secret stands",
        ),
    ];
    for (act, status, reason) in cases {
        let bed = Bed::start(move |_, _| act()).await;
        let answer = bed.config().await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
        assert!(answer.contains(reason), "{reason}: {answer}");
        assert!(!answer.contains("s3cret"), "{answer}");
        let told_to_wait = answer.contains("\r\nretry-after: 5\r\n");
        assert_eq!(told_to_wait, status == "503", "{answer}");
        assert!(answer.contains("\r\ncache-control: no-store\r\n"));
        assert_eq!(bed.apiserver.names()[0], "MachineToken");
        assert!(!bed.apiserver.names().contains(&"Create".to_owned()));
    }
}

#[tokio::test]
async fn a_missing_token_file_is_the_helpers_fault() {
    let bed = Bed::start(|_, _| json(200, MINTED)).await;
    for text in ["", " \n"] {
        std::fs::write(bed.token_file.path(), text).unwrap();
        let answer = bed.config().await;
        assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
        assert!(answer.contains("it is empty"), "{answer}");
    }
    std::fs::remove_file(bed.token_file.path()).unwrap();
    let answer = bed.config().await;
    assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
    assert!(bed.apiserver.seen().is_empty());
}

#[tokio::test]
async fn everything_else_is_refused_without_asking_the_apiserver() {
    let bed = Bed::start(|_, _| json(200, MINTED)).await;
    let upper = format!("/config/{}", MACHINE.to_uppercase());
    for (path, status) in [
        ("/", "404"),
        ("/config", "404"),
        ("/config/", "404"),
        ("/config/a/b", "404"),
        ("/boot.ipxe?uuid=a&mac=b", "400"),
        ("/x/boot.ipxe", "400"),
        ("/boot.ipxe/", "404"),
        ("/config/x", "400"),
        ("/config/..%2f..%2fetc", "400"),
        ("/config/%ff", "400"),
        (&upper, "400"),
        ("/config/00000000-0000-0000-0000-000000000000", "400"),
    ] {
        let answer = bed.get(path).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{path}: {answer}"
        );
        assert!(answer.contains("{\"error\":"), "{path}: {answer}");
    }
    for method in ["HEAD", "POST", "PUT", "DELETE"] {
        let answer = bed
            .ask(&format!(
                "{method} /config/{MACHINE} HTTP/1.1\r\n{HEAD}\r\n"
            ))
            .await;
        assert!(answer.starts_with("HTTP/1.1 405 "), "{method}: {answer}");
        assert!(answer.contains("\r\nallow: GET\r\n"), "{answer}");
    }
    assert!(bed.apiserver.seen().is_empty());
}

#[tokio::test]
async fn no_name_of_a_partition_opens_its_script() {
    let asker = "/boot.ipxe?uuid=7b0b6ad5-6a4f-4f7e-a0e7-0c2a8a8f8f10&mac=52:54:00:00:00:01";
    let names = ["healthz", "readyz", "metrics", "metalstack.x", "fra-equ01"];
    let allow = "--allow=2001:db8::/64";
    let refused = Bed::with(&[allow], |_, _| json(200, "{}")).await;
    for name in names {
        let answer = refused.get(&format!("/{name}{asker}")).await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{name}: {answer}");
    }
    assert!(refused.apiserver.seen().is_empty());
    for name in names {
        let bed = Bed::with(&["--rate-per-address=1"], |_, _| json(200, "{}")).await;
        bed.get(&format!("/{name}{asker}")).await;
        let answer = bed.get(&format!("/{name}{asker}")).await;
        assert!(answer.starts_with("HTTP/1.1 429 "), "{name}: {answer}");
        assert!(bed.apiserver.seen().len() <= 1, "{name}");
    }
}

#[tokio::test]
async fn it_stops_when_told() {
    let mut bed = Bed::start(|_, _| json(200, MINTED)).await;
    assert!(bed.config().await.starts_with("HTTP/1.1 200 "));
    // An idle connection does not hold it up.
    let _idle = TcpStream::connect(bed.address).await.unwrap();
    bed.stop.send_replace(true);
    let ended = tokio::time::timeout(Duration::from_secs(5), bed.gone.recv()).await;
    assert!(ended.is_ok(), "connections are left");
    assert!(TcpStream::connect(bed.address).await.is_err());
}

/// Collects what would be logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Runs in a process of its own: while a line is logged for the first time, a test on another
/// thread that wants none can decide for all of them that it is not wanted.
#[test]
fn no_log_line_holds_a_secret() {
    const ALONE: &str = "METAL_ANVIL_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        return runtime.unwrap().block_on(log_of_a_boot());
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "boot_helper::tests::no_log_line_holds_a_secret"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains(" 1 passed"),
        "{text}"
    );
}

async fn log_of_a_boot() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    // Everything of this test runs on this thread.
    let _guard = tracing::subscriber::set_default(subscriber);
    // On a busy machine less time would end an attempt that the script below counts on.
    let bed = Bed::patient(BUDGET, &[], |seen, nth| match (seen.name(), nth) {
        ("MachineToken", 0) => refuse(503, "unavailable", "once"),
        ("MachineToken", 1) => refuse(501, "unimplemented", "no"),
        ("MachineToken", 2) => refuse(401, "unauthenticated", "expired"),
        _ => json(200, MINTED),
    })
    .await;
    let base = Url::parse(&format!("http://{}", bed.address)).unwrap();
    let client = http::control_client(Trust::Public).unwrap();
    let machine: Uuid = MACHINE.parse().unwrap();
    let ticket = SecretString::from("ticket-s3cret");
    let answer = boot_helper_client::fetch(&client, &base, machine, Some(&ticket), BUDGET)
        .await
        .unwrap()
        .answer;
    assert!(bed.config().await.starts_with("HTTP/1.1 502 "));
    bed.get("/config/machine-x").await;
    tracing::info!("{answer:?}");
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for expected in [
        "token given",
        "trying again",
        "TokenService/Create",
        "the boot helper's own token",
        "machine machine-x: 400",
        "answered",
        MACHINE,
        "[::1]:",
    ] {
        assert!(text.contains(expected), "{expected:?} is missing in {text}");
    }
    assert!(!text.contains("s3cret"), "{text}");
}
