//! DNS servers and search domains learned from router advertisements, and the
//! resolv.conf that says so.

use std::fmt::Write as _;
use std::io;
use std::net::Ipv6Addr;
use std::path::Path;

use tokio::time::Instant;

use super::nd_option::{DnsOption, DomainName, Lifetime};

/// Entries kept of each kind and link. When there are more, the one that ends first goes
/// (RFC 8106 section 6.1).
const KEPT: usize = 16;
/// `MAXNS`, resolv.h: what a stub resolver reads.
const WRITTEN_SERVERS: usize = 3;
/// `MAXDNSRCH`, resolv.h.
const WRITTEN_DOMAINS: usize = 6;
/// `search` lines of more than 256 characters were cut before glibc 2.26.
const SEARCH_LINE: usize = 256;

/// What is valid at the moment, in the order in which it was learned.
#[derive(Debug, Clone, Default)]
pub struct Servers {
    servers: Vec<Entry<Ipv6Addr>>,
    domains: Vec<Entry<DomainName>>,
}

#[derive(Debug, Clone)]
struct Entry<T> {
    /// The link that it was learned on: another network may not know the same names.
    index: u32,
    value: T,
    /// None: forever.
    until: Option<Instant>,
}

impl Servers {
    /// Takes in an option that came in on the link `index` at `now`; true when what
    /// [`Self::render`] says may have changed.
    pub fn learn(&mut self, index: u32, option: DnsOption, now: Instant) -> bool {
        match option {
            DnsOption::Servers { lifetime, servers } => {
                let mut changed = false;
                for address in servers {
                    changed |= learn(&mut self.servers, index, address, lifetime, now);
                }
                changed
            }
            DnsOption::Search { lifetime, domains } => {
                let mut changed = false;
                for domain in domains {
                    changed |= learn(&mut self.domains, index, domain, lifetime, now);
                }
                changed
            }
        }
    }

    /// Drops what has ended by `now`; true when something had.
    pub fn expire(&mut self, now: Instant) -> bool {
        let before = self.servers.len() + self.domains.len();
        let valid = |until: Option<Instant>| until.is_none_or(|until| until > now);
        self.servers.retain(|entry| valid(entry.until));
        self.domains.retain(|entry| valid(entry.until));
        before != self.servers.len() + self.domains.len()
    }

    /// When the next entry ends.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Instant> {
        let servers = self.servers.iter().filter_map(|entry| entry.until);
        let domains = self.domains.iter().filter_map(|entry| entry.until);
        servers.chain(domains).min()
    }

    /// The servers to ask through the link `index`: its own; when it has announced none,
    /// those of other links, but for link-local ones.
    #[must_use]
    pub fn servers_for(&self, index: u32) -> Vec<Ipv6Addr> {
        own_or_all(&self.servers, index, |address| {
            !address.is_unicast_link_local()
        })
    }

    /// The search list to use on the link `index`.
    #[must_use]
    pub fn domains_for(&self, index: u32) -> Vec<DomainName> {
        own_or_all(&self.domains, index, |_| true)
    }

    /// The text of resolv.conf; `zone` names a link by its index. Pure.
    #[must_use]
    pub fn render(&self, zone: impl Fn(u32) -> Option<String>) -> String {
        let mut text = String::from("# From router advertisements (RFC 8106).\n");
        let mut servers = Vec::new();
        for Entry { index, value, .. } in &self.servers {
            let server = if value.is_unicast_link_local() {
                let Some(zone) = zone(*index) else { continue };
                format!("{value}%{zone}")
            } else {
                value.to_string()
            };
            if !servers.contains(&server) && servers.len() < WRITTEN_SERVERS {
                servers.push(server);
            }
        }
        for server in servers {
            let _ = writeln!(text, "nameserver {server}");
        }
        let mut search = String::from("search");
        let mut domains = Vec::new();
        for Entry { value, .. } in &self.domains {
            if !domains.contains(value) && domains.len() < WRITTEN_DOMAINS {
                domains.push(value.clone());
            }
        }
        for domain in domains {
            let domain = domain.to_string();
            if search.len() + 1 + domain.len() <= SEARCH_LINE {
                search.push(' ');
                search.push_str(&domain);
            }
        }
        if search != "search" {
            text.push_str(&search);
            text.push('\n');
        }
        text
    }
}

fn own_or_all<T: Clone + PartialEq>(
    entries: &[Entry<T>],
    index: u32,
    elsewhere: impl Fn(&T) -> bool,
) -> Vec<T> {
    let own = entries.iter().filter(|entry| entry.index == index);
    let own: Vec<_> = own.map(|entry| entry.value.clone()).collect();
    if !own.is_empty() {
        return own;
    }
    let mut all = Vec::new();
    for Entry { value, .. } in entries {
        if elsewhere(value) && !all.contains(value) {
            all.push(value.clone());
        }
    }
    all
}

fn learn<T: PartialEq>(
    entries: &mut Vec<Entry<T>>,
    index: u32,
    value: T,
    lifetime: Lifetime,
    now: Instant,
) -> bool {
    let known = |entry: &Entry<T>| entry.value == value && entry.index == index;
    let position = entries.iter().position(known);
    let until = match lifetime {
        Lifetime::For(time) if time.is_zero() => {
            return position.map(|at| entries.remove(at)).is_some();
        }
        Lifetime::For(time) => Some(now + time),
        Lifetime::Forever => None,
    };
    if let Some(entry) = position.and_then(|at| entries.get_mut(at)) {
        entry.until = until;
        return false;
    }
    let own = || {
        let numbered = entries.iter().enumerate();
        numbered.filter(|(_, entry)| entry.index == index)
    };
    if own().count() >= KEPT {
        let ends = |(_, entry): &(usize, &Entry<T>)| (entry.until.is_none(), entry.until);
        let first = own().min_by_key(ends).map(|(at, _)| at);
        first.map(|at| entries.remove(at));
    }
    entries.push(Entry {
        index,
        value,
        until,
    });
    true
}

/// Puts `text` in the place of the file at `path` in one step, so that no reader ever
/// sees half of it.
///
/// # Errors
/// The directory cannot be made or the file cannot be written or renamed.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    std::fs::write(&name, text)?;
    std::fs::rename(&name, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn seconds(seconds: u64) -> Lifetime {
        Lifetime::For(Duration::from_secs(seconds))
    }

    fn rdnss(lifetime: Lifetime, servers: &[&str]) -> DnsOption {
        DnsOption::Servers {
            lifetime,
            servers: servers.iter().map(|s| s.parse().unwrap()).collect(),
        }
    }

    fn render(servers: &Servers) -> String {
        let text = servers.render(|index| (index == 2).then(|| "eth0".to_owned()));
        let (comment, rest) = text.split_once('\n').unwrap();
        assert!(comment.starts_with('#'));
        rest.to_owned()
    }

    fn domains(names: &[String]) -> DnsOption {
        let mut wire = vec![31, 0, 0, 0, 0, 0, 0, 60];
        for name in names {
            for label in name.split('.') {
                wire.push(label.len() as u8);
                wire.extend(label.bytes());
            }
            wire.push(0);
        }
        wire.resize(wire.len().next_multiple_of(8), 0);
        wire[1] = (wire.len() / 8) as u8;
        super::super::nd_option::parse_options(&wire)
            .unwrap()
            .remove(0)
    }

    #[test]
    fn three_servers_once_each_link_local_with_zone() {
        let mut servers = Servers::default();
        let now = Instant::now();
        assert_eq!(render(&servers), "");
        assert!(servers.learn(2, rdnss(seconds(60), &["fe80::1", "2001:db8::53"]), now));
        assert!(servers.learn(3, rdnss(seconds(60), &["2001:db8::53"]), now));
        assert!(servers.learn(3, rdnss(seconds(60), &["fe80::1"]), now));
        let more = rdnss(Lifetime::Forever, &["2001:db8::54", "2001:db8::55"]);
        assert!(servers.learn(2, more, now));
        // Link 3 has no name any more: its link-local server cannot be written.
        assert_eq!(
            render(&servers),
            "nameserver fe80::1%eth0\nnameserver 2001:db8::53\nnameserver 2001:db8::54\n"
        );
    }

    #[test]
    fn each_link_asks_its_own_servers_first() {
        let mut servers = Servers::default();
        let now = Instant::now();
        servers.learn(2, rdnss(seconds(60), &["fe80::1", "2001:db8::53"]), now);
        servers.learn(3, rdnss(seconds(60), &["2001:db8:1::53"]), now);
        servers.learn(2, domains(&["lab.example".to_owned()]), now);
        let texts =
            |list: Vec<Ipv6Addr>| -> Vec<String> { list.iter().map(ToString::to_string).collect() };
        assert_eq!(texts(servers.servers_for(2)), ["fe80::1", "2001:db8::53"]);
        assert_eq!(texts(servers.servers_for(3)), ["2001:db8:1::53"]);
        assert_eq!(
            texts(servers.servers_for(4)),
            ["2001:db8::53", "2001:db8:1::53"]
        );
        assert_eq!(servers.domains_for(3), servers.domains_for(2));
    }

    #[test]
    fn lifetimes_end() {
        let mut servers = Servers::default();
        let now = Instant::now();
        servers.learn(2, rdnss(seconds(60), &["2001:db8::1"]), now);
        servers.learn(2, rdnss(seconds(90), &["2001:db8::2"]), now);
        servers.learn(2, rdnss(Lifetime::Forever, &["2001:db8::3"]), now);
        assert_eq!(servers.next_expiry(), Some(now + Duration::from_secs(60)));
        assert!(!servers.expire(now + Duration::from_secs(59)));
        assert!(servers.expire(now + Duration::from_secs(60)));
        assert_eq!(
            render(&servers),
            "nameserver 2001:db8::2\nnameserver 2001:db8::3\n"
        );
        assert!(servers.learn(2, rdnss(seconds(0), &["2001:db8::3"]), now));
        assert!(!servers.learn(2, rdnss(seconds(0), &["2001:db8::3"]), now));
        assert_eq!(render(&servers), "nameserver 2001:db8::2\n");
    }

    #[test]
    fn a_flood_pushes_out_what_ends_first() {
        let mut servers = Servers::default();
        let now = Instant::now();
        servers.learn(2, rdnss(Lifetime::Forever, &["2001:db8::aaaa"]), now);
        for number in 0..1000 {
            let address = format!("2001:db8::{number:x}");
            servers.learn(2, rdnss(seconds(10 + number), &[&address]), now);
        }
        assert_eq!(servers.servers.len(), KEPT);
        assert!(render(&servers).starts_with("nameserver 2001:db8::aaaa\n"));
    }

    #[test]
    fn the_search_line_is_bounded() {
        let mut servers = Servers::default();
        let now = Instant::now();
        let names: Vec<_> = (0..6).map(|n| format!("d{n}.{}", "x".repeat(60))).collect();
        servers.learn(2, domains(&["lab.example".to_owned()]), now);
        servers.learn(2, domains(&names), now);
        let text = render(&servers);
        assert!(text.starts_with("search lab.example d0.xxx"), "{text}");
        assert_eq!(text.lines().count(), 1);
        assert!(text.trim_end().len() <= SEARCH_LINE, "{}", text.len());
    }

    #[test]
    fn the_file_is_replaced() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("etc/resolv.conf");
        write(&path, "old, and longer\n").unwrap();
        write(&path, "new\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new\n");
        let entries = std::fs::read_dir(path.parent().unwrap()).unwrap();
        assert_eq!(entries.count(), 1);
    }
}
