//! metal-boot under load: a boot storm, and a soak with restarts of the apiserver.
//!
//! The apiserver here is a mock: the stand-in in Python judges every message and cannot answer at this
//! rate on the cores that it would share with the program under test.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use axum::extract::Path as Segments;
use axum::routing::post;
use axum::{Json, Router};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use uuid::Uuid;

use crate::support::process::{Process, run};
use crate::support::root;
use crate::{MIB, Row};

/// Machines of the storm, and the time in which all of them ask first.
const MACHINES: u16 = 2000;
const WITHIN: Duration = Duration::from_secs(10);
/// What the storm may cost.
const CONFIG_LIMIT: f64 = 250.0;
const BASE_MEMORY: f64 = 64.0 * MIB;
const STREAM_MEMORY: f64 = 20.0 * 1024.0;
/// How long the mock takes for a token, as a database would.
const MINTING: Duration = Duration::from_millis(20);
/// Machines at once in the soak; every one of them starts anew after this long.
const SOAKING: u16 = 100;
const LIFE: Duration = Duration::from_secs(3);
/// The apiserver is gone this often and this long in the soak.
const RESTART: Duration = Duration::from_secs(20);
const AWAY: Duration = Duration::from_secs(2);
/// After the soak: until kept connections are closed and dead ones noticed.
const QUIET: Duration = Duration::from_secs(35);
/// For one answer. Longer than what metal-boot itself allows the apiserver.
const PATIENCE: Duration = Duration::from_secs(40);

const HELPER: SocketAddrV6 = SocketAddrV6::new(address(0xff, 1), 4242, 0, 0);
const APISERVER: SocketAddrV6 = SocketAddrV6::new(address(0xff, 2), 8080, 0, 0);

const fn address(network: u16, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, network, 0, 0, 0, 0, host)
}

/// Runs `bench` in a namespace whose loopback has every address that is used here.
fn inside<T: Send + 'static>(bench: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a namespace of our own (root)");
        run(Command::new("ip").args(["link", "set", "lo", "up"]));
        let route = ["-6", "route", "add", "local", "2001:db8::/32", "dev", "lo"];
        run(Command::new("ip").args(route));
        run(Command::new("sysctl").args(["-q", "-w", "net.ipv6.ip_nonlocal_bind=1"]));
        if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
            setrlimit(Resource::RLIMIT_NOFILE, hard.min(65_536), hard).expect("open files");
        }
        bench()
    });
    thread.join().expect("the bench")
}

/// The mock of metal-apiserver (see the head of this file); it ends when dropped.
struct Mock(Option<Runtime>);

impl Mock {
    fn start() -> Self {
        let runtime = Runtime::new().expect("runtime");
        let socket = {
            let _inside = runtime.enter();
            let socket = TcpSocket::new_v6().expect("socket");
            socket.set_reuseaddr(true).expect("reuse");
            socket.bind(APISERVER.into()).expect("bind");
            socket.listen(4096).expect("listen")
        };
        let router = Router::new().route("/{service}/{method}", post(answer));
        runtime.spawn(async move { axum::serve(socket, router).await });
        Self(Some(runtime))
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

async fn answer(Segments((_, method)): Segments<(String, String)>) -> Json<serde_json::Value> {
    match method.as_str() {
        "MachineToken" => {
            tokio::time::sleep(MINTING).await;
            Json(json!({"token": {}, "secret": format!("machine-{}", Uuid::new_v4())}))
        }
        "Wait" => std::future::pending().await,
        _ => Json(json!({})),
    }
}

fn metal_boot(dir: &Path) -> Process {
    let token = dir.join("token");
    std::fs::write(&token, "infra").expect("token");
    let mut command =
        Command::new(root().join("target/x86_64-unknown-linux-gnu/release/metal-boot"));
    command.args(["--listen", &HELPER.to_string()]);
    command.args(["--apiserver-url", &format!("http://{APISERVER}")]);
    command.args(["--partition", "bench", "--proxy-apiserver"]);
    // The soak's few addresses stand for many machines.
    command.args([
        "--rate-per-address",
        "100000",
        "--proxy-rate-per-address",
        "100000",
    ]);
    command.args([
        "--rate-per-network",
        "1000000",
        "--proxy-rate-per-network",
        "1000000",
    ]);
    command.arg("--token-file").arg(&token);
    let mut process = Process::start("metal-boot", command, dir);
    process.wait_until("listening", Duration::from_secs(30), || {
        std::net::TcpStream::connect(HELPER).is_ok()
    });
    process
}

/// One machine's connection.
struct Machine {
    stream: TcpStream,
    uuid: Uuid,
    token: String,
}

impl Machine {
    async fn connect(source: Ipv6Addr) -> io::Result<Self> {
        let socket = TcpSocket::new_v6()?;
        socket.bind(SocketAddr::new(source.into(), 0))?;
        Ok(Self {
            stream: socket.connect(HELPER.into()).await?,
            uuid: Uuid::new_v4(),
            token: String::new(),
        })
    }

    /// Asks for its configuration; answers how long the apiserver took, in ms.
    async fn config(&mut self) -> io::Result<f64> {
        let request = format!("GET /config/{} HTTP/1.1\r\nhost: h\r\n\r\n", self.uuid);
        let (head, body) = self.ask(request).await?;
        let body: serde_json::Value = serde_json::from_str(&body)?;
        let token = body["metal_apiserver_token_for_hammer"].as_str();
        self.token = token.ok_or_else(|| wrong("no token"))?.to_owned();
        let timing = head.split("server-timing: apiserver;dur=").nth(1);
        let timing = timing.and_then(|rest| rest.lines().next()?.trim().parse().ok());
        timing.ok_or_else(|| wrong("no server-timing"))
    }

    async fn call(&mut self, method: &str) -> io::Result<()> {
        let request = self.request(
            method,
            "application/json",
            &json!({"uuid": self.uuid}).to_string(),
        );
        self.ask(request).await.map(drop)
    }

    /// Opens a Wait, of which nothing is to be heard.
    async fn wait(&mut self) -> io::Result<()> {
        let body = json!({"uuid": self.uuid}).to_string();
        let length = u32::try_from(body.len())
            .map_err(io::Error::other)?
            .to_be_bytes();
        let length = String::from_utf8(length.to_vec()).map_err(io::Error::other)?;
        let body = format!("\0{length}{body}");
        let request = self.request("Wait", "application/connect+json", &body);
        self.stream.write_all(request.as_bytes()).await
    }

    fn request(&self, method: &str, kind: &str, body: &str) -> String {
        let (token, length) = (&self.token, body.len());
        format!(
            "POST /metalstack.infra.v2.BootService/{method} HTTP/1.1\r\nhost: h\r\n\
             authorization: Bearer {token}\r\ncontent-type: {kind}\r\n\
             connect-protocol-version: 1\r\ncontent-length: {length}\r\n\r\n{body}"
        )
    }

    async fn ask(&mut self, request: String) -> io::Result<(String, String)> {
        let answer = async {
            self.stream.write_all(request.as_bytes()).await?;
            let mut bytes = Vec::new();
            loop {
                if self.stream.read_buf(&mut bytes).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let text = String::from_utf8_lossy(&bytes);
                let Some((head, body)) = text.split_once("\r\n\r\n") else {
                    continue;
                };
                if !head.starts_with("HTTP/1.1 200 ") {
                    return Err(wrong(head.lines().next().unwrap_or_default()));
                }
                let length = head.split("content-length: ").nth(1);
                let length = length.and_then(|rest| rest.lines().next()?.trim().parse().ok());
                if body.len() >= length.ok_or_else(|| wrong("no content-length"))? {
                    return Ok((head.to_owned(), body.to_owned()));
                }
            }
        };
        tokio::time::timeout(PATIENCE, answer).await?
    }
}

fn wrong(what: &str) -> io::Error {
    io::Error::other(what.to_owned())
}

/// Resident memory in bytes, and open files.
fn size(process: &Process) -> (f64, f64) {
    let proc = format!("/proc/{}", process.id());
    let status = std::fs::read_to_string(format!("{proc}/status")).expect("status");
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let rss = rss.and_then(|text| text.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
    let files = std::fs::read_dir(format!("{proc}/fd"))
        .expect("files")
        .count();
    #[allow(clippy::cast_precision_loss)] // a few thousand
    (rss.expect("VmRSS") * 1024.0, files as f64)
}

/// The `share` (0 to 1) of sorted times.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )]
    let place = ((sorted.len() as f64 * share).ceil() as usize).saturating_sub(1);
    sorted.get(place).copied().unwrap_or(f64::NAN)
}

/// 2,000 machines within ten seconds: configuration, Register, and a Wait that stays open.
pub fn storm() -> Vec<Row> {
    inside(|| {
        let dir = tempfile::tempdir().expect("directory");
        let _mock = Mock::start();
        let helper = metal_boot(dir.path());
        let (before, _) = size(&helper);
        let runtime = Runtime::new().expect("runtime");
        let outcome = runtime.block_on(async {
            let begin = tokio::time::Instant::now();
            let machines: Vec<_> = (0..MACHINES)
                .map(|number| {
                    let at = begin + WITHIN * u32::from(number) / u32::from(MACHINES);
                    tokio::spawn(async move {
                        tokio::time::sleep_until(at).await;
                        let start = Instant::now();
                        // A /64, as in a VRF with one network for all.
                        let mut machine = Machine::connect(address(1, number + 1)).await?;
                        let apiserver = machine.config().await?;
                        let took = start.elapsed().as_secs_f64() * 1000.0 - apiserver;
                        machine.call("Register").await?;
                        machine.wait().await?;
                        Ok::<_, io::Error>((took, machine))
                    })
                })
                .collect();
            let mut done = Vec::new();
            for machine in machines {
                done.push(machine.await.expect("a machine"));
            }
            done
        });
        // The last Waits reach the mock.
        thread::sleep(Duration::from_secs(2));
        let mut failures = 0.0;
        let mut held = Vec::new();
        let mut times = Vec::new();
        for outcome in outcome {
            match outcome {
                Ok((took, machine)) => {
                    times.push(took);
                    held.push(machine);
                }
                Err(error) => {
                    failures += 1.0;
                    eprintln!("a machine failed: {error}");
                }
            }
        }
        times.sort_by(f64::total_cmp);
        let (rss, _) = size(&helper);
        #[allow(clippy::cast_precision_loss)] // 2,000
        let streams = held.len() as f64;
        drop(held);
        let row = |what: &str, value, unit, against| Row {
            bench: "storm",
            what: what.to_owned(),
            value,
            unit,
            against,
        };
        let limit = (BASE_MEMORY + STREAM_MEMORY * streams) / MIB;
        vec![
            row("machines with an open Wait", streams, "", None),
            row("machines that failed", failures, "", None),
            row(
                "/config without apiserver, median",
                quantile(&times, 0.5),
                "ms",
                None,
            ),
            row(
                "/config without apiserver, p99",
                quantile(&times, 0.99),
                "ms",
                Some(("the limit", CONFIG_LIMIT)),
            ),
            row("memory before", before / MIB, "MiB", None),
            row(
                "memory with all Waits open",
                rss / MIB,
                "MiB",
                Some(("the limit", limit)),
            ),
        ]
    })
}

/// Machines come, wait a little and go without a word, and the apiserver is restarted again and
/// again: what memory and files do between the first third and the end.
pub fn soak(seconds: u64) -> Vec<Row> {
    inside(move || {
        let dir = tempfile::tempdir().expect("directory");
        let helper = metal_boot(dir.path());
        let runtime = Runtime::new().expect("runtime");
        let (good, bad) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        for number in 0..SOAKING {
            let (good, bad) = (good.clone(), bad.clone());
            runtime.spawn(async move {
                loop {
                    let counter = match one_life(address(2, number + 1)).await {
                        Ok(()) => &good,
                        Err(_) => &bad,
                    };
                    counter.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            });
        }
        let begin = Instant::now();
        let end = Duration::from_secs(seconds);
        let mut early = None;
        while begin.elapsed() < end {
            let mock = Mock::start();
            thread::sleep(RESTART.min(end.saturating_sub(begin.elapsed())));
            if early.is_none() && begin.elapsed() >= end / 3 {
                early = Some(size(&helper).0);
            }
            drop(mock);
            thread::sleep(AWAY);
        }
        let (late, _) = size(&helper);
        runtime.shutdown_background();
        thread::sleep(QUIET);
        let (_, files) = size(&helper);
        #[allow(clippy::cast_precision_loss)]
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed) as f64;
        let row = |what: &str, value, unit, against| Row {
            bench: "soak",
            what: what.to_owned(),
            value,
            unit,
            against,
        };
        let early = early.unwrap_or(f64::NAN) / MIB;
        vec![
            row("machines served", count(&good), "", None),
            row("machines that met no apiserver", count(&bad), "", None),
            row(
                "memory at the end",
                late / MIB,
                "MiB",
                Some(("a third of the way", early)),
            ),
            row("open files when all are gone", files, "", None),
        ]
    })
}

async fn one_life(source: Ipv6Addr) -> io::Result<()> {
    let mut machine = Machine::connect(source).await?;
    machine.config().await?;
    machine.call("Register").await?;
    machine.call("SendEvent").await?;
    machine.wait().await?;
    let mut byte = [0];
    // Silence is what a Wait is made of; its end is the apiserver's.
    let ended = tokio::time::timeout(LIFE, machine.stream.read(&mut byte)).await;
    match ended {
        Err(_) => Ok(()),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
