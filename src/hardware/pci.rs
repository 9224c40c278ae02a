//! PCI devices and the GPUs among them, from `/sys/bus/pci/devices`
//! (Documentation/ABI/testing/sysfs-bus-pci).

use std::fs;
use std::path::{Path, PathBuf};

use super::types::{Gpu, PciDevice};
use super::{Roots, attribute, link_name, pci_ids::Names};

/// Base class of display controllers (PCI Code and ID Assignment, 1.4).
const DISPLAY: &str = "0x03";
/// More than any machine has.
const MAX_DEVICES: usize = 8192;

/// Whose display controllers compute. The others are a BMC's or a hypervisor's screen.
const VENDORS: [(&str, &str); 3] = [("0x10de", "NVIDIA"), ("0x1002", "AMD"), ("0x8086", "Intel")];

/// All devices in bus order, by name where the database knows them. None without PCI.
pub(super) fn devices(roots: &Roots) -> Vec<PciDevice> {
    let entries = fs::read_dir(roots.sys.join("bus/pci/devices"));
    let mut paths: Vec<PathBuf> = entries
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .take(MAX_DEVICES)
        .collect();
    paths.sort_unstable();
    let mut devices: Vec<PciDevice> = paths.iter().map(|path| device(path)).collect();
    let wanted: Vec<_> = devices
        .iter()
        .map(|it| (it.class.clone(), it.vendor_id.clone(), it.device_id.clone()))
        .collect();
    let names = Names::look_up(&roots.ids, &wanted);
    for it in &mut devices {
        it.class_name = names.class(&it.class).to_owned();
        it.vendor = names.vendor(&it.vendor_id).to_owned();
        it.model = names.device(&it.vendor_id, &it.device_id).to_owned();
    }
    devices
}

fn device(path: &Path) -> PciDevice {
    let text = |file: &str| attribute(&path.join(file)).unwrap_or_default();
    let address = path.file_name().unwrap_or_default();
    PciDevice {
        address: address.to_string_lossy().into_owned(),
        class: text("class"),
        class_name: String::new(),
        vendor_id: text("vendor"),
        device_id: text("device"),
        vendor: String::new(),
        model: String::new(),
        driver: link_name(&path.join("driver")).unwrap_or_default(),
    }
}

/// The GPUs among the devices. A virtual function's whole card is in the list already.
pub(super) fn gpus(roots: &Roots, devices: &[PciDevice]) -> Vec<Gpu> {
    devices
        .iter()
        .filter(|it| it.class.starts_with(DISPLAY))
        .filter(|it| {
            let path = roots.sys.join("bus/pci/devices").join(&it.address);
            !path.join("physfn").exists()
        })
        .filter_map(|it| {
            let (_, vendor) = VENDORS.iter().find(|(id, _)| *id == it.vendor_id)?;
            let model = if it.model.is_empty() {
                &it.device_id
            } else {
                &it.model
            };
            Some(Gpu {
                bus: it.address.clone(),
                vendor: (*vendor).to_owned(),
                device_id: it.device_id.clone(),
                model: model.clone(),
            })
        })
        .collect()
}

/// The PCI address of the nearest PCI device on the way from `device` to the root of the
/// device tree, `0000:00:1f.2`.
pub(super) fn address(device: &Path) -> Option<String> {
    let real = fs::canonicalize(device).ok()?;
    real.ancestors()
        .filter_map(|part| part.file_name()?.to_str())
        .find(|name| is_address(name))
        .map(ToOwned::to_owned)
}

/// `dddd:bb:dd.f`, hexadecimal (a domain behind Intel VMD has five digits).
fn is_address(name: &str) -> bool {
    let hex = |text: &str, digits: std::ops::RangeInclusive<usize>| {
        digits.contains(&text.len()) && text.bytes().all(|it| it.is_ascii_hexdigit())
    };
    let parts: Vec<&str> = name.split(':').collect();
    let [domain, bus, rest] = parts[..] else {
        return false;
    };
    rest.split_once('.').is_some_and(|(device, function)| {
        hex(domain, 4..=8) && hex(bus, 2..=2) && hex(device, 2..=2) && hex(function, 1..=1)
    })
}

#[cfg(test)]
mod tests {
    use super::is_address;

    #[test]
    fn addresses() {
        assert!(is_address("0000:00:1f.2") && is_address("10000:81:00.0"));
        for text in [
            "pci0000:00",
            "0000:00:1f",
            "0:0:0:0",
            "0000:00:1f:2",
            "0000.00.1f.2",
            "virtio0",
            "é000:00:1f.2",
        ] {
            assert!(!is_address(text), "{text}");
        }
    }
}
