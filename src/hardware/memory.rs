//! How much memory is built in.

use std::fs;
use std::path::Path;

use super::{Error, Roots, attribute, read};

/// Bytes of memory: the kernel's memory blocks, which count what is built in, or without
/// them (no memory hotplug in the kernel) `MemTotal`, which lacks what the kernel itself
/// and the firmware took.
pub(super) fn total(roots: &Roots<'_>) -> Result<u64, Error> {
    if let Some(bytes) = blocks(&roots.sys.join("devices/system/memory")) {
        return Ok(bytes);
    }
    let path = roots.proc.join("meminfo");
    let text = read(&path, 64 << 10).map_err(|source| Error::Io {
        path: path.clone(),
        source,
    })?;
    meminfo(&text).ok_or(Error::Memory { path })
}

/// Documentation/ABI/testing/sysfs-devices-memory: `block_size_bytes` is hexadecimal
/// without prefix, `memory<n>/state` is `online` or not.
fn blocks(directory: &Path) -> Option<u64> {
    let size = attribute(&directory.join("block_size_bytes"))?;
    let size = u64::from_str_radix(&size, 16).ok()?;
    let online = fs::read_dir(directory)
        .ok()?
        .filter_map(Result::ok)
        .filter(|entry| {
            entry
                .file_name()
                .to_str()
                .and_then(|name| name.strip_prefix("memory"))
                .is_some_and(|number| number.parse::<u64>().is_ok())
        })
        .filter(|entry| attribute(&entry.path().join("state")).as_deref() == Some("online"))
        .count();
    size.checked_mul(online as u64).filter(|bytes| *bytes > 0)
}

fn meminfo(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_strictly() {
        let table = [
            (
                "MemTotal:       16315748 kB\nMemFree: 1 kB\n",
                Some(16_707_325_952),
            ),
            ("MemFree: 1 kB\nMemTotal: 4 kB", Some(4096)),
            ("MemTotal: 4", None),
            ("MemTotal: x kB", None),
            ("MemTotal: 18446744073709551615 kB", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(meminfo(text), expected, "{text:?}");
        }
    }
}
