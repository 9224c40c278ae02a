use super::*;
use crate::control::api::{LogicalVolume, Raid, VolumeGroup};
use crate::storage::lvm::Kind;
use crate::storage::md::Metadata;
use crate::storage::scope::disks_in_scope;
use crate::storage::testing::{disk, every_disk, filesystem, partition, root_disks};

const GIB: u64 = 1 << 30;

fn machine() -> Sorted {
    Sorted {
        erasable: ["sda", "sdb", "sdc", "sdd"]
            .map(|name| disk(name, 10 * GIB))
            .to_vec(),
        left_alone: vec![],
    }
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn raid(name: &str, level: u8, devices: &[&str]) -> Raid {
    Raid {
        array_name: name.into(),
        devices: strings(devices),
        level: format!("RAID_LEVEL_{level}"),
        ..Raid::default()
    }
}

fn volume(name: &str, size: u64, kind: &str) -> LogicalVolume {
    LogicalVolume {
        name: name.into(),
        volume_group: "vg0".into(),
        size,
        lvm_type: format!("LVM_TYPE_{kind}"),
    }
}

/// ESP and system on mirrors of sda and sdb, the system in LVM; a group on sdc and sdd whole.
fn layout() -> FilesystemLayout {
    let system = |device: &str| LayoutDisk {
        device: device.into(),
        partitions: vec![
            partition(1, "efi", 500, GptType::Boot),
            partition(2, "sys", 0, GptType::LinuxRaid),
        ],
    };
    let whole = |device: &str| LayoutDisk {
        device: device.into(),
        partitions: vec![],
    };
    FilesystemLayout {
        id: "stacked".into(),
        disks: vec![
            system("/dev/sda"),
            system("/dev/sdb"),
            whole("/dev/sdc"),
            whole("/dev/sdd"),
        ],
        raid: vec![
            raid("/dev/md/efi", 1, &["/dev/sda1", "/dev/sdb1"]),
            raid("/dev/md1", 1, &["/dev/sda2", "/dev/sdb2"]),
        ],
        volume_groups: vec![
            VolumeGroup {
                name: "vg0".into(),
                devices: strings(&["/dev/md1"]),
                tags: strings(&["system"]),
            },
            VolumeGroup {
                name: "data".into(),
                devices: strings(&["/dev/sdc", "/dev/sdd"]),
                tags: vec![],
            },
        ],
        logical_volumes: vec![
            volume("var", 0, "LINEAR"),
            volume("root", 5000, "UNSPECIFIED"),
            LogicalVolume {
                volume_group: "data".into(),
                ..volume("db", 1000, "RAID1")
            },
            LogicalVolume {
                volume_group: "data".into(),
                ..volume("scratch", 0, "STRIPED")
            },
        ],
        filesystems: vec![
            filesystem("/dev/md/efi", Format::Vfat, "/boot/efi"),
            filesystem("/dev/vg0/root", Format::Ext4, "/"),
            filesystem("/dev/mapper/vg0-var", Format::Ext4, "/var"),
            filesystem("/dev/data/db", Format::Ext4, "/db"),
            filesystem("/dev/data/scratch", Format::Swap, ""),
        ],
        ..FilesystemLayout::default()
    }
}

fn plan_on(layout: &FilesystemLayout, sorted: &Sorted) -> Result<Plan, PlanError> {
    let scoped = disks_in_scope(&every_disk(), sorted, None).unwrap();
    plan(layout, sorted, &scoped)
}

fn root_only(layout: &FilesystemLayout) -> Result<Plan, PlanError> {
    let scoped = disks_in_scope(&root_disks(), &machine(), Some(layout)).unwrap();
    plan(layout, &machine(), &scoped)
}

#[test]
fn a_whole_stack_is_planned_from_the_disks_up() {
    let plan = plan_on(&layout(), &machine()).unwrap();
    assert_eq!(plan.warnings(), [] as [String; 0]);
    let text = plan.to_string();
    for line in [
        "  /dev/sda1 \"efi\" Boot at block 2048, 500 MiB: member of /dev/md/efi",
        "/dev/sdc (SATA TEST, serial SER-sdc, 10240 MiB): used whole: member of group data",
        "/dev/md/efi (now /dev/md127): RAID 1 of /dev/sda1 /dev/sdb1, metadata 1.0, at least 497 MiB: vfat at /boot/efi",
        "/dev/md1: RAID 1 of /dev/sda2 /dev/sdb2, metadata 1.2, at least 9726 MiB: member of group vg0",
        "group vg0 on /dev/md1, tags system",
        "  /dev/mapper/vg0-root linear, 5000 MiB: ext4 at /",
        "  /dev/mapper/vg0-var linear, 4720 MiB: ext4 at /var",
        "group data on /dev/sdc /dev/sdd",
        "  /dev/mapper/data-db raid1, 1000 MiB: ext4 at /db",
        "  /dev/mapper/data-scratch striped, 18464 MiB: swap",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line:?} is not in\n{text}"
        );
    }
    // What takes the rest comes last, whatever the layout's order.
    let names: Vec<_> = plan.volumes().iter().map(|v| v.name.as_str()).collect();
    assert_eq!(names, ["root", "db", "var", "scratch"]);
    assert_eq!(plan.volumes()[2].extents, None);
    assert_eq!(plan.arrays()[0].metadata, Metadata::V1End);
    assert_eq!(plan.volumes()[1].kind, Kind::Mirror);
}

#[test]
fn every_refusal_names_layout_and_culprit() {
    type Change = fn(&mut FilesystemLayout);
    let table: [(Change, &str); 30] = [
        (
            |l| l.raid[1].level = "RAID_LEVEL_5".into(),
            "array /dev/md1: its level is \"RAID_LEVEL_5\"",
        ),
        (
            |l| l.raid[1].level = String::new(),
            "array /dev/md1: its level is \"\"",
        ),
        (
            |l| l.raid[1].array_name = "/dev/sda".into(),
            "array /dev/sda: its name is not usable",
        ),
        (
            |l| l.raid[1].array_name = "/dev/md/efi".into(),
            "array /dev/md/efi: its name is used twice",
        ),
        (
            |l| l.raid[1].devices.truncate(1),
            "it has 1 members, 0 of them spares",
        ),
        (
            |l| l.raid[1].spares = 1,
            "it has 2 members, 1 of them spares",
        ),
        (|l| l.raid[1].spares = -1, "it has -1 spares"),
        (|l| l.raid[1].devices.clear(), "it has 0 members"),
        (
            |l| l.raid[1].devices[1] = "/dev/sda2".into(),
            "/dev/sda2 is used by /dev/md1 already",
        ),
        (
            |l| l.raid[1].devices[1] = "/dev/sda1".into(),
            "/dev/sda1 is used by /dev/md/efi already",
        ),
        (
            |l| l.raid[1].devices[1] = "/dev/sdz9".into(),
            "no device of the layout is called \"/dev/sdz9\"",
        ),
        (
            |l| l.raid[1].devices[1] = "/dev/md1".into(),
            "no device of the layout is called \"/dev/md1\"",
        ),
        (
            |l| l.raid[1].devices[1] = "/dev/sda".into(),
            "no device of the layout is called \"/dev/sda\"",
        ),
        (
            |l| l.raid[1].create_options = strings(&["--stop"]),
            "the create option \"--stop\" is not allowed",
        ),
        (
            |l| {
                l.disks
                    .iter_mut()
                    .take(2)
                    .for_each(|d| d.partitions[0].size = 2)
            },
            "array /dev/md/efi: its members are too small",
        ),
        (
            |l| l.volume_groups[0].name = "a b".into(),
            "volume group \"a b\": its name is not usable",
        ),
        (
            |l| l.volume_groups[1].name = "vg0".into(),
            "volume group \"vg0\": its name is used twice",
        ),
        (
            |l| l.volume_groups[0].tags = strings(&["-x"]),
            "the tag \"-x\" is not usable",
        ),
        (
            |l| l.volume_groups[1].devices = strings(&["/dev/sda2"]),
            "/dev/sda2 is used by /dev/md1 already",
        ),
        (
            |l| l.logical_volumes[1].name = String::new(),
            "logical volume vg0/: its name is not usable",
        ),
        (
            |l| l.logical_volumes[1].name = "var".into(),
            "logical volume vg0/var: its name is used twice",
        ),
        (
            |l| l.logical_volumes[1].size = 0,
            "takes the rest of its group (size 0), and so does another",
        ),
        (
            |l| l.logical_volumes[1].size = 9800,
            "vg0/root: it needs 9800 MiB, but as linear volume its group has room for 9720 MiB",
        ),
        (
            |l| l.logical_volumes[1].size = 9720,
            "vg0/var: it needs 1 MiB, but as linear volume its group has room for 0 MiB",
        ),
        (
            |l| l.logical_volumes[1].lvm_type = "LVM_TYPE_THIN".into(),
            "its type is \"LVM_TYPE_THIN\"",
        ),
        (
            |l| l.logical_volumes[1].lvm_type = "LVM_TYPE_RAID1".into(),
            "its group has one member only",
        ),
        (
            |l| l.logical_volumes[1].volume_group = "vg9".into(),
            "vg9/root: its volume group is not defined",
        ),
        (
            |l| l.filesystems[0].device = "/dev/vg0/root".into(),
            "is used by another file system already",
        ),
        (
            |l| l.filesystems[2].device = "/dev/md1".into(),
            "/dev/md1 is used by group vg0 already",
        ),
        (
            |l| l.filesystems[2].device = "/dev/sdd".into(),
            "/dev/sdd is used by group data already",
        ),
    ];
    for (index, (change, expected)) in table.into_iter().enumerate() {
        let mut changed = layout();
        change(&mut changed);
        let error = plan_on(&changed, &machine()).unwrap_err().to_string();
        assert!(error.contains(expected), "{index}: {error}");
        assert!(
            error.starts_with("layout \"stacked\": "),
            "{index}: {error}"
        );
    }
}

#[test]
fn firmware_must_be_able_to_read_the_esp() {
    type Change = fn(&mut FilesystemLayout, &mut Sorted);
    let table: [(Change, &str); 4] = [
        (
            |l, _| l.raid[0].level = "RAID_LEVEL_0".into(),
            "cannot read /dev/md/efi of level 0",
        ),
        (
            |l, _| l.raid[0].create_options = strings(&["-e", "1.2"]),
            "whose metadata 1.2 is in front",
        ),
        (
            |l, _| {
                l.filesystems[0].device = "/dev/data/db".into();
                l.filesystems.remove(3);
            },
            "firmware cannot read logical volumes",
        ),
        (
            |_, m| m.erasable[1].logical_block_size = 4096,
            "differ in block size",
        ),
    ];
    for (index, (change, expected)) in table.into_iter().enumerate() {
        let (mut layout, mut machine) = (layout(), machine());
        change(&mut layout, &mut machine);
        let error = plan_on(&layout, &machine).unwrap_err().to_string();
        assert!(error.contains(expected), "{index}: {error}");
    }
    let mut old = layout();
    old.raid[0].create_options = strings(&["--metadata=0.90"]);
    assert_eq!(
        plan_on(&old, &machine()).unwrap().arrays()[0].metadata,
        Metadata::V0
    );
}

#[test]
fn odd_but_possible() {
    type Change = fn(&mut FilesystemLayout, &mut Sorted);
    let table: [(Change, &str); 6] = [
        (
            |_, m| m.erasable[1].size = 12 * GIB,
            "/dev/md1: its members have 9738 to 11786 MiB; what is beyond the smallest is not used",
        ),
        (
            |l, m| {
                m.erasable[1].size = 12 * GIB;
                l.raid[1].level = "RAID_LEVEL_0".into();
            },
            "is striped over fewer disks",
        ),
        (
            |l, _| {
                l.disks[0].partitions[1].size = 4869;
                l.disks[0]
                    .partitions
                    .push(partition(3, "", 4869, GptType::LinuxRaid));
                l.raid[1].devices[1] = "/dev/sda3".into();
                l.logical_volumes.remove(0);
                l.logical_volumes[0].size = 4800;
                l.filesystems.remove(2);
            },
            "two of its members are on /dev/sda",
        ),
        (
            |l, _| l.disks[0].partitions[1].gpt_type = GptType::Linux,
            "/dev/sda2 is a member of /dev/md1, but of type Linux",
        ),
        (
            |l, _| {
                l.disks[2]
                    .partitions
                    .push(partition(1, "", 0, GptType::Linux));
                l.volume_groups[1].devices[0] = "/dev/sdc1".into();
            },
            "/dev/sdc1 is a member of group \"data\", but of type Linux",
        ),
        (
            |l, _| {
                l.disks
                    .iter_mut()
                    .take(2)
                    .for_each(|d| d.partitions[0].gpt_type = GptType::LinuxRaid)
            },
            "/dev/sda1 is mounted at /boot/efi, but is not of type GPT_TYPE_BOOT",
        ),
    ];
    for (index, (change, expected)) in table.into_iter().enumerate() {
        let (mut layout, mut machine) = (layout(), machine());
        change(&mut layout, &mut machine);
        let plan = plan_on(&layout, &machine).unwrap();
        assert_eq!(plan.warnings().len(), 1, "{index}: {:?}", plan.warnings());
        assert!(
            plan.warnings()[0].contains(expected),
            "{index}: {:?}",
            plan.warnings()
        );
    }
}

#[test]
fn a_root_only_plan_keeps_the_group_on_other_disks() {
    let plan = root_only(&layout()).unwrap();
    let disks: Vec<_> = plan.disks().iter().map(|d| d.disk.name.as_str()).collect();
    assert_eq!(disks, ["sda", "sdb"]);
    let groups: Vec<_> = plan.groups().iter().map(|g| g.name.as_str()).collect();
    assert_eq!(groups, ["vg0"]);
    let found = |path: &str| {
        plan.filesystems()
            .iter()
            .find(|fs| fs.path == path)
            .unwrap()
    };
    let db = found("/db");
    assert_eq!(
        db.place,
        Place::Kept(Kept::Volume("/dev/mapper/data-db".into()))
    );
    assert_eq!(db.mount_options, ["defaults", "nofail"]);
    assert_eq!(found("").mount_options, ["sw", "nofail"]);
    assert_eq!(found("/var").place, Place::New(Base::Volume(1)));
}

#[test]
fn a_root_only_plan_keeps_an_array_on_other_disks() {
    let mut layout = layout();
    layout.volume_groups.truncate(1);
    layout.logical_volumes.truncate(2);
    layout
        .raid
        .push(raid("/dev/md5", 0, &["/dev/sdc", "/dev/sdd"]));
    layout.filesystems.truncate(3);
    layout
        .filesystems
        .push(filesystem("/dev/md5", Format::Ext4, "/db"));
    let plan = root_only(&layout).unwrap();
    let kept = Kept::Array {
        name: "/dev/md5".into(),
        members: vec!["/dev/sdc".into(), "/dev/sdd".into()],
    };
    assert!(
        plan.filesystems()
            .iter()
            .any(|fs| fs.place == Place::Kept(kept.clone()))
    );
    assert!(
        plan.to_string()
            .contains("/dev/md5: kept as it is: ext4 at /db")
    );
    assert_eq!(plan.arrays().len(), 2);

    // A member on the root's disk would be lost, the other one must not be written.
    layout.disks[0].partitions[1].size = 5000;
    layout.disks[0]
        .partitions
        .push(partition(3, "", 0, GptType::LinuxRaid));
    layout.raid[2] = raid("/dev/md5", 1, &["/dev/sda3", "/dev/sdc"]);
    layout.logical_volumes.truncate(1);
    layout.logical_volumes[0].name = "root".into();
    layout.filesystems.remove(2);
    assert!(plan_on(&layout, &machine()).is_ok());
    let error = root_only(&layout).unwrap_err().to_string();
    assert!(
        error.contains("array /dev/md5: 1 of its 2 members are on disks that carry the root"),
        "{error}"
    );
}

#[test]
fn optimal_io_size_moves_partitions_when_it_makes_sense() {
    for (optimal, expected) in [
        (0, [1, 501]),
        (512 << 10, [1, 501]),
        (0xffff * 512, [1, 501]),
        (4 << 20, [4, 504]),
        (3 << 20, [3, 504]),
        (1 << 30, [1, 501]),
    ] {
        let mut machine = machine();
        machine.erasable[0].optimal_io_size = optimal;
        let plan = plan_on(&layout(), &machine).unwrap();
        let starts: Vec<_> = plan.disks()[0]
            .partitions
            .iter()
            .map(|p| p.start_lba / 2048)
            .collect();
        assert_eq!(starts, expected, "{optimal}");
    }
}

proptest::proptest! {
    /// Whatever a layout asks for, a plan that is made keeps partitions apart and on the disk.
    #[test]
    fn planned_partitions_never_overlap(
        size in 0_u64..(64 << 30),
        block in proptest::sample::select(vec![512_u32, 4096]),
        optimal in proptest::sample::select(vec![0_u64, 4096, 1 << 20, 3 << 20, 64 << 20, 0xffff * 512]),
        sizes in proptest::collection::vec((1_u32..=128, 0_u64..20_000), 1..12),
    ) {
        let mut layout = layout();
        let system = layout.disks[0].partitions.clone();
        layout.disks[0].partitions = sizes.iter().map(|(number, mib)| partition(*number, "", *mib, GptType::Linux)).collect();
        layout.disks[0].partitions.extend(system.into_iter().filter(|p| sizes.iter().all(|(number, _)| *number != p.number)));
        let mut machine = machine();
        machine.erasable[0].size = size;
        machine.erasable[0].logical_block_size = block;
        machine.erasable[0].optimal_io_size = optimal;
        if let Ok(plan) = plan_on(&layout, &machine) {
            let mut end = 1;
            for partition in &plan.disks()[0].partitions {
                proptest::prop_assert!(partition.start_lba >= end && partition.blocks > 0);
                proptest::prop_assert_eq!(partition.start_lba * u64::from(block) % MIB, 0);
                end = partition.start_lba + partition.blocks;
            }
            // The backup table has 33 blocks of 512 bytes, or 5 of 4096.
            let backup = if block == 512 { 33 } else { 5 };
            proptest::prop_assert!(end + backup <= size / u64::from(block));
        }
    }

    /// A volume takes no more than there is, and no less than it says.
    #[test]
    fn volumes_take_what_they_say(
        mut free in proptest::collection::vec(0_u64..1000, 0..6),
        kind in proptest::sample::select(vec![Kind::Linear, Kind::Striped, Kind::Mirror]),
        wanted in proptest::option::of(0_u64..3000),
    ) {
        let before: u64 = free.iter().sum();
        let result = crate::storage::lvm::allocate(&mut free, kind, wanted);
        let taken = before - free.iter().sum::<u64>();
        match result {
            Ok(extents) if kind == Kind::Mirror => proptest::prop_assert_eq!(taken, 2 * (extents + 1)),
            Ok(extents) => proptest::prop_assert_eq!(taken, extents),
            Err(_) => proptest::prop_assert_eq!(taken, 0),
        }
        if let (Ok(extents), Some(wanted)) = (result, wanted) {
            proptest::prop_assert!(extents >= wanted);
        }
    }
}
