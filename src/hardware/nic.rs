//! Physical network ports, from `/sys/class/net`.

use std::fs;
use std::path::Path;

use tracing::warn;

use super::{Error, Port, attribute, link_name};

/// ARPHRD_ETHER, include/uapi/linux/if_arp.h.
const ETHERNET: &str = "1";

/// Every Ethernet port with a device behind it, by name. Virtual functions, which belong
/// to a port that is there already, and ports without a valid MAC are left out.
pub(super) fn ports(sys: &Path) -> Result<Vec<Port>, Error> {
    let directory = sys.join("class/net");
    let failed = |source| Error::Io {
        path: directory.clone(),
        source,
    };
    let mut ports = Vec::new();
    for entry in fs::read_dir(&directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        ports.extend(port(&entry.path(), name));
    }
    ports.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(ports)
}

fn port(link: &Path, name: String) -> Option<Port> {
    let device = link.join("device");
    let physical = device.is_dir() && !device.join("physfn").exists();
    if !physical || attribute(&link.join("type")).as_deref() != Some(ETHERNET) {
        return None;
    }
    let text = attribute(&link.join("address")).unwrap_or_default();
    let Some(mac) = mac(&text) else {
        warn!(link = %name, address = %text.escape_debug(), "port left out: its MAC is not valid");
        return None;
    };
    let id = |file: &str| attribute(&device.join(file)).unwrap_or_default();
    Some(Port {
        mac,
        // -1: unknown.
        speed: attribute(&link.join("speed"))
            .and_then(|text| text.parse::<u64>().ok())
            .filter(|speed| *speed > 0),
        driver: link_name(&device.join("driver")).unwrap_or_default(),
        vendor: id("vendor"),
        model: id("device"),
        name,
    })
}

/// `aa:bb:cc:dd:ee:ff` in lower case, if the text is the MAC of a single port: neither
/// all zero nor a group's.
pub(super) fn mac(text: &str) -> Option<String> {
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts.next()?;
        if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    let single = parts.next().is_none() && bytes != [0; 6] && bytes[0] & 1 == 0;
    single.then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_mac_of_one_port_is_a_mac() {
        assert_eq!(
            mac("AA:bb:0C:dd:ee:FF").as_deref(),
            Some("aa:bb:0c:dd:ee:ff")
        );
        for text in [
            "",
            "00:00:00:00:00:00",
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "aa:bb:cc:dd:ee",
            "aa:bb:cc:dd:ee:ff:00",
            "aa-bb-cc-dd-ee-ff",
            "+a:bb:cc:dd:ee:ff",
            "é:bb:cc:dd:ee:ff",
        ] {
            assert_eq!(mac(text), None, "{text:?}");
        }
    }
}
