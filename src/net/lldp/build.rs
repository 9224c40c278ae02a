//! The LLDP frames that a waiting machine sends, so that a look at the switch shows which
//! machine hangs on which port and what it does. Pure.

use super::frame::{Capabilities, DESTINATIONS, ETHERTYPE, tlv};
use crate::net::mac::MacAddress;

/// A TLV's length has 9 bits, but no field of ours may be longer than 255.
const MAX_TEXT: usize = 255;
/// Ethernet's shortest frame without its checksum.
const MIN_FRAME: usize = 60;

/// What goes into a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announcement<'a> {
    /// Chassis and port ID, and the source of the frame.
    pub mac: MacAddress,
    /// Name of the interface.
    pub port_description: &'a str,
    /// The machine's UUID.
    pub system_name: &'a str,
    /// Version, address, what the machine waits for and since when.
    pub system_description: &'a str,
    /// Seconds.
    pub ttl: u16,
}

/// The whole Ethernet frame.
#[must_use]
pub fn frame(announcement: &Announcement<'_>) -> Vec<u8> {
    let [nearest_bridge, ..] = DESTINATIONS;
    let mac = announcement.mac.0;
    let mut frame = Vec::with_capacity(512);
    frame.extend(nearest_bridge.0);
    frame.extend(mac);
    frame.extend(ETHERTYPE.to_be_bytes());
    // Subtypes of a MAC address: 4 for the chassis, 3 for the port.
    push(&mut frame, tlv::CHASSIS_ID, &[&[4], &mac[..]].concat());
    push(&mut frame, tlv::PORT_ID, &[&[3], &mac[..]].concat());
    push(&mut frame, tlv::TTL, &announcement.ttl.to_be_bytes());
    for (kind, text) in [
        (tlv::PORT_DESCRIPTION, announcement.port_description),
        (tlv::SYSTEM_NAME, announcement.system_name),
        (tlv::SYSTEM_DESCRIPTION, announcement.system_description),
    ] {
        push(&mut frame, kind, cut(text, MAX_TEXT).as_bytes());
    }
    let station = Capabilities::STATION_ONLY.to_be_bytes();
    push(&mut frame, tlv::CAPABILITIES, &[station, station].concat());
    push(&mut frame, tlv::END, &[]);
    frame.resize(frame.len().max(MIN_FRAME), 0);
    frame
}

/// `value` has at most 255 bytes, so the ninth bit of the length stays clear.
fn push(frame: &mut Vec<u8>, kind: u8, value: &[u8]) {
    let length = u8::try_from(value.len()).unwrap_or(u8::MAX);
    frame.push(kind << 1);
    frame.push(length);
    frame.extend(value.iter().take(usize::from(length)));
}

/// The longest start of `text` that has at most `bytes` bytes.
fn cut(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::super::frame::{Id, parse};
    use super::*;
    use proptest::prelude::*;

    const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 1, 2, 3]);

    #[test]
    fn the_parser_reads_it() {
        let bytes = frame(&Announcement {
            mac: MAC,
            port_description: "eth0",
            system_name: "5a0d4cc9-2ad6-4d3e-a3a0-111111111111",
            system_description: "metal-anvil 0.1.0, 2001:db8::1, waiting for 60 s",
            ttl: 20,
        });
        assert_eq!(bytes[..6], [0x01, 0x80, 0xc2, 0, 0, 0x0e]);
        let read = parse(&bytes).unwrap();
        assert_eq!(read.source, MAC);
        assert_eq!((&read.chassis, &read.port), (&Id::Mac(MAC), &Id::Mac(MAC)));
        assert_eq!(read.ttl, 20);
        assert_eq!(read.port_description, "eth0");
        assert_eq!(read.system_name, "5a0d4cc9-2ad6-4d3e-a3a0-111111111111");
        assert_eq!(
            read.system_description,
            "metal-anvil 0.1.0, 2001:db8::1, waiting for 60 s"
        );
        assert!(!read.capabilities.unwrap().switch());
    }

    proptest! {
        #[test]
        fn any_text_makes_a_frame_that_can_be_read(
            port in ".{0,300}", name in "[a-z]{1,300}", ttl: u16,
        ) {
            let bytes = frame(&Announcement {
                mac: MAC,
                port_description: &port,
                system_name: &name,
                system_description: &port,
                ttl,
            });
            prop_assert!((MIN_FRAME..=1514).contains(&bytes.len()));
            let read = parse(&bytes).unwrap();
            prop_assert_eq!(read.ttl, ttl);
            prop_assert_eq!(read.system_name, cut(&name, MAX_TEXT));
        }
    }
}
