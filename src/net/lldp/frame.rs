//! LLDP frames (IEEE 802.1AB-2016), bytes to [`Frame`]. Pure and strict: anybody on the
//! link can send one.
//!
//! Broken framing and broken mandatory TLVs refuse the frame. A broken optional TLV is
//! left out, as 802.1AB clause 9.2.8 wants of a receiver.

use std::fmt;
use std::net::IpAddr;

use crate::control::text::printable;
use crate::net::mac::MacAddress;

/// Ethertype of LLDP, 802.1AB clause 7.
pub const ETHERTYPE: u16 = 0x88cc;
/// The destinations of 802.1AB clause 7.1: nearest bridge, nearest non-TPMR bridge,
/// nearest customer bridge.
pub const DESTINATIONS: [MacAddress; 3] = [
    MacAddress([0x01, 0x80, 0xc2, 0, 0, 0x0e]),
    MacAddress([0x01, 0x80, 0xc2, 0, 0, 0x03]),
    MacAddress([0x01, 0x80, 0xc2, 0, 0, 0x00]),
];
/// Longest LLDPDU: LLDP has no fragments, so it is what an Ethernet frame carries.
pub const MAX_LLDPDU: usize = 1500;
/// Two addresses and an Ethertype.
const ETHERNET_HEADER: usize = 14;
/// Customer and service VLAN tags, 802.1Q; tagged LLDP is wrong, but switches send it.
const VLAN_TAGS: [u16; 2] = [0x8100, 0x88a8];
/// Tags looked behind: a service and a customer tag.
const MAX_TAGS: usize = 2;
/// Longest chassis or port ID, subtype not counted (clauses 8.5.2.3 and 8.5.3.3).
const MAX_ID: usize = 255;
/// Management addresses kept.
const MAX_ADDRESSES: usize = 8;

/// TLV types, table 8-1.
pub(super) mod tlv {
    pub const END: u8 = 0;
    pub const CHASSIS_ID: u8 = 1;
    pub const PORT_ID: u8 = 2;
    pub const TTL: u8 = 3;
    pub const PORT_DESCRIPTION: u8 = 4;
    pub const SYSTEM_NAME: u8 = 5;
    pub const SYSTEM_DESCRIPTION: u8 = 6;
    pub const CAPABILITIES: u8 = 7;
    pub const MANAGEMENT_ADDRESS: u8 = 8;
}

/// What one frame says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The sending port's own address, from the Ethernet header.
    pub source: MacAddress,
    pub chassis: Id,
    pub port: Id,
    /// Seconds; 0 means: forget me.
    pub ttl: u16,
    pub port_description: String,
    pub system_name: String,
    pub system_description: String,
    pub capabilities: Option<Capabilities>,
    pub management: Vec<IpAddr>,
}

/// A chassis or port ID. Which of them has which subtypes is clauses 8.5.2.2 and 8.5.3.2.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Id {
    Mac(MacAddress),
    Network(IpAddr),
    /// Interface name or alias, component, circuit, or locally assigned: plain text, or bytes in
    /// hexadecimal.
    Text(String),
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mac(mac) => mac.fmt(f),
            Self::Network(address) => address.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// What the sender can be, and what of that is switched on; bits of table 8-4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    pub system: u16,
    pub enabled: u16,
}

impl Capabilities {
    pub const BRIDGE: u16 = 1 << 2;
    pub const ROUTER: u16 = 1 << 4;
    pub const STATION_ONLY: u16 = 1 << 7;
    pub const CUSTOMER_VLAN_BRIDGE: u16 = 1 << 8;
    pub const SERVICE_VLAN_BRIDGE: u16 = 1 << 9;

    /// What is switched on, by name.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let names = NAMES.iter().enumerate();
        names.filter_map(move |(bit, name)| (self.enabled >> bit & 1 == 1).then_some(*name))
    }

    /// Forwards packets: an enabled bridge (of any kind) or router.
    #[must_use]
    pub fn switch(self) -> bool {
        let forwards =
            Self::BRIDGE | Self::ROUTER | Self::CUSTOMER_VLAN_BRIDGE | Self::SERVICE_VLAN_BRIDGE;
        self.enabled & forwards != 0
    }
}

/// The bits of table 8-4, from the lowest.
const NAMES: [&str; 11] = [
    "other",
    "repeater",
    "bridge",
    "access point",
    "router",
    "telephone",
    "cable device",
    "station",
    "customer VLAN bridge",
    "service VLAN bridge",
    "two-port MAC relay",
];

/// Why a frame was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("a frame of {0} bytes has no whole Ethernet header")]
    NoHeader(usize),
    #[error("Ethertype {0:#06x} is not LLDP's 0x88cc")]
    NotLldp(u16),
    #[error("the sender's address is a group or zero")]
    Source,
    #[error("an LLDPDU of {0} bytes is longer than 1500")]
    TooLong(usize),
    #[error("TLV type {kind} of {length} bytes ends behind the frame's end")]
    Truncated { kind: u8, length: usize },
    #[error("TLV type {found} stands where type {expected} has to")]
    Order { expected: u8, found: u8 },
    #[error("the frame ends before the mandatory TLV type {0}")]
    Missing(u8),
    #[error("a second TLV of the mandatory type {0}")]
    Duplicate(u8),
    #[error("TLV type {kind} cannot have {length} bytes")]
    Length { kind: u8, length: usize },
    #[error("TLV type {kind} has the reserved ID subtype {subtype}")]
    Subtype { kind: u8, subtype: u8 },
    #[error("TLV type {0} holds an ID without content")]
    EmptyId(u8),
}

/// Reads a whole Ethernet frame, VLAN tags allowed.
///
/// # Errors
/// See [`Error`].
pub fn parse(frame: &[u8]) -> Result<Frame, Error> {
    let no_header = || Error::NoHeader(frame.len());
    let (header, mut rest) = frame
        .split_first_chunk::<ETHERNET_HEADER>()
        .ok_or_else(no_header)?;
    let [_, _, _, _, _, _, source @ .., high, low] = *header;
    let source = MacAddress::from_bytes(&source)
        .filter(|mac| mac.0[0] & 1 == 0)
        .ok_or(Error::Source)?;
    let mut ethertype = u16::from_be_bytes([high, low]);
    for _ in 0..MAX_TAGS {
        if VLAN_TAGS.contains(&ethertype) {
            let (tag, behind) = rest.split_first_chunk::<4>().ok_or_else(no_header)?;
            ethertype = u16::from_be_bytes([tag[2], tag[3]]);
            rest = behind;
        }
    }
    if ethertype != ETHERTYPE {
        return Err(Error::NotLldp(ethertype));
    }
    parse_lldpdu(source, rest)
}

fn parse_lldpdu(source: MacAddress, lldpdu: &[u8]) -> Result<Frame, Error> {
    if lldpdu.len() > MAX_LLDPDU {
        return Err(Error::TooLong(lldpdu.len()));
    }
    let mut rest = lldpdu;
    let chassis = chassis_id(mandatory(&mut rest, tlv::CHASSIS_ID)?)?;
    let port = port_id(mandatory(&mut rest, tlv::PORT_ID)?)?;
    let ttl = mandatory(&mut rest, tlv::TTL)?;
    let [ttl_high, ttl_low] = *ttl.first_chunk().ok_or(Error::Length {
        kind: tlv::TTL,
        length: ttl.len(),
    })?;
    let mut frame = Frame {
        source,
        chassis,
        port,
        ttl: u16::from_be_bytes([ttl_high, ttl_low]),
        port_description: String::new(),
        system_name: String::new(),
        system_description: String::new(),
        capabilities: None,
        management: Vec::new(),
    };
    // The end TLV may be left out; what follows it is Ethernet's padding.
    while let Some((kind, value)) = next(&mut rest)? {
        match kind {
            tlv::END if value.is_empty() => break,
            tlv::END => {
                let length = value.len();
                return Err(Error::Length { kind, length });
            }
            tlv::CHASSIS_ID | tlv::PORT_ID | tlv::TTL => return Err(Error::Duplicate(kind)),
            tlv::PORT_DESCRIPTION => first(&mut frame.port_description, value),
            tlv::SYSTEM_NAME => first(&mut frame.system_name, value),
            tlv::SYSTEM_DESCRIPTION => first(&mut frame.system_description, value),
            tlv::CAPABILITIES => {
                if let ([a, b, c, d], None) = (value, frame.capabilities) {
                    frame.capabilities = Some(Capabilities {
                        system: u16::from_be_bytes([*a, *b]),
                        enabled: u16::from_be_bytes([*c, *d]),
                    });
                }
            }
            tlv::MANAGEMENT_ADDRESS if frame.management.len() < MAX_ADDRESSES => {
                frame.management.extend(management_address(value));
            }
            // Organizationally specific, reserved: of no interest.
            _ => {}
        }
    }
    Ok(frame)
}

/// Cuts the next TLV off `rest`: 7 bits of type, 9 bits of length, value. Nothing when
/// `rest` is empty.
fn next<'a>(rest: &mut &'a [u8]) -> Result<Option<(u8, &'a [u8])>, Error> {
    let (kind, length, behind) = match **rest {
        [] => return Ok(None),
        [high, low, ref behind @ ..] => {
            let length = usize::from(u16::from_be_bytes([high & 1, low]));
            (high >> 1, length, behind)
        }
        [high] => {
            let kind = high >> 1;
            return Err(Error::Truncated { kind, length: 0 });
        }
    };
    let (value, behind) = behind
        .split_at_checked(length)
        .ok_or(Error::Truncated { kind, length })?;
    *rest = behind;
    Ok(Some((kind, value)))
}

fn mandatory<'a>(rest: &mut &'a [u8], expected: u8) -> Result<&'a [u8], Error> {
    match next(rest)? {
        Some((kind, value)) if kind == expected => Ok(value),
        Some((found, _)) => Err(Error::Order { expected, found }),
        None => Err(Error::Missing(expected)),
    }
}

fn chassis_id(value: &[u8]) -> Result<Id, Error> {
    let kind = tlv::CHASSIS_ID;
    match id(kind, value)? {
        // Chassis component, interface alias, port component, interface name, local.
        (1..=3 | 6 | 7, body) => text_id(kind, body),
        (4, body) => mac_id(kind, body),
        (5, body) => network_id(kind, body),
        (subtype, _) => Err(Error::Subtype { kind, subtype }),
    }
}

fn port_id(value: &[u8]) -> Result<Id, Error> {
    let kind = tlv::PORT_ID;
    match id(kind, value)? {
        // Interface alias, port component, interface name, agent circuit, local.
        (1 | 2 | 5..=7, body) => text_id(kind, body),
        (3, body) => mac_id(kind, body),
        (4, body) => network_id(kind, body),
        (subtype, _) => Err(Error::Subtype { kind, subtype }),
    }
}

/// Subtype and content of an ID.
fn id(kind: u8, value: &[u8]) -> Result<(u8, &[u8]), Error> {
    match value {
        [subtype, body @ ..] if !body.is_empty() && body.len() <= MAX_ID => Ok((*subtype, body)),
        _ => {
            let length = value.len();
            Err(Error::Length { kind, length })
        }
    }
}

fn mac_id(kind: u8, body: &[u8]) -> Result<Id, Error> {
    let length = body.len() + 1;
    let octets: [u8; 6] = body
        .try_into()
        .map_err(|_| Error::Length { kind, length })?;
    let mac = MacAddress::from_bytes(&octets).ok_or(Error::EmptyId(kind))?;
    Ok(Id::Mac(mac))
}

fn network_id(kind: u8, body: &[u8]) -> Result<Id, Error> {
    let length = body.len() + 1;
    let (family, address) = body.split_first().ok_or(Error::EmptyId(kind))?;
    match ip_address(*family, address) {
        Some(address) => Ok(Id::Network(address)),
        None => Err(Error::Length { kind, length }),
    }
}

/// Text as it stands where it is plain; anything else byte by byte, so that two IDs never look
/// the same.
fn text_id(kind: u8, body: &[u8]) -> Result<Id, Error> {
    let end = body.iter().rposition(|byte| *byte != 0);
    let body = &body[..end.map_or(0, |last| last + 1)];
    if body.trim_ascii().is_empty() {
        return Err(Error::EmptyId(kind));
    }
    if let Ok(text) = std::str::from_utf8(body)
        && printable(text, MAX_ID) == text
    {
        return Ok(Id::Text(text.to_owned()));
    }
    let bytes: Vec<String> = body.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Id::Text(bytes.join(":")))
}

/// IANA address family numbers: 1 is IPv4, 2 is IPv6.
fn ip_address(family: u8, octets: &[u8]) -> Option<IpAddr> {
    match family {
        1 => Some(IpAddr::from(<[u8; 4]>::try_from(octets).ok()?)),
        2 => Some(IpAddr::from(<[u8; 16]>::try_from(octets).ok()?)),
        _ => None,
    }
}

/// Clause 8.5.9: length of family and address, both, interface numbering subtype and
/// number, length of an object identifier, the identifier.
fn management_address(value: &[u8]) -> Option<IpAddr> {
    let (length, rest) = value.split_first()?;
    let (address, rest) = rest.split_at_checked(usize::from(*length))?;
    let (_interface, oid) = rest.split_first_chunk::<5>()?;
    let (oid_length, oid) = oid.split_first()?;
    let (family, octets) = address.split_first()?;
    if oid.len() != usize::from(*oid_length) {
        return None;
    }
    ip_address(*family, octets)
}

/// The first of a TLV that may stand only once counts.
fn first(text: &mut String, value: &[u8]) {
    if text.is_empty() && value.len() <= MAX_ID {
        let value = String::from_utf8_lossy(value);
        *text = printable(value.trim_matches('\0'), MAX_ID);
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
