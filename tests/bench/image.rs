//! One tree of 1.5 GB over loopback HTTP to ext4: the agent, two ways to do it with shell tools,
//! and the floor that the same tools' stages give, in turns.
//!
//! The ext4 is a file in memory, so that the pipelines are measured and not this machine's disk;
//! each contender gets it empty and fresh, and has to have flushed it when it ends. The page cache
//! is emptied first, and a first round is not counted: whoever writes when memory is full of old
//! pages, or of pages that a hypervisor has yet to give, pays for that.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};

use super::support::process::{Process, run};
use super::support::root;
use super::{MIB, Row, median};

/// Rounds that count: what runs beside a few of them must not decide.
const ROUNDS: usize = 7;

/// Bytes of the tree.
const TREE: u64 = 1_500_000_000;
const PORT: u16 = 18_080;
/// What the agent may take of memory, whatever the image.
const RSS_LIMIT: f64 = 48.0;
/// A contender that takes longer hangs.
const PATIENCE: u64 = 120;

/// Disk, server and images of this bench.
struct Bench {
    dir: PathBuf,
    /// The loop device under the ext4; its file, in memory, goes with it.
    disk: String,
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
    // A mount that others can see is one that a namespace made meanwhile keeps busy.
    unshare(CloneFlags::CLONE_NEWNS).expect("mounts of our own (root)");
    run(Command::new("mount").args(["--make-rprivate", "/"]));
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
        let most = ["lz4", "zst"]
            .map(|format| bench.ours(&format!("{file}.tar.{format}")).rss)
            .into_iter()
            .fold(0.0, f64::max);
        let limit = Some(("the limit", RSS_LIMIT));
        rows.push(row(what, most / MIB, "MiB", limit));
    }
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

/// Bash, with every failure of a pipe being one of the script.
fn bash(script: &str) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", &format!("set -e -o pipefail; {script}")]);
    command
}

impl Bench {
    fn new() -> Self {
        let dir = root().join("target/bench-image");
        for below in ["www", "mnt"] {
            fs::create_dir_all(dir.join(below)).expect("a directory of our own");
        }
        // The first so many bytes of this host's own programs, libraries and documents. What
        // changes while it is packed is no failure of tar's, and head ends its pipe early.
        let script = format!(
            "cd {dir}/www; [[ ! -e complete ]] || exit 0
             find /usr -xdev \\( -type f -o -type l \\) -printf '%s %p\\n' | LC_ALL=C sort -k 2 >../all
             awk '{{ sum += $1; if (sum > {TREE}) exit; sub(/^[0-9]+ /, \"\"); print }}' ../all >../list
             tar -cf img.tar --format=posix --xattrs --xattrs-include='*' -T ../list 2>../tar.log ||
                 (($? == 1))
             pack() {{ lz4 -qf ../in $1.tar.lz4; zstd -qf -T0 ../in -o $1.tar.zst; rm ../in; }}
             ln -f img.tar ../in; pack img
             for mib in 512 2048; do
                 cat img.tar img.tar | head -c ${{mib}}M >../big || true
                 tar -cf ../in -C .. big; pack m$mib
             done
             truncate -s 0 ../big; truncate -s 8G ../big; tar -cSf ../in -C .. big; pack sparse
             rm ../big ../all
             for file in *.lz4 *.zst; do md5sum $file >$file.md5; done
             touch complete",
            dir = dir.display()
        );
        run(&mut bash(&script));
        let conf = dir.join("nginx.conf");
        let d = dir.display();
        let text = format!(
            "daemon off; master_process off; user root; pid {d}/nginx.pid; error_log stderr error;\n\
             events {{}}\nhttp {{ access_log off; sendfile on; client_body_temp_path {d}/tmp;\n\
             proxy_temp_path {d}/tmp; fastcgi_temp_path {d}/tmp; uwsgi_temp_path {d}/tmp;\n\
             scgi_temp_path {d}/tmp; server {{ listen [::1]:{PORT}; root {d}/www; }} }}\n"
        );
        fs::write(&conf, text).expect("nginx.conf");
        // A session of its own, as a service has: the kernel shares the cores out between sessions
        // first (sched_autogroup), and in a contender's own the server would be one more of its
        // threads, which no image server is.
        let mut command = Command::new("setsid");
        command
            .args(["nginx", "-c"])
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
            disk: disk(),
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
        // "." is where all of them unpack to; "../tree" is there for the last stage alone.
        let nothing = String::new();
        let tree = format!("mkdir ../tree; {unpack} -f {} -C ../tree", tar.display());
        let stages = [
            (&nothing, format!("curl -sgf '{url}' >/dev/null")),
            (&nothing, format!("md5sum {file} >/dev/null")),
            (&nothing, format!("{decode} {file} >/dev/null")),
            (&tree, "cp -a ../tree/. .; sync -f .".to_owned()),
        ];
        let (mut ours, mut piped, mut stepped, mut floors) = (vec![], vec![], vec![], vec![]);
        fs::write("/proc/sys/vm/drop_caches", "1").expect("empty the page cache (root)");
        for round in 0..=ROUNDS {
            if round == 1 {
                for costs in [&mut ours, &mut piped, &mut stepped] {
                    costs.clear();
                }
                floors.clear();
            }
            ours.push(self.ours(&format!("img.tar.{format}")));
            piped.push(self.shell(&nothing, &pipe));
            stepped.push(self.shell(&nothing, &steps));
            let costs: Vec<Cost> = stages
                .iter()
                .map(|(before, stage)| self.shell(before, stage))
                .collect();
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
        let url = format!("http://[::1]:{PORT}/{name}");
        let limit = PATIENCE.to_string();
        let mut command = Command::new("timeout");
        command.arg(limit).arg(&self.agent);
        command.args(["image", "write", "--quiet", &url, "."]);
        self.measured("", command.stdout(Stdio::null()))
    }

    fn shell(&self, before: &str, script: &str) -> Cost {
        self.measured(before, &mut bash(script))
    }

    /// Runs a command in an empty directory of a fresh ext4, after what has to be there for it,
    /// with nothing left to write back.
    fn measured(&self, before: &str, command: &mut Command) -> Cost {
        let (disk, mnt) = (&self.disk, self.dir.join("mnt"));
        let (mnt, target) = (mnt.display(), mnt.join("target"));
        // Nothing is initialised in the background while the clock runs.
        run(&mut bash(&format!(
            "umount {mnt} 2>/dev/null || true
             mkfs.ext4 -q -F -N 300000 -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 {disk}
             mount {disk} {mnt}
             mkdir {mnt}/target; cd {mnt}/target; {before}
             sync"
        )));
        let start = Instant::now();
        let child = command.current_dir(&target).spawn();
        let cost = wait(child.expect("start a contender").id(), start);
        run(Command::new("umount").arg(self.dir.join("mnt")));
        cost
    }
}

/// A disk in memory, all of it written once: no contender pays for memory that it has not had
/// before. The loop device keeps the file, which has no name any more.
fn disk() -> String {
    let file = tempfile::NamedTempFile::new_in("/dev/shm").expect("a disk of our own");
    let path = file.path().display();
    let script = format!("head -c 4G /dev/zero >{path}; losetup --find --show {path}");
    run(&mut bash(&script)).trim().to_owned()
}

impl Drop for Bench {
    fn drop(&mut self) {
        // What stays behind is the next run's to unmount.
        let mnt = self.dir.join("mnt");
        let _ = Command::new("umount")
            .arg(mnt)
            .stderr(Stdio::null())
            .status();
        let _ = Command::new("losetup").args(["-d", &self.disk]).status();
    }
}

/// `wait4(2)`: the only wait that tells what a child, and all of its own, took.
fn wait(pid: u32, start: Instant) -> Cost {
    let mut status = 0;
    // SAFETY: all zeros is a valid rusage, and the kernel fills both while they are borrowed.
    let (waited, usage) = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        let pid = libc::pid_t::try_from(pid).expect("a process id");
        (libc::wait4(pid, &mut status, 0, &mut usage), usage)
    };
    let wall = start.elapsed().as_secs_f64();
    let status = ExitStatus::from_raw(status);
    assert!(waited > 0 && status.success(), "a contender: {status}");
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    Cost {
        wall,
        cpu: seconds(usage.ru_utime) + seconds(usage.ru_stime),
        rss: usage.ru_maxrss as f64 * 1024.0,
    }
}
