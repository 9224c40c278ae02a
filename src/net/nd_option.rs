//! DNS options of router advertisements (RFC 8106), as the kernel passes them on in
//! `RTM_NEWNDUSEROPT` messages. Pure and strict: everything in them comes from whoever
//! can send a packet on the link.

use std::fmt;
use std::net::Ipv6Addr;
use std::time::Duration;

/// `RTM_NEWNDUSEROPT`, linux/rtnetlink.h.
const RTM_NEWNDUSEROPT: u16 = 68;
/// `sizeof(struct nlmsghdr)`, linux/netlink.h.
const NETLINK_HEADER: usize = 16;
/// `sizeof(struct nduseroptmsg)`, linux/rtnetlink.h.
const USER_OPTION_HEADER: usize = 16;
/// `AF_INET6`.
const FAMILY_INET6: u8 = 10;
/// ICMPv6 type of a router advertisement, RFC 4861 section 4.2.
const ROUTER_ADVERTISEMENT: u8 = 134;
/// RFC 8106 section 5.1.
const RDNSS: u8 = 25;
/// RFC 8106 section 5.2.
const DNSSL: u8 = 31;
/// Options come in units of 8 octets, RFC 4861 section 4.6.
const UNIT: usize = 8;
/// Longest name on the wire, RFC 1035 section 2.3.4.
const MAX_NAME: usize = 255;
/// Longest label, RFC 1035 section 2.3.4.
const MAX_LABEL: usize = 63;

/// How long something may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lifetime {
    /// Zero means: no longer.
    For(Duration),
    Forever,
}

/// One option that this program understands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DnsOption {
    /// Recursive DNS servers (RDNSS).
    Servers {
        lifetime: Lifetime,
        servers: Vec<Ipv6Addr>,
    },
    /// DNS search list (DNSSL).
    Search {
        lifetime: Lifetime,
        domains: Vec<DomainName>,
    },
}

/// The options of one message and the link they came in on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Interface index.
    pub index: u32,
    pub options: Vec<DnsOption>,
}

/// A domain name of letters, digits, hyphens and underscores: safe to write into
/// resolv.conf.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainName(String);

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a message or an option was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{what} needs {needed} bytes, {available} are there")]
    Short {
        what: &'static str,
        needed: usize,
        available: usize,
    },
    #[error("a {what} option of {length} bytes cannot be")]
    Length { what: &'static str, length: usize },
    #[error("{0} cannot be the address of a DNS server")]
    Server(Ipv6Addr),
    #[error("a label of the search list is longer than 63 bytes or leaves the option")]
    Label,
    #[error("a name of the search list is longer than 255 bytes")]
    NameTooLong,
    #[error("a label of the search list has other characters than letters, digits, - and _")]
    Character,
    #[error("{0} bytes follow the end of the search list that are not padding")]
    Padding(usize),
}

/// Every `RTM_NEWNDUSEROPT` of a netlink datagram, one result each. Other messages and
/// options of other types are passed over.
#[must_use]
pub fn parse_datagram(mut datagram: &[u8]) -> Vec<Result<Options, Error>> {
    let mut found = Vec::new();
    while let Some((length, kind)) = netlink_header(datagram) {
        let Some(message) = datagram.get(NETLINK_HEADER..length) else {
            found.push(Err(short("the netlink message", length, datagram.len())));
            break;
        };
        if kind == RTM_NEWNDUSEROPT {
            found.extend(parse_message(message).transpose());
        }
        // NLMSG_ALIGN
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    found
}

/// Length (header included) and type; nothing at the end of the datagram.
fn netlink_header(datagram: &[u8]) -> Option<(usize, u16)> {
    if datagram.len() < NETLINK_HEADER {
        return None;
    }
    let length = u32::from_ne_bytes(array(datagram, 0)?);
    let length = usize::try_from(length).ok()?.max(NETLINK_HEADER);
    Some((length, u16::from_ne_bytes(array(datagram, 4)?)))
}

/// `struct nduseroptmsg`, then the option or options, then attributes that are not needed.
fn parse_message(message: &[u8]) -> Result<Option<Options>, Error> {
    let header = USER_OPTION_HEADER;
    let too_short = || short("the user option header", header, message.len());
    let [family, _, length @ .., _, _, _, _] = array::<8>(message, 0).ok_or_else(too_short)?;
    let index = u32::from_ne_bytes(array(message, 4).ok_or_else(too_short)?);
    let [icmp_type] = array(message, 8).ok_or_else(too_short)?;
    if family != FAMILY_INET6 || icmp_type != ROUTER_ADVERTISEMENT {
        return Ok(None);
    }
    let length = usize::from(u16::from_ne_bytes([length[0], length[1]]));
    let options = message
        .get(header..header.saturating_add(length))
        .ok_or_else(|| short("the options", header + length, message.len()))?;
    Ok(Some(Options {
        index,
        options: parse_options(options)?,
    }))
}

/// Options one after the other, each with its type and its length in units of 8 octets.
///
/// # Errors
/// The first option that is malformed, though of a type that is understood; none of them
/// counts then.
pub fn parse_options(mut options: &[u8]) -> Result<Vec<DnsOption>, Error> {
    let mut found = Vec::new();
    while let [kind, units, ..] = *options {
        let length = usize::from(units) * UNIT;
        if length == 0 {
            return Err(Error::Length { what: "ND", length });
        }
        let (option, rest) = options
            .split_at_checked(length)
            .ok_or_else(|| short("an option", length, options.len()))?;
        options = rest;
        match kind {
            RDNSS => found.push(servers(option)?),
            DNSSL => found.push(search(option)?),
            _ => {}
        }
    }
    match options {
        [] => Ok(found),
        _ => Err(short("an option", UNIT, options.len())),
    }
}

/// Type, length, 2 reserved octets, lifetime in seconds, then addresses.
fn servers(option: &[u8]) -> Result<DnsOption, Error> {
    let what = "RDNSS";
    let (lifetime, body) = lifetime(what, option)?;
    let (addresses, rest) = body.as_chunks::<16>();
    if addresses.is_empty() || !rest.is_empty() {
        let length = option.len();
        return Err(Error::Length { what, length });
    }
    let servers = addresses
        .iter()
        .map(|octets| {
            let address = Ipv6Addr::from(*octets);
            let wrong = address.is_unspecified()
                || address.is_multicast()
                || address.is_loopback()
                || address.to_ipv4_mapped().is_some();
            if wrong {
                Err(Error::Server(address))
            } else {
                Ok(address)
            }
        })
        .collect::<Result<_, _>>()?;
    Ok(DnsOption::Servers { lifetime, servers })
}

/// As [`servers`], but names in the wire form of RFC 1035 section 3.1 without compression,
/// and zeros up to the next unit.
fn search(option: &[u8]) -> Result<DnsOption, Error> {
    let what = "DNSSL";
    let (lifetime, mut body) = lifetime(what, option)?;
    let mut domains = Vec::new();
    while body.first().is_some_and(|length| *length != 0) {
        let (name, rest) = name(body)?;
        domains.push(name);
        body = rest;
    }
    if body.len() >= UNIT || body.iter().any(|byte| *byte != 0) {
        return Err(Error::Padding(body.len()));
    }
    if domains.is_empty() {
        let length = option.len();
        return Err(Error::Length { what, length });
    }
    Ok(DnsOption::Search { lifetime, domains })
}

fn name(mut wire: &[u8]) -> Result<(DomainName, &[u8]), Error> {
    let mut text = String::new();
    loop {
        let (&length, rest) = wire.split_first().ok_or(Error::Label)?;
        if length == 0 {
            return Ok((DomainName(text), rest));
        }
        let length = usize::from(length);
        let (label, rest) = rest
            .split_at_checked(length)
            .filter(|_| length <= MAX_LABEL)
            .ok_or(Error::Label)?;
        wire = rest;
        if !text.is_empty() {
            text.push('.');
        }
        let edge = |byte: Option<&u8>| byte == Some(&b'-');
        if edge(label.first()) || edge(label.last()) {
            return Err(Error::Character);
        }
        for byte in label {
            if !byte.is_ascii_alphanumeric() && !matches!(byte, b'-' | b'_') {
                return Err(Error::Character);
            }
            text.push(char::from(byte.to_ascii_lowercase()));
        }
        // On the wire: one octet more in front, one for the root.
        if text.len() + 2 > MAX_NAME {
            return Err(Error::NameTooLong);
        }
    }
}

fn lifetime<'a>(what: &'static str, option: &'a [u8]) -> Result<(Lifetime, &'a [u8]), Error> {
    let length = option.len();
    let wrong = || Error::Length { what, length };
    let seconds = u32::from_be_bytes(array(option, 4).ok_or_else(wrong)?);
    let lifetime = match seconds {
        u32::MAX => Lifetime::Forever,
        seconds => Lifetime::For(Duration::from_secs(seconds.into())),
    };
    Ok((lifetime, option.get(UNIT..).ok_or_else(wrong)?))
}

fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

fn short(what: &'static str, needed: usize, available: usize) -> Error {
    Error::Short {
        what,
        needed,
        available,
    }
}

#[cfg(test)]
#[path = "nd_option_tests.rs"]
mod tests;
