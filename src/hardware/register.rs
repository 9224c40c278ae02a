//! The inventory as a message that the server accepts.
//!
//! The server validates every message and a machine whose Register is refused never
//! appears, so nothing that a vendor wrote into firmware may break a rule. The rules are
//! those in the descriptors of the PyPI package `metal-stack-api` 0.8.4 (protovalidate;
//! lengths count characters): names 2 to 128; descriptions (bios, fru, version) at most
//! 256; CPU and GPU strings at most 256; a NIC's identifier, vendor and model at most
//! 128; a NIC's speed an unsigned number. Lists have no limits.

use super::dmi::Board;
use super::{Error, Inventory, Port};
use crate::control::api::{Bios, BlockDevice, Bmc, Cpu, Fru, Gpu, Hardware, Nic, Register};

const NAME: std::ops::RangeInclusive<usize> = 2..=128;
const DESCRIPTION: usize = 256;
const MODEL: usize = 256;
const NIC_TEXT: usize = 128;

/// What vendors write into a field that they do not fill, in lower case.
const PLACEHOLDERS: [&str; 15] = [
    "default string",
    "to be filled by o.e.m.",
    "to be filled by oem",
    "not specified",
    "not applicable",
    "not available",
    "system serial number",
    "chassis serial number",
    "base board serial number",
    "none",
    "null",
    "n/a",
    "unknown",
    "0123456789",
    "123456789",
];

/// Makes the message. `neighbours` gives, by the name of the port, the switch ports that
/// it saw. What the BMC says is added by [`with_bmc`].
///
/// # Errors
/// [`Error::Partition`]: the partition is the operator's, so it is not bent into shape.
pub fn register(
    inventory: &Inventory,
    neighbours: &[(String, Vec<Nic>)],
    partition: &str,
    version: &str,
) -> Result<Register, Error> {
    let length = partition.chars().count();
    if !NAME.contains(&length) {
        return Err(Error::Partition {
            partition: partition.chars().take(80).collect(),
            length,
        });
    }
    Ok(Register {
        uuid: inventory.machine,
        hardware: Hardware {
            memory: inventory.memory,
            disks: inventory.disks.iter().filter_map(disk).collect(),
            cpus: inventory.cpus.iter().map(cpu).collect(),
            gpus: inventory.gpus.iter().map(gpu).collect(),
            nics: inventory
                .ports
                .iter()
                .map(|port| nic(port, neighbours))
                .collect(),
        },
        bios: bios(&inventory.board),
        bmc: None,
        fru: fru(&inventory.board),
        tags: Vec::new(),
        metal_hammer_version: clean(version, DESCRIPTION),
        partition: partition.to_owned(),
    })
}

/// At most `limit` characters, none of them a control character, no spaces at the ends.
fn clean(text: &str, limit: usize) -> String {
    let visible: String = text
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(limit)
        .collect();
    visible.trim().to_owned()
}

/// As [`clean`], and empty for what only holds the place of a value.
fn description(text: &str) -> String {
    let text = clean(text, DESCRIPTION);
    let filler = text
        .chars()
        .all(|c| matches!(c, '0' | ' ' | '.' | '-' | 'x' | 'X'));
    if filler || PLACEHOLDERS.contains(&text.to_lowercase().as_str()) {
        return String::new();
    }
    text
}

/// A valid name, or nothing.
fn name(text: &str) -> Option<String> {
    let text = clean(text, *NAME.end());
    NAME.contains(&text.chars().count()).then_some(text)
}

fn disk(disk: &BlockDevice) -> Option<BlockDevice> {
    Some(BlockDevice {
        name: name(&disk.name)?,
        size: disk.size,
    })
}

fn cpu(cpu: &Cpu) -> Cpu {
    Cpu {
        vendor: clean(&cpu.vendor, MODEL),
        model: clean(&cpu.model, MODEL),
        ..*cpu
    }
}

fn gpu(gpu: &Gpu) -> Gpu {
    Gpu {
        vendor: clean(&gpu.vendor, MODEL),
        model: clean(&gpu.model, MODEL),
    }
}

fn nic(port: &Port, neighbours: &[(String, Vec<Nic>)]) -> Nic {
    let vendor = if port.vendor.is_empty() {
        &port.driver
    } else {
        &port.vendor
    };
    Nic {
        mac: port.mac.clone(),
        // The kernel allows links with a name of one letter, the server does not.
        name: name(&port.name).unwrap_or_else(|| port.mac.clone()),
        identifier: port.mac.clone(),
        vendor: clean(vendor, NIC_TEXT),
        model: clean(&port.model, NIC_TEXT),
        speed: port
            .speed
            .map(|speed| speed.to_string())
            .unwrap_or_default(),
        hostname: String::new(),
        neighbors: neighbours
            .iter()
            .filter(|(link, _)| *link == port.name)
            .flat_map(|(_, seen)| seen.iter().filter_map(neighbour))
            .collect(),
    }
}

/// A switch port: without a description it goes by its port ID, and without either it
/// says nothing.
fn neighbour(seen: &Nic) -> Option<Nic> {
    let identifier = clean(&seen.identifier, NIC_TEXT);
    let label = clean(&seen.name, *NAME.end());
    let spoken = if label.is_empty() {
        &identifier
    } else {
        &label
    };
    let name = name(&seen.name)
        .or_else(|| name(&identifier))
        .or_else(|| (!spoken.is_empty()).then(|| format!("port {spoken}")))?;
    Some(Nic {
        mac: clean(&seen.mac, NIC_TEXT),
        name,
        identifier,
        vendor: clean(&seen.vendor, NIC_TEXT),
        model: clean(&seen.model, NIC_TEXT),
        speed: seen
            .speed
            .parse::<u64>()
            .map(|speed| speed.to_string())
            .unwrap_or_default(),
        // 253: the longest name that DNS allows. The server knows its switches by it.
        hostname: clean(&seen.hostname, 253),
        neighbors: Vec::new(),
    })
}

/// Adds what the BMC says: itself, and the makers' part and serial numbers, which count
/// more than what the firmware made of them. The server refuses a BMC without address or
/// MAC, so such a one is left out by the caller.
#[must_use]
pub fn with_bmc(mut request: Register, bmc: Option<Bmc>, said: &Fru) -> Register {
    request.bmc = bmc.map(|bmc| Bmc {
        version: clean(&bmc.version, DESCRIPTION),
        ..bmc
    });
    let mut fru = request.fru.unwrap_or_default();
    for (field, said) in [
        (&mut fru.chassis_part_number, &said.chassis_part_number),
        (&mut fru.chassis_part_serial, &said.chassis_part_serial),
        (&mut fru.board_mfg, &said.board_mfg),
        (&mut fru.board_mfg_serial, &said.board_mfg_serial),
        (&mut fru.board_part_number, &said.board_part_number),
        (&mut fru.product_manufacturer, &said.product_manufacturer),
        (&mut fru.product_part_number, &said.product_part_number),
        (&mut fru.product_serial, &said.product_serial),
    ] {
        let said = description(said);
        if !said.is_empty() {
            *field = said;
        }
    }
    request.fru = (fru != Fru::default()).then_some(fru);
    request
}

fn bios(board: &Board) -> Option<Bios> {
    let bios = Bios {
        version: description(&board.bios_version),
        vendor: description(&board.bios_vendor),
        date: description(&board.bios_date),
    };
    let empty = bios.version.is_empty() && bios.vendor.is_empty() && bios.date.is_empty();
    (!empty).then_some(bios)
}

fn fru(board: &Board) -> Option<Fru> {
    let sku = description(&board.product_sku);
    let fru = Fru {
        // SMBIOS has no part number of the chassis.
        chassis_part_number: String::new(),
        chassis_part_serial: description(&board.chassis_serial),
        board_mfg: description(&board.board_vendor),
        board_mfg_serial: description(&board.board_serial),
        board_part_number: description(&board.board_name),
        product_manufacturer: description(&board.product_vendor),
        product_part_number: if sku.is_empty() {
            description(&board.product_name)
        } else {
            sku
        },
        product_serial: description(&board.product_serial),
    };
    (fru != Fru::default()).then_some(fru)
}
