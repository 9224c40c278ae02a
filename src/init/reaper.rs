//! Orphans become children of PID 1 and stay zombies until it waits for them.
//!
//! Waiting for any child would also take those that `std::process` waits for. So a zombie
//! is reaped only when it has been one for two rounds: its own waiter had its chance.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// Long enough for every waiter in this program, short enough that a daemonising installer
/// cannot fill the process table.
const ROUND: Duration = Duration::from_secs(60);

/// Starts the thread that reaps orphans, for ever.
///
/// # Errors
/// When the thread cannot be started.
pub fn start() -> std::io::Result<()> {
    std::thread::Builder::new()
        .name("reaper".into())
        .spawn(|| {
            let mut seen = HashSet::new();
            loop {
                std::thread::sleep(ROUND);
                let zombies = zombies_of_init(Path::new("/proc"));
                for zombie in zombies.intersection(&seen) {
                    let _ = waitpid(Pid::from_raw(zombie.pid), Some(WaitPidFlag::WNOHANG));
                }
                seen = zombies;
            }
        })
        .map(drop)
}

/// A process that ended; a pid alone might be another process by the next round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Zombie {
    pid: i32,
    /// Clock ticks after boot.
    started: u64,
}

fn zombies_of_init(proc: &Path) -> HashSet<Zombie> {
    let Ok(entries) = fs::read_dir(proc) else {
        return HashSet::new();
    };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            entry.file_name().to_str()?.parse::<i32>().ok()?;
            zombie_of_init(&fs::read_to_string(entry.path().join("stat")).ok()?)
        })
        .collect()
}

/// Reads `/proc/<pid>/stat` (proc_pid_stat(5)): pid, (comm), state, ppid, …, starttime as field 22.
/// `comm` may hold blanks and brackets, so fields are counted after the last bracket.
fn zombie_of_init(stat: &str) -> Option<Zombie> {
    let (head, tail) = stat.rsplit_once(')')?;
    let pid = head.split_whitespace().next()?.parse().ok()?;
    let fields: Vec<&str> = tail.split_whitespace().collect();
    let (state, parent) = (fields.first()?, fields.get(1)?);
    let started = fields.get(19)?.parse().ok()?;
    (*state == "Z" && *parent == "1").then_some(Zombie { pid, started })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_zombies_of_init_count() {
        let tail = "0 0 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        let zombie = Zombie {
            pid: 42,
            started: 4711,
        };
        let table = [
            (format!("42 (a) b) Z 1 {tail}"), Some(zombie)),
            (format!("42 (sh) Z 1 {tail}"), Some(zombie)),
            (format!("42 (sh) S 1 {tail}"), None),
            (format!("42 (sh) Z 7 {tail}"), None),
            ("42 (sh".into(), None),
            ("42 (sh) Z 1".into(), None),
            (String::new(), None),
        ];
        for (stat, expected) in table {
            assert_eq!(zombie_of_init(&stat), expected, "{stat}");
        }
    }
}
