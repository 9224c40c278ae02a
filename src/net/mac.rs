//! EUI-48 link-layer addresses.

use std::fmt;
use std::str::FromStr;

/// A 48-bit MAC address; its text is lower-case hexadecimal with colons, the one form
/// that the control plane, the switches' own tools and `ip link` agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// The address when `bytes` is exactly six octets, as Ethernet's always are
    /// (InfiniBand's are twenty), and not all zero (a driver that has none).
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let octets: [u8; 6] = bytes.try_into().ok()?;
        (octets != [0; 6]).then_some(Self(octets))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Why a text is not a MAC address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a MAC address: six pairs of hexadecimal digits with colons are expected")]
pub struct InvalidMac(String);

impl FromStr for MacAddress {
    type Err = InvalidMac;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || InvalidMac(text.chars().take(40).collect());
        let mut octets = [0; 6];
        let mut pairs = text.split(':');
        for octet in &mut octets {
            let pair = pairs.next().ok_or_else(wrong)?;
            if pair.len() != 2 || !pair.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(wrong());
            }
            *octet = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        match pairs.next() {
            None => Ok(Self(octets)),
            Some(_) => Err(wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes() {
        let mac = MacAddress([0x52, 0x54, 0, 0x0a, 0xb, 0xff]);
        assert_eq!(mac.to_string(), "52:54:00:0a:0b:ff");
        assert_eq!("52:54:00:0A:0b:FF".parse(), Ok(mac));
        for wrong in [
            "",
            "52:54:00:0a:0b",
            "52:54:00:0a:0b:ff:00",
            "52:54:00:0a:0b:+f",
            "525:4:00:0a:0b:ff",
            "52-54-00-0a-0b-ff",
        ] {
            assert!(wrong.parse::<MacAddress>().is_err(), "{wrong:?}");
        }
        assert_eq!(MacAddress::from_bytes(&[0; 6]), None);
        assert_eq!(MacAddress::from_bytes(&[1; 20]), None);
    }
}
