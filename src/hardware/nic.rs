//! Physical network ports, from `/sys/class/net`
//! (Documentation/ABI/testing/sysfs-class-net).

use std::fs;
use std::path::Path;

use tracing::warn;

use super::ask::Question;
use super::types::{PciDevice, Port};
use super::{Error, Roots, attribute, link_name, pci, text::clean};
use crate::net::MacAddress;

/// ARPHRD_ETHER, include/uapi/linux/if_arp.h.
const ETHERNET: &str = "1";

/// Every Ethernet port with a device behind it, by name. Virtual functions, which belong
/// to a port that is there already, and ports without a valid MAC are left out.
pub(super) fn ports(roots: &Roots) -> Result<Vec<Port>, Error> {
    let directory = roots.sys.join("class/net");
    let failed = |source| Error::Io {
        path: directory.clone(),
        source,
    };
    let mut ports = Vec::new();
    for entry in fs::read_dir(&directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        ports.extend(port(roots, &entry.path(), name));
    }
    ports.sort_by(|a, b| (a.name.len(), &a.name).cmp(&(b.name.len(), &b.name)));
    Ok(ports)
}

/// Puts the names of the PCI database to the ports.
pub(super) fn name(ports: &mut [Port], devices: &[PciDevice]) {
    for port in ports {
        if let Some(device) = devices.iter().find(|it| it.address == port.bus) {
            port.vendor.clone_from(&device.vendor);
            port.model.clone_from(&device.model);
        }
    }
}

fn port(roots: &Roots, link: &Path, name: String) -> Option<Port> {
    let device = link.join("device");
    let physical = device.is_dir() && !device.join("physfn").exists();
    if !physical || attribute(&link.join("type")).as_deref() != Some(ETHERNET) {
        return None;
    }
    let permanent = roots
        .ask
        .ask(&Question::PermanentMac(name.clone()))
        .and_then(|bytes| MacAddress::from_bytes(&bytes))
        .and_then(|address| mac(&address.to_string()));
    let current = attribute(&link.join("address")).unwrap_or_default();
    let Some(mac) = permanent.or_else(|| mac(&current)) else {
        warn!(link = %name, address = %current.escape_debug(), "port left out: its MAC is not valid");
        return None;
    };
    let address = pci::address(&device);
    // Without a PCI device on the way the link's own device may have the IDs.
    let ids = match &address {
        Some(address) => roots.sys.join("bus/pci/devices").join(address),
        None => device.clone(),
    };
    let id = |file: &str| attribute(&ids.join(file)).or_else(|| attribute(&device.join(file)));
    let usb = is_usb(&device);
    let mut port = Port {
        mac,
        // -1: unknown.
        speed: attribute(&link.join("speed"))
            .and_then(|text| text.parse::<u64>().ok())
            .filter(|speed| *speed > 0),
        driver: link_name(&device.join("driver")).unwrap_or_default(),
        bus: address.unwrap_or_default(),
        usb,
        vendor_id: id("vendor").unwrap_or_default(),
        device_id: id("device").unwrap_or_default(),
        vendor: String::new(),
        model: String::new(),
        firmware: firmware(roots, &name),
        switch_ports: Vec::new(),
        name,
    };
    if usb {
        // The controller is not the card: the USB device above the interface is.
        let text = |file: &str| attribute(&device.join("..").join(file)).unwrap_or_default();
        port.bus = link_name(&device).unwrap_or_default();
        (port.vendor_id, port.device_id) = (String::new(), String::new());
        (port.vendor, port.model) = (text("manufacturer"), text("product"));
    }
    Some(port)
}

fn is_usb(device: &Path) -> bool {
    link_name(&device.join("subsystem")).as_deref() == Some("usb")
}

/// `fw_version` of `struct ethtool_drvinfo` (include/uapi/linux/ethtool.h): 32 bytes behind
/// the command, the driver's name and its version.
fn firmware(roots: &Roots, link: &str) -> String {
    let answer = roots.ask.ask(&Question::DriverInfo(link.to_owned()));
    let text = answer.as_deref().and_then(|it| it.get(68..100));
    let text = text.unwrap_or_default();
    let end = text.iter().position(|byte| *byte == 0);
    let text = String::from_utf8_lossy(&text[..end.unwrap_or(text.len())]);
    match clean(&text, 32) {
        // What drivers write that have none to tell.
        text if text == "N/A" => String::new(),
        text => text,
    }
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
