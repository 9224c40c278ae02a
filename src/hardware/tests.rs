use std::fs;
use std::os::unix::fs::symlink;

use super::*;
use crate::control::api::{Nic, Register};

const ID: &str = "7B0B6AD5-6A4F-4F7E-A0E7-0C2A8A8F8F10";
const MAC: &str = "52:54:00:12:34:56";

pub(super) struct Machine(tempfile::TempDir);

impl Machine {
    /// A machine with the least that an inventory needs.
    pub(super) fn bare() -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        machine
            .file("sys/class/dmi/id/product_uuid", format!("{ID}\n"))
            .file("proc/meminfo", "MemTotal: 1048576 kB\n")
            .file("proc/cpuinfo", "processor\t: 0\n\n");
        for directory in ["sys/class/net", "sys/block"] {
            fs::create_dir_all(machine.0.path().join(directory)).unwrap();
        }
        machine
    }

    pub(super) fn file(&self, path: &str, content: impl AsRef<[u8]>) -> &Self {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    fn link(&self, path: &str, target: &str) -> &Self {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
        self
    }

    fn nic(&self, name: &str, mac: &str) -> &Self {
        let base = format!("sys/class/net/{name}");
        self.file(&format!("{base}/type"), "1\n")
            .file(&format!("{base}/address"), format!("{mac}\n"))
            .file(&format!("{base}/speed"), "10000\n")
            .file(&format!("{base}/device/vendor"), "0x8086\n")
            .file(&format!("{base}/device/device"), "0x1572\n")
            .link(
                &format!("{base}/device/driver"),
                "../../bus/pci/drivers/i40e",
            )
    }

    fn disk(&self, name: &str, bytes: u64) -> &Self {
        let base = format!("sys/devices/pci0000:00/0000:00:1f.2/block/{name}");
        self.link(
            &format!("sys/block/{name}"),
            &format!("../devices/pci0000:00/0000:00:1f.2/block/{name}"),
        )
        .file(&format!("{base}/dev"), "8:0\n")
        .file(&format!("{base}/size"), format!("{}\n", bytes / 512))
        .file(&format!("{base}/ro"), "0\n")
        .file(&format!("{base}/removable"), "0\n")
        .file(&format!("{base}/queue/logical_block_size"), "512\n")
        .file(&format!("{base}/queue/rotational"), "1\n")
    }

    fn roots(&self) -> Roots {
        let dir = self.0.path();
        Roots {
            ids: vec![dir.join("pci.ids")],
            ..Roots::recorded(dir)
        }
    }

    pub(super) fn inspect(&self) -> Result<Inventory, Error> {
        inspect(&self.roots(), None)
    }
}

/// The server's rules, written down a second time and in another way than the clean-up:
/// every string by its place in the JSON message.
pub(super) fn broken_rules(message: &Register) -> Vec<String> {
    fn walk(path: &str, value: &serde_json::Value, broken: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(fields) => {
                for (key, value) in fields {
                    walk(&format!("{path}.{key}"), value, broken);
                }
            }
            serde_json::Value::Array(items) => {
                for item in items {
                    walk(path, item, broken);
                }
            }
            serde_json::Value::String(text) => {
                let keys: Vec<&str> = path.rsplit('.').take(2).collect();
                let length = text.chars().count();
                let number = text.parse::<u64>().is_ok();
                let fine = match (keys[1], keys[0]) {
                    (_, "uuid") => uuid::Uuid::try_parse(text).is_ok() && length == 36,
                    (_, "memory" | "size" | "speed") => number,
                    ("" | "disks" | "nics" | "neighbors", "name" | "partition") => {
                        (2..=128).contains(&length)
                    }
                    ("nics" | "neighbors", "identifier" | "vendor" | "model") => length <= 128,
                    ("nics", "mac") => nic::mac(text).as_deref() == Some(text),
                    ("neighbors", "mac" | "hostname") => true,
                    ("", "tags") => length <= 128,
                    ("", "metalHammerVersion") | ("cpus" | "gpus" | "bios" | "fru", _) => {
                        length <= 256
                    }
                    _ => false,
                };
                if !fine {
                    broken.push(format!("{path} = {text:?}"));
                }
            }
            serde_json::Value::Number(number) if number.as_u64().is_some_and(|n| n < 1 << 32) => {}
            other => broken.push(format!("{path} = {other}")),
        }
    }
    let mut broken = Vec::new();
    walk("", &serde_json::to_value(message).unwrap(), &mut broken);
    broken
}

fn neighbour(name: &str, identifier: &str) -> Nic {
    Nic {
        mac: identifier.into(),
        name: name.into(),
        identifier: identifier.into(),
        hostname: "leaf01".into(),
        ..Nic::default()
    }
}

fn product_uuid(machine: &Machine, text: &str) {
    machine.file("sys/class/dmi/id/product_uuid", text);
}

#[test]
fn the_machine_id_is_lower_case() {
    let machine = Machine::bare();
    let id = machine_id(&machine.roots()).unwrap();
    assert_eq!(id.to_string(), ID.to_lowercase());
    assert_eq!(machine.inspect().unwrap().machine.source, IdSource::Smbios);
}

/// Whatever the firmware has instead of a UUID of the machine's own.
const USELESS: [&str; 11] = [
    "00000000-0000-0000-0000-000000000000",
    "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
    "fefefefe-fefe-fefe-fefe-fefefefefefe",
    "03000200-0400-0500-0006-000700080009",
    "00020003-0004-0005-0006-000700080009",
    "03020100-0504-0706-0809-0A0B0C0D0E0F",
    "4C4C4544-0000-2010-8020-80C04F202020",
    "",
    "Not Settable",
    "7b0b6ad56a4f4f7ea0e70c2a8a8f8f10",
    "\u{fffd}",
];

#[test]
fn a_useless_uuid_is_replaced_by_a_stable_one_and_said() {
    let machine = Machine::bare();
    machine
        .nic("eth0", MAC)
        .file("sys/class/dmi/id/product_serial", "S1")
        .file("sys/class/dmi/id/board_vendor", "Example")
        .file("sys/class/dmi/id/board_serial", "To be filled by O.E.M.");
    let expected = "af82250b-c3e4-5188-afb7-7b89b97a2f00";
    for text in USELESS {
        product_uuid(&machine, text);
        let id = machine_id(&machine.roots()).unwrap();
        assert_eq!(id.to_string(), expected, "{text:?}");
        assert_eq!(
            (id.get_version_num(), id.get_variant()),
            (5, uuid::Variant::RFC4122)
        );
        let found = machine.inspect().unwrap().machine;
        assert_eq!((found.uuid, found.source), (Some(id), IdSource::Derived));
        assert!(
            found.note.contains("firmware") && found.note.contains(expected),
            "{}",
            found.note
        );
    }
    let id = || machine_id(&machine.roots()).unwrap().to_string();
    for (file, content) in [
        ("sys/class/dmi/id/product_serial", "S2"),
        ("sys/class/dmi/id/board_serial", "B1"),
        ("sys/class/net/eth0/address", "52:54:00:12:34:99"),
    ] {
        let before = id();
        machine.file(file, content);
        assert_ne!(id(), before, "{file}");
    }
    // A second card and the link's state change nothing.
    let before = id();
    machine
        .nic("eth1", "52:54:00:ff:ff:ff")
        .file("sys/class/net/eth0/speed", "-1");
    assert_eq!(id(), before);
}

#[test]
fn the_first_card_is_the_first_on_the_bus_and_never_a_usb_link() {
    let machine = Machine::bare();
    product_uuid(&machine, USELESS[0]);
    let pci = |name: &str, address: &str, mac: &str| {
        let device = format!("../../../devices/pci0000:00/{address}");
        machine
            .file(
                &format!("sys/devices/pci0000:00/{address}/vendor"),
                "0x8086",
            )
            .file(&format!("sys/class/net/{name}/type"), "1")
            .file(&format!("sys/class/net/{name}/address"), mac)
            .link(&format!("sys/class/net/{name}/device"), &device);
    };
    pci("eth1", "0000:00:01.0", MAC);
    let alone = machine_id(&machine.roots()).unwrap();
    pci("eth0", "0000:00:02.0", "52:54:00:00:00:01");
    machine
        .nic("eth2", "02:00:00:00:00:01")
        .link("sys/class/net/eth2/device/subsystem", "../../../bus/usb");
    assert_eq!(machine_id(&machine.roots()).unwrap(), alone);
}

#[test]
fn without_anything_to_tell_machines_apart_there_is_no_id() {
    let machine = Machine::bare();
    product_uuid(&machine, USELESS[0]);
    machine
        .nic("usb0", MAC)
        .link("sys/class/net/usb0/device/subsystem", "../../../bus/usb")
        .file("sys/class/dmi/id/product_serial", "Default string");
    let error = machine_id(&machine.roots()).unwrap_err();
    assert!(matches!(error, Error::NoMachineId { .. }), "{error}");
    assert!(error.to_string().contains("placeholder"), "{error}");
    let inventory = machine.inspect().unwrap();
    assert_eq!(inventory.machine.source, IdSource::Unknown);
    let error = register(&inventory, &[], "fra-1", "1", &[]).unwrap_err();
    assert!(matches!(error, Error::NoMachineId { .. }), "{error}");
}

#[test]
fn the_table_is_read_where_the_kernel_shows_no_uuid() {
    let machine = Machine::bare();
    fs::remove_file(machine.0.path().join("sys/class/dmi/id/product_uuid")).unwrap();
    let mut table = vec![1, 24, 0, 0, 0, 0, 0, 0];
    table.extend_from_slice(&uuid::Uuid::try_parse(ID).unwrap().to_bytes_le());
    table.extend_from_slice(&[0, 0]);
    machine.file("sys/firmware/dmi/tables/DMI", &table).file(
        "sys/firmware/dmi/tables/smbios_entry_point",
        b"_SM3_\0\x18\x03\x03\0",
    );
    assert_eq!(
        machine_id(&machine.roots()).unwrap().to_string(),
        ID.to_lowercase()
    );
    machine.file(
        "sys/firmware/dmi/tables/smbios_entry_point",
        b"_SM_\0\x1f\x02\x04",
    );
    let swapped = machine_id(&machine.roots()).unwrap().to_string();
    assert_eq!(swapped, "d56a0b7b-4f6a-7e4f-a0e7-0c2a8a8f8f10");
}

#[test]
fn a_server_is_described_in_one_line() {
    let machine = Machine::bare();
    machine
        .nic("eth1", "52:54:00:12:34:57")
        .nic("eth0", MAC)
        .disk("sda", 480_103_981_056)
        .disk("sdb", 2 << 40)
        .file(
            "pci.ids",
            "8086  Intel\n\t1572  X710\n10de  NVIDIA\n\t20b0  A100\n",
        )
        .file("sys/devices/system/memory/block_size_bytes", "80000000\n")
        .file("sys/devices/system/memory/memory0/state", "online\n")
        .file("sys/devices/system/memory/memory7/state", "online\n")
        .file("sys/devices/system/memory/memory8/state", "offline\n")
        .file("sys/bus/pci/devices/0000:03:00.0/class", "0x030000\n")
        .file("sys/bus/pci/devices/0000:03:00.0/vendor", "0x1a03\n")
        .file("sys/bus/pci/devices/0000:41:00.0/class", "0x030200\n")
        .file("sys/bus/pci/devices/0000:41:00.0/vendor", "0x10de\n")
        .file("sys/bus/pci/devices/0000:41:00.0/device", "0x20b0\n")
        .file("sys/bus/pci/devices/0000:42:00.0/class", "0x020000\n")
        .file("sys/bus/pci/devices/0000:42:00.0/vendor", "0x8086\n");
    let inventory = machine.inspect().unwrap();
    assert_eq!(
        inventory.to_string(),
        "1 CPU (1 core), 4 GiB, 2 disks (/dev/sda 447.1 GiB, /dev/sdb 2 TiB), 2 NICs, 1 GPU"
    );
    let eth0 = &inventory.nics[0];
    assert_eq!(
        (&*eth0.name, &*eth0.mac, eth0.speed),
        ("eth0", MAC, Some(10_000))
    );
    assert_eq!(
        (&*eth0.driver, &*eth0.vendor_id, &*eth0.device_id),
        ("i40e", "0x8086", "0x1572")
    );
    assert_eq!(inventory.nics[1].name, "eth1");
    assert_eq!(
        (&*inventory.gpus[0].vendor, &*inventory.gpus[0].model),
        ("NVIDIA", "A100")
    );
    let table = inventory.table(true).join("\n");
    for text in [
        "0000:41:00.0  10de:20b0",
        "/dev/sda",
        "2 TiB",
        MAC,
        "NVIDIA  A100",
    ] {
        assert!(table.contains(text), "{text} in\n{table}");
    }
    assert!(!inventory.table(false).join("\n").contains("10de:20b0"));
    let bare = Machine::bare().inspect().unwrap();
    assert_eq!(bare.to_string(), "1 CPU (1 core), 1 GiB, 0 disks, 0 NICs");
}

#[test]
fn a_disk_that_makes_no_sense_does_not_hide_the_others() {
    let machine = Machine::bare();
    machine.disk("sda", 1 << 30).disk("sdb", 1 << 30);
    machine.file("sys/devices/pci0000:00/0000:00:1f.2/block/sda/size", "many");
    let disks = machine.inspect().unwrap().disks;
    assert_eq!(disks.len(), 1);
    assert_eq!(
        (&*disks[0].name, &*disks[0].bus),
        ("/dev/sdb", "0000:00:1f.2")
    );
}

#[test]
fn the_boot_medium_is_listed_and_not_counted_on() {
    let machine = Machine::bare();
    machine.disk("sda", 1 << 30).disk("sdb", 1 << 30);
    let inventory = inspect(&machine.roots(), Some("sdb")).unwrap();
    let left_out: Vec<_> = inventory
        .disks
        .iter()
        .map(|it| it.left_out.as_deref())
        .collect();
    assert_eq!(left_out, [None, Some("the medium booted from")]);
    let message = register(&inventory, &[], "fra-1", "1", &[]).unwrap();
    assert_eq!(message.hardware.disks.len(), 1);
}

#[test]
fn a_link_says_its_permanent_address_and_firmware() {
    let machine = Machine::bare();
    let mut info = vec![0; 196];
    info[68..74].copy_from_slice(b"9.20 \x07");
    machine
        .nic("eth0", "02:00:00:00:00:01")
        .file("ask/permanent-mac/eth0", [0x52, 0x54, 0, 0x12, 0x34, 0x56])
        .file("ask/driver-info/eth0", &info)
        .nic("eth1", "52:54:00:12:34:57")
        .file("ask/permanent-mac/eth1", [0; 6])
        .file("ask/driver-info/eth1", b"short");
    let nics = machine.inspect().unwrap().nics;
    assert_eq!((&*nics[0].mac, &*nics[0].firmware), (MAC, "9.20"));
    assert_eq!(
        (&*nics[1].mac, &*nics[1].firmware),
        ("52:54:00:12:34:57", "")
    );
}

#[test]
fn what_lldp_heard_stands_at_the_port() {
    let machine = Machine::bare();
    machine.nic("eth0", MAC);
    let id = uuid::Uuid::from_u128(7);
    let neighbours = [(
        "eth0".to_owned(),
        vec![neighbour("swp7", "aa:bb:cc:00:00:01")],
    )];
    let inventory = machine.inspect().unwrap().known(id, &neighbours);
    assert_eq!(inventory.machine.uuid, Some(id));
    assert_eq!(inventory.nics[0].switch_ports, ["leaf01 swp7"]);
}

#[test]
fn only_physical_ethernet_ports_with_a_mac_count() {
    let machine = Machine::bare();
    machine
        .nic("eth0", MAC)
        .nic("eth1", "00:00:00:00:00:00")
        .nic("ib0", MAC)
        .file("sys/class/net/ib0/type", "32\n")
        .nic("eth0v0", MAC)
        .file("sys/class/net/eth0v0/device/physfn/vendor", "0x8086")
        .file("sys/class/net/lo/type", "772\n")
        .file("sys/class/net/dummy0/type", "1\n")
        .file("sys/class/net/dummy0/address", MAC)
        .file("sys/class/net/bonding_masters", "")
        .nic("eth2", "52:54:00:AB:CD:EF")
        .file("sys/class/net/eth2/speed", "-1\n");
    let ports = machine.inspect().unwrap().nics;
    let names: Vec<_> = ports.iter().map(|port| &*port.name).collect();
    assert_eq!(names, ["eth0", "eth2"]);
    assert_eq!(
        (&*ports[1].mac, ports[1].speed),
        ("52:54:00:ab:cd:ef", None)
    );
}

#[test]
fn what_an_inventory_cannot_do_without_is_named() {
    for (file, content) in [("proc/meminfo", "MemFree: 1 kB"), ("proc/cpuinfo", "")] {
        let machine = Machine::bare();
        machine.file(file, content);
        let error = machine.inspect().unwrap_err().to_string();
        assert!(error.contains(file), "{error}");
        fs::remove_file(machine.0.path().join(file)).unwrap();
        let error = machine.inspect().unwrap_err().to_string();
        assert!(error.contains(file), "{error}");
    }
}

#[test]
fn vendor_strings_are_cut_cleaned_and_dropped() {
    let machine = Machine::bare();
    let dmi = |name: &str, text: &str| {
        machine.file(&format!("sys/class/dmi/id/{name}"), text);
    };
    dmi("bios_vendor", &"ü".repeat(300));
    dmi("bios_version", "  2.1\u{7}b \n");
    dmi("board_serial", "To Be Filled By O.E.M.");
    dmi("chassis_serial", "0000000000");
    dmi("board_vendor", "Example");
    dmi("product_name", "Model 1");
    dmi("product_serial", "");
    let inventory = machine.inspect().unwrap();
    let message = register(&inventory, &[], "fra-1", &"v".repeat(999), &[]).unwrap();
    let bios = message.bios.clone().unwrap();
    assert_eq!(bios.vendor.chars().count(), 256);
    assert_eq!((&*bios.version, &*bios.date), ("2.1 b", ""));
    let fru = message.fru.clone().unwrap();
    assert_eq!(
        (&*fru.board_mfg, &*fru.product_part_number),
        ("Example", "Model 1")
    );
    assert_eq!(
        (&*fru.board_mfg_serial, &*fru.chassis_part_serial),
        ("", "")
    );
    assert_eq!(broken_rules(&message), Vec::<String>::new());
    let bare = Machine::bare().inspect().unwrap();
    let message = register(&bare, &[], "fra-1", "1", &[]).unwrap();
    assert_eq!((message.bios, message.fru, message.bmc), (None, None, None));
}

#[test]
fn neighbours_go_to_their_port_and_always_have_a_name() {
    let machine = Machine::bare();
    machine.nic("eth0", MAC).nic("e", "52:54:00:12:34:57");
    let seen = [
        neighbour("swp1", "aa:bb:cc:00:00:01"),
        neighbour("", "aa:bb:cc:00:00:02"),
        neighbour("7", "aa:bb:cc:00:00:03"),
        neighbour("7", "8"),
        neighbour("", "9"),
        neighbour(" ", ""),
        Nic {
            speed: "10G".into(),
            neighbors: vec![neighbour("deep", "er")],
            ..neighbour(&"é".repeat(200), &"x".repeat(200))
        },
    ];
    let neighbours = [
        ("eth0".to_owned(), seen.to_vec()),
        ("eth9".to_owned(), seen.to_vec()),
    ];
    let inventory = machine.inspect().unwrap();
    let message = register(&inventory, &neighbours, "fra-1", "1", &[]).unwrap();
    let [short, eth0] = &message.hardware.nics[..] else {
        panic!("{:?}", message.hardware.nics);
    };
    assert_eq!(
        (&*short.name, short.neighbors.len()),
        ("52:54:00:12:34:57", 0)
    );
    assert_eq!((&*eth0.identifier, &*eth0.speed), (MAC, "10000"));
    let names: Vec<_> = eth0.neighbors.iter().map(|it| &*it.name).collect();
    let long = "é".repeat(128);
    assert_eq!(
        names,
        [
            "swp1",
            "aa:bb:cc:00:00:02",
            "aa:bb:cc:00:00:03",
            "port 7",
            "port 9",
            &long
        ]
    );
    assert_eq!(eth0.neighbors[0].hostname, "leaf01");
    assert_eq!(eth0.neighbors[5].neighbors, []);
    assert_eq!(broken_rules(&message), Vec::<String>::new());
}

#[test]
fn a_partition_that_the_server_would_refuse_is_refused_here() {
    let inventory = Machine::bare().inspect().unwrap();
    for partition in ["", "x", &"x".repeat(129)] {
        let error = register(&inventory, &[], partition, "1", &[]).unwrap_err();
        assert!(matches!(error, Error::Partition { .. }), "{error}");
    }
    for partition in ["fr", &"é".repeat(128)] {
        assert!(register(&inventory, &[], partition, "1", &[]).is_ok());
    }
}

#[test]
fn the_rule_checker_finds_broken_rules() {
    let inventory = Machine::bare().inspect().unwrap();
    let mut message = register(&inventory, &[], "fra-1", "1", &[]).unwrap();
    message.partition = "x".into();
    message.hardware.nics = vec![neighbour("e", MAC)];
    message.hardware.nics[0].speed = "10G".into();
    message.bios = Some(crate::control::api::Bios {
        version: "x".repeat(257),
        vendor: String::new(),
        date: String::new(),
    });
    assert_eq!(
        broken_rules(&message).len(),
        5,
        "{:?}",
        broken_rules(&message)
    );
}
