//! Layouts: what does not fit the machine is known before the first write, and arrays are installed to.

use serde_json::json;

use crate::common::*;
use crate::support::allocation::Allocation;
use crate::support::bed::Bed;
use crate::support::disk::MIB;
use crate::support::guest::{End, Start};
use crate::support::images::Image;
use crate::support::media;

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
