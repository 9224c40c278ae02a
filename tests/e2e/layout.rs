//! Layouts: what does not fit the machine is known before the first write, and arrays are installed to.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::common::*;
use crate::support::allocation::Allocation;
use crate::support::bed::Bed;
use crate::support::disk::{Bus, Disk, MIB};
use crate::support::examine::{examine, list, text};
use crate::support::guest::{End, Guest};
use crate::support::images::Image;
use crate::support::machine::Start;
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

/// A test for each file of `tests/layouts`.
macro_rules! layouts {
    ($($test:ident: $name:literal,)+) => {
        mod boots_from_disk {
            $(#[test]
            fn $test() {
                super::installs_and_boots_from_disk($name);
            })+
        }

        #[test]
        fn no_layout_is_left_out() {
            let files = std::fs::read_dir(root().join("tests/layouts")).expect("tests/layouts");
            let mut names: Vec<String> = files
                .map(|entry| entry.expect("tests/layouts").file_name())
                .map(|name| name.to_string_lossy().replace(".json", ""))
                .collect();
            names.sort();
            assert_eq!(names, [$($name),+]);
        }
    };
}

layouts! {
    every_format: "every-format",
    file_systems_on_whole_disks: "file-systems-on-whole-disks",
    lvm_linear: "lvm-linear",
    lvm_on_whole_disks: "lvm-on-whole-disks",
    lvm_raid1: "lvm-raid1",
    lvm_striped: "lvm-striped",
    numbers_with_gaps: "numbers-with-gaps",
    nvme_4kn: "nvme-4kn",
    nvme_4kn_raid1_lvm: "nvme-4kn-raid1-lvm",
    raid_options_and_names: "raid-options-and-names",
    raid0_data: "raid0-data",
    raid1_lvm_and_data_disks: "raid1-lvm-and-data-disks",
    raid1_system: "raid1-system",
    raid1_unequal_disks: "raid1-unequal-disks",
    raid1_with_spare: "raid1-with-spare",
    raid10_by_stacking: "raid10-by-stacking",
    single_disk: "single-disk",
}

/// The agent installs to the layout; then the firmware starts the OS, whose initramfs finds root
/// and data; then the disks are looked at from outside. Of the starts by kexec one is enough, of the
/// richest layout; the others are saved the time by the machine's name in the kexec denylist.
fn installs_and_boots_from_disk(name: &str) {
    let bed = Bed::plan(&format!("layout_{name}")).start();
    let file = root().join(format!("tests/layouts/{name}.json"));
    let layout: Value =
        serde_json::from_slice(&std::fs::read(file).expect("a layout")).expect("a layout is JSON");
    let by_kexec = name == "nvme-4kn-raid1-lvm";
    let start = match by_kexec {
        true => media::agent(),
        false => media::agent_with("anvil.policy.kexec_denylist=QEMU"),
    };
    let mut machine = bed.machine(start, disks_for(&bed, &layout));
    let url = bed.publish("tiny-stacked", &Image::built("tiny-stacked"));
    let allocation = Allocation::new(&url, "/dev/vda")
        .with("/filesystemLayout", layout.clone())
        .fresh();
    bed.allocate(&allocation);
    let mut guest = bed.power_on(&machine);
    guest.wait_for("step: image", TO_WAITING);
    let kernel_names = kernel_names(&guest.text());
    guest.wait_for("step: success report", TO_INSTALLED);
    if by_kexec {
        guest.wait_for("TINY-OS BOOTED via kexec", 120);
        assert_eq!(guest.wait_end(90), End::PowerOff);
        assert_os_finds(&guest, &layout);
    } else {
        assert_eq!(guest.wait_end(90), End::Reset);
    }

    machine.start = Start::Disks;
    machine.name = "from-disk".to_owned();
    let mut again = bed.power_on(&machine);
    let said = again.wait_for_any(&["TINY-OS BOOTED via ", "TINY-OS initramfs: "], 240);
    assert!(said.contains("BOOTED via firmware"), "{said}");
    assert_eq!(again.wait_end(90), End::PowerOff);
    assert_os_finds(&again, &layout);

    let known = kernel_names
        .into_iter()
        .map(|(name, index)| (name, &machine.disks[index]));
    examine(&layout, known.collect());
}

/// A disk for each that the layout names, in the order of their kernel names.
fn disks_for(bed: &Bed, layout: &Value) -> Vec<Disk> {
    let mut names: Vec<&str> = list(layout, "disks")
        .iter()
        .map(|disk| text(disk, "device"))
        .collect();
    names.sort_unstable();
    names
        .iter()
        .map(|name| {
            let (bus, mib) = match name {
                name if name.starts_with("/dev/vd") => (Bus::Virtio, 1024),
                name if name.starts_with("/dev/sd") => (Bus::Scsi, 768),
                _ => (Bus::Nvme4k, 1024),
            };
            Disk::empty(&bed.dir, name.trim_start_matches("/dev/"), bus, mib)
        })
        .collect()
}

/// What the agent called which disk, from the plan in its log: the serial number's last digit is
/// the disk's place in our list.
fn kernel_names(log: &str) -> BTreeMap<String, usize> {
    let plans = log
        .lines()
        .filter_map(|line| line.split_once("plan: /dev/")?.1.split_once(" ("));
    let disks = plans.filter_map(|(name, rest)| {
        let (serial, _) = rest.split_once(", serial ")?.1.split_once(',')?;
        let index = serial.chars().last()?.to_digit(10)?;
        Some((name.to_owned(), index as usize))
    });
    disks.collect()
}

/// What the started OS, mdadm and LVM say, against the layout.
fn assert_os_finds(guest: &Guest, layout: &Value) {
    let all = guest.text();
    let facts = |name: &str| -> Vec<&str> {
        let prefix = format!("TINY-OS {name}=");
        all.lines()
            .filter_map(|line| line.trim_end().strip_prefix(&prefix))
            .collect()
    };
    let root_line = format!("UUID={} / ext4 ", fact(guest, "root"));
    let fstab = facts("fstab");
    assert!(
        fstab.iter().any(|line| line.starts_with(&root_line)),
        "{root_line:?} is not in {fstab:?}"
    );
    let (mounted, swaps) = (facts("mounted"), facts("swap"));
    let mut expected = (0, 0);
    for filesystem in list(layout, "filesystems") {
        let device = text(filesystem, "device");
        let kind = kind_of(layout, device);
        let (format, path) = (text(filesystem, "format"), text(filesystem, "path"));
        match format {
            "FORMAT_SWAP" => {
                expected.1 += 1;
                let found = swaps.iter().any(|swap| swap.starts_with(kind));
                assert!(found, "no swap on {kind}: {swaps:?}");
            }
            "FORMAT_VFAT" | "FORMAT_EXT3" | "FORMAT_EXT4" => {
                expected.0 += 1;
                let format = format.trim_start_matches("FORMAT_").to_lowercase();
                let line = format!("{path} {format} /dev/{kind}");
                let found = mounted.iter().any(|mount| mount.starts_with(&line));
                assert!(found, "{line:?} is not in {mounted:?}");
            }
            _ => {}
        }
    }
    assert_eq!((mounted.len(), swaps.len()), expected);

    let arrays = list(layout, "raid");
    let details = facts("detail");
    assert_eq!(details.len(), arrays.len(), "{details:?}");
    for array in arrays {
        let name = text(array, "arrayName").replace("/dev/md/", "");
        let name = name.trim_start_matches("/dev/md");
        let spares = array["spares"].as_u64().unwrap_or(0) as usize;
        let active = list(array, "devices").len() - spares;
        let level = text(array, "level").replace("RAID_LEVEL_", "raid");
        let words = [
            format!("MD_NAME=any:{name}"),
            format!("MD_LEVEL={level}"),
            format!("MD_DEVICES={active}"),
        ];
        let fits = |detail: &&&str| {
            let said: Vec<&str> = detail.split(' ').collect();
            let is_spare = |word: &&&str| word.ends_with("_ROLE=spare");
            words.iter().all(|word| said.contains(&word.as_str()))
                && said.iter().filter(is_spare).count() == spares
        };
        let found = details.iter().filter(fits).count();
        assert_eq!(found, 1, "{words:?}, {spares} spares: {details:?}");
    }
    let mirrors: Vec<&str> = facts("array")
        .into_iter()
        .filter(|line| line.contains(" raid1 "))
        .collect();
    let whole = mirrors.iter().all(|line| line.contains("[UU]"));
    assert!(whole, "not all mirrors are whole: {mirrors:?}");

    let mut volumes = facts("volume");
    // A volume on several members has a line for each segment.
    volumes.sort_unstable();
    volumes.dedup();
    let wanted = list(layout, "logicalVolumes");
    assert_eq!(volumes.len(), wanted.len(), "{volumes:?}");
    for volume in wanted {
        let group = text(volume, "volumeGroup");
        let start = format!("{group};{};", text(volume, "name"));
        let line = volumes.iter().find_map(|line| line.strip_prefix(&start));
        let line = line.unwrap_or_else(|| panic!("{start} is not in {volumes:?}"));
        let words: Vec<&str> = line.split(';').collect();
        let size: f64 = words[0].parse().expect("lvs prints MiB");
        // Whole extents of 4 MiB, on each of two stripes; no size is the rest.
        let fits = match text(volume, "size").parse::<f64>() {
            Ok(said) => (said..said + 8.0).contains(&size),
            Err(_) => size > 0.0,
        };
        assert!(fits, "{start} {line}");
        let kind = text(volume, "lvmType")
            .replace("LVM_TYPE_", "")
            .to_lowercase();
        assert_eq!(words[1], kind, "{start} {line}");
        let groups = list(layout, "volumeGroups");
        let group = groups.iter().find(|it| text(it, "name") == group);
        let tags = list(group.expect("the volume's group"), "tags");
        let mut found: Vec<&str> = words[2].split(',').filter(|tag| !tag.is_empty()).collect();
        found.sort_unstable();
        assert_eq!(found, tags, "{start} {line}");
    }
}

/// How the kernel's name of what the layout calls `device` begins: partitions and disks by their
/// bus, for their letters may change from boot to boot.
fn kind_of<'d>(layout: &Value, device: &'d str) -> &'d str {
    let is_array = |array: &Value| text(array, "arrayName") == device;
    let name = device.trim_start_matches("/dev/");
    if list(layout, "raid").iter().any(is_array) {
        "md"
    } else if name.contains('/') {
        "dm-"
    } else {
        &name[..2]
    }
}
