//! Where the BMC can be reached: its LAN channels, their MAC and IP addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Error;
use super::command::{self, LanParameter};
use super::talk::{Talk, Transport};
use crate::net::MacAddress;

/// The channels that may be anything (table 6-1): 0 is IPMB, 12 to 15 are fixed.
const CHANNELS: std::ops::RangeInclusive<u8> = 1..=11;
/// IPv6 addresses of each kind that are looked at. A BMC has one or two.
const MAX_ADDRESSES: u8 = 16;
/// RMCP+ (IPMI 2.0, 13.1.2).
const PORT: u16 = 623;

/// A LAN channel as the BMC describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lan {
    pub channel: u8,
    pub mac: Option<MacAddress>,
    pub ipv4: Option<Ipv4Addr>,
    /// Those in use: static ones first, then what DHCPv6 and router advertisements gave.
    pub ipv6: Vec<Ipv6Addr>,
}

impl Lan {
    /// Where the control plane reaches the BMC: a usable IPv6 address rather than IPv4.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        let ipv6 = self.ipv6.iter().copied().find(usable_ipv6);
        let ipv4 = self.ipv4.filter(usable_ipv4).map(IpAddr::V4);
        let ip = ipv6.map(IpAddr::V6).or(ipv4)?;
        Some(SocketAddr::new(ip, PORT))
    }
}

impl fmt::Display for Lan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LAN channel {}", self.channel)?;
        match self.mac {
            Some(mac) => write!(f, ", MAC {mac}")?,
            None => f.write_str(", no MAC")?,
        }
        match self.address() {
            Some(address) => write!(f, ", {address}"),
            None => f.write_str(", no usable address"),
        }
    }
}

/// Global or unique local: what routers forward.
fn usable_ipv6(address: &Ipv6Addr) -> bool {
    !(address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || address.is_unicast_link_local()
        || address.to_ipv4_mapped().is_some())
}

fn usable_ipv4(address: &Ipv4Addr) -> bool {
    !(address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || address.is_broadcast()
        || address.is_link_local())
}

/// The channel to report, with its MAC and address: the first that has both. A second port
/// that is not cabled, or the port to the host itself, has one of them at most.
#[must_use]
pub fn choose(channels: &[Lan]) -> Option<(&Lan, MacAddress, SocketAddr)> {
    channels
        .iter()
        .find_map(|lan| Some((lan, lan.mac?, lan.address()?)))
}

/// Asks for all LAN channels. A parameter that a BMC does not know is one that it has not;
/// where it does not talk any more, the list ends, and the error says so.
pub fn channels<T: Transport>(talk: &mut Talk<T>) -> (Vec<Lan>, Option<Error>) {
    let mut found = Vec::new();
    for channel in CHANNELS {
        match one(talk, channel) {
            Ok(lan) => found.extend(lan),
            Err(error) => return (found, Some(error)),
        }
    }
    (found, None)
}

/// The channel, if it is a LAN.
fn one<T: Transport>(talk: &mut Talk<T>, channel: u8) -> Result<Option<Lan>, Error> {
    let info = answered(talk.ask(&command::channel_info(channel)))?;
    match info.map(|data| command::is_lan(&data)) {
        Some(Ok(true)) => describe(talk, channel).map(Some),
        _ => Ok(None),
    }
}

fn describe<T: Transport>(talk: &mut Talk<T>, channel: u8) -> Result<Lan, Error> {
    use LanParameter as P;
    let mut get = |parameter, set, parse: &mut dyn FnMut(&[u8])| {
        let request = command::lan_parameter(channel, parameter, set);
        answered(talk.ask(&request)).map(|data| data.iter().for_each(|data| parse(data)))
    };
    let mut lan = Lan {
        channel,
        ..Lan::default()
    };
    let (mut v4, mut v6) = (true, false);
    get(P::AddressingEnables, 0, &mut |data| {
        (v4, v6) = command::addressing_enables(data).unwrap_or((true, false));
    })?;
    get(P::MacAddress, 0, &mut |data| {
        lan.mac = command::mac_address(data).ok().flatten();
    })?;
    if v4 {
        get(P::Ipv4Address, 0, &mut |data| {
            lan.ipv4 = command::ipv4_address(data).ok();
        })?;
    }
    if v6 {
        let mut counts = (0, 0);
        get(P::Ipv6Status, 0, &mut |data| {
            counts = command::ipv6_counts(data).unwrap_or_default();
        })?;
        let kinds = [
            (P::Ipv6StaticAddress, counts.0),
            (P::Ipv6DynamicAddress, counts.1),
        ];
        for (kind, count) in kinds {
            for set in 0..count.min(MAX_ADDRESSES) {
                get(kind, set, &mut |data| {
                    let address = command::ipv6_address(kind, data);
                    lan.ipv6.extend(address.ok().flatten());
                })?;
            }
        }
    }
    Ok(lan)
}

/// A refusal is an answer, there is no such thing; "busy" for seconds on end is none.
fn answered(answer: Result<Vec<u8>, Error>) -> Result<Option<Vec<u8>>, Error> {
    match answer {
        Ok(data) => Ok(Some(data)),
        Err(Error::Refused { code, .. }) if !code.is_transient() => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
#[path = "lan_tests.rs"]
mod tests;
