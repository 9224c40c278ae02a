//! One tree of 1.5 GB over loopback HTTP to ext4: the agent, two ways to do it with shell tools,
//! and the floor that the same tools' stages give, in turns.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::support::process::{Process, run};
use super::support::root;
use super::{MIB, RUNS, Row, median};

/// Bytes of the tree.
const TREE: u64 = 1_500_000_000;
const PORT: u16 = 18_080;
/// What the agent may take of memory, whatever the image.
const RSS_LIMIT: f64 = 48.0;

/// Disk, server and images of this bench.
struct Bench {
    dir: PathBuf,
    agent: PathBuf,
    _server: Process,
}

/// Wall and CPU seconds, peak memory in bytes.
#[derive(Clone, Copy)]
struct Cost {
    wall: f64,
    cpu: f64,
    rss: f64,
}

pub fn image() -> Vec<Row> {
    let bench = Bench::new();
    let mut rows = Vec::new();
    for (format, decode) in [("lz4", "lz4 -dc"), ("zst", "zstd -dcq")] {
        rows.extend(bench.race(format, decode));
    }
    for (what, file) in [
        ("peak memory, file of 512 MiB", "m512"),
        ("peak memory, file of 2 GiB", "m2048"),
        ("peak memory, sparse file of 8 GiB", "sparse"),
    ] {
        let cost = bench.ours(&format!("{file}.tar.lz4"));
        rows.push(row(
            what,
            cost.rss / MIB,
            "MiB",
            Some(("the limit", RSS_LIMIT)),
        ));
    }
    run(Command::new("umount").arg(bench.dir.join("mnt")));
    rows
}

fn row(what: &str, value: f64, unit: &'static str, against: Option<(&'static str, f64)>) -> Row {
    Row {
        bench: "image",
        what: what.to_owned(),
        value,
        unit,
        against,
    }
}

impl Bench {
    fn new() -> Self {
        let dir = root().join("target/bench-image");
        let _ = Command::new("umount")
            .arg(dir.join("mnt"))
            .stderr(Stdio::null())
            .status();
        fs::create_dir_all(dir.join("www")).expect("a directory of our own");
        fs::create_dir_all(dir.join("mnt")).expect("a directory of our own");
        // The first so many bytes of this host's own programs, libraries and documents.
        let script = format!(
            "set -e -o pipefail; cd {dir}/www
             [[ -e complete ]] && exit
             find /usr -xdev \\( -type f -o -type l \\) -printf '%s %p\\n' | LC_ALL=C sort -k 2 |
                 awk '{{ sum += $1; if (sum > {TREE}) exit; sub(/^[0-9]+ /, \"\"); print }}' >../list
             tar -cf img.tar --format=posix --xattrs --xattrs-include='*' -T ../list 2>/dev/null
             lz4 -qf img.tar img.tar.lz4; zstd -qf -T2 img.tar -o img.tar.zst
             for mib in 512 2048; do
                 {{ cat img.tar img.tar; }} | head -c ${{mib}}M >../big
                 tar -c -C .. big | lz4 -q >m$mib.tar.lz4
             done
             truncate -s 8G ../big; tar -cS -C .. big | lz4 -q >sparse.tar.lz4; rm ../big
             for file in *.lz4 *.zst; do md5sum $file >$file.md5; done
             touch complete",
            dir = dir.display()
        );
        // head ends its pipe early, which is no failure.
        run(Command::new("bash").args(["-c", &script.replace("-o pipefail; ", "; ")]));
        let disk = dir.join("disk");
        let file = fs::File::create(&disk).expect("a disk of our own");
        file.set_len(16 << 30).expect("a disk of our own");
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk));
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(&disk)
            .arg(dir.join("mnt")));
        let conf = dir.join("nginx.conf");
        let d = dir.display();
        let text = format!(
            "daemon off; master_process off; user root; pid {d}/nginx.pid; error_log stderr error;\n\
             events {{}}\nhttp {{ access_log off; sendfile on; client_body_temp_path {d}/tmp;\n\
             proxy_temp_path {d}/tmp; fastcgi_temp_path {d}/tmp; uwsgi_temp_path {d}/tmp;\n\
             scgi_temp_path {d}/tmp; server {{ listen [::1]:{PORT}; root {d}/www; }} }}\n"
        );
        fs::write(&conf, text).expect("nginx.conf");
        let mut command = Command::new("nginx");
        command
            .arg("-c")
            .arg(&conf)
            .arg("-p")
            .arg(&dir)
            .args(["-e", "stderr"]);
        let mut server = Process::start("nginx", command, &dir);
        server.wait_until("it listens", Duration::from_secs(10), || {
            std::net::TcpStream::connect(("::1", PORT)).is_ok()
        });
        Self {
            agent: root().join("target/x86_64-unknown-linux-gnu/release/metal-anvil"),
            dir,
            _server: server,
        }
    }

    /// All contenders in turns, so that a busy moment of this machine hits each of them.
    fn race(&self, format: &str, decode: &str) -> Vec<Row> {
        let url = format!("http://[::1]:{PORT}/img.tar.{format}");
        let file = self.dir.join(format!("www/img.tar.{format}"));
        let (file, tar) = (file.display(), self.dir.join("www/img.tar"));
        let unpack = "tar -x --xattrs --xattrs-include='*' --numeric-owner";
        let pipe =
            format!("curl -sgf '{url}' | tee >(md5sum >../sum) | {decode} | {unpack}; sync -f .");
        // What metal-hammer does: all of it into memory, then the checksum, then the tree.
        let steps = format!(
            "curl -sgf '{url}' -o /dev/shm/bench-image; md5sum /dev/shm/bench-image >../sum; \
             {decode} /dev/shm/bench-image | {unpack}; rm /dev/shm/bench-image; sync -f ."
        );
        let stages = [
            format!("curl -sgf '{url}' >/dev/null"),
            format!("md5sum {file} >/dev/null"),
            format!("{decode} {file} >/dev/null"),
            format!("{unpack} -f {}; sync -f .", tar.display()),
        ];
        let (mut ours, mut piped, mut stepped, mut floors) = (vec![], vec![], vec![], vec![]);
        for _ in 0..RUNS {
            ours.push(self.ours(&format!("img.tar.{format}")));
            piped.push(self.shell(&pipe));
            stepped.push(self.shell(&steps));
            let costs: Vec<Cost> = stages.iter().map(|stage| self.shell(stage)).collect();
            let slowest = costs.iter().map(|cost| cost.wall).fold(0.0, f64::max);
            let cpu: f64 = costs.iter().map(|cost| cost.cpu).sum();
            let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
            floors.push(slowest.max(cpu / cores));
        }
        let walls = |costs: &[Cost]| costs.iter().map(|cost| cost.wall).collect::<Vec<_>>();
        let value = median(walls(&ours));
        let best = |times: &[f64]| times.iter().copied().fold(f64::INFINITY, f64::min);
        let worst = |times: &[f64]| times.iter().copied().fold(0.0, f64::max);
        let against = [
            ("curl | tee md5sum | decode | tar", median(walls(&piped))),
            ("download, check, unpack", median(walls(&stepped))),
            ("the floor", median(floors)),
        ];
        let what = |end: &str| format!("{format}, {end}");
        let mut rows: Vec<Row> = against
            .into_iter()
            .map(|against| row(&what("agent"), value, "s", Some(against)))
            .collect();
        let (ours_walls, piped_walls) = (walls(&ours), walls(&piped));
        rows.push(row(
            &what("agent, best to worst"),
            best(&ours_walls),
            "s",
            Some(("the worst", worst(&ours_walls))),
        ));
        rows.push(row(
            &what("pipe, best to worst"),
            best(&piped_walls),
            "s",
            Some(("the worst", worst(&piped_walls))),
        ));
        let rss = ours.iter().map(|cost| cost.rss).fold(0.0, f64::max) / MIB;
        rows.push(row(
            &what("agent, peak memory"),
            rss,
            "MiB",
            Some(("the limit", RSS_LIMIT)),
        ));
        let cpu = median(ours.iter().map(|cost| cost.cpu).collect());
        rows.push(row(&what("agent, CPU"), cpu, "s", None));
        rows
    }

    fn ours(&self, name: &str) -> Cost {
        let mut command = Command::new(&self.agent);
        let url = format!("http://[::1]:{PORT}/{name}");
        command
            .args(["image", "write", "--quiet", &url, "."])
            .stdout(Stdio::null());
        self.measured(command)
    }

    fn shell(&self, script: &str) -> Cost {
        let mut command = Command::new("bash");
        command.args(["-c", &format!("set -e -o pipefail; {script}")]);
        self.measured(command)
    }

    /// Runs a command in a fresh directory of the ext4, with nothing left to write back.
    fn measured(&self, mut command: Command) -> Cost {
        let dir = self.dir.join("mnt/target");
        fs::create_dir(&dir).expect("a directory of our own");
        run(Command::new("sync").arg("-f").arg(&dir));
        let start = Instant::now();
        let child = command
            .current_dir(&dir)
            .spawn()
            .expect("start a contender");
        let cost = wait(child.id(), start, &dir);
        fs::remove_dir_all(&dir).expect("remove our own directory");
        run(Command::new("sync").arg("-f").arg(self.dir.join("mnt")));
        cost
    }
}

/// `wait4(2)`: the only wait that tells what a child, and all of its own, took.
fn wait(pid: u32, start: Instant, dir: &Path) -> Cost {
    let mut status = 0;
    // SAFETY: all zeros is a valid rusage, and the kernel fills both while they are borrowed.
    let (waited, usage) = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        let pid = libc::pid_t::try_from(pid).expect("a process id");
        (libc::wait4(pid, &mut status, 0, &mut usage), usage)
    };
    let wall = start.elapsed().as_secs_f64();
    let status = ExitStatus::from_raw(status);
    assert!(
        waited > 0 && status.success(),
        "in {}: {status}",
        dir.display()
    );
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    Cost {
        wall,
        cpu: seconds(usage.ru_utime) + seconds(usage.ru_stime),
        rss: usage.ru_maxrss as f64 * 1024.0,
    }
}
