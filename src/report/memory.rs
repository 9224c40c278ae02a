//! What the agent runs on and what it takes of it: figures for the log.

use std::fs;
use std::path::Path;

use sysinfo::{MemoryRefreshKind, RefreshKind, System};

/// What this boot runs on: kernel and usable memory, for the first line of the log.
#[must_use]
pub fn host() -> String {
    let memory = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let bytes = System::new_with_specifics(memory).map_or(0, |system| system.total_memory());
    let kernel = System::kernel_version().unwrap_or_default();
    format!("Linux {kernel}, {} MiB of memory", bytes >> 20)
}

/// Peak resident memory of this process in bytes, from `VmHWM` of `/proc/self/status`.
#[must_use]
pub fn peak_rss(proc: &Path) -> Option<u64> {
    parse_peak(&fs::read_to_string(proc.join("self/status")).ok()?)
}

fn parse_peak(status: &str) -> Option<u64> {
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_read_in_bytes() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 1024 kB\n";
        assert_eq!(parse_peak(status), Some(2048 * 1024));
        assert_eq!(parse_peak("VmRSS:\t 1024 kB\n"), None);
        assert_eq!(parse_peak("VmHWM:\t many kB\n"), None);
        assert!(peak_rss(Path::new("/proc")).is_some_and(|bytes| bytes > 0));
    }
}
