//! Router advertisements (RFC 4861 section 4.2), as far as an operator needs to know why one
//! gave no address. Pure and strict: the bytes come from whoever can send on the link. The
//! kernel acts on advertisements by itself; nothing here changes what it does.

use std::fmt;
use std::net::Ipv6Addr;

/// ICMPv6 type of a router advertisement.
const ROUTER_ADVERTISEMENT: u8 = 134;
/// Type to retransmission timer.
const HEADER: usize = 16;
/// Options come in units of 8 octets, RFC 4861 section 4.6.
const UNIT: usize = 8;
/// Prefix information, RFC 4861 section 4.6.2.
const PREFIX: u8 = 3;
/// MTU, RFC 4861 section 4.6.4.
const MTU: u8 = 5;
/// Recursive DNS servers, RFC 8106 section 5.1.
const RDNSS: u8 = 25;
/// Prefixes of one advertisement that are kept; honest ones have a handful.
const KEPT_PREFIXES: usize = 16;

/// What one router said last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertisement {
    /// Seconds; zero: not a default router.
    pub router_lifetime: u16,
    /// M: addresses by DHCPv6.
    pub managed: bool,
    /// O: other settings by DHCPv6.
    pub other: bool,
    /// Bytes.
    pub mtu: Option<u32>,
    pub prefixes: Vec<Prefix>,
    /// Whether it names DNS servers.
    pub dns: bool,
}

/// A prefix information option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    pub address: Ipv6Addr,
    pub length: u8,
    /// L: hosts of this prefix are on the link.
    pub on_link: bool,
    /// A: hosts make themselves an address of it.
    pub autonomous: bool,
    /// Seconds; `u32::MAX` is forever.
    pub valid: u32,
    /// Seconds; `u32::MAX` is forever.
    pub preferred: u32,
}

/// Why bytes are no router advertisement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{0} bytes are no router advertisement, which has 16 at least")]
    Short(usize),
    #[error("ICMPv6 type {0} code {1} is no router advertisement")]
    Type(u8, u8),
    #[error("an option of type {kind} claims {claimed} bytes, {available} are there")]
    Option {
        kind: u8,
        claimed: usize,
        available: usize,
    },
}

/// Reads an ICMPv6 message.
///
/// # Errors
/// It is none, or one of its options is malformed (RFC 4861 section 6.1.2).
pub fn parse(message: &[u8]) -> Result<Advertisement, Error> {
    let (header, mut options) = message
        .split_first_chunk::<HEADER>()
        .ok_or(Error::Short(message.len()))?;
    let [
        kind,
        code,
        _,
        _,
        _,
        flags,
        lifetime @ ..,
        _,
        _,
        _,
        _,
        _,
        _,
        _,
        _,
    ] = *header;
    if (kind, code) != (ROUTER_ADVERTISEMENT, 0) {
        return Err(Error::Type(kind, code));
    }
    let mut found = Advertisement {
        router_lifetime: u16::from_be_bytes(lifetime),
        managed: flags & 0x80 != 0,
        other: flags & 0x40 != 0,
        mtu: None,
        prefixes: Vec::new(),
        dns: false,
    };
    while let [kind, units, ..] = *options {
        let claimed = usize::from(units) * UNIT;
        let wrong = Error::Option {
            kind,
            claimed,
            available: options.len(),
        };
        if claimed == 0 {
            return Err(wrong);
        }
        let (option, rest) = options.split_at_checked(claimed).ok_or(wrong)?;
        options = rest;
        match kind {
            PREFIX => {
                let prefix = prefix(option).ok_or(wrong)?;
                if found.prefixes.len() < KEPT_PREFIXES {
                    found.prefixes.push(prefix);
                }
            }
            MTU => {
                let octets = option.get(4..8).and_then(|o| o.first_chunk());
                found.mtu = Some(u32::from_be_bytes(*octets.ok_or(wrong)?));
            }
            RDNSS => found.dns = true,
            _ => {}
        }
    }
    match *options {
        [] => Ok(found),
        [kind, ..] => Err(Error::Option {
            kind,
            claimed: UNIT,
            available: options.len(),
        }),
    }
}

/// Type, length 4, prefix length, flags, two lifetimes, 4 reserved octets, prefix.
fn prefix(option: &[u8]) -> Option<Prefix> {
    let option: &[u8; 32] = option.try_into().ok()?;
    let word = |at: usize| {
        option
            .get(at..)?
            .first_chunk()
            .map(|o| u32::from_be_bytes(*o))
    };
    Some(Prefix {
        address: Ipv6Addr::from(*option.last_chunk::<16>()?),
        length: option[2],
        on_link: option[3] & 0x80 != 0,
        autonomous: option[3] & 0x40 != 0,
        valid: word(4)?,
        preferred: word(8)?,
    })
}

impl Prefix {
    /// Why no address comes of this prefix, or none that may be used (RFC 4862 section 5.5.3).
    #[must_use]
    pub fn obstacle(&self) -> Option<&'static str> {
        if !self.autonomous {
            Some("its autonomous flag (A) is off")
        } else if self.address.is_unicast_link_local() || self.address.is_multicast() {
            Some("it is link-local or multicast")
        } else if self.length != 64 {
            Some("it is not a /64")
        } else if self.valid == 0 {
            Some("its valid lifetime is zero")
        } else if self.preferred > self.valid {
            Some("its preferred lifetime exceeds its valid lifetime")
        } else if self.preferred == 0 {
            Some("its preferred lifetime is zero")
        } else {
            None
        }
    }
}

/// `2001:db8::/64 (L A, valid 86400 s, preferred 14400 s)`.
impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} (", self.address, self.length)?;
        for (set, letter) in [(self.on_link, 'L'), (self.autonomous, 'A')] {
            if set {
                write!(f, "{letter} ")?;
            }
        }
        let time = |f: &mut fmt::Formatter<'_>, seconds| match seconds {
            u32::MAX => f.write_str("forever"),
            seconds => write!(f, "{seconds} s"),
        };
        f.write_str("valid ")?;
        time(f, self.valid)?;
        f.write_str(", preferred ")?;
        time(f, self.preferred)?;
        f.write_str(")")
    }
}

/// `lifetime 1800 s, flags M, MTU 1500, prefixes …`.
impl fmt::Display for Advertisement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lifetime {} s", self.router_lifetime)?;
        match (self.managed, self.other) {
            (false, false) => {}
            (managed, other) => {
                f.write_str(", flags")?;
                for (set, letter) in [(managed, " M"), (other, " O")] {
                    if set {
                        f.write_str(letter)?;
                    }
                }
            }
        }
        if let Some(mtu) = self.mtu {
            write!(f, ", MTU {mtu}")?;
        }
        if self.prefixes.is_empty() {
            f.write_str(", no prefix")?;
        }
        for prefix in &self.prefixes {
            write!(f, ", prefix {prefix}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A header with these flags and lifetime, and options behind it.
    fn message(flags: u8, lifetime: u16, options: &[&[u8]]) -> Vec<u8> {
        let [high, low] = lifetime.to_be_bytes();
        let mut bytes = vec![134, 0, 0, 0, 64, flags, high, low, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend(options.concat());
        bytes
    }

    fn option(length: u8, flags: u8, valid: u32, preferred: u32) -> Vec<u8> {
        let mut bytes = vec![3, 4, length, flags];
        bytes.extend(valid.to_be_bytes());
        bytes.extend(preferred.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend("2001:db8::".parse::<Ipv6Addr>().unwrap().octets());
        bytes
    }

    #[test]
    fn a_whole_advertisement() {
        let bytes = message(
            0xc0,
            1800,
            &[
                &[1, 1, 2, 0, 0, 0, 0, 0x10],
                &[5, 1, 0, 0, 0, 0, 5, 0],
                &option(64, 0xc0, 86400, 14400),
                &[
                    25, 3, 0, 0, 0, 0, 0, 60, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                    1,
                ],
            ],
        );
        let found = parse(&bytes).unwrap();
        assert!(found.managed && found.other && found.dns);
        assert_eq!(
            found.to_string(),
            "lifetime 1800 s, flags M O, MTU 1280, \
             prefix 2001:db8::/64 (L A valid 86400 s, preferred 14400 s)"
        );
        assert_eq!(found.prefixes[0].obstacle(), None);
        let empty = parse(&message(0, 0, &[])).unwrap();
        assert_eq!(empty.to_string(), "lifetime 0 s, no prefix");
    }

    #[test]
    fn what_keeps_a_prefix_from_giving_an_address() {
        for (length, flags, valid, preferred, expected) in [
            (64, 0x40, u32::MAX, u32::MAX, None),
            (64, 0x80, 60, 60, Some("autonomous")),
            (48, 0xc0, 60, 60, Some("not a /64")),
            (128, 0xc0, 60, 60, Some("not a /64")),
            (64, 0xc0, 0, 0, Some("valid lifetime is zero")),
            (64, 0xc0, 60, 0, Some("preferred lifetime is zero")),
            (64, 0xc0, 60, 61, Some("exceeds")),
        ] {
            let bytes = message(0, 60, &[&option(length, flags, valid, preferred)]);
            let prefix = parse(&bytes).unwrap().prefixes[0];
            match (prefix.obstacle(), expected) {
                (None, None) => {}
                (Some(said), Some(expected)) => assert!(said.contains(expected), "{said}"),
                other => panic!("{prefix}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_is_malformed_is_refused() {
        let short = option(64, 0xc0, 60, 60);
        for (bytes, expected) in [
            (vec![134, 0, 0], Error::Short(3)),
            (vec![133; 16], Error::Type(133, 133)),
            (
                message(0, 0, &[&[3, 0, 0, 0, 0, 0, 0, 0]]),
                Error::Option {
                    kind: 3,
                    claimed: 0,
                    available: 8,
                },
            ),
            (
                message(0, 0, &[&[3, 1, 0, 0, 0, 0, 0, 0]]),
                Error::Option {
                    kind: 3,
                    claimed: 8,
                    available: 8,
                },
            ),
            (
                message(0, 0, &[&short[..24]]),
                Error::Option {
                    kind: 3,
                    claimed: 32,
                    available: 24,
                },
            ),
            (
                message(0, 0, &[&[5]]),
                Error::Option {
                    kind: 5,
                    claimed: 8,
                    available: 1,
                },
            ),
        ] {
            assert_eq!(parse(&bytes), Err(expected), "{bytes:x?}");
        }
    }

    #[test]
    fn a_flood_of_prefixes_is_bounded() {
        let one = option(64, 0xc0, 60, 60);
        let many = vec![one.as_slice(); 100];
        let found = parse(&message(0, 0, &many)).unwrap();
        assert_eq!(found.prefixes.len(), KEPT_PREFIXES);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = bytes;
            let _ = parse(&bytes);
            bytes.splice(0..0, message(0, 0, &[]));
            if let Ok(found) = parse(&bytes) {
                prop_assert!(!found.to_string().is_empty());
            }
        }
    }
}
