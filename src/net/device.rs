//! What a link is, whatever the kernel calls it: where its hardware sits, and whether it is
//! the USB network card of a BMC, behind which there is no fabric.

use std::path::Path;

use super::mac::MacAddress;

/// Drivers of network cards that a BMC emulates on USB, and that phones have.
const EMULATED: [&str; 4] = ["cdc_ether", "cdc_eem", "cdc_ncm", "rndis_host"];

/// The hardware under a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Place in the machine, below `/sys/devices`: the same in every boot, as long as nobody
    /// moves the card (`pci0000:00/0000:00:03.0/virtio0`).
    pub bus_path: String,
    pub driver: String,
}

impl Device {
    /// The hardware of the link `name`; nothing where there is none: bridges, tunnels and
    /// VLANs have no bus device.
    #[must_use]
    pub fn read(sys_root: &Path, name: &str) -> Option<Self> {
        let device = sys_root.join("class/net").join(name).join("device");
        let place = device.canonicalize().ok()?;
        let devices = sys_root.join("devices").canonicalize().ok();
        let below = devices
            .and_then(|devices| place.strip_prefix(devices).ok().map(Path::to_path_buf))
            .unwrap_or(place);
        let driver = std::fs::read_link(device.join("driver")).unwrap_or_default();
        let driver = driver.file_name().unwrap_or_default();
        Some(Self {
            bus_path: below.display().to_string(),
            driver: driver.to_string_lossy().into_owned(),
        })
    }

    /// Whether this looks like the USB card of a BMC: by its driver, or by an address that no
    /// manufacturer has given (bit 1 of the first octet, IEEE 802).
    #[must_use]
    pub fn is_bmc(&self, mac: MacAddress) -> bool {
        let MacAddress([first, ..]) = mac;
        let usb = self.bus_path.split('/').any(|part| {
            part.strip_prefix("usb")
                .is_some_and(|bus| bus.bytes().all(|byte| byte.is_ascii_digit()))
        });
        EMULATED.contains(&self.driver.as_str()) || (usb && first & 2 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn place_and_driver_come_from_sysfs() {
        let root = tempfile::tempdir().unwrap();
        let sys = root.path();
        let place = sys.join("devices/pci0000:00/0000:00:14.0/usb1/1-2/1-2:1.0");
        fs::create_dir_all(&place).unwrap();
        fs::create_dir_all(sys.join("bus/usb/drivers/rndis_host")).unwrap();
        fs::create_dir_all(sys.join("class/net/usb0")).unwrap();
        fs::create_dir_all(sys.join("class/net/br0")).unwrap();
        symlink(&place, sys.join("class/net/usb0/device")).unwrap();
        symlink("/bus/usb/drivers/rndis_host", place.join("driver")).unwrap();
        assert_eq!(
            Device::read(sys, "usb0"),
            Some(Device {
                bus_path: "pci0000:00/0000:00:14.0/usb1/1-2/1-2:1.0".into(),
                driver: "rndis_host".into(),
            })
        );
        assert_eq!(Device::read(sys, "br0"), None);
        symlink("/nowhere", sys.join("class/net/br0/device")).unwrap();
        assert_eq!(Device::read(sys, "br0"), None, "a dangling link");
    }

    #[test]
    fn a_bmcs_card_is_told_from_a_real_one() {
        let usb = "pci0000:00/0000:00:14.0/usb1/1-2/1-2:1.0";
        let pci = "pci0000:00/0000:00:03.0/virtio0";
        let vendor = MacAddress([0x00, 0x1b, 0x21, 0, 0, 1]);
        let local = MacAddress([0x52, 0x54, 0, 0, 0, 1]);
        for (bus_path, driver, mac, expected) in [
            (usb, "cdc_ether", vendor, true),
            (usb, "rndis_host", vendor, true),
            (usb, "r8152", vendor, false),
            (usb, "r8152", local, true),
            (pci, "virtio_net", local, false),
            ("pci0000:00/usbish/virtio0", "virtio_net", local, false),
        ] {
            let device = Device {
                bus_path: bus_path.into(),
                driver: driver.into(),
            };
            assert_eq!(device.is_bmc(mac), expected, "{device:?} {mac}");
        }
    }
}
