//! What the tests of this module share.

use uuid::Uuid;

use super::disks::{DevId, Disk, DiskPartition, Transport, partition_name};
use crate::control::api::{Filesystem, FilesystemLayout, Format, GptType, LayoutDisk, Partition};
use crate::decide::{Adopt, Age, Answer, Decision, Journal, WipeScope, decide};

/// A SATA disk of `size` bytes with one old partition and a serial number of its own.
pub fn disk(name: &str, size: u64) -> Disk {
    let index = u32::from(name.bytes().last().unwrap_or(b'a') % 32).saturating_sub(1) * 16;
    Disk {
        name: name.into(),
        path: format!("/dev/{name}").into(),
        dev: DevId {
            major: 8,
            minor: index,
        },
        size,
        logical_block_size: 512,
        optimal_io_size: 0,
        model: "TEST".into(),
        serial: format!("SER-{name}"),
        wwn: format!("naa.{name}"),
        transport: Transport::Sata,
        rotational: false,
        removable: false,
        read_only: false,
        partitions: vec![DiskPartition {
            name: partition_name(name, 1),
            dev: DevId {
                major: 8,
                minor: index + 1,
            },
            number: 1,
            start: 1 << 20,
            size: 1 << 20,
        }],
    }
}

/// The right to write every disk.
pub fn every_disk() -> WipeScope {
    match decide(&Journal::None, Answer::NoAllocation, Adopt::Hold) {
        Decision::WipeAndWait(scope) => scope,
        other => panic!("{other:?}"),
    }
}

/// The right to write the root disks only.
pub fn root_disks() -> WipeScope {
    let uuid = Uuid::from_u128(1);
    let answer = Answer::Allocation {
        uuid,
        age: Age::Standing,
        ordered: true,
    };
    match decide(
        &Journal::Installed { allocation: uuid },
        answer,
        Adopt::Hold,
    ) {
        Decision::WipeAndInstall(scope) => scope,
        other => panic!("{other:?}"),
    }
}

pub fn partition(number: u32, label: &str, size: u64, gpt_type: GptType) -> Partition {
    Partition {
        number,
        label: label.into(),
        size,
        gpt_type,
    }
}

pub fn filesystem(device: &str, format: Format, path: &str) -> Filesystem {
    Filesystem {
        device: device.into(),
        format,
        path: path.into(),
        ..Filesystem::default()
    }
}

/// ESP, root and /var on sda, data on sdb, swap on sdb, tmpfs.
pub fn layout() -> FilesystemLayout {
    FilesystemLayout {
        id: "two-disks".into(),
        disks: vec![
            LayoutDisk {
                device: "/dev/sda".into(),
                partitions: vec![
                    partition(1, "efi", 500, GptType::Boot),
                    partition(2, "root", 5000, GptType::Linux),
                    partition(3, "var", 0, GptType::Linux),
                ],
            },
            LayoutDisk {
                device: "/dev/sdb".into(),
                partitions: vec![
                    partition(1, "swap", 1024, GptType::Linux),
                    partition(2, "data", 0, GptType::Linux),
                ],
            },
        ],
        filesystems: vec![
            filesystem("/dev/sdb2", Format::Ext4, "/var/lib/data"),
            filesystem("/dev/sda3", Format::Ext4, "/var"),
            filesystem("/dev/sda1", Format::Vfat, "/boot/efi"),
            filesystem("/dev/sda2", Format::Ext4, "/"),
            filesystem("/dev/sdb1", Format::Swap, ""),
            filesystem("tmpfs", Format::Tmpfs, "/tmp"),
        ],
        ..FilesystemLayout::default()
    }
}
