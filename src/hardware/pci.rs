//! Graphics processors, from `/sys/bus/pci/devices`.

use std::fs;
use std::path::Path;

use super::attribute;
use crate::control::api::Gpu;

/// Base class of display controllers (PCI Code and ID Assignment, 1.4).
const DISPLAY: &str = "0x03";

/// Whose display controllers compute. The others are a BMC's or a hypervisor's screen.
const VENDORS: [(&str, &str); 3] = [("0x10de", "NVIDIA"), ("0x1002", "AMD"), ("0x8086", "Intel")];

/// Every GPU, in bus order, with its PCI device ID as model. None when there is no PCI.
pub(super) fn gpus(sys: &Path) -> Vec<Gpu> {
    let Ok(entries) = fs::read_dir(sys.join("bus/pci/devices")) else {
        return Vec::new();
    };
    let mut devices: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    devices.sort_unstable();
    devices.iter().filter_map(|device| gpu(device)).collect()
}

fn gpu(device: &Path) -> Option<Gpu> {
    let text = |file: &str| attribute(&device.join(file));
    if !text("class")?.starts_with(DISPLAY) {
        return None;
    }
    let id = text("vendor")?;
    let (_, vendor) = VENDORS.iter().find(|(known, _)| *known == id)?;
    Some(Gpu {
        vendor: (*vendor).to_owned(),
        model: text("device").unwrap_or_default(),
    })
}
