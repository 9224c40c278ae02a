//! How much memory is built in, and how much of it can be used.

use std::fs;
use std::path::Path;

use tracing::warn;

use super::smbios::Table;
use super::types::{Memory, MemorySource, Module};
use super::{Error, Roots, attribute, read};

/// Of what is built in, from the best source that makes sense: SMBIOS, the kernel's memory
/// blocks, and last `MemTotal`, which lacks what the kernel itself and the firmware took.
pub(super) fn memory(roots: &Roots) -> Result<Memory, Error> {
    let path = roots.proc.join("meminfo");
    let text = read(&path, 64 << 10).map_err(|source| Error::Io {
        path: path.clone(),
        source,
    })?;
    let usable = mem_total(&text).ok_or(Error::Memory { path })?;
    let modules = Table::read(&roots.sys).map(|table| table.modules());
    let modules = modules.unwrap_or_default();
    let (installed, source) = match (from_modules(&modules, usable), blocks(&roots.sys)) {
        (Some(bytes), _) => (bytes, MemorySource::Smbios),
        (None, Some(bytes)) if bytes >= usable => (bytes, MemorySource::Blocks),
        _ => (usable, MemorySource::Meminfo),
    };
    Ok(Memory {
        installed,
        source,
        usable,
        modules,
    })
}

/// The modules' sum. A firmware that lists less than the kernel uses, or more than 16 times
/// as much (mirroring and spares halve it), is not believed.
fn from_modules(modules: &[Module], usable: u64) -> Option<u64> {
    let sum = modules
        .iter()
        .try_fold(0_u64, |sum, module| sum.checked_add(module.size))?;
    if sum == 0 {
        return None;
    }
    if sum < usable || sum / 16 > usable {
        warn!("SMBIOS lists {sum} bytes of memory, the kernel uses {usable}: not believed");
        return None;
    }
    Some(sum)
}

/// Documentation/ABI/testing/sysfs-devices-memory: `block_size_bytes` is hexadecimal
/// without prefix, `memory<n>/state` is `online` or not.
fn blocks(sys: &Path) -> Option<u64> {
    let directory = sys.join("devices/system/memory");
    let size = attribute(&directory.join("block_size_bytes"))?;
    let size = u64::from_str_radix(&size, 16).ok()?;
    let online = fs::read_dir(&directory)
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

/// `MemTotal: <n> kB` of `/proc/meminfo`, or of a NUMA node's, which writes `Node 0` before
/// it; in bytes.
pub(super) fn mem_total(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| {
        let (before, rest) = line.split_once("MemTotal:")?;
        (before.is_empty() || before.starts_with("Node ")).then_some(rest)
    })?;
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
            ("Node 1 MemTotal:  4 kB\nNode 1 MemFree: 1 kB", Some(4096)),
            ("xMemTotal: 4 kB", None),
            ("MemTotal: 4", None),
            ("MemTotal: x kB", None),
            ("MemTotal: 18446744073709551615 kB", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(mem_total(text), expected, "{text:?}");
        }
    }

    #[test]
    fn modules_that_make_no_sense_are_not_added_up() {
        let module = |size| Module {
            size,
            locator: String::new(),
            bank: String::new(),
            kind: String::new(),
            speed: None,
            configured_speed: None,
            manufacturer: String::new(),
            serial: String::new(),
            part: String::new(),
            ranks: None,
            ecc: None,
        };
        let gib = |n: u64| n << 30;
        for (sizes, usable, expected) in [
            (vec![gib(16), 0, gib(16)], gib(31), Some(gib(32))),
            (vec![gib(16)], gib(31), None),
            (vec![gib(512)], gib(31), None),
            (vec![0, 0], gib(31), None),
            (vec![u64::MAX, 1], gib(31), None),
            (vec![], gib(31), None),
        ] {
            let modules: Vec<Module> = sizes.iter().map(|size| module(*size)).collect();
            assert_eq!(from_modules(&modules, usable), expected, "{sizes:?}");
        }
    }
}
