use super::*;
use crate::storage::disks::Transport;
use crate::storage::eligible::Reason;
use crate::storage::scope::disks_in_scope;
use crate::storage::testing::{disk, every_disk, filesystem, layout, partition, root_disks};

const GIB: u64 = 1 << 30;

fn machine() -> Sorted {
    let mut usb = disk("sdu", 100 * GIB);
    usb.transport = Transport::Usb;
    Sorted {
        erasable: vec![
            disk("sda", 100 * GIB),
            disk("sdb", 100 * GIB),
            disk("sdc", GIB),
        ],
        left_alone: vec![(usb, Reason::Usb)],
    }
}

fn plan_on(layout: &FilesystemLayout, sorted: &Sorted) -> Result<Plan, PlanError> {
    let scoped = disks_in_scope(&every_disk(), sorted, None).unwrap();
    plan(layout, sorted, &scoped)
}

fn root_only(layout: &FilesystemLayout, sorted: &Sorted) -> Result<Plan, PlanError> {
    let scoped = disks_in_scope(&root_disks(), sorted, Some(layout)).unwrap();
    plan(layout, sorted, &scoped)
}

#[test]
fn partitions_and_mounts_in_order() {
    let plan = plan_on(&layout(), &machine()).unwrap();
    let sda = &plan.disks()[0];
    let places: Vec<_> = sda
        .partitions
        .iter()
        .map(|p| (p.number, p.start_lba, p.blocks))
        .collect();
    // The last one ends on the last whole MiB before the backup table.
    assert_eq!(
        places,
        [
            (1, 2048, 500 * 2048),
            (2, 501 * 2048, 5000 * 2048),
            (3, 5501 * 2048, (100 * 1024 - 1 - 5501) * 2048),
        ]
    );
    assert_eq!(sda.partitions[1].path, PathBuf::from("/dev/sda2"));
    let paths: Vec<_> = plan
        .filesystems()
        .iter()
        .map(|fs| fs.path.as_str())
        .collect();
    assert_eq!(
        paths,
        ["/", "/var", "/boot/efi", "/var/lib/data", "", "/tmp"]
    );
    assert_eq!(
        plan.filesystems()[0].place,
        Place::New(Base::Partition {
            disk: 0,
            partition: 1
        })
    );
    assert_eq!(plan.filesystems()[5].place, Place::Memory);
    assert_eq!(plan.warnings(), [] as [String; 0]);
}

#[test]
fn four_kilobyte_blocks_and_nvme_names() {
    let mut nvme = disk("nvme0n1", 100 * GIB);
    nvme.logical_block_size = 4096;
    let sorted = Sorted {
        erasable: vec![nvme],
        left_alone: vec![],
    };
    let mut layout = layout();
    layout.disks.truncate(1);
    layout.disks[0].device = "/dev/nvme0n1".into();
    layout.filesystems = vec![
        filesystem("/dev/nvme0n1p2", Format::Ext4, "/"),
        filesystem("/dev/nvme0n1p1", Format::Vfat, "/boot/efi"),
    ];
    let plan = plan_on(&layout, &sorted).unwrap();
    let last = &plan.disks()[0].partitions[2];
    assert_eq!(
        (last.start_lba, last.blocks),
        (5501 * 256, (100 * 1024 - 1 - 5501) * 256)
    );
    assert_eq!(last.path, PathBuf::from("/dev/nvme0n1p3"));
}

#[test]
fn numbers_are_the_order_and_the_last_mib_can_be_used() {
    let mut layout = layout();
    layout.disks[0].partitions.swap(0, 2);
    assert_eq!(
        plan_on(&layout, &machine()),
        plan_on(&self::layout(), &machine())
    );
    let mut exact = self::layout();
    // 102400 MiB, less one for the table and one for its backup.
    exact.disks[0].partitions[2].size = 102_400 - 1 - 5501;
    assert!(plan_on(&exact, &machine()).is_ok());
    exact.disks[0].partitions[2].size += 1;
    let error = plan_on(&exact, &machine()).unwrap_err().to_string();
    assert!(
        error.contains("/dev/sda3 needs 96899 MiB, but 96898 of the 102398 MiB of /dev/sda"),
        "{error}"
    );
}

#[test]
fn every_refusal_names_layout_and_culprit() {
    type Change = fn(&mut FilesystemLayout);
    let table: [(Change, &str); 24] = [
        (
            |l| l.disks[1].device = "/dev/sda".into(),
            "disk /dev/sda is listed twice",
        ),
        (
            |l| l.disks[1].device = "/dev/sdx".into(),
            "there is no disk /dev/sdx; this machine has /dev/sda",
        ),
        (
            |l| l.disks[1].device = "/dev/sdu".into(),
            "/dev/sdu must not be written: it is a USB disk",
        ),
        (
            |l| l.disks[1].device = "/dev/disk/by-id/a".into(),
            "not a kernel device name",
        ),
        (
            |l| l.disks[1].device = "sdb".into(),
            "not a kernel device name",
        ),
        (
            |l| l.disks[1].device = "/dev/../sdb".into(),
            "not a kernel device name",
        ),
        (
            |l| l.disks[0].partitions[0].number = 0,
            "disk /dev/sda: partition number 0 is out of range",
        ),
        (
            |l| l.disks[0].partitions[0].number = 129,
            "partition number 129 is out of range",
        ),
        (
            |l| l.disks[0].partitions[0].number = 2,
            "disk /dev/sda: partition number 2 is used twice",
        ),
        (
            |l| l.disks[0].partitions[1].size = 0,
            "partition /dev/sda2 takes the rest",
        ),
        (
            |l| l.disks[0].partitions[1].size = u64::MAX,
            "/dev/sda2 needs 18446744073709551615 MiB",
        ),
        (
            |l| l.disks[0].partitions[1].size = 102_398 - 500,
            "/dev/sda3 needs 1 MiB, but 0 of",
        ),
        (
            |l| l.disks[0].partitions[1].label = "x".repeat(37),
            "partition /dev/sda2: its label has 37",
        ),
        (
            |l| l.filesystems[0].device = "/dev/sdz1".into(),
            "/dev/sdz1 at /var/lib/data: no device of the layout is called",
        ),
        (
            |l| l.filesystems[0].device = "/dev/sda3".into(),
            "/dev/sda3 at /var: /dev/sda3 is used by another file system already",
        ),
        (
            |l| l.filesystems[0].format = Format::Unspecified,
            "its format is missing",
        ),
        (
            |l| l.filesystems[0].path = "/var/".into(),
            "its mount point is used twice",
        ),
        (|l| l.filesystems[0].path = "data".into(), "is not absolute"),
        (
            |l| l.filesystems[0].label = "a".repeat(17),
            "has 17 bytes; expected at most 16",
        ),
        (
            |l| l.filesystems[0].mount_options = vec![String::new()],
            "the mount option \"\" is empty",
        ),
        (
            |l| l.filesystems[0].create_options = vec!["/dev/sdc".into()],
            "is no option of mke2fs",
        ),
        (
            |l| l.filesystems[4].path = "/swap".into(),
            "a mount point needs another format than Swap",
        ),
        (
            |l| l.filesystems[3].path = "/root".into(),
            "no file system is mounted at /",
        ),
        (
            |l| l.filesystems[3].format = Format::Vfat,
            "the root must be ext3 or ext4",
        ),
    ];
    for (index, (change, expected)) in table.into_iter().enumerate() {
        let mut changed = layout();
        change(&mut changed);
        let error = plan_on(&changed, &machine()).unwrap_err().to_string();
        assert!(error.contains(expected), "{index}: {error}");
        assert!(
            error.starts_with("layout \"two-disks\": "),
            "{index}: {error}"
        );
    }
}

#[test]
fn types_and_formats_must_agree() {
    for (gpt_type, format, fine) in [
        (GptType::LinuxLvm, Format::Ext4, false),
        (GptType::LinuxRaid, Format::Swap, false),
        (GptType::LinuxRaid, Format::None, true),
        (GptType::Unspecified, Format::Ext4, true),
    ] {
        let mut layout = layout();
        layout.disks[1].partitions[1].gpt_type = gpt_type;
        let path = if format == Format::Ext4 { "/data" } else { "" };
        layout.filesystems[0] = filesystem("/dev/sdb2", format, path);
        let result = plan_on(&layout, &machine());
        assert_eq!(result.is_ok(), fine, "{gpt_type:?} {format:?}: {result:?}");
    }
}

#[test]
fn a_tiny_disk_says_what_it_lacks() {
    let mut sorted = machine();
    for size in [0, 512, 1 << 20, 2 << 20] {
        sorted.erasable[0].size = size;
        let error = plan_on(&layout(), &sorted).unwrap_err().to_string();
        assert!(
            error.contains("/dev/sda1 needs 500 MiB, but 0 of the 0 MiB"),
            "{error}"
        );
    }
}

#[test]
fn a_root_only_plan_leaves_the_data_disk() {
    let plan = root_only(&layout(), &machine()).unwrap();
    let disks: Vec<_> = plan.disks().iter().map(|d| d.disk.name.as_str()).collect();
    assert_eq!(disks, ["sda"]);
    let data = plan
        .filesystems()
        .iter()
        .find(|fs| fs.path == "/var/lib/data")
        .unwrap();
    assert_eq!(data.place, Place::Kept(Kept::Partition("/dev/sdb2".into())));
    let swap = plan
        .filesystems()
        .iter()
        .find(|fs| fs.format == Format::Swap)
        .unwrap();
    assert_eq!(swap.place, Place::Kept(Kept::Partition("/dev/sdb1".into())));

    let mut gone = machine();
    gone.erasable.remove(1);
    let plan = root_only(&layout(), &gone).unwrap();
    assert_eq!(plan.filesystems().len(), 4);
    assert_eq!(plan.warnings().len(), 2);
    assert!(plan.warnings()[0].contains("/dev/sdb2 at /var/lib/data is skipped"));
    // A whole machine without its disk is an error.
    assert!(plan_on(&layout(), &gone).is_err());
}

#[test]
fn odd_but_possible() {
    type Change = fn(&mut FilesystemLayout);
    let table: [(Change, &str); 5] = [
        (
            |l| drop(l.filesystems.remove(2)),
            "no file system is mounted at /boot/efi",
        ),
        (
            |l| l.disks[0].partitions[0].gpt_type = GptType::Linux,
            "not of type GPT_TYPE_BOOT",
        ),
        (|l| l.filesystems[2].format = Format::Ext4, "not FAT"),
        (|l| l.disks[0].partitions[0].size = 20, "20 MiB: too small"),
        (
            |l| {
                l.disks.push(LayoutDisk {
                    device: "/dev/sdc".into(),
                    partitions: vec![],
                });
            },
            "/dev/sdc: the layout gives it no partitions",
        ),
    ];
    for (change, expected) in table {
        let mut changed = layout();
        change(&mut changed);
        let plan = plan_on(&changed, &machine()).unwrap();
        assert_eq!(plan.warnings().len(), 1);
        assert!(
            plan.warnings()[0].contains(expected),
            "{:?}",
            plan.warnings()
        );
        assert!(plan.to_string().contains(expected));
    }
}

#[test]
fn the_plan_can_be_read() {
    let mut layout = layout();
    layout.filesystems[1].mount_options = vec!["noatime,nodev".into()];
    layout.disks[1]
        .partitions
        .insert(0, partition(9, "spare", 0, GptType::LinuxLvm));
    layout.disks[1].partitions[2].size = 10;
    let text = root_only(&layout, &machine()).unwrap().to_string();
    for line in [
        "layout \"two-disks\", scope root",
        "/dev/sda (SATA TEST, serial SER-sda, 102400 MiB): new GPT",
        "  /dev/sda2 \"root\" Linux at block 1026048, 5000 MiB: ext4 at /",
        "  /dev/sda3 \"var\" Linux at block 11266048, 96898 MiB: ext4 at /var (noatime,nodev)",
        "/dev/sdb2: kept as it is: ext4 at /var/lib/data",
        "memory: tmpfs at /tmp",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line:?} is not in\n{text}"
        );
    }
    let text = plan_on(&layout, &machine()).unwrap().to_string();
    assert!(
        text.contains("/dev/sdb9 \"spare\" LinuxLvm at block 2119680"),
        "{text}"
    );
}
