//! The services behind the guest's network: radvd, two lldpd, nginx, the stand-in, metal-boot.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::allocation::PARTITION;
use super::netns::{LEAVES, Leaf, Netns, SERVICE};
use super::process::{Process, run};
use super::root;

/// How long a service may take until it answers; generous, because tests share two cores.
const START: Duration = Duration::from_secs(30);

/// Port of the stand-in apiserver.
pub const APISERVER_PORT: u16 = 8080;
/// Port of the image server.
pub const IMAGE_PORT: u16 = 8081;
/// Port of the boot helper.
pub const HELPER_PORT: u16 = 4242;
/// Port of the apiserver by TLS.
pub const TLS_APISERVER_PORT: u16 = 8443;
/// Port of the boot helper by TLS.
pub const TLS_HELPER_PORT: u16 = 4443;

/// What answers on the boot helper's port.
#[derive(Clone, Debug)]
pub enum Helper {
    /// metal-boot.
    Real,
    /// Nobody: connections are refused.
    Absent,
    /// Always this status and body.
    Canned(u16, String),
}

/// Router advertisements on both taps, as in the design: every 3 to 10 s, with RDNSS.
pub fn radvd(ns: &Netns, dir: &Path) -> Process {
    let mut config = String::new();
    for leaf in &LEAVES {
        config += &format!(
            "interface {} {{ AdvSendAdvert on; MinRtrAdvInterval 3; MaxRtrAdvInterval 10; \
             prefix {}/64 {{ AdvOnLink on; AdvAutonomous on; }}; RDNSS {SERVICE} {{ }}; }};\n",
            leaf.tap, leaf.prefix
        );
    }
    radvd_with(ns, dir, &config)
}

/// radvd with this configuration.
pub fn radvd_with(ns: &Netns, dir: &Path, config: &str) -> Process {
    let file = dir.join("radvd.conf");
    fs::write(&file, config).expect("write radvd.conf");
    let mut command = ns.command("radvd");
    command.args(["--nodaemon", "--debug", "1", "--logmethod", "stderr"]);
    command.arg("--config").arg(&file);
    command.arg("--pidfile").arg(dir.join("radvd.pid"));
    Process::start("radvd", command, dir)
}

/// One leaf switch as LLDP shows it: its own chassis ID, name, port, bridge and router.
pub fn lldpd(ns: &Netns, leaf: &Leaf, dir: &Path) -> Process {
    let name = format!("lldpd-{}", leaf.name);
    let file = dir.join(format!("{name}.conf"));
    let Leaf {
        tap,
        name: host,
        port,
        ..
    } = leaf;
    fs::write(
        &file,
        format!(
            "configure system hostname {host}\n\
             configure system description \"test switch\"\n\
             configure system capabilities enabled bridge,router\n\
             configure ports {tap} lldp portidsubtype local {port}\n\
             configure ports {tap} lldp portdescription \"port {port} of {host}\"\n\
             configure lldp tx-interval 3\n"
        ),
    )
    .expect("write the lldpd configuration");
    let mut command = ns.command("lldpd");
    // -C: the chassis ID is the tap's own MAC.
    command.args(["-d", "-I", tap, "-C", tap, "-O"]).arg(&file);
    command.arg("-u").arg(lldp_socket(ns, leaf));
    Process::start(&name, command, dir)
}

/// Where a leaf's lldpd takes questions. Short: a socket's path has 107 bytes at most.
pub fn lldp_socket(ns: &Netns, leaf: &Leaf) -> String {
    format!("/tmp/{}-{}.lldp", ns.name(), leaf.name)
}

/// The image server, and what else answers HTTP by a file.
pub fn nginx(ns: &Netns, dir: &Path, helper: &Helper) -> Process {
    nginx_at(ns, dir, helper, None)
}

/// The same; each connection gets so many bytes a second.
pub fn nginx_at(ns: &Netns, dir: &Path, helper: &Helper, rate: Option<u64>) -> Process {
    let www = dir.join("www");
    fs::create_dir_all(&www).expect("create www");
    let www = www.display();
    let d = dir.display();
    let slow = rate.map_or("300k".to_owned(), |rate| rate.to_string());
    let rate = rate.unwrap_or(0);
    let mut servers = format!(
        "server {{ listen [{SERVICE}]:{IMAGE_PORT}; root {www}; limit_rate {rate}; \
         location /slow/ {{ alias {www}/; limit_rate {slow}; }} }}\n"
    );
    if let Helper::Canned(status, body) = helper {
        fs::write(dir.join("helper-body"), body).expect("write the canned answer");
        servers += &format!(
            "server {{ listen [{SERVICE}]:{HELPER_PORT}; default_type application/json; root {d}; \
             error_page 599 ={status} /helper-body; location / {{ return 599; }} \
             location = /helper-body {{ }} }}\n"
        );
    }
    let file = dir.join("nginx.conf");
    fs::write(
        &file,
        format!(
            "daemon off; master_process off; user root; pid {d}/nginx.pid; error_log stderr notice;\n\
             events {{ worker_connections 256; }}\n\
             http {{ access_log {d}/nginx-access.log; client_body_temp_path {d}/nginx-tmp;\n\
             proxy_temp_path {d}/nginx-tmp; fastcgi_temp_path {d}/nginx-tmp;\n\
             uwsgi_temp_path {d}/nginx-tmp; scgi_temp_path {d}/nginx-tmp;\n{servers}}}\n"
        ),
    )
    .expect("write nginx.conf");
    let mut command = ns.command("nginx");
    command
        .arg("-c")
        .arg(&file)
        .arg("-p")
        .arg(dir)
        .args(["-e", "stderr"]);
    let mut process = Process::start("nginx", command, dir);
    process.wait_until("listening", START, || listening(ns, IMAGE_PORT));
    process
}

/// The stand-in apiserver, in the virtual environment that `scripts/test` made. What it must not
/// forget is in `dir`.
pub fn standin(ns: &Netns, dir: &Path, control: &Path, token: &Path, wait_seconds: f64) -> Process {
    let python = root().join("target/venv/bin/python");
    assert!(
        python.exists(),
        "{} is missing: scripts/test makes it",
        python.display()
    );
    let mut command = ns.command(python);
    command
        .arg("-B")
        .arg(root().join("tests/apiserver/server.py"));
    command.args(["--listen", &format!("[{SERVICE}]:{APISERVER_PORT}")]);
    command.arg("--control").arg(control);
    command.arg("--infra-token-file").arg(token);
    command.arg("--state").arg(dir.join("apiserver.state"));
    command.args([
        "--partition",
        PARTITION,
        "--wait-seconds",
        &wait_seconds.to_string(),
    ]);
    for leaf in &LEAVES {
        command.args(["--switch", leaf.name]);
    }
    let mut process = Process::start("apiserver", command, dir);
    process.wait_until("listening", START, || {
        UnixStream::connect(control).is_ok() && listening(ns, APISERVER_PORT)
    });
    process
}

/// The boot helper under test, with more `arguments`.
pub fn metal_boot(ns: &Netns, dir: &Path, token: &Path, arguments: &[String]) -> Process {
    let program = root().join("target/x86_64-unknown-linux-gnu/release/metal-boot");
    assert!(
        program.exists(),
        "{} is missing: scripts/test builds it",
        program.display()
    );
    let mut command = ns.command(program);
    command.args(["--listen", &format!("[{SERVICE}]:{HELPER_PORT}")]);
    command.args([
        "--apiserver-url",
        &format!("http://[{SERVICE}]:{APISERVER_PORT}"),
    ]);
    command.arg("--token-file").arg(token);
    command.args(["--partition", PARTITION]);
    command.args(arguments);
    let mut process = Process::start("metal-boot", command, dir);
    process.wait_until("listening", START, || listening(ns, HELPER_PORT));
    process
}

/// Apiserver and boot helper by TLS: the certificate is one of `pki`'s, valid from now on.
pub fn tls(ns: &Netns, dir: &Path, pki: &Pki) -> Process {
    let d = dir.display();
    let (certificate, key) = (pki.certificate.display(), pki.key.display());
    let mut servers = String::new();
    for (port, behind) in [
        (TLS_APISERVER_PORT, APISERVER_PORT),
        (TLS_HELPER_PORT, HELPER_PORT),
    ] {
        servers += &format!(
            "server {{ listen [{SERVICE}]:{port} ssl; ssl_certificate {certificate}; \
             ssl_certificate_key {key}; location / {{ proxy_pass http://[{SERVICE}]:{behind}; \
             proxy_http_version 1.1; proxy_buffering off; proxy_read_timeout 120s; }} }}\n"
        );
    }
    let file = dir.join("tls.conf");
    fs::write(
        &file,
        format!(
            "daemon off; master_process off; user root; pid {d}/tls.pid; error_log stderr notice;\n\
             events {{ worker_connections 256; }}\n\
             http {{ access_log {d}/tls-access.log; client_body_temp_path {d}/tls-tmp;\n\
             proxy_temp_path {d}/tls-tmp; fastcgi_temp_path {d}/tls-tmp;\n\
             uwsgi_temp_path {d}/tls-tmp; scgi_temp_path {d}/tls-tmp;\n{servers}}}\n"
        ),
    )
    .expect("write tls.conf");
    let mut command = ns.command("nginx");
    command.arg("-c").arg(&file).arg("-p").arg(dir);
    command.args(["-e", "stderr"]);
    let mut process = Process::start("tls", command, dir);
    process.wait_until("listening", START, || listening(ns, TLS_APISERVER_PORT));
    process
}

/// An authority of our own and a certificate for the service address.
pub struct Pki {
    /// PEM.
    pub authority: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Makes them; valid for 30 days from now.
pub fn pki(dir: &Path) -> Pki {
    pki_for(dir, SERVICE)
}

/// The same for another address.
pub fn pki_for(dir: &Path, address: &str) -> Pki {
    let path = |name: &str| dir.join(name);
    let openssl = |arguments: &str| {
        run(std::process::Command::new("openssl")
            .args(arguments.split_whitespace())
            .current_dir(dir))
    };
    let new = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!(
        "req -x509 {new} -keyout ca.key -out ca.pem -days 30 -subj /CN=test"
    ));
    openssl(&format!(
        "req {new} -keyout tls.key -out tls.csr -subj /CN=service"
    ));
    fs::write(path("san"), format!("subjectAltName=IP:{address}\n")).expect("write san");
    openssl(
        "x509 -req -in tls.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out tls.pem -days 30 \
         -extfile san",
    );
    Pki {
        authority: path("ca.pem"),
        certificate: path("tls.pem"),
        key: path("tls.key"),
    }
}

/// An NTP server on the service address. One that is not `sure` says that it does not know the
/// time.
pub fn chronyd(ns: &Netns, dir: &Path, port: u16, sure: bool) -> Process {
    let file = dir.join("chrony.conf");
    let local = if sure { "local stratum 10" } else { "" };
    fs::write(
        &file,
        format!(
            "port {port}\nbindaddress {SERVICE}\nallow all\n{local}\ncmdport 0\n\
             pidfile {d}/chrony.pid\nbindcmdaddress /\n",
            d = dir.display()
        ),
    )
    .expect("write chrony.conf");
    let mut command = ns.command("chronyd");
    // -x: this machine's clock is left alone.
    command.args(["-x", "-d", "-u", "root", "-f"]).arg(&file);
    let mut process = Process::start("chronyd", command, dir);
    let filter = format!("sport = :{port}");
    process.wait_until("listening", START, || {
        let sockets = run(ns.command("ss").args(["-6Hlun", &filter]));
        !sockets.trim().is_empty()
    });
    process
}

/// Does something listen on this port of the service address? Asked of the kernel's table.
fn listening(ns: &Netns, port: u16) -> bool {
    let filter = format!("sport = :{port}");
    !run(ns
        .command("ss")
        .args(["-6", "-H", "-l", "-t", "-n", &filter]))
    .trim()
    .is_empty()
}

/// Runs a program to its end inside the namespace.
pub fn run_inside(ns: &Netns, program: &str, arguments: &[&str]) -> String {
    run(ns.command(program).args(arguments))
}
