//! Wipe, plan and apply on real block devices: virtio, SATA, SCSI and NVMe.
//!
//! The tests run one after the other and each leaves nothing mounted. They destroy what is
//! on the guest's disks, so they refuse to run anywhere else.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use metal_anvil::control::api::{
    Filesystem, FilesystemLayout, Format, GptType, LayoutDisk, LogicalVolume, Partition, Raid,
    VolumeGroup,
};
use metal_anvil::decide::{Adopt, Age, Answer, Decision, Journal, WipeScope, decide};
use metal_anvil::storage::apply::apply;
use metal_anvil::storage::disks::{Disk, Transport, discover, partition_name};
use metal_anvil::storage::eligible::{Exclusions, Sorted, erasable};
use metal_anvil::storage::plan::plan;
use metal_anvil::storage::scope::{ScopedDisks, disks_in_scope};
use metal_anvil::storage::superblock;
use metal_anvil::storage::target::Target;
use metal_anvil::storage::tools::Tools;
use metal_anvil::storage::wipe::{Depth, Rung, quick_check, wipe};
use metal_anvil::watchdog::Progress;
use nix::mount::{MsFlags, mount, umount};
use uuid::Uuid;

const MIB: usize = 1 << 20;

/// The guest's disks with these names, all others left alone.
pub fn machine(names: &[&str]) -> Sorted {
    assert!(
        std::env::var_os("METAL_ANVIL_IN_GUEST").is_some(),
        "this test destroys disks and runs in the guest only (scripts/test)"
    );
    // What a test that failed left mounted must not fail the next one.
    for line in mounts().lines().rev() {
        let path = line.split(' ').nth(1).unwrap_or("");
        if path.starts_with("/tmp/") {
            umount(path).unwrap();
        }
    }
    let disks = discover(Path::new("/sys")).unwrap();
    let others = disks
        .iter()
        .filter(|disk| !names.contains(&disk.name.as_str()));
    let exclusions = Exclusions {
        paths: others.map(|disk| disk.name.clone()).collect(),
        ..Exclusions::default()
    };
    let sorted = erasable(disks, None, &exclusions);
    assert_eq!(sorted.erasable.len(), names.len(), "{sorted:?}");
    sorted
}

pub fn every_disk() -> WipeScope {
    match decide(&Journal::None, Answer::NoAllocation, Adopt::Hold) {
        Decision::WipeAndWait(scope) => scope,
        other => panic!("{other:?}"),
    }
}

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

pub fn everything_on(sorted: &Sorted) -> ScopedDisks {
    disks_in_scope(&every_disk(), sorted, None).unwrap()
}

fn partition(number: u32, size: u64, gpt_type: GptType) -> Partition {
    Partition {
        number,
        label: format!("part{number}"),
        size,
        gpt_type,
    }
}

fn filesystem(device: String, format: Format, path: &str, options: &[&str]) -> Filesystem {
    Filesystem {
        device,
        format,
        path: path.into(),
        label: if path == "/" { "root" } else { "" }.into(),
        mount_options: options.iter().map(|option| (*option).to_owned()).collect(),
        create_options: vec![],
    }
}

/// ESP, root, swap and `/var/log` on one disk.
fn layout(name: &str) -> FilesystemLayout {
    let device = format!("/dev/{name}");
    let on = |number| partition_name(&device, number);
    FilesystemLayout {
        id: "guest".into(),
        filesystems: vec![
            filesystem(on(4), Format::Ext3, "/var/log", &["noexec", "nodev"]),
            filesystem(on(1), Format::Vfat, "/boot/efi", &["umask=0077"]),
            filesystem(on(2), Format::Ext4, "/", &["ro", "noatime"]),
            filesystem(on(3), Format::Swap, "", &[]),
            filesystem(String::new(), Format::Tmpfs, "/tmp", &["size=10M"]),
        ],
        disks: vec![LayoutDisk {
            device,
            partitions: vec![
                partition(1, 40, GptType::Boot),
                partition(2, 100, GptType::Linux),
                partition(3, 32, GptType::Linux),
                partition(4, 0, GptType::Linux),
            ],
        }],
        ..FilesystemLayout::default()
    }
}

/// Wipes and lays out; the target is mounted below `/tmp`.
fn install(layout: &FilesystemLayout, sorted: &Sorted, scope: &WipeScope) -> Target {
    let scoped = disks_in_scope(scope, sorted, Some(layout)).unwrap();
    wipe(&scoped, Depth::Quick, &Progress::unwatched()).unwrap();
    assert_eq!(quick_check(&scoped).unwrap(), []);
    let plan = plan(layout, sorted, &scoped).unwrap();
    apply(&plan, Path::new("/tmp/target"), &Tools::default()).unwrap()
}

pub fn mounts() -> String {
    fs::read_to_string("/proc/mounts").unwrap()
}

/// The whole disk; it is small, and comparing is faster than hashing in an emulated guest.
pub fn content(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0; disk.size as usize];
    let file = File::open(&disk.path).unwrap();
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn disks_are_known_by_their_transport() {
    let disks = discover(Path::new("/sys")).unwrap();
    let found: Vec<_> = disks
        .iter()
        .map(|disk| (disk.name.as_str(), disk.transport))
        .collect();
    for expected in [("vda", Transport::Virtio), ("nvme0n1", Transport::Nvme)] {
        assert!(
            found.contains(&expected),
            "{expected:?} is not in {found:?}"
        );
    }
    // Which of the two is probed first is not fixed.
    let scsi: Vec<_> = found
        .iter()
        .filter(|(name, _)| name.starts_with("sd"))
        .collect();
    assert_eq!(scsi.len(), 2, "{found:?}");
    for transport in [Transport::Sata, Transport::Scsi] {
        assert!(
            scsi.iter().any(|(_, found)| *found == transport),
            "{found:?}"
        );
    }
    for disk in disks {
        assert_eq!(disk.size, 256 * MIB as u64, "{disk}");
        assert!(!disk.read_only && !disk.removable, "{disk}");
    }
}

#[test]
fn a_layout_is_carried_out_on_every_kind_of_disk() {
    for name in ["vda", "sda", "sdb", "nvme0n1"] {
        let sorted = machine(&[name]);
        let target = install(&layout(name), &sorted, &every_disk());
        let root = target.root.clone();
        fs::write(root.join("file"), name).unwrap();
        fs::write(root.join("var/log/file"), name).unwrap();
        fs::write(root.join("boot/efi/FILE"), name).unwrap();
        assert!(root.join("tmp").is_dir());

        let paths: Vec<_> = target
            .filesystems
            .iter()
            .map(|fs| fs.path.as_str())
            .collect();
        assert_eq!(paths, ["/", "/boot/efi", "/var/log", "", "/tmp"]);
        assert!(
            mounts().contains("/tmp/target ext4 rw,noatime"),
            "{}",
            mounts()
        );
        assert!(!mounts().contains("tmpfs /tmp/target"));

        let esp = target.esp.clone().unwrap();
        assert_eq!((esp.number, esp.path.as_str()), (1, "/boot/efi"));
        let mut disk = File::open(&esp.disk).unwrap();
        let gpt = gptman::GPT::find_from(&mut disk).unwrap();
        assert_eq!(gpt[1].unique_partition_guid, esp.guid.to_bytes_le());
        assert_eq!(
            (gpt[1].starting_lba, gpt[1].size().unwrap()),
            (esp.start_lba, esp.size_lba)
        );
        drop(disk);

        let fstab = target.fstab();
        for filesystem in target.filesystems.iter().filter(|fs| fs.device.is_some()) {
            let device = filesystem.device.clone().unwrap();
            let found = superblock::read(&File::open(&device).unwrap())
                .unwrap()
                .unwrap();
            assert!(
                fstab.contains(&format!("UUID={} ", found.uuid)),
                "{device:?}: {fstab}"
            );
        }
        assert!(fstab.contains(&format!(
            "UUID={} / ext4 ro,noatime 0 1\n",
            target.root_uuid
        )));
        assert!(fstab.contains("tmpfs /tmp tmpfs size=10M 0 0\n"), "{fstab}");

        let device = target.filesystems[0].device.clone().unwrap();
        target.unmount().unwrap();
        assert!(!mounts().contains("/tmp/target"), "{}", mounts());
        mount(
            Some(&device),
            "/tmp/target",
            Some("ext4"),
            MsFlags::MS_RDONLY,
            None::<&str>,
        )
        .unwrap();
        assert_eq!(fs::read_to_string("/tmp/target/file").unwrap(), name);
        umount("/tmp/target").unwrap();
    }
}

#[test]
fn a_wiped_disk_is_empty_and_a_used_one_is_seen() {
    for name in ["vda", "sda", "sdb", "nvme0n1"] {
        let sorted = machine(&[name]);
        install(&layout(name), &sorted, &every_disk())
            .unmount()
            .unwrap();
        // The disks as a later boot would find them, old partitions included.
        let sorted = machine(&[name]);
        let disk = &sorted.erasable[0];
        assert_eq!(disk.partitions.len(), 4, "{disk}");
        let scoped = everything_on(&sorted);
        let dirty = quick_check(&scoped).unwrap();
        assert!(
            dirty[0].found.iter().any(|found| found.name == "GPT"),
            "{dirty:?}"
        );

        let data = vec![0x5a; MIB];
        let file = File::options().write(true).open(&disk.path).unwrap();
        for at in [20, 128, 200] {
            file.write_all_at(&data, at * MIB as u64).unwrap();
        }
        file.sync_all().unwrap();
        drop(file);
        let wiped = wipe(&scoped, Depth::Secure, &Progress::unwatched()).unwrap();
        println!("{}", wiped[0]);
        assert_eq!(quick_check(&scoped).unwrap(), []);
        assert!(machine(&[name]).erasable[0].partitions.is_empty());
        assert!(!Path::new(&partition_name(&format!("/dev/{name}"), 1)).exists());
        let zeros = vec![0; disk.size as usize];
        assert!(content(disk) == zeros, "{}", wiped[0]);
        // QEMU's NVMe controller has Format without crypto erase; nothing else has a better rung.
        let rung = match name {
            "nvme0n1" => Rung::NvmeFormatData,
            _ => Rung::Discard,
        };
        assert_eq!(wiped[0].rung, rung, "{}", wiped[0]);
    }
}

#[test]
fn a_root_only_install_leaves_the_data_disk_bit_for_bit() {
    let sorted = machine(&["sda", "sdb"]);
    let mut two = layout("sda");
    two.disks.push(LayoutDisk {
        device: "/dev/sdb".into(),
        partitions: vec![partition(1, 0, GptType::Linux)],
    });
    two.filesystems
        .push(filesystem("/dev/sdb1".into(), Format::Ext4, "/srv", &[]));
    let first = install(&two, &sorted, &every_disk());
    fs::write(first.root.join("srv/data"), "precious").unwrap();
    let data_line = |target: &Target| {
        let fstab = target.fstab();
        fstab
            .lines()
            .find(|line| line.contains(" /srv "))
            .map(str::to_owned)
    };
    let (line, root) = (data_line(&first), first.root_uuid.clone());
    assert!(line.is_some());
    first.unmount().unwrap();

    let sorted = machine(&["sda", "sdb"]);
    let before = content(&sorted.erasable[1]);
    let second = install(&two, &sorted, &root_disks());
    assert_ne!(second.root_uuid, root);
    assert_eq!(data_line(&second), line);
    assert!(!second.root.join("srv/data").exists());
    second.unmount().unwrap();
    assert!(
        content(&sorted.erasable[1]) == before,
        "the data disk has changed"
    );
}

#[test]
fn a_root_only_install_keeps_arrays_and_volumes_bit_for_bit() {
    let names = ["sda", "sdb", "vda", "nvme0n1"];
    let sorted = machine(&names);
    let mut stacked = layout("sda");
    for (device, gpt_type) in [
        ("/dev/vda", GptType::LinuxRaid),
        ("/dev/nvme0n1", GptType::LinuxRaid),
    ] {
        stacked.disks.push(LayoutDisk {
            device: device.into(),
            partitions: vec![partition(1, 0, gpt_type)],
        });
    }
    stacked.disks.push(LayoutDisk {
        device: "/dev/sdb".into(),
        partitions: vec![],
    });
    stacked.raid.push(Raid {
        array_name: "/dev/md5".into(),
        devices: vec!["/dev/vda1".into(), "/dev/nvme0n1p1".into()],
        level: "RAID_LEVEL_1".into(),
        ..Raid::default()
    });
    stacked.volume_groups.push(VolumeGroup {
        name: "data".into(),
        devices: vec!["/dev/sdb".into()],
        tags: vec![],
    });
    stacked.logical_volumes.push(LogicalVolume {
        name: "lv".into(),
        volume_group: "data".into(),
        ..LogicalVolume::default()
    });
    stacked.filesystems.extend([
        filesystem("/dev/md5".into(), Format::Ext4, "/array", &[]),
        filesystem("/dev/data/lv".into(), Format::Ext4, "/volume", &[]),
    ]);
    let first = install(&stacked, &sorted, &every_disk());
    let line = |target: &Target, path: &str| {
        let fstab = target.fstab();
        let found = fstab.lines().find(|line| line.contains(path));
        found
            .map(str::to_owned)
            .unwrap_or_else(|| panic!("{path} is not in {fstab}"))
    };
    let (array, root) = (line(&first, " /array "), first.root_uuid.clone());
    first.unmount().unwrap();

    let sorted = machine(&names);
    let kept: Vec<_> = sorted
        .erasable
        .iter()
        .filter(|disk| disk.name != "sda")
        .collect();
    let before: Vec<_> = kept.iter().map(|disk| content(disk)).collect();
    let second = install(&stacked, &sorted, &root_disks());
    assert_ne!(second.root_uuid, root);
    // The array's file system by its UUID, read without assembling it; the volume by its name.
    assert_eq!(line(&second, " /array "), array);
    assert_eq!(
        line(&second, " /volume "),
        "/dev/mapper/data-lv /volume ext4 defaults,nofail 0 2"
    );
    assert!(!second.has_arrays);
    second.unmount().unwrap();
    for (disk, before) in kept.iter().zip(before) {
        assert!(content(disk) == before, "{disk} has changed");
    }
}

#[test]
fn a_disk_in_use_is_not_touched_and_its_user_is_named() {
    install(&layout("vda"), &machine(&["vda"]), &every_disk())
        .unmount()
        .unwrap();
    let sorted = machine(&["vda"]);
    fs::create_dir_all("/tmp/busy").unwrap();
    mount(
        Some("/dev/vda2"),
        "/tmp/busy",
        Some("ext4"),
        MsFlags::empty(),
        None::<&str>,
    )
    .unwrap();
    let scoped = everything_on(&sorted);
    let error = wipe(&scoped, Depth::Secure, &Progress::unwatched())
        .unwrap_err()
        .to_string();
    let plan = plan(&layout("vda"), &sorted, &scoped).unwrap();
    let refused = apply(&plan, Path::new("/tmp/target"), &Tools::default()).unwrap_err();
    umount("/tmp/busy").unwrap();
    for error in [error, refused.to_string()] {
        assert!(error.contains("the mount /tmp/busy (of vda2)"), "{error}");
    }
    assert!(!quick_check(&scoped).unwrap().is_empty());
}

#[test]
fn a_mounted_array_is_not_touched_and_an_idle_one_is_stopped() {
    let sorted = machine(&["sda"]);
    let scoped = everything_on(&sorted);
    wipe(&scoped, Depth::Quick, &Progress::unwatched()).unwrap();
    let tool = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    tool(
        "/usr/sbin/mdadm",
        &[
            "--create",
            "/dev/md7",
            "--run",
            "--level=1",
            "--raid-devices=2",
            "--metadata=1.2",
            "/dev/sda",
            "missing",
        ],
    );
    tool("/usr/sbin/mke2fs", &["-q", "-t", "ext4", "/dev/md7"]);
    fs::create_dir_all("/tmp/busy").unwrap();
    let none = MsFlags::empty();
    mount(
        Some("/dev/md7"),
        "/tmp/busy",
        Some("ext4"),
        none,
        None::<&str>,
    )
    .unwrap();
    let error = wipe(&scoped, Depth::Quick, &Progress::unwatched())
        .unwrap_err()
        .to_string();
    umount("/tmp/busy").unwrap();
    assert!(error.contains("md7 (on sda)"), "{error}");
    let dirty = quick_check(&scoped).unwrap();
    assert!(
        dirty[0].found.iter().any(|found| found.name == "md 1.2"),
        "{dirty:?}"
    );
    wipe(&scoped, Depth::Quick, &Progress::unwatched()).unwrap();
    assert_eq!(quick_check(&scoped).unwrap(), []);
    assert!(!Path::new("/sys/block/md7").exists());
}

#[test]
fn a_file_system_that_cannot_be_made_is_an_error() {
    let sorted = machine(&["sda"]);
    let mut wrong = layout("sda");
    wrong.filesystems[2].create_options = vec!["-I".into(), "100".into()];
    let scoped = everything_on(&sorted);
    let plan = plan(&wrong, &sorted, &scoped).unwrap();
    let error = apply(&plan, Path::new("/tmp/target"), &Tools::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("/dev/sda2")
            && error.contains("exit status: 1")
            && error.contains("inode size"),
        "{error}"
    );
    assert!(!mounts().contains("/tmp/target"), "{}", mounts());
}

#[test]
fn a_failed_mount_undoes_the_others() {
    let sorted = machine(&["sda"]);
    let mut wrong = layout("sda");
    wrong.filesystems[0].mount_options = vec!["no-such-option".into()];
    let scoped = everything_on(&sorted);
    let plan = plan(&wrong, &sorted, &scoped).unwrap();
    let error = apply(&plan, Path::new("/tmp/target"), &Tools::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("no-such-option") && error.contains("/dev/sda4"),
        "{error}"
    );
    assert!(!mounts().contains("/tmp/target"), "{}", mounts());
}
