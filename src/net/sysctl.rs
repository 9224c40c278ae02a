//! IPv6 settings of the kernel, written under `/proc/sys/net/ipv6` before a link goes up.
//!
//! All names and values are those of the kernel's `Documentation/networking/ip-sysctl.rst`.

use std::io;
use std::path::{Path, PathBuf};

/// A setting that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "{path} does not exist: the running kernel has no IPv6; boot one with CONFIG_IPV6=y and \
         without ipv6.disable=1"
    )]
    NoIpv6 { path: PathBuf },
    #[error("cannot write `{value}` to {path}: {source}")]
    Write {
        path: PathBuf,
        value: String,
        source: io::Error,
    },
}

/// Whether the host forwards packets: the kernel then ignores router advertisements
/// unless `accept_ra` is 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Host,
    Router,
}

/// The settings of one link, `default` (the template of links that appear later)
/// included: path below `/proc/sys/net/ipv6` and value. Pure.
#[must_use]
pub fn plan(link: &str, role: Role, retransmit_ms: u32) -> Vec<(PathBuf, String)> {
    let accept_ra = match role {
        Role::Host => "1",
        Role::Router => "2",
    };
    let conf = Path::new("conf").join(link);
    [
        ("disable_ipv6", "0"),
        // IN6_ADDR_GEN_MODE_EUI64: switches map the MAC in the address to a port.
        ("addr_gen_mode", "0"),
        ("accept_ra", accept_ra),
        ("autoconf", "1"),
        // 1: a duplicate address is refused; 2 would take IPv6 off the whole link.
        ("accept_dad", "1"),
        // Endless (RFC 7559): spanning tree may eat the first 50 seconds. The first is
        // often lost with a port that has just come up, and somebody waits: back off from
        // 1 s to 8 s rather than from 4 s to an hour.
        ("router_solicitations", "-1"),
        ("router_solicitation_delay", "0"),
        ("router_solicitation_interval", "1"),
        ("router_solicitation_max_interval", "8"),
    ]
    .into_iter()
    .map(|(name, value)| (conf.join(name), value.to_owned()))
    // Duplicate address detection waits for this long, a second by default.
    .chain([(
        Path::new("neigh").join(link).join("retrans_time_ms"),
        retransmit_ms.to_string(),
    )])
    .collect()
}

/// Writes [`plan`] for `link` under `proc_root` (`/proc`; another directory in tests). A
/// setting that fails does not keep the others from being written.
///
/// # Errors
/// The kernel has no IPv6, or the first setting that it lacks or refuses. Link names come
/// from the kernel, which allows no `/` in them.
pub fn apply(proc_root: &Path, link: &str, retransmit_ms: u32) -> Result<(), Error> {
    let base = proc_root.join("sys/net/ipv6");
    if !base.join("conf").is_dir() {
        return Err(Error::NoIpv6 { path: base });
    }
    let mut result = Ok(());
    for (name, value) in plan(link, role(&base), retransmit_ms) {
        let path = base.join(name);
        let written = std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
            .map_err(|source| Error::Write {
                path,
                value,
                source,
            });
        result = result.and(written);
    }
    result
}

/// A kernel that cannot tell is taken for a host, which is what an installer is.
fn role(base: &Path) -> Role {
    match std::fs::read_to_string(base.join("conf/all/forwarding")) {
        Ok(text) if text.trim() != "0" => Role::Router,
        _ => Role::Host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(forwarding: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let base = root.path().join("sys/net/ipv6");
        std::fs::create_dir_all(base.join("conf/all")).unwrap();
        std::fs::write(base.join("conf/all/forwarding"), forwarding).unwrap();
        for (name, _) in plan("eth0", Role::Host, 1) {
            let path = base.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        root
    }

    fn read(root: &Path, name: &str) -> String {
        std::fs::read_to_string(root.join("sys/net/ipv6").join(name)).unwrap()
    }

    #[test]
    fn everything_slaac_needs_is_written() {
        let root = tree("0\n");
        apply(root.path(), "eth0", 200).unwrap();
        for (name, value) in [
            ("conf/eth0/disable_ipv6", "0"),
            ("conf/eth0/addr_gen_mode", "0"),
            ("conf/eth0/accept_ra", "1"),
            ("conf/eth0/autoconf", "1"),
            ("conf/eth0/accept_dad", "1"),
            ("conf/eth0/router_solicitations", "-1"),
            ("conf/eth0/router_solicitation_delay", "0"),
            ("conf/eth0/router_solicitation_interval", "1"),
            ("conf/eth0/router_solicitation_max_interval", "8"),
            ("neigh/eth0/retrans_time_ms", "200"),
        ] {
            assert_eq!(read(root.path(), name), value, "{name}");
        }
    }

    #[test]
    fn a_forwarding_host_accepts_advertisements_too() {
        let root = tree("1\n");
        apply(root.path(), "eth0", 200).unwrap();
        assert_eq!(read(root.path(), "conf/eth0/accept_ra"), "2");
    }

    #[test]
    fn what_is_missing_is_named() {
        let empty = tempfile::tempdir().unwrap();
        assert!(matches!(
            apply(empty.path(), "eth0", 200),
            Err(Error::NoIpv6 { .. })
        ));
        let root = tree("0");
        std::fs::remove_file(root.path().join("sys/net/ipv6/conf/eth0/addr_gen_mode")).unwrap();
        let error = apply(root.path(), "eth0", 200).unwrap_err().to_string();
        assert!(error.contains("`0` to "), "{error}");
        assert!(error.contains("conf/eth0/addr_gen_mode"), "{error}");
        assert_eq!(read(root.path(), "conf/eth0/autoconf"), "1", "the others");
    }
}
