use std::os::unix::fs::symlink;

use super::*;

/// File name below the device and content.
type Attributes<'a> = &'a [(&'a str, &'a str)];

/// A sysfs tree with one `block` link for each device added.
struct Sys(tempfile::TempDir);

impl Sys {
    fn new() -> Self {
        let sys = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(sys.0.path().join("block")).unwrap();
        sys
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// `device` is the block device's directory below `devices/`.
    fn add(&self, device: &str, dev: &str, sectors: &str, attributes: &[(&str, &str)]) -> PathBuf {
        let dir = self.path().join("devices").join(device);
        let common = [
            ("dev", dev),
            ("size", sectors),
            ("ro", "0\n"),
            ("removable", "0\n"),
            ("queue/logical_block_size", "512\n"),
            ("queue/rotational", "0\n"),
        ];
        for (name, value) in common.iter().chain(attributes) {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, value).unwrap();
        }
        let name = dir.file_name().unwrap();
        symlink(&dir, self.path().join("block").join(name)).unwrap();
        dir
    }
}

const SATA: &str = "pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0/block/sda";

#[test]
fn a_sata_disk_with_everything() {
    let sys = Sys::new();
    let page80 = "\0\u{1}\0\u{14}      S3RIAL  \u{7}7\n";
    sys.add(
        SATA,
        "8:0\n",
        "4194304\n",
        &[
            ("device/type", "0\n"),
            ("device/scsi_level", "6\n"),
            ("device/vendor", "ATA     \n"),
            ("device/model", "FAST   SSD\n"),
            ("device/vpd_pg80", page80),
            ("device/wwid", "naa.5000c500a1b2c3d4\n"),
            ("queue/logical_block_size", "4096\n"),
            ("queue/rotational", "1\n"),
            ("ro", "1\n"),
            ("sda2/partition", "2\n"),
            ("sda2/dev", "8:2\n"),
            ("sda2/start", "2048\n"),
            ("sda2/size", "4096\n"),
        ],
    );
    let expected = Disk {
        name: "sda".into(),
        path: "/dev/sda".into(),
        dev: DevId { major: 8, minor: 0 },
        size: 2 << 30,
        logical_block_size: 4096,
        optimal_io_size: 0,
        model: "ATA FAST SSD".into(),
        serial: "S3RIAL 7".into(),
        wwn: "naa.5000c500a1b2c3d4".into(),
        transport: Transport::Sata,
        rotational: true,
        removable: false,
        read_only: true,
        partitions: vec![DiskPartition {
            name: "sda2".into(),
            dev: DevId { major: 8, minor: 2 },
            number: 2,
            start: 1 << 20,
            size: 2 << 20,
        }],
    };
    assert_eq!(discover(sys.path()).unwrap(), [expected]);
}

#[test]
fn transports_come_from_the_device_tree() {
    let scsi: &[(&str, &str)] = &[("device/type", "0\n"), ("device/scsi_level", "6\n")];
    let pcie: &[(&str, &str)] = &[("device/transport", "pcie\n"), ("device/serial", "N1\n")];
    let table: [(&str, Attributes, Transport); 10] = [
        (SATA, scsi, Transport::Sata),
        (
            "pci0000:00/0000:03:00.0/host1/port-1:0/end_device-1:0/target1:0:0/1:0:0:0/block/sdb",
            scsi,
            Transport::Scsi,
        ),
        (
            "pci0000:00/0000:00:05.0/virtio2/host2/target2:0:0/2:0:0:0/block/sdc",
            scsi,
            Transport::Scsi,
        ),
        (
            "pci0000:00/0000:00:14.0/usb1/1-2/1-2:1.0/host6/target6:0:0/6:0:0:0/block/sdd",
            scsi,
            Transport::Usb,
        ),
        (
            "platform/host9/session1/target9:0:0/9:0:0:0/block/sde",
            scsi,
            Transport::Iscsi,
        ),
        (
            "pci0000:00/0000:05:00.0/host8/rport-8:0-1/target8:0:0/8:0:0:0/block/sdf",
            scsi,
            Transport::FibreChannel,
        ),
        (
            "pci0000:00/0000:00:06.0/virtio3/block/vda",
            &[("serial", "V1")],
            Transport::Virtio,
        ),
        (
            "pci0000:00/0000:01:00.0/nvme/nvme0/nvme0n1",
            pcie,
            Transport::Nvme,
        ),
        (
            "virtual/nvme-fabrics/ctl/nvme1/nvme1n1",
            &[("device/transport", "tcp\n")],
            Transport::NvmeFabrics,
        ),
        (
            "pci0000:00/0000:00:1a.0/mmc_host/mmc0/mmc0:0001/block/mmcblk0",
            &[("device/type", "MMC\n"), ("device/name", "EMMC8\n")],
            Transport::Other,
        ),
    ];
    for (index, (device, attributes, transport)) in table.into_iter().enumerate() {
        let sys = Sys::new();
        sys.add(device, &format!("259:{index}"), "8", attributes);
        let disks = discover(sys.path()).unwrap();
        assert_eq!(disks.len(), 1, "{device}");
        assert_eq!(disks[0].transport, transport, "{device}");
    }
}

#[test]
fn a_multipath_head_counts_once_and_shows_its_controllers() {
    let sys = Sys::new();
    let controller = sys.path().join("devices/pci0/nvme0");
    for (transports, expected) in [
        (["pcie", "pcie"], Transport::Nvme),
        (["pcie", "tcp"], Transport::NvmeFabrics),
    ] {
        let sys = Sys::new();
        let head = "virtual/nvme-subsystem/nvme-subsys0/nvme0n1";
        sys.add(
            head,
            "259:1",
            "8",
            &[
                ("wwid", "eui.0011"),
                ("device/nvme0/transport", transports[0]),
                ("device/nvme1/transport", transports[1]),
            ],
        );
        sys.add("pci0/nvme0/nvme0c0n1", "0:0", "8", &[("hidden", "1\n")]);
        let disks = discover(sys.path()).unwrap();
        assert_eq!(disks.len(), 1);
        assert_eq!((disks[0].transport, &*disks[0].wwn), (expected, "eui.0011"));
    }
    assert!(!controller.exists());
}

#[test]
fn what_is_no_disk_is_left_out() {
    let rom: &[(&str, &str)] = &[("device/type", "5\n"), ("device/scsi_level", "6\n")];
    let table: [(&str, &str, &str, Attributes); 10] = [
        ("virtual/block/loop0", "7:0", "8", &[]),
        ("virtual/block/zram0", "252:0", "8", &[]),
        ("virtual/block/ram0", "1:0", "8", &[]),
        (
            "virtual/block/md127",
            "9:127",
            "8",
            &[("md/level", "raid1")],
        ),
        ("virtual/block/dm-0", "253:0", "8", &[("dm/name", "x")]),
        ("virtual/block/nbd0", "43:0", "8", &[]),
        ("platform/floppy.0/block/fd0", "2:0", "8", &[]),
        (
            "pci0/ata2/host1/target1:0:0/1:0:0:0/block/sr0",
            "11:0",
            "8",
            rom,
        ),
        // A CD-ROM under a name and number that say nothing.
        (
            "pci0/ata3/host2/target2:0:0/2:0:0:0/block/sdx",
            "8:80",
            "8",
            rom,
        ),
        (
            "pci0/ata4/host3/target3:0:0/3:0:0:0/block/sdy",
            "8:96",
            "0\n",
            &[],
        ),
    ];
    let sys = Sys::new();
    for (device, dev, sectors, attributes) in table {
        sys.add(device, dev, sectors, attributes);
    }
    assert_eq!(discover(sys.path()).unwrap(), []);
}

#[test]
fn broken_attributes_are_named() {
    for (attribute, value, expected) in [
        ("size", "12x", "a number"),
        ("dev", "8", "major:minor"),
        ("queue/logical_block_size", "513", "a power of two"),
        ("sda1/partition", "99999999999", "a partition number"),
    ] {
        let sys = Sys::new();
        sys.add(SATA, "8:0", "8", &[(attribute, value)]);
        let error = discover(sys.path()).unwrap_err().to_string();
        assert!(
            error.contains(attribute) && error.contains(expected),
            "{error}"
        );
    }
    let error = discover(Path::new("/nonexistent")).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/block"), "{error}");
}

#[test]
fn a_disk_that_vanished_is_no_error() {
    let sys = Sys::new();
    let dir = sys.add(SATA, "8:0", "8", &[]);
    fs::remove_file(dir.join("size")).unwrap();
    symlink("../devices/gone", sys.path().join("block/sdz")).unwrap();
    assert_eq!(discover(sys.path()).unwrap(), []);
}

#[test]
fn partition_names() {
    for (device, number, expected) in [
        ("/dev/sda", 1, "/dev/sda1"),
        ("/dev/nvme0n1", 12, "/dev/nvme0n1p12"),
        ("/dev/mmcblk0", 2, "/dev/mmcblk0p2"),
    ] {
        assert_eq!(partition_name(device, number), expected);
    }
}
