//! The machine's own data: system, board, chassis, firmware, TPM.
//!
//! `/sys/class/dmi/id` (drivers/firmware/dmi-id.c), `/sys/firmware/efi`
//! (Documentation/ABI/testing/sysfs-firmware-efi), `/sys/class/tpm`
//! (Documentation/ABI/stable/sysfs-class-tpm).

use std::fs;
use std::path::Path;

use super::types::{Firmware, Part, System, Tpm};
use super::{attribute, read_bytes};

/// EFI_GLOBAL_VARIABLE of the UEFI specification, §3.3.
const SECURE_BOOT: &str = "firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";

fn dmi(sys: &Path, name: &str) -> String {
    attribute(&sys.join("class/dmi/id").join(name)).unwrap_or_default()
}

/// Maker, product and firmware in one line, for people.
#[must_use]
pub fn title(sys: &Path) -> String {
    let parts = ["sys_vendor", "product_name"].map(|name| dmi(sys, name));
    let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    let (maker, version) = (dmi(sys, "bios_vendor"), dmi(sys, "bios_version"));
    format!("{}, firmware {maker} {version}", parts.join(" "))
}

pub(super) fn system(sys: &Path) -> System {
    System {
        manufacturer: dmi(sys, "sys_vendor"),
        product: dmi(sys, "product_name"),
        sku: dmi(sys, "product_sku"),
        serial: dmi(sys, "product_serial"),
    }
}

pub(super) fn board(sys: &Path) -> Part {
    Part {
        manufacturer: dmi(sys, "board_vendor"),
        product: dmi(sys, "board_name"),
        serial: dmi(sys, "board_serial"),
    }
}

pub(super) fn chassis(sys: &Path) -> Part {
    Part {
        manufacturer: dmi(sys, "chassis_vendor"),
        product: dmi(sys, "chassis_version"),
        serial: dmi(sys, "chassis_serial"),
    }
}

pub(super) fn firmware(sys: &Path) -> Firmware {
    // efivarfs puts 4 bytes of attributes before the value, which is one byte here.
    let secure_boot = read_bytes(&sys.join(SECURE_BOOT), 16).ok();
    Firmware {
        vendor: dmi(sys, "bios_vendor"),
        version: dmi(sys, "bios_version"),
        date: dmi(sys, "bios_date"),
        uefi: sys.join("firmware/efi/fw_platform_size").exists(),
        secure_boot: secure_boot
            .and_then(|value| value.get(4).copied())
            .map(|value| value == 1),
    }
}

/// The first TPM.
pub(super) fn tpm(sys: &Path) -> Option<Tpm> {
    let directory = sys.join("class/tpm");
    let mut names: Vec<String> = fs::read_dir(&directory)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.to_owned()))
        .filter(|name| name.starts_with("tpm") && !name.starts_with("tpmrm"))
        .collect();
    names.sort_unstable();
    let name = names.into_iter().next()?;
    let device = directory.join(&name);
    let mut banks: Vec<String> = fs::read_dir(&device)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let name = entry.ok()?.file_name();
            Some(name.to_str()?.strip_prefix("pcr-")?.to_owned())
        })
        .collect();
    banks.sort_unstable();
    Some(Tpm {
        version: attribute(&device.join("tpm_version_major")).and_then(|it| it.parse().ok()),
        name,
        banks,
    })
}
