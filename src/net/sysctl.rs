//! IPv6 settings of the kernel, written under `/proc/sys/net/ipv6` before a link goes up.
//!
//! All names and values are those of the kernel's `Documentation/networking/ip-sysctl.rst`.

use std::io;
use std::net::Ipv6Addr;
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

/// How a link makes its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Addressing {
    /// The MAC is in the address (RFC 4291 appendix A): switches map it to a port.
    #[default]
    Eui64,
    /// A hash of prefix, permanent MAC and this secret (RFC 7217): the same in every boot, and
    /// another one is tried where a duplicate is found.
    StablePrivacy(Ipv6Addr),
}

/// What is written for each link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    pub addressing: Addressing,
    /// Milliseconds that duplicate address detection waits for an answer.
    pub retransmit_ms: u32,
}

/// The settings of one link, `default` (the template of links that appear later)
/// included: path below `/proc/sys/net/ipv6` and value, in the order of writing. Pure.
#[must_use]
pub fn plan(link: &str, role: Role, settings: Settings) -> Vec<(PathBuf, String)> {
    let accept_ra = match role {
        Role::Host => "1",
        Role::Router => "2",
    };
    let conf = Path::new("conf").join(link);
    let (secret, mode) = addressing(&conf, settings.addressing);
    let common = [
        ("disable_ipv6", "0"),
        ("accept_ra", accept_ra),
        ("autoconf", "1"),
        // 1: a duplicate address is refused; 2 would take IPv6 off the whole link.
        ("accept_dad", "1"),
        // RFC 4429: sockets may use an address that is still being checked, where there is
        // no better one. Nothing here begins a conversation before the check has ended.
        ("optimistic_dad", "1"),
        ("use_optimistic", "1"),
        // Endless (RFC 7559): spanning tree may eat the first 50 seconds. The first is
        // often lost with a port that has just come up, and somebody waits: back off from
        // 1 s to 8 s rather than from 4 s to an hour.
        ("router_solicitations", "-1"),
        ("router_solicitation_delay", "0"),
        ("router_solicitation_interval", "1"),
        ("router_solicitation_max_interval", "8"),
    ]
    .map(|(name, value)| (conf.join(name), value.to_owned()));
    // Duplicate address detection waits for this long, a second by default.
    let retransmit = Path::new("neigh").join(link).join("retrans_time_ms");
    secret
        .into_iter()
        .chain([mode])
        .chain(common)
        .chain([(retransmit, settings.retransmit_ms.to_string())])
        .collect()
}

/// What makes a link that is up form new addresses, its link-local one at once. Writing a
/// secret switches the mode silently; only a change of the mode has the kernel act.
#[must_use]
pub fn replan(link: &str, addressing: Addressing) -> Vec<(PathBuf, String)> {
    let conf = Path::new("conf").join(link);
    let (secret, mode) = self::addressing(&conf, addressing);
    // IN6_ADDR_GEN_MODE_NONE
    let none = (conf.join("addr_gen_mode"), "1".to_owned());
    secret.into_iter().chain([none, mode]).collect()
}

/// The secret, which the mode needs first, and the mode (`IN6_ADDR_GEN_MODE_*`, linux/if_link.h).
fn addressing(
    conf: &Path,
    addressing: Addressing,
) -> (Option<(PathBuf, String)>, (PathBuf, String)) {
    let mode = |value: &str| (conf.join("addr_gen_mode"), value.to_owned());
    match addressing {
        Addressing::Eui64 => (None, mode("0")),
        Addressing::StablePrivacy(secret) => (
            Some((conf.join("stable_secret"), secret.to_string())),
            mode("2"),
        ),
    }
}

/// Writes [`plan`] for `link` under `proc_root` (`/proc`; another directory in tests). A
/// setting that fails does not keep the others from being written.
///
/// # Errors
/// The kernel has no IPv6, or the first setting that it lacks or refuses. Link names come
/// from the kernel, which allows no `/` in them.
pub fn apply(proc_root: &Path, link: &str, settings: Settings) -> Result<(), Error> {
    let base = base(proc_root)?;
    write_all(&base, plan(link, role(&base), settings))
}

/// Writes [`replan`] for `link` under `proc_root`.
///
/// # Errors
/// As [`apply`].
pub fn reapply(proc_root: &Path, link: &str, addressing: Addressing) -> Result<(), Error> {
    write_all(&base(proc_root)?, replan(link, addressing))
}

fn base(proc_root: &Path) -> Result<PathBuf, Error> {
    let base = proc_root.join("sys/net/ipv6");
    if base.join("conf").is_dir() {
        Ok(base)
    } else {
        Err(Error::NoIpv6 { path: base })
    }
}

fn write_all(base: &Path, plan: Vec<(PathBuf, String)>) -> Result<(), Error> {
    let mut result = Ok(());
    for (name, value) in plan {
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

    const SETTINGS: Settings = Settings {
        addressing: Addressing::Eui64,
        retransmit_ms: 200,
    };

    fn tree(forwarding: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let base = root.path().join("sys/net/ipv6");
        std::fs::create_dir_all(base.join("conf/all")).unwrap();
        std::fs::write(base.join("conf/all/forwarding"), forwarding).unwrap();
        for (name, _) in plan("eth0", Role::Host, SETTINGS) {
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
        apply(root.path(), "eth0", SETTINGS).unwrap();
        for (name, value) in [
            ("conf/eth0/disable_ipv6", "0"),
            ("conf/eth0/addr_gen_mode", "0"),
            ("conf/eth0/accept_ra", "1"),
            ("conf/eth0/autoconf", "1"),
            ("conf/eth0/accept_dad", "1"),
            ("conf/eth0/optimistic_dad", "1"),
            ("conf/eth0/use_optimistic", "1"),
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
    fn the_secret_is_written_before_the_mode_that_needs_it() {
        let stable = Addressing::StablePrivacy("2001:db8::1".parse().unwrap());
        let settings = Settings {
            addressing: stable,
            ..SETTINGS
        };
        let text = |(path, value): (PathBuf, String)| format!("{}={value}", path.display());
        let plan: Vec<_> = plan("eth0", Role::Host, settings)
            .into_iter()
            .map(text)
            .collect();
        let first = [
            "conf/eth0/stable_secret=2001:db8::1",
            "conf/eth0/addr_gen_mode=2",
        ];
        assert_eq!(plan[..2], first);
        let again: Vec<_> = replan("eth0", stable).into_iter().map(text).collect();
        assert_eq!(again, [first[0], "conf/eth0/addr_gen_mode=1", first[1]]);
    }

    #[test]
    fn a_forwarding_host_accepts_advertisements_too() {
        let root = tree("1\n");
        apply(root.path(), "eth0", SETTINGS).unwrap();
        assert_eq!(read(root.path(), "conf/eth0/accept_ra"), "2");
    }

    #[test]
    fn what_is_missing_is_named() {
        let empty = tempfile::tempdir().unwrap();
        assert!(matches!(
            apply(empty.path(), "eth0", SETTINGS),
            Err(Error::NoIpv6 { .. })
        ));
        let root = tree("0");
        std::fs::remove_file(root.path().join("sys/net/ipv6/conf/eth0/addr_gen_mode")).unwrap();
        let error = apply(root.path(), "eth0", SETTINGS)
            .unwrap_err()
            .to_string();
        assert!(error.contains("`0` to "), "{error}");
        assert!(error.contains("conf/eth0/addr_gen_mode"), "{error}");
        assert_eq!(read(root.path(), "conf/eth0/autoconf"), "1", "the others");
    }
}
