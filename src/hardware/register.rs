//! The inventory as a message that the server accepts.
//!
//! The server validates every message and a machine whose Register is refused never
//! appears, so nothing that a vendor wrote into firmware may break a rule. The rules are
//! those in the descriptors of the PyPI package `metal-stack-api` 0.8.4 (protovalidate;
//! lengths count characters): names 2 to 128; descriptions (bios, fru, version) at most
//! 256; CPU and GPU strings at most 256; a NIC's identifier, vendor and model at most
//! 128; a NIC's speed an unsigned number. Lists have no limits.

use super::text::{clean, meaningful};
use super::{Disk, Error, Inventory, Port, tags};
use crate::control::api::{Bios, BlockDevice, Bmc, Cpu, Fru, Gpu, Hardware, Nic, Register};

const NAME: std::ops::RangeInclusive<usize> = 2..=128;
const DESCRIPTION: usize = 256;
const MODEL: usize = 256;
const NIC_TEXT: usize = 128;

/// Makes the message. `neighbours` gives, by the name of the port, the switch ports that
/// it saw; `tags` names what of the inventory becomes a tag. What the BMC says
/// is added by [`with_bmc`].
///
/// # Errors
/// [`Error::Partition`]: the partition is the operator's, so it is not bent into shape.
/// [`Error::NoMachineId`]: the inventory has no machine UUID.
pub fn register(
    inventory: &Inventory,
    neighbours: &[(String, Vec<Nic>)],
    partition: &str,
    version: &str,
    tags: &[String],
) -> Result<Register, Error> {
    let length = partition.chars().count();
    if !NAME.contains(&length) {
        return Err(Error::Partition {
            partition: partition.chars().take(80).collect(),
            length,
        });
    }
    let machine = &inventory.machine;
    Ok(Register {
        uuid: machine.uuid.ok_or_else(|| Error::NoMachineId {
            why: machine.note.clone(),
        })?,
        hardware: Hardware {
            memory: inventory.memory.installed,
            disks: inventory.disks.iter().filter_map(disk).collect(),
            cpus: inventory.cpus.iter().map(cpu).collect(),
            gpus: inventory.gpus.iter().map(gpu).collect(),
            nics: inventory
                .nics
                .iter()
                .map(|port| nic(port, neighbours))
                .collect(),
        },
        bios: bios(inventory),
        bmc: None,
        fru: fru(inventory),
        tags: tags::tags(inventory, tags),
        metal_hammer_version: clean(version, DESCRIPTION),
        partition: partition.to_owned(),
    })
}

/// Fit for a field that the server calls a description.
fn description(text: &str) -> String {
    meaningful(text, DESCRIPTION)
}

/// A valid name, or nothing.
fn name(text: &str) -> Option<String> {
    let text = clean(text, *NAME.end());
    NAME.contains(&text.chars().count()).then_some(text)
}

/// A disk that can be counted on: no medium, no other host's.
fn disk(disk: &Disk) -> Option<BlockDevice> {
    if disk.left_out.is_some() {
        return None;
    }
    Some(BlockDevice {
        name: name(&disk.name)?,
        size: disk.size,
    })
}

fn cpu(socket: &super::Socket) -> Cpu {
    Cpu {
        vendor: clean(&socket.vendor, MODEL),
        model: clean(&socket.model, MODEL),
        cores: socket.cores,
        threads: socket.threads,
    }
}

fn gpu(gpu: &super::Gpu) -> Gpu {
    Gpu {
        vendor: clean(&gpu.vendor, MODEL),
        model: clean(&gpu.model, MODEL),
    }
}

fn nic(port: &Port, neighbours: &[(String, Vec<Nic>)]) -> Nic {
    // By name, else by number, else by driver.
    let first = |texts: [&str; 3]| {
        let found = texts.into_iter().find(|text| !text.is_empty());
        clean(found.unwrap_or_default(), NIC_TEXT)
    };
    Nic {
        mac: port.mac.clone(),
        // The kernel allows links with a name of one letter, the server does not.
        name: name(&port.name).unwrap_or_else(|| port.mac.clone()),
        identifier: port.mac.clone(),
        vendor: first([&port.vendor, &port.vendor_id, &port.driver]),
        model: first([&port.model, &port.device_id, ""]),
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

fn bios(inventory: &Inventory) -> Option<Bios> {
    let bios = Bios {
        version: description(&inventory.firmware.version),
        vendor: description(&inventory.firmware.vendor),
        date: description(&inventory.firmware.date),
    };
    let empty = bios.version.is_empty() && bios.vendor.is_empty() && bios.date.is_empty();
    (!empty).then_some(bios)
}

fn fru(inventory: &Inventory) -> Option<Fru> {
    let Inventory {
        system,
        board,
        chassis,
        ..
    } = inventory;
    let sku = description(&system.sku);
    let fru = Fru {
        // SMBIOS has no part number of the chassis.
        chassis_part_number: String::new(),
        chassis_part_serial: description(&chassis.serial),
        board_mfg: description(&board.manufacturer),
        board_mfg_serial: description(&board.serial),
        board_part_number: description(&board.product),
        product_manufacturer: description(&system.manufacturer),
        product_part_number: if sku.is_empty() {
            description(&system.product)
        } else {
            sku
        },
        product_serial: description(&system.serial),
    };
    (fru != Fru::default()).then_some(fru)
}
