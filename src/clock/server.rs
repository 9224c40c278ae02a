//! How an NTP server is written in `ntp_servers`. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// NTP's port.
const PORT: u16 = 123;
/// Longest name of a host, RFC 1035 section 2.3.4.
const MAX_NAME: usize = 253;

/// A server as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    pub host: Host,
    pub port: u16,
}

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    Address {
        address: Ipv6Addr,
        /// Name of the link of a link-local address.
        zone: Option<String>,
    },
    /// To be resolved.
    Name(String),
}

/// A text that names no server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadServer {
    #[error("{0:?} is an IPv4 address; there is only IPv6")]
    V4(String),
    #[error("{0:?} is no NTP server; expected an IPv6 address, [address]:port, or a host name")]
    Syntax(String),
}

impl FromStr for Server {
    type Err = BadServer;

    fn from_str(text: &str) -> Result<Self, BadServer> {
        let shown = || text.chars().take(64).collect::<String>();
        let wrong = || BadServer::Syntax(shown());
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or_else(wrong)?;
                let port = match port {
                    "" => PORT,
                    port => {
                        let port = port.strip_prefix(':').and_then(|port| port.parse().ok());
                        port.filter(|port| *port != 0).ok_or_else(wrong)?
                    }
                };
                (address(host).ok_or_else(wrong)?, port)
            }
            None => match address(text) {
                Some(host) => (host, PORT),
                None if matches!(text.parse(), Ok(IpAddr::V4(_))) => {
                    return Err(BadServer::V4(shown()));
                }
                None if is_name(text) => (Host::Name(text.to_owned()), PORT),
                None => return Err(wrong()),
            },
        };
        Ok(Self { host, port })
    }
}

/// `address` or `address%zone`.
fn address(text: &str) -> Option<Host> {
    let (address, zone) = match text.split_once('%') {
        Some((_, "")) => return None,
        Some((address, zone)) => (address, Some(zone.to_owned())),
        None => (text, None),
    };
    let address = address.parse().ok()?;
    Some(Host::Address { address, zone })
}

fn is_name(text: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !text.is_empty() && text.len() <= MAX_NAME && text.chars().all(good)
}

/// The hosts of the `nameserver` lines of a resolv.conf: in many networks they know the time
/// as well.
#[must_use]
pub fn nameservers(resolv_conf: &str) -> Vec<Server> {
    let lines = resolv_conf.lines();
    let hosts = lines.filter_map(|line| address(line.strip_prefix("nameserver ")?.trim()));
    hosts.map(|host| Server { host, port: PORT }).collect()
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address { address, zone } => {
                write!(f, "[{address}")?;
                if let Some(zone) = zone {
                    write!(f, "%{zone}")?;
                }
                write!(f, "]:{}", self.port)
            }
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers() {
        let good = |text: &str| Ok(text.to_owned());
        let wrong = |text: &str| Err(BadServer::Syntax(text.to_owned()));
        let cases = [
            ("2001:db8::1", good("[2001:db8::1]:123")),
            ("[2001:db8::1]", good("[2001:db8::1]:123")),
            ("[2001:db8::1]:1123", good("[2001:db8::1]:1123")),
            ("fe80::1%eth0", good("[fe80::1%eth0]:123")),
            ("[fe80::1%eth0]:5", good("[fe80::1%eth0]:5")),
            ("ntp.example.org", good("ntp.example.org:123")),
            ("192.0.2.1", Err(BadServer::V4("192.0.2.1".into()))),
            ("", wrong("")),
            ("[2001:db8::1]:0", wrong("[2001:db8::1]:0")),
            ("[2001:db8::1]1", wrong("[2001:db8::1]1")),
            ("[2001:db8::1", wrong("[2001:db8::1")),
            ("[ntp.example.org]", wrong("[ntp.example.org]")),
            ("fe80::1%", wrong("fe80::1%")),
            ("two words", wrong("two words")),
            ("http://ntp/", wrong("http://ntp/")),
        ];
        for (text, expected) in cases {
            let server = text.parse::<Server>().map(|server| server.to_string());
            assert_eq!(server, expected, "{text:?}");
        }
    }

    #[test]
    fn the_dns_servers_of_the_network() {
        let text = "# From router advertisements (RFC 8106).\n\
            nameserver fe80::1%eth0\nnameserver 2001:db8::53\nsearch example.org\n\
            nameserver 192.0.2.1\n";
        let servers: Vec<_> = nameservers(text).iter().map(Server::to_string).collect();
        assert_eq!(servers, ["[fe80::1%eth0]:123", "[2001:db8::53]:123"]);
    }
}
