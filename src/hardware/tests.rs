use std::fs;
use std::os::unix::fs::symlink;

use proptest::prelude::*;

use super::*;
use crate::control::api::{Nic, Register};

const ID: &str = "7B0B6AD5-6A4F-4F7E-A0E7-0C2A8A8F8F10";
const MAC: &str = "52:54:00:12:34:56";

struct Machine(tempfile::TempDir);

impl Machine {
    /// A machine with the least that an inventory needs.
    fn bare() -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        machine
            .file("sys/class/dmi/id/product_uuid", format!("{ID}\n"))
            .file("proc/meminfo", "MemTotal: 1048576 kB\n")
            .file("proc/cpuinfo", "processor\t: 0\n\n");
        fs::create_dir_all(machine.0.path().join("sys/class/net")).unwrap();
        machine
    }

    fn file(&self, path: &str, content: impl AsRef<[u8]>) -> &Self {
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

    fn inspect(&self, disks: &[(String, u64)]) -> Result<Inventory, Error> {
        let (sys, proc) = (self.0.path().join("sys"), self.0.path().join("proc"));
        inspect(
            &Roots {
                sys: &sys,
                proc: &proc,
            },
            disks,
        )
    }
}

/// The server's rules, written down a second time and in another way than the clean-up:
/// every string by its place in the JSON message.
fn broken_rules(message: &Register) -> Vec<String> {
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

#[test]
fn the_machine_id_is_lower_case_and_not_shared() {
    let machine = Machine::bare();
    let sys = machine.0.path().join("sys");
    assert_eq!(machine_id(&sys).unwrap().to_string(), ID.to_lowercase());
    for shared in [
        "00000000-0000-0000-0000-000000000000",
        "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
        "fefefefe-fefe-fefe-fefe-fefefefefefe",
        "03000200-0400-0500-0006-000700080009",
        "00020003-0004-0005-0006-000700080009",
    ] {
        machine.file("sys/class/dmi/id/product_uuid", shared);
        let error = machine_id(&sys).unwrap_err();
        assert!(matches!(error, Error::SharedMachineId { .. }), "{error}");
    }
    for text in [
        "",
        "Not Settable",
        "7b0b6ad56a4f4f7ea0e70c2a8a8f8f10",
        "\u{fffd}",
    ] {
        machine.file("sys/class/dmi/id/product_uuid", text);
        let error = machine_id(&sys).unwrap_err();
        assert!(matches!(error, Error::MachineIdText { .. }), "{error}");
    }
    let error = machine_id(&sys.join("nowhere")).unwrap_err();
    assert!(error.to_string().contains("product_uuid"), "{error}");
}

#[test]
fn a_server_is_described_in_one_line() {
    let machine = Machine::bare();
    machine
        .nic("eth1", "52:54:00:12:34:57")
        .nic("eth0", MAC)
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
    let disks = [
        ("/dev/sda".into(), 480_103_981_056),
        ("/dev/nvme0n1".into(), 2 << 40),
    ];
    let inventory = machine.inspect(&disks).unwrap();
    assert_eq!(
        inventory.to_string(),
        "1 CPU (1 core), 4 GiB, 2 disks (/dev/sda 447.1 GiB, /dev/nvme0n1 2 TiB), 2 NICs, 1 GPU"
    );
    assert_eq!(
        inventory.ports[0],
        Port {
            name: "eth0".into(),
            mac: MAC.into(),
            speed: Some(10_000),
            driver: "i40e".into(),
            vendor: "0x8086".into(),
            model: "0x1572".into(),
        }
    );
    assert_eq!(inventory.ports[1].name, "eth1");
    assert_eq!(
        (&*inventory.gpus[0].vendor, &*inventory.gpus[0].model),
        ("NVIDIA", "0x20b0")
    );
    let bare = Machine::bare().inspect(&[]).unwrap();
    assert_eq!(bare.to_string(), "1 CPU (1 core), 1 GiB, 0 disks, 0 NICs");
}

#[test]
fn sizes_are_said_in_binary_units() {
    let table = [
        (0, "0 KiB"),
        (1024, "1 KiB"),
        ((1 << 20) - 1, "1023.9 KiB"),
        (1 << 20, "1 MiB"),
        (256 << 30, "256 GiB"),
        (3 << 39, "1.5 TiB"),
        (u64::MAX, "16383.9 PiB"),
    ];
    for (bytes, text) in table {
        assert_eq!(size(bytes), text);
    }
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
    let ports = machine.inspect(&[]).unwrap().ports;
    let names: Vec<_> = ports.iter().map(|port| &*port.name).collect();
    assert_eq!(names, ["eth0", "eth2"]);
    assert_eq!(
        (&*ports[1].mac, ports[1].speed),
        ("52:54:00:ab:cd:ef", None)
    );
}

#[test]
fn what_an_inventory_cannot_do_without_is_named() {
    for (file, content) in [
        ("sys/class/dmi/id/product_uuid", "x"),
        ("proc/meminfo", "MemFree: 1 kB"),
        ("proc/cpuinfo", ""),
    ] {
        let machine = Machine::bare();
        machine.file(file, content);
        let error = machine.inspect(&[]).unwrap_err().to_string();
        assert!(error.contains(file), "{error}");
        fs::remove_file(machine.0.path().join(file)).unwrap();
        let error = machine.inspect(&[]).unwrap_err().to_string();
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
    let inventory = machine
        .inspect(&[("/dev/sda".into(), 1), ("x".into(), 1)])
        .unwrap();
    let message = register(&inventory, &[], "fra-1", &"v".repeat(999)).unwrap();
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
    assert_eq!(message.hardware.disks.len(), 1);
    assert_eq!(broken_rules(&message), Vec::<String>::new());
    let bare = Machine::bare().inspect(&[]).unwrap();
    let message = register(&bare, &[], "fra-1", "1").unwrap();
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
    let inventory = machine.inspect(&[]).unwrap();
    let message = register(&inventory, &neighbours, "fra-1", "1").unwrap();
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
    let inventory = Machine::bare().inspect(&[]).unwrap();
    for partition in ["", "x", &"x".repeat(129)] {
        let error = register(&inventory, &[], partition, "1").unwrap_err();
        assert!(matches!(error, Error::Partition { .. }), "{error}");
    }
    for partition in ["fr", &"é".repeat(128)] {
        assert!(register(&inventory, &[], partition, "1").is_ok());
    }
}

#[test]
fn the_rule_checker_finds_broken_rules() {
    let inventory = Machine::bare().inspect(&[]).unwrap();
    let mut message = register(&inventory, &[], "fra-1", "1").unwrap();
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

/// The files that the inventory reads and that may hold anything.
const FILES: [&str; 19] = [
    "sys/class/dmi/id/bios_vendor",
    "sys/class/dmi/id/bios_version",
    "sys/class/dmi/id/bios_date",
    "sys/class/dmi/id/chassis_serial",
    "sys/class/dmi/id/board_vendor",
    "sys/class/dmi/id/board_serial",
    "sys/class/dmi/id/board_name",
    "sys/class/dmi/id/sys_vendor",
    "sys/class/dmi/id/product_name",
    "sys/class/dmi/id/product_sku",
    "sys/class/dmi/id/product_serial",
    "sys/class/net/eth0/address",
    "sys/class/net/eth1/speed",
    "sys/class/net/eth1/device/vendor",
    "sys/class/net/eth1/device/device",
    "sys/devices/system/memory/block_size_bytes",
    "sys/bus/pci/devices/0000:00:01.0/device",
    "sys/bus/pci/devices/0000:00:02.0/class",
    "proc/cpuinfo",
];

fn content() -> impl Strategy<Value = Vec<u8>> {
    let any_bytes = prop::collection::vec(any::<u8>(), 0..40);
    let long = ("[a-z0 ü\u{0}\n]{1,4}", 1..400usize).prop_map(|(text, n)| text.repeat(n).into());
    let cpu =
        "processor\t: 0\nvendor_id\t: .{0,300}\nmodel name: .{0,300}\ncpu cores: [0-9]{1,12}\n";
    prop_oneof![any_bytes, long, cpu.prop_map(String::into_bytes)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_content_of_sysfs_makes_a_message_that_the_server_refuses(
        contents in prop::collection::vec(prop::option::of(content()), FILES.len()),
        disk in ".{0,200}", label in ".{0,200}", id in ".{0,200}", version in ".{0,300}",
    ) {
        let machine = Machine::bare();
        machine.nic("eth0", MAC).nic("eth1", MAC)
            .file("sys/bus/pci/devices/0000:00:01.0/class", "0x030000")
            .file("sys/bus/pci/devices/0000:00:01.0/vendor", "0x1002")
            .file("sys/devices/system/memory/memory0/state", "online");
        for (file, content) in FILES.iter().zip(contents) {
            if let Some(mut content) = content {
                if *file == "proc/cpuinfo" {
                    // Without a processor there is no inventory to test.
                    content.splice(0..0, *b"processor: 0\n");
                }
                machine.file(file, content);
            }
        }
        let neighbours = [("eth1".to_owned(), vec![neighbour(&label, &id)])];
        let inventory = machine.inspect(&[(disk, 1)]).unwrap();
        let message = register(&inventory, &neighbours, "fra-1", &version).unwrap();
        prop_assert_eq!(broken_rules(&message), Vec::<String>::new());
        prop_assert!(message.hardware.nics.iter().any(|nic| nic.name == "eth1"));
    }
}
