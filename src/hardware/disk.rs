//! The disks as storage finds them, with what only the inventory wants to know.
//! (Documentation/ABI/stable/sysfs-block; drivers/nvme/host/sysfs.c.)

use std::path::Path;

use super::ask::{self, Question};
use super::types::{Disk, Health};
use super::{Error, Roots, attribute, health, pci};
use crate::storage::disks::{self, Transport};
use crate::storage::eligible::{self, Exclusions, Reason};

/// Every disk in the order of its name. `boot_medium` is what the machine was booted from.
///
/// # Errors
/// When `/sys/block` cannot be listed. A disk that makes no sense is left out, said in the
/// log.
pub(super) fn disks(roots: &Roots, boot_medium: Option<&str>) -> Result<Vec<Disk>, Error> {
    let found = disks::discover_usable(&roots.sys)?;
    let sorted = eligible::erasable(found.clone(), boot_medium, &Exclusions::default());
    let questions = found.iter().map(|disk| question(&roots.sys, disk));
    let (asked, questions): (Vec<usize>, Vec<Question>) = questions
        .enumerate()
        .filter_map(|(index, question)| Some((index, question?)))
        .unzip();
    let mut answers: Vec<Option<Health>> = vec![None; found.len()];
    let kinds = questions.clone();
    for ((index, kind), answer) in
        asked
            .iter()
            .zip(&kinds)
            .zip(ask::ask_all(&roots.ask, questions, ask::DEADLINE))
    {
        answers[*index] = answer.and_then(|bytes| match kind {
            Question::NvmeHealth(_) => health::nvme(&bytes),
            Question::AtaHealth(_) => health::ata(&bytes),
            _ => health::scsi(&bytes),
        });
    }
    Ok(found
        .into_iter()
        .zip(answers)
        .map(|(disk, health)| {
            let reason = sorted
                .left_alone
                .iter()
                .find(|(other, _)| other.name == disk.name)
                .map(|(_, reason)| reason);
            describe(&roots.sys, disk, reason, health)
        })
        .collect())
}

/// All that the disks are asked.
pub(super) fn questions(roots: &Roots) -> Result<Vec<Question>, Error> {
    let disks = disks::discover_usable(&roots.sys)?;
    let questions = disks.iter().filter_map(|disk| question(&roots.sys, disk));
    Ok(questions.collect())
}

/// What the disk is asked, if it can be. USB bridges are known to hang on such commands.
fn question(sys: &Path, disk: &disks::Disk) -> Option<Question> {
    let device = sys.join("block").join(&disk.name).join("device");
    let is_ata = || attribute(&device.join("vendor")).as_deref() == Some("ATA");
    match disk.transport {
        Transport::Nvme => Some(Question::NvmeHealth(disk.path.clone())),
        Transport::Sata => Some(Question::AtaHealth(disk.path.clone())),
        Transport::Scsi if is_ata() => Some(Question::AtaHealth(disk.path.clone())),
        Transport::Scsi => Some(Question::ScsiHealth(disk.path.clone())),
        _ => None,
    }
}

/// The serial number of a USB disk's enclosure or stick: the USB device's, which is above
/// interface, host and target (drivers/usb/storage/usb.c).
fn usb_serial(block: &Path) -> Option<String> {
    attribute(&block.join("device/../../../../serial"))
}

fn describe(
    sys: &Path,
    disk: disks::Disk,
    reason: Option<&Reason>,
    health: Option<Health>,
) -> Disk {
    let block = sys.join("block").join(&disk.name);
    let physical = attribute(&block.join("queue/physical_block_size"))
        .and_then(|text| text.parse::<u32>().ok())
        .unwrap_or(disk.logical_block_size);
    // Read-only and excluded disks are the machine's all the same.
    let left_out = reason.filter(|it| !matches!(it, Reason::ReadOnly | Reason::Excluded(_)));
    Disk {
        name: disk.path.display().to_string(),
        size: disk.size,
        logical_block_size: disk.logical_block_size,
        physical_block_size: physical,
        vendor_model: disk.model,
        serial: Some(disk.serial)
            .filter(|serial| !serial.is_empty())
            .or_else(|| usb_serial(&block).filter(|_| disk.transport == Transport::Usb))
            .unwrap_or_default(),
        wwn: disk.wwn,
        firmware: attribute(&block.join("device/firmware_rev"))
            .or_else(|| attribute(&block.join("device/rev")))
            .unwrap_or_default(),
        transport: disk.transport.to_string(),
        bus: pci::address(&block).unwrap_or_default(),
        rotational: disk.rotational,
        removable: disk.removable,
        read_only: disk.read_only,
        left_out: left_out.map(ToString::to_string),
        health,
    }
}
