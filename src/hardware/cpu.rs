//! Processors, by socket, from `/proc/cpuinfo` (x86: arch/x86/kernel/cpu/proc.c).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::{Error, read};
use crate::control::api::Cpu;

/// A logical processor takes about 2 KiB of text; this is enough for 8192 of them.
const MAX_CPUINFO: u64 = 16 << 20;

/// One entry for each socket that has a logical processor online.
pub(super) fn sockets(proc: &Path) -> Result<Vec<Cpu>, Error> {
    let path = proc.join("cpuinfo");
    let text = read(&path, MAX_CPUINFO).map_err(|source| Error::Io {
        path: path.clone(),
        source,
    })?;
    let sockets = parse(&text);
    if sockets.is_empty() {
        return Err(Error::NoCpu { path });
    }
    Ok(sockets)
}

#[derive(Default)]
struct Socket {
    vendor: String,
    model: String,
    stated_cores: u32,
    core_ids: BTreeSet<u32>,
    threads: u32,
}

fn parse(text: &str) -> Vec<Cpu> {
    let mut sockets: BTreeMap<u32, Socket> = BTreeMap::new();
    for block in text.split("\n\n") {
        let value = |wanted: &str| {
            block.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                (key.trim() == wanted).then(|| value.trim())
            })
        };
        let number = |wanted: &str| value(wanted).and_then(|text| text.parse::<u32>().ok());
        if number("processor").is_none() {
            continue;
        }
        // A virtual machine may have no topology: then all is one socket.
        let socket = sockets
            .entry(number("physical id").unwrap_or(0))
            .or_default();
        socket.threads += 1;
        socket.stated_cores = socket.stated_cores.max(number("cpu cores").unwrap_or(0));
        socket.core_ids.extend(number("core id"));
        for (slot, key) in [
            (&mut socket.vendor, "vendor_id"),
            (&mut socket.model, "model name"),
        ] {
            if slot.is_empty() {
                *slot = value(key).unwrap_or_default().to_owned();
            }
        }
    }
    sockets
        .into_values()
        .map(|socket| Cpu {
            cores: match (socket.stated_cores, socket.core_ids.len()) {
                (0, 0) => socket.threads,
                (0, seen) => u32::try_from(seen).unwrap_or(u32::MAX),
                (stated, _) => stated,
            },
            vendor: socket.vendor,
            model: socket.model,
            threads: socket.threads,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thread(number: u32, socket: u32, core: u32, cores: u32) -> String {
        format!(
            "processor\t: {number}\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 7302\n\
             physical id\t: {socket}\ncore id\t\t: {core}\ncpu cores\t: {cores}\nflags\t\t: fpu\n\n"
        )
    }

    #[test]
    fn threads_are_counted_by_socket() {
        let text: String = (0..8).map(|n| thread(n, n % 2, n / 4, 2)).collect();
        let socket = Cpu {
            vendor: "AuthenticAMD".into(),
            model: "AMD EPYC 7302".into(),
            cores: 2,
            threads: 4,
        };
        assert_eq!(parse(&text), [socket.clone(), socket]);
    }

    #[test]
    fn missing_topology_is_one_socket() {
        let text = "processor : 0\nmodel name : X\n\nprocessor : 1\nmodel name : X\n";
        let cpus = parse(text);
        assert_eq!((cpus.len(), cpus[0].cores, cpus[0].threads), (1, 2, 2));
        let text = "processor : 0\ncore id : 4\n\nprocessor : 1\ncore id : 4\n";
        assert_eq!((parse(text)[0].cores, parse(text)[0].threads), (1, 2));
    }

    #[test]
    fn text_without_processors_is_nothing() {
        assert_eq!(parse(""), []);
        assert_eq!(parse("model name : X\n\nprocessor : many\n"), []);
    }
}
