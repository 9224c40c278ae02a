//! Each layout of `tests/layouts` on real disks: made, looked at with the tools of md and LVM,
//! taken down, found again as an OS would find it. The host then looks at the disks from
//! outside (`tests/guest.rs`), which the test waits for.
//!
//! `vda`, `vdb` and two NVMe disks with blocks of 4 KiB have 1 GiB each, `sda` and `sdb` 768 MiB.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use metal_anvil::control::api::{FilesystemLayout, Format};
use metal_anvil::storage::apply::apply;
use metal_anvil::storage::disks::discover;
use metal_anvil::storage::plan::{Plan, plan};
use metal_anvil::storage::stack;
use metal_anvil::storage::superblock;
use metal_anvil::storage::target::Target;
use metal_anvil::storage::tools::Tools;
use metal_anvil::storage::wipe::{Depth, wipe};
use metal_anvil::watchdog::Progress;
use nix::mount::{MsFlags, mount, umount};

use crate::storage::{everything_on, machine, mounts};

macro_rules! layout {
    ($name:literal) => {
        ($name, include_str!(concat!("../layouts/", $name, ".json")))
    };
}

/// In the order of their names, which is the host's.
const LAYOUTS: &[(&str, &str)] = &[
    layout!("every-format"),
    layout!("file-systems-on-whole-disks"),
    layout!("lvm-linear"),
    layout!("lvm-on-whole-disks"),
    layout!("lvm-raid1"),
    layout!("lvm-striped"),
    layout!("numbers-with-gaps"),
    layout!("nvme-4kn"),
    layout!("nvme-4kn-raid1-lvm"),
    layout!("raid-options-and-names"),
    layout!("raid0-data"),
    layout!("raid1-lvm-and-data-disks"),
    layout!("raid1-system"),
    layout!("raid1-unequal-disks"),
    layout!("raid1-with-spare"),
    layout!("raid10-by-stacking"),
    layout!("single-disk"),
];

const DISKS: [&str; 6] = ["vda", "vdb", "sda", "sdb", "nvme0n1", "nvme1n1"];

#[test]
fn each_is_made_and_found_again() {
    let only = fs::read_to_string("/proc/cmdline").unwrap();
    let only = only
        .split_whitespace()
        .find_map(|word| word.strip_prefix("guest.layout="));
    for (name, json) in LAYOUTS {
        if only.is_some_and(|only| !name.starts_with(only)) {
            continue;
        }
        let sorted = machine(&DISKS);
        let scoped = everything_on(&sorted);
        wipe(&scoped, Depth::Quick, &Progress::unwatched()).unwrap();
        let layout: FilesystemLayout = serde_json::from_str(json).unwrap();
        let plan = plan(&layout, &sorted, &scoped).unwrap();
        println!("{plan}");
        let target = apply(&plan, Path::new("/tmp/target"), &Tools::default()).unwrap();
        assert_eq!(target.has_arrays, !layout.raid.is_empty());
        arrays_are_as_said(&layout, &plan);
        volumes_are_as_said(&layout);
        mounts_are_as_said(&layout, &target);
        let fstab = target.fstab();
        target.unmount().unwrap();
        assert_eq!(stacks(), [] as [String; 0]);

        find_again(&layout, &fstab);
        let disks: Vec<_> = plan
            .disks()
            .iter()
            .map(|planned| planned.disk.clone())
            .collect();
        stack::take_down(&disks).unwrap();
        assert_eq!(stacks(), [] as [String; 0]);
        hand_to_the_host(name);
    }
}

fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .env("DM_DISABLE_UDEV", "1")
        .env("LVM_SUPPRESS_FD_WARNINGS", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {text}{errors}"
    );
    text
}

/// Names of all arrays and mapped devices that have any content: mdadm opens what it has known
/// before, and the kernel makes an empty array of that.
fn stacks() -> Vec<String> {
    let names = fs::read_dir("/sys/block")
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    names
        .map(|name| name.into_string().unwrap())
        .filter(|name| name.starts_with("md") || name.starts_with("dm-"))
        .filter(|name| fs::read_to_string(format!("/sys/block/{name}/size")).unwrap() != "0\n")
        .collect()
}

fn arrays_are_as_said(layout: &FilesystemLayout, plan: &Plan) {
    assert_eq!(plan.arrays().len(), layout.raid.len());
    for (raid, planned) in layout.raid.iter().zip(plan.arrays()) {
        let detail = tool(
            "/usr/sbin/mdadm",
            &["--detail", "--export", planned.node.to_str().unwrap()],
        );
        let says = |line: &str| detail.lines().any(|found| found == line);
        let level = raid.level.strip_prefix("RAID_LEVEL_").unwrap();
        let active = raid.devices.len() - raid.spares as usize;
        assert!(says(&format!("MD_LEVEL=raid{level}")), "{detail}");
        assert!(says(&format!("MD_DEVICES={active}")), "{detail}");
        assert!(
            says(&format!("MD_METADATA={}", planned.metadata)),
            "{detail}"
        );
        let spares = detail
            .lines()
            .filter(|line| line.ends_with("_ROLE=spare"))
            .count();
        assert_eq!(spares, raid.spares as usize, "{detail}");
        let name = planned.node.file_name().unwrap();
        let size = fs::read_to_string(Path::new("/sys/block").join(name).join("size")).unwrap();
        let size: u64 = size.trim().parse().unwrap();
        assert!(
            size * 512 >= planned.size,
            "{}: {size} sectors, planned {}",
            raid.array_name,
            planned.size
        );
        if raid.create_options.iter().any(|option| option == "--chunk") {
            let detail = tool(
                "/usr/sbin/mdadm",
                &["--detail", planned.node.to_str().unwrap()],
            );
            assert!(detail.contains("Chunk Size : 64K"), "{detail}");
        }
    }
}

fn volumes_are_as_said(layout: &FilesystemLayout) {
    let fields = "vg_name,lv_name,lv_size,segtype,vg_tags";
    let arguments = [
        "lvs",
        "--noheadings",
        "--units",
        "m",
        "--nosuffix",
        "--separator",
        ";",
        "-o",
        fields,
    ];
    let text = tool("/usr/sbin/lvm", &arguments);
    let mut lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.trim().split(';').collect())
        .collect();
    // A volume on several members has a line for each segment.
    lines.sort();
    lines.dedup();
    assert_eq!(lines.len(), layout.logical_volumes.len(), "{text}");
    for volume in &layout.logical_volumes {
        let line = lines
            .iter()
            .find(|line| line[0] == volume.volume_group && line[1] == volume.name)
            .unwrap_or_else(|| panic!("{} is not in {text}", volume.name));
        let size: f64 = line[2].parse().unwrap();
        // Whole extents of 4 MiB, on each of two stripes.
        let fits = |said: f64| (said..said + 8.0).contains(&size);
        assert!(
            volume.size == 0 && size > 0.0 || fits(volume.size as f64),
            "{text}"
        );
        let kind = match volume.lvm_type.as_str() {
            "LVM_TYPE_STRIPED" => "striped",
            "LVM_TYPE_RAID1" => "raid1",
            _ => "linear",
        };
        assert_eq!(line[3], kind, "{text}");
        let group = layout
            .volume_groups
            .iter()
            .find(|group| group.name == line[0])
            .unwrap();
        let mut tags: Vec<_> = line[4].split(',').filter(|tag| !tag.is_empty()).collect();
        tags.sort_unstable();
        assert_eq!(tags, group.tags, "{text}");
    }
}

fn is_mounted(format: Format) -> bool {
    matches!(format, Format::Vfat | Format::Ext3 | Format::Ext4)
}

/// Every file system of the layout is mounted where it belongs, and gets a file.
fn mounts_are_as_said(layout: &FilesystemLayout, target: &Target) {
    let all = mounts();
    for filesystem in layout.filesystems.iter().filter(|fs| is_mounted(fs.format)) {
        let at = format!("/tmp/target{}", filesystem.path.trim_end_matches('/'));
        let kind = match filesystem.format {
            Format::Vfat => "vfat",
            Format::Ext3 => "ext3",
            _ => "ext4",
        };
        let line = all
            .lines()
            .find(|line| line.contains(&format!(" {at} {kind} ")));
        assert!(line.is_some(), "{at} is not in {all}");
        fs::write(Path::new(&at).join("marker"), &filesystem.path).unwrap();
    }
    let root = target.filesystems.iter().find(|fs| fs.path == "/").unwrap();
    assert_eq!(root.uuid, target.root_uuid);
    let esp = target.esp.as_ref().unwrap();
    assert_eq!(esp.path, "/boot/efi");
}

/// Assembles everything without being told anything, and finds each line of fstab.
fn find_again(layout: &FilesystemLayout, fstab: &str) {
    if !layout.raid.is_empty() {
        // An array on arrays is found only in the second round.
        for _ in 0..2 {
            let _ = Command::new("/usr/sbin/mdadm")
                .args(["--assemble", "--scan"])
                .output()
                .unwrap();
        }
    }
    if !layout.volume_groups.is_empty() {
        tool("/usr/sbin/lvm", &["vgchange", "--quiet", "--activate", "y"]);
    }
    let found = filesystems();
    let lines: Vec<Vec<&str>> = fstab
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(' ').collect())
        .collect();
    let expected = layout
        .filesystems
        .iter()
        .filter(|fs| fs.format != Format::None)
        .count();
    assert_eq!(lines.len(), expected, "{fstab}");
    for line in lines.iter().filter(|line| line[0] != "tmpfs") {
        let uuid = line[0].strip_prefix("UUID=").unwrap();
        let device = found
            .get(uuid)
            .unwrap_or_else(|| panic!("{uuid} is not in {found:?}"));
        if line[2] == "swap" {
            continue;
        }
        fs::create_dir_all("/tmp/again").unwrap();
        let options = (line[2] != "vfat").then_some("noload");
        mount(
            Some(device),
            "/tmp/again",
            Some(line[2]),
            MsFlags::MS_RDONLY,
            options,
        )
        .unwrap();
        assert_eq!(
            fs::read_to_string("/tmp/again/marker").unwrap(),
            line[1],
            "{device:?}"
        );
        umount("/tmp/again").unwrap();
    }
}

/// Block devices by the UUID of the file system on them. What others stand on does not count: a
/// member of a mirror may look like the mirror.
fn filesystems() -> BTreeMap<String, PathBuf> {
    let mut names = Vec::new();
    for disk in discover(Path::new("/sys")).unwrap() {
        names.extend(
            disk.partitions
                .iter()
                .map(|partition| partition.name.clone()),
        );
        names.push(disk.name);
    }
    names.extend(stacks());
    let mut found = BTreeMap::new();
    for name in names {
        let holders = fs::read_dir(format!("/sys/class/block/{name}/holders")).unwrap();
        let node = Path::new("/dev").join(&name);
        let superblock = File::open(&node).and_then(|file| superblock::read(&file));
        if let (0, Ok(Some(superblock))) = (holders.count(), superblock) {
            let other = found.insert(superblock.uuid, node);
            assert_eq!(other, None, "{name} has the UUID of another device");
        }
    }
    found
}

/// Says which disk has which serial number, and waits until the host has seen enough.
fn hand_to_the_host(name: &str) {
    let mut line = format!("LAYOUT {name} READY");
    for disk in discover(Path::new("/sys")).unwrap() {
        line.push_str(&format!(" {}={}", disk.name, disk.serial));
    }
    nix::unistd::sync();
    let mut console = File::options()
        .read(true)
        .write(true)
        .open("/dev/console")
        .unwrap();
    writeln!(console, "\n{line}").unwrap();
    let mut byte = [0];
    while console.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {}
}
