//! Layouts: what does not fit the machine is known before the first write, and arrays are installed to.

use serde_json::json;

use crate::common::*;
use crate::support::allocation::Allocation;
use crate::support::bed::Bed;
use crate::support::disk::{Bus, Disk, MIB};
use crate::support::guest::{End, Guest, Start};
use crate::support::images::Image;
use crate::support::media;
use crate::support::root;

#[test]
fn a_disk_that_is_not_there() {
    crash_before_the_first_write(
        "layout_missing_disk",
        &["disk"],
        |allocation| {
            allocation
                .with("/filesystemLayout/disks/0/device", json!("/dev/sdz"))
                .with("/filesystemLayout/filesystems/0/device", json!("/dev/sdz1"))
                .with("/filesystemLayout/filesystems/1/device", json!("/dev/sdz2"))
        },
        &["/dev/sdz"],
    );
}

#[test]
fn a_disk_that_is_too_small() {
    crash_before_the_first_write(
        "layout_too_small",
        &["disk", "data"],
        |allocation| allocation.with("/filesystemLayout/disks/0/partitions/0/size", json!("4096")),
        &["/dev/vda"],
    );
}

/// Whichever of the two disks loses its EFI system partition, the firmware starts the OS from the other.
#[test]
fn a_mirrored_efi_system_partition_boots_from_either_disk() {
    let bed = Bed::plan("layout_mirrored_esp").start();
    let disks = vec![used_disk(&bed, "disk"), used_disk(&bed, "data")];
    let mut machine = bed.machine(media::agent(), disks);
    let url = bed.publish("tiny", &Image::built("tiny"));
    let layout = json!({
        "id": "mirrored", "name": "mirrored",
        "disks": [
            {"device": "/dev/vda", "partitions": [
                {"number": 1, "label": "efi", "size": "96", "gptType": "GPT_TYPE_BOOT"},
                {"number": 2, "label": "root", "size": "200", "gptType": "GPT_TYPE_LINUX"},
                {"number": 3, "label": "data", "gptType": "GPT_TYPE_LINUX_RAID"},
            ]},
            {"device": "/dev/vdb", "partitions": [
                {"number": 1, "label": "efi", "size": "96", "gptType": "GPT_TYPE_BOOT"},
                {"number": 2, "label": "data", "gptType": "GPT_TYPE_LINUX_RAID"},
            ]},
        ],
        "raid": [
            {"arrayName": "/dev/md0", "level": "RAID_LEVEL_1", "devices": ["/dev/vda1", "/dev/vdb1"]},
            {"arrayName": "/dev/md1", "level": "RAID_LEVEL_1", "devices": ["/dev/vda3", "/dev/vdb2"]},
        ],
        "filesystems": [
            {"device": "/dev/md0", "format": "FORMAT_VFAT", "path": "/boot/efi", "label": "efi"},
            {"device": "/dev/vda2", "format": "FORMAT_EXT4", "path": "/", "label": "root"},
            {"device": "/dev/md1", "format": "FORMAT_EXT4", "path": "/data"},
        ],
    });
    let allocation = Allocation::new(&url, "/dev/vda").with("/filesystemLayout", layout);
    let mut guest = install(&bed, &machine, &allocation);
    assert_eq!(guest.wait_end(90), End::PowerOff);
    let text = guest.text();
    let entries = text
        .lines()
        .filter(|line| line.contains("boot order set"))
        .find_map(|line| line.split_once("entries=[")?.1.split_once(']'))
        .map(|(entries, _)| entries.split(',').count());
    assert_eq!(entries, Some(2), "an entry for each member");
    assert!(text.contains(" /data ext4 "), "the array is not in fstab");
    let copy = format!("installed {}\n", allocation.uuid());
    for disk in &machine.disks {
        // The EFI system partition is at the start.
        assert!(
            disk.holds(copy.as_bytes(), 100 * MIB),
            "no copy of the journal on {}",
            disk.path.display()
        );
    }

    for (name, lost) in [("whole", None), ("first-lost", Some(0))] {
        if let Some(disk) = lost {
            // Both tables stay; what is at the start of the EFI system partition goes.
            machine.disks[disk].scribble(MIB, &vec![0; 8 * MIB as usize]);
        }
        machine.start = Start::Disks;
        machine.name = name.to_owned();
        let mut again = bed.power_on(&machine);
        again.wait_for("TINY-OS BOOTED via firmware", 240);
        assert_eq!(again.wait_end(90), End::PowerOff);
    }
}

/// The richest of `tests/layouts`: an EFI system partition on RAID1, the root on LVM on RAID1, on disks
/// with blocks of 4 KiB. The OS, which has an initramfs for it, starts by kexec and by the firmware.
#[test]
fn a_root_on_lvm_on_raid1_boots_by_kexec_and_from_disk() {
    let bed = Bed::plan("layout_stacked_root").start();
    let disks = ["first", "second"].map(|name| Disk::empty(&bed.dir, name, Bus::Nvme4k, 1024));
    let mut machine = bed.machine(media::agent(), disks.to_vec());
    let url = bed.publish("tiny-stacked", &Image::built("tiny-stacked"));
    let file = root().join("tests/layouts/nvme-4kn-raid1-lvm.json");
    let layout: serde_json::Value =
        serde_json::from_slice(&std::fs::read(file).expect("a layout")).expect("a layout is JSON");
    let allocation = Allocation::new(&url, "/dev/nvme0n1").with("/filesystemLayout", layout);
    let mut guest = install(&bed, &machine, &allocation);
    assert_eq!(guest.wait_end(90), End::PowerOff);
    assert_stacked(&guest);
    let uuid = fact(&guest, "root");

    machine.start = Start::Disks;
    machine.name = "from-disk".to_owned();
    let mut again = bed.power_on(&machine);
    again.wait_for("TINY-OS BOOTED via firmware", 240);
    assert_eq!(again.wait_end(90), End::PowerOff);
    assert_stacked(&again);
    assert_eq!(fact(&again, "root"), uuid);
}

/// The OS runs on a volume, and both mirrors have both members.
fn assert_stacked(guest: &Guest) {
    let device = fact(guest, "device");
    assert!(device.starts_with("dm-"), "the root is on {device}");
    let text = guest.text();
    let mirrors = text
        .lines()
        .filter(|line| line.starts_with("TINY-OS array=") && line.contains(" raid1 "))
        .filter(|line| line.contains("[UU]"));
    assert_eq!(mirrors.count(), 2, "not both mirrors are whole");
}
