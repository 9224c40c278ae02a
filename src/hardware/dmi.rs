//! SMBIOS strings, as the kernel shows them below `/sys/class/dmi/id`
//! (drivers/firmware/dmi-id.c).

use std::path::Path;

use uuid::{Uuid, uuid};

use super::{Error, attribute, read};

/// UUIDs that vendors leave in whole series of machines.
const SHARED: [Uuid; 5] = [
    uuid!("03000200-0400-0500-0006-000700080009"),
    // The same, its first three groups in the other byte order (SMBIOS 2.6 changed it).
    uuid!("00020003-0004-0005-0006-000700080009"),
    uuid!("12345678-1234-5678-90ab-cddeefaabbcc"),
    uuid!("00010203-0405-0607-0809-0a0b0c0d0e0f"),
    uuid!("11223344-5566-7788-99aa-bbccddeeff00"),
];

/// The machine's UUID, the name it has in the control plane.
///
/// # Errors
/// Without an SMBIOS UUID, and for one that cannot tell machines apart: all bytes alike,
/// or a known placeholder. Two machines of one name would be served each other's token.
pub fn machine_id(sys: &Path) -> Result<Uuid, Error> {
    let path = sys.join("class/dmi/id/product_uuid");
    let text = read(&path, 4096).map_err(|source| Error::NoMachineId {
        path: path.clone(),
        source,
    })?;
    let text = text.trim();
    let uuid = Some(text)
        // Not the braced, URN or bare forms that the parser also takes.
        .filter(|text| text.len() == 36)
        .and_then(|text| Uuid::try_parse(text).ok())
        .ok_or_else(|| Error::MachineIdText {
            path,
            text: text.chars().take(80).collect(),
        })?;
    let bytes = uuid.as_bytes();
    if bytes.iter().all(|byte| *byte == bytes[0]) || SHARED.contains(&uuid) {
        return Err(Error::SharedMachineId { uuid });
    }
    Ok(uuid)
}

/// What the firmware says about itself, the board and the chassis. Empty: it says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Board {
    pub bios_vendor: String,
    pub bios_version: String,
    pub bios_date: String,
    pub chassis_serial: String,
    pub board_vendor: String,
    pub board_serial: String,
    pub board_name: String,
    pub product_vendor: String,
    pub product_name: String,
    pub product_sku: String,
    pub product_serial: String,
}

impl Board {
    pub(super) fn read(sys: &Path) -> Self {
        let directory = sys.join("class/dmi/id");
        let text = |name: &str| attribute(&directory.join(name)).unwrap_or_default();
        Self {
            bios_vendor: text("bios_vendor"),
            bios_version: text("bios_version"),
            bios_date: text("bios_date"),
            chassis_serial: text("chassis_serial"),
            board_vendor: text("board_vendor"),
            board_serial: text("board_serial"),
            board_name: text("board_name"),
            product_vendor: text("sys_vendor"),
            product_name: text("product_name"),
            product_sku: text("product_sku"),
            product_serial: text("product_serial"),
        }
    }
}
