//! Init of the network tests' guests: runs the agent's own network code and prints what it finds as
//! lines of `EVENT <name> <json>`.
//!
//! What to do stands on the kernel command line as `guest.<key>=<value>`; `guest.run` names it.

mod lldp;
mod path;
mod slaac;

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use metal_anvil::report::{console, log};
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

fn main() {
    for (kind, target) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
        ("tmpfs", "/etc"),
    ] {
        fs::create_dir_all(target).expect("a mount point");
        mount(
            Some(kind),
            target,
            Some(kind),
            MsFlags::empty(),
            None::<&str>,
        )
        .expect("mount");
    }
    // The kernel opened no console for an initramfs without /dev/console.
    let console = File::options()
        .read(true)
        .write(true)
        .open("/dev/console")
        .expect("/dev/console");
    for descriptor in 0..3 {
        // SAFETY: duplicates an open descriptor onto the standard ones, which nothing uses yet.
        unsafe { libc::dup2(console.as_raw_fd(), descriptor) };
    }
    log::start()(true);
    console::start(Path::new("/sys"), Path::new("/dev"));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        if let Err(error) = run(&words()).await {
            say("failed", json!({"error": error.to_string()}));
        }
        // The test ends the guest.
        std::future::pending::<()>().await;
    });
}

/// What the command line says to this program.
pub struct Words(Vec<(String, String)>);

impl Words {
    /// The value of `guest.<key>`.
    pub fn get(&self, key: &str) -> Option<&str> {
        let mut words = self.0.iter();
        words
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }

    /// `guest.<key>` in seconds.
    pub fn seconds(&self, key: &str, default: u64) -> Duration {
        let seconds = self.get(key).map(|text| text.parse().expect("a number"));
        Duration::from_secs(seconds.unwrap_or(default))
    }
}

fn words() -> Words {
    let line = fs::read_to_string("/proc/cmdline").expect("/proc/cmdline");
    let ours = line.split_whitespace().filter_map(|word| {
        let (key, value) = word.strip_prefix("guest.")?.split_once('=')?;
        Some((key.to_owned(), value.to_owned()))
    });
    Words(ours.collect())
}

/// Prints an event as one line.
pub fn say(name: &str, data: Value) {
    let line = format!("EVENT {name} {data}\n");
    let _ = std::io::stdout().write_all(line.as_bytes());
    let _ = std::io::stdout().flush();
}

type Failed = Box<dyn std::error::Error>;

async fn run(words: &Words) -> Result<(), Failed> {
    match words.get("run") {
        Some("address") => drop(path::address(words).await?),
        Some("helper") => drop(path::helper(words).await?),
        Some("wait") => path::wait(words).await?,
        Some("names") => path::names(words).await?,
        Some("lldp") => lldp::listen(words).await?,
        Some("slaac") => slaac::bench(words).await?,
        other => return Err(format!("nothing is called {other:?}").into()),
    }
    Ok(())
}
