//! Processors, by socket: `/proc/cpuinfo` (x86: arch/x86/kernel/cpu/proc.c) for the names,
//! `/sys/devices/system/cpu` for the topology (Documentation/ABI/stable/sysfs-devices-system-cpu).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::types::Socket;
use super::{Error, Roots, attribute, read, text::clean};

/// A logical processor takes about 2 KiB of text; this is enough for 8192 of them.
const MAX_CPUINFO: u64 = 16 << 20;
const MAX_CPUS: u32 = 8192;
const MAX_NAME: usize = 256;

/// One entry for each socket that has a logical processor online.
pub(super) fn sockets(roots: &Roots) -> Result<Vec<Socket>, Error> {
    let path = roots.proc.join("cpuinfo");
    let text = read(&path, MAX_CPUINFO).map_err(|source| Error::Io {
        path: path.clone(),
        source,
    })?;
    let directory = roots.sys.join("devices/system/cpu");
    let sockets = parse(&text, &|processor| core(&directory, processor));
    if sockets.is_empty() {
        return Err(Error::NoCpu { path });
    }
    Ok(sockets)
}

/// Threads that are there and not online. The kernel hides whose they are: the topology of
/// an offline processor is not in sysfs, and it is not in `/proc/cpuinfo`.
pub(super) fn offline(sys: &Path) -> u32 {
    let count = |file: &str| {
        let list = attribute(&sys.join("devices/system/cpu").join(file))?;
        listed(&list)
    };
    match (count("present"), count("online")) {
        (Some(present), Some(online)) => present.saturating_sub(online),
        _ => 0,
    }
}

/// How many numbers are in a list `0-3,8`.
fn listed(list: &str) -> Option<u32> {
    list.split(',').try_fold(0_u32, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        let count = last.checked_sub(first)?.checked_add(1)?;
        sum.checked_add(count).filter(|sum| *sum <= MAX_CPUS)
    })
}

/// Which core a processor is a thread of: the list of the threads of that core. Core
/// numbers alone repeat from die to die.
fn core(directory: &Path, processor: u32) -> Option<String> {
    let topology = directory.join(format!("cpu{processor}/topology"));
    attribute(&topology.join("core_cpus_list"))
        .or_else(|| attribute(&topology.join("thread_siblings_list")))
}

#[derive(Default)]
struct Seen {
    vendor: String,
    model: String,
    stated_cores: u32,
    cores: BTreeSet<String>,
    threads: u32,
}

/// `core` names the core of a processor where sysfs knows it.
fn parse(text: &str, core: &dyn Fn(u32) -> Option<String>) -> Vec<Socket> {
    let mut sockets: BTreeMap<u32, Seen> = BTreeMap::new();
    for block in text.split("\n\n") {
        let value = |wanted: &str| {
            block.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                (key.trim() == wanted).then(|| value.trim())
            })
        };
        let number = |wanted: &str| value(wanted).and_then(|text| text.parse::<u32>().ok());
        let Some(processor) = number("processor") else {
            continue;
        };
        // A virtual machine may have no topology: then all is one socket.
        let socket = sockets
            .entry(number("physical id").unwrap_or(0))
            .or_default();
        socket.threads += 1;
        match core(processor) {
            Some(core) => socket.cores.extend([core]),
            // Older kernels' text counts by itself.
            None => {
                socket.stated_cores = socket.stated_cores.max(number("cpu cores").unwrap_or(0));
                socket
                    .cores
                    .extend(number("core id").map(|id| id.to_string()));
            }
        }
        for (slot, key) in [
            (&mut socket.vendor, "vendor_id"),
            (&mut socket.model, "model name"),
        ] {
            if slot.is_empty() {
                *slot = clean(value(key).unwrap_or_default(), MAX_NAME);
            }
        }
    }
    sockets
        .into_iter()
        .map(|(number, seen)| Socket {
            socket: number,
            cores: match (seen.stated_cores, seen.cores.len()) {
                (0, 0) => seen.threads,
                (0, cores) => u32::try_from(cores).unwrap_or(u32::MAX),
                (stated, _) => stated,
            },
            vendor: seen.vendor,
            model: seen.model,
            threads: seen.threads,
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
        let socket = |socket| Socket {
            socket,
            vendor: "AuthenticAMD".into(),
            model: "AMD EPYC 7302".into(),
            cores: 2,
            threads: 4,
        };
        assert_eq!(parse(&text, &|_| None), [socket(0), socket(1)]);
    }

    #[test]
    fn missing_topology_is_one_socket() {
        let text = "processor : 0\nmodel name : X\n\nprocessor : 1\nmodel name : X\n";
        let cpus = parse(text, &|_| None);
        assert_eq!((cpus.len(), cpus[0].cores, cpus[0].threads), (1, 2, 2));
        let text = "processor : 0\ncore id : 4\n\nprocessor : 1\ncore id : 4\n";
        assert_eq!(
            (
                parse(text, &|_| None)[0].cores,
                parse(text, &|_| None)[0].threads
            ),
            (1, 2)
        );
    }

    #[test]
    fn text_without_processors_is_nothing() {
        assert_eq!(parse("", &|_| None), []);
        assert_eq!(parse("model name : X\n\nprocessor : many\n", &|_| None), []);
    }

    #[test]
    fn sysfs_knows_cores_of_two_kinds_and_on_two_dies() {
        // Two big cores with two threads, two small ones; core number 0 on either die.
        let text: String = (0..6).map(|n| thread(n, 0, n % 2, 99)).collect();
        let lists = ["0-1", "0-1", "2-3", "2-3", "4", "5"];
        let cpus = parse(&text, &|processor| {
            Some(lists[processor as usize].to_owned())
        });
        assert_eq!((cpus.len(), cpus[0].cores, cpus[0].threads), (1, 4, 6));
    }

    #[test]
    fn lists_of_processors_are_counted() {
        for (list, count) in [
            ("0", Some(1)),
            ("0-3,8,10-11", Some(7)),
            ("0-4294967295", None),
            ("3-1", None),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(listed(list), count, "{list:?}");
        }
    }
}
