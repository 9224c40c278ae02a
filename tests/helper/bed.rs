//! One namespace for all tests of this program, one stand-in apiserver in it, and a metal-boot for
//! each test on an address of its own.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, SocketAddrV6, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn6};
use nix::unistd::Pid;
use serde_json::Value;
use uuid::Uuid;

use crate::support::process::{Process, run};
use crate::support::root;
use crate::support::standin::Standin;

/// The program under test.
pub const METAL_BOOT: &str = env!("CARGO_BIN_EXE_metal-boot");
/// The partition that the stand-in knows.
pub const PARTITION: &str = "test-part";
/// The helper's own token.
pub const INFRA: &str = "infra-s3cret";
/// For whatever should come at once; the machine that runs the tests may be busy.
pub const SOON: Duration = Duration::from_secs(60);

/// What all tests share.
struct Place {
    namespace: File,
    standin: PathBuf,
    dir: tempfile::TempDir,
}

/// Every address of this network is the namespace's own.
const NETWORK: &str = "2001:db8::/32";
const APISERVER: &str = "[2001:db8:ff::1]:8080";

static NEXT: AtomicU16 = AtomicU16::new(1);

fn place() -> &'static Place {
    static PLACE: OnceLock<Place> = OnceLock::new();
    PLACE.get_or_init(|| {
        let (ready, made) = mpsc::channel();
        // The namespace's first thread lives as long as this program: the stand-in dies with it.
        thread::spawn(move || {
            let dir = tempfile::tempdir().expect("directory");
            unshare(CloneFlags::CLONE_NEWNET).expect("a namespace of our own (root)");
            let namespace = File::open("/proc/thread-self/ns/net").expect("own namespace");
            run(Command::new("ip").args(["link", "set", "lo", "up"]));
            run(Command::new("ip").args(["-6", "route", "add", "local", NETWORK, "dev", "lo"]));
            run(Command::new("sysctl").args(["-q", "-w", "net.ipv6.ip_nonlocal_bind=1"]));
            let token = dir.path().join("infra-token");
            fs::write(&token, INFRA).expect("token");
            let control = dir.path().join("control");
            let mut command = Command::new(root().join("target/venv/bin/python"));
            command
                .arg("-B")
                .arg(root().join("tests/apiserver/server.py"));
            command.args(["--listen", APISERVER, "--partition", PARTITION]);
            command.arg("--control").arg(&control);
            command.arg("--infra-token-file").arg(&token);
            let mut standin = Process::start("apiserver", command, dir.path());
            let address = APISERVER.parse::<SocketAddrV6>().expect("address");
            standin.wait_until("listening", SOON, || {
                control.exists() && TcpStream::connect(address).is_ok()
            });
            let place = Place {
                namespace,
                standin: control,
                dir,
            };
            ready.send(place).expect("somebody waits");
            loop {
                thread::park();
            }
        });
        made.recv().expect("a place")
    })
}

/// Puts this test's thread into the namespace, and what it starts.
pub fn enter() {
    setns(&place().namespace, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
}

/// The stand-in apiserver.
pub fn standin() -> Standin {
    Standin::new(place().standin.clone())
}

/// Its URL.
pub fn apiserver_url() -> String {
    format!("http://{APISERVER}")
}

/// An address that is nobody else's, in a /64 of its own.
pub fn address() -> Ipv6Addr {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Ipv6Addr::new(0x2001, 0xdb8, 1, number, 0, 0, 0, 1)
}

/// A machine that nobody else asks for.
pub fn machine() -> String {
    Uuid::new_v4().to_string()
}

/// A running metal-boot.
pub struct Helper {
    process: Process,
    pub address: SocketAddrV6,
    pub dir: tempfile::TempDir,
}

impl Helper {
    /// In front of the stand-in.
    pub fn start(more: &[&str]) -> Self {
        Self::before(&apiserver_url(), more)
    }

    /// In front of another server.
    pub fn before(apiserver: &str, more: &[&str]) -> Self {
        enter();
        let dir = tempfile::tempdir().expect("directory");
        let token = dir.path().join("token");
        fs::write(&token, INFRA).expect("token");
        let address = SocketAddrV6::new(address(), 4242, 0, 0);
        let mut command = Command::new(METAL_BOOT);
        command.args(["--listen", &address.to_string()]);
        command.args(["--apiserver-url", apiserver, "--partition", PARTITION]);
        command.arg("--token-file").arg(&token).args(more);
        let mut process = Process::start("metal-boot", command, dir.path());
        process.wait_until("listening", SOON, || TcpStream::connect(address).is_ok());
        Self {
            process,
            address,
            dir,
        }
    }

    /// Sends a request as written here and reads to the connection's end.
    pub fn ask(&self, request: &str) -> String {
        self.ask_from(self.address.ip(), request)
    }

    /// The same from another source address.
    pub fn ask_from(&self, source: &Ipv6Addr, request: &str) -> String {
        let mut stream = self.connect_from(source);
        // A refusal may come, and the connection end, before all of it is sent.
        let _ = stream.write_all(request.as_bytes());
        read_all(&mut stream)
    }

    /// `GET path`.
    pub fn get(&self, path: &str) -> String {
        self.get_with(path, "")
    }

    /// `GET path` with more header lines, each ended by CRLF.
    pub fn get_with(&self, path: &str, headers: &str) -> String {
        self.ask(&get(path, headers))
    }

    /// `GET /config/{machine}` from an address.
    pub fn config_from(&self, source: &Ipv6Addr, machine: &str) -> String {
        self.ask_from(source, &get(&format!("/config/{machine}"), ""))
    }

    /// The token that a machine is given.
    pub fn token(&self, machine: &str) -> String {
        let answer = self.get(&format!("/config/{machine}"));
        assert_eq!(status(&answer), 200, "{answer}");
        let token = &body_json(&answer)["metal_apiserver_token_for_hammer"];
        token.as_str().expect("a token").to_owned()
    }

    /// `POST` of a BootService method through the proxy.
    pub fn call(&self, method: &str, token: &str, body: &Value) -> String {
        self.ask(&post(method, token, &body.to_string()))
    }

    /// An open connection.
    pub fn connect(&self) -> TcpStream {
        self.connect_from(self.address.ip())
    }

    /// An open connection from an address.
    pub fn connect_from(&self, source: &Ipv6Addr) -> TcpStream {
        connect(source, self.address).expect("connect")
    }

    /// What was logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.process.log()).unwrap_or_default()
    }

    /// The value of a line of `/metrics`.
    pub fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let value = line.and_then(|rest| rest.trim().parse().ok());
        value.unwrap_or(0)
    }

    /// SIGTERM; how it ended, and after how long.
    pub fn terminate(mut self) -> (String, Duration) {
        let begin = Instant::now();
        kill(self.pid(), Signal::SIGTERM).expect("SIGTERM");
        let mut ended = None;
        until("metal-boot ends", || {
            ended = self.process.exit_status();
            ended.is_some()
        });
        let status = ended.map(|status| status.to_string()).unwrap_or_default();
        (status, begin.elapsed())
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.process.id()).expect("pid"))
    }

    /// Resident memory in KiB, and open files.
    pub fn size(&self) -> (u64, usize) {
        let pid = self.pid();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let rss = rss.and_then(|text| text.trim().strip_suffix(" kB")?.trim().parse().ok());
        let files = fs::read_dir(format!("/proc/{pid}/fd"))
            .expect("fds")
            .count();
        (rss.expect("VmRSS"), files)
    }
}

/// Runs metal-boot to its end.
pub fn run_boot(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    enter();
    let mut command = Command::new(METAL_BOOT);
    command.args(arguments).envs(variables.iter().copied());
    command.output().expect("metal-boot")
}

/// A TCP connection from an address of the namespace.
pub fn connect(source: &Ipv6Addr, to: SocketAddrV6) -> io::Result<TcpStream> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket::socket(AddressFamily::Inet6, SockType::Stream, flags, None)?;
    let from = SockaddrIn6::from(SocketAddrV6::new(*source, 0, 0, 0));
    socket::bind(fd.as_raw_fd(), &from)?;
    socket::connect(fd.as_raw_fd(), &SockaddrIn6::from(to))?;
    let stream = TcpStream::from(fd);
    stream.set_read_timeout(Some(SOON))?;
    stream.set_write_timeout(Some(SOON))?;
    Ok(stream)
}

/// Everything until the connection ends, also when it ends by a reset.
pub fn read_all(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut buffer = [0; 65536];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => bytes.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                panic!(
                    "no end within {SOON:?} after {:?}",
                    String::from_utf8_lossy(&bytes)
                )
            }
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads until what came holds `text`.
pub fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let so_far = String::from_utf8_lossy(&bytes).into_owned();
        if so_far.contains(text) {
            return so_far;
        }
        match stream.read(&mut buffer) {
            Ok(length) if length > 0 => bytes.extend_from_slice(&buffer[..length]),
            other => panic!("{other:?} before {text:?}, after {so_far:?}"),
        }
    }
}

/// A GET as text.
pub fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n{headers}\r\n")
}

/// A unary Connect call as text.
pub fn post(method: &str, token: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST /metalstack.infra.v2.BootService/{method} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\
         authorization: Bearer {token}\r\ncontent-type: application/json\r\n\
         connect-protocol-version: 1\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

/// A Wait as text.
pub fn wait(token: &str, machine: &str) -> Vec<u8> {
    let body = format!("{{\"uuid\":\"{machine}\"}}");
    let length = 5 + body.len();
    let head = format!(
        "POST /metalstack.infra.v2.BootService/Wait HTTP/1.1\r\nhost: h\r\n\
         authorization: Bearer {token}\r\ncontent-type: application/connect+json\r\n\
         connect-protocol-version: 1\r\ncontent-length: {length}\r\n\r\n"
    );
    let size = u32::try_from(body.len()).expect("length").to_be_bytes();
    [head.as_bytes(), &[0], &size, body.as_bytes()].concat()
}

/// The status of an answer; 0 when there is none.
pub fn status(answer: &str) -> u16 {
    let text = answer
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3));
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// A header's value.
pub fn header<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let head = answer.split("\r\n\r\n").next().unwrap_or_default();
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(": ")?;
        key.eq_ignore_ascii_case(name).then_some(value)
    })
}

/// What stands behind the head.
pub fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

/// The same as JSON, whether it came in one piece or in a chunk.
pub fn body_json(answer: &str) -> Value {
    let body = body(answer);
    let from = body.find('{').unwrap_or_default();
    let until = body.rfind('}').map_or(body.len(), |at| at + 1);
    serde_json::from_str(&body[from..until]).unwrap_or_else(|e| panic!("{e} in {answer:?}"))
}

/// Waits until `is_so`, and fails when it does not become so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not within {SOON:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A server that does with each connection what `act` says, in a thread of its own.
pub fn server(act: impl Fn(TcpStream, usize) + Send + Sync + 'static) -> String {
    server_at(address(), act)
}

/// The same at an address.
pub fn server_at(
    address: Ipv6Addr,
    act: impl Fn(TcpStream, usize) + Send + Sync + 'static,
) -> String {
    enter();
    let listener = TcpListener::bind((address, 8080)).expect("listen");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    let act = std::sync::Arc::new(act);
    thread::spawn(move || {
        for (number, stream) in listener.incoming().flatten().enumerate() {
            let act = act.clone();
            thread::spawn(move || act(stream, number));
        }
    });
    url
}

/// Says nothing until the other side is gone.
pub fn hang(stream: &mut impl Read) {
    while stream.read(&mut [0; 4096]).is_ok_and(|length| length > 0) {}
}

/// Reads a request's head.
pub fn read_head(stream: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
        bytes.push(byte[0]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A response with a body.
pub fn response(status: u16, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// The directory of the shared things, for their logs.
pub fn shared_log() -> String {
    fs::read_to_string(place().dir.path().join("apiserver.log")).unwrap_or_default()
}
