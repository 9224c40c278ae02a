//! What `metal-anvil inventory` says of a QEMU machine is what QEMU was told to build, field by
//! field. The agent runs in a light guest as the only program.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use support::machine::Machine;
use support::process::run;
use support::{light, root};

const AGENT: &str = env!("CARGO_BIN_EXE_metal-anvil");
const UUID: &str = "8c1c2d1e-5a6b-4c3d-9e8f-0123456789ab";
const GIB: u64 = 1 << 30;

fn directory(name: &str) -> PathBuf {
    let dir = root().join("target/e2e/inventory").join(name);
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).expect("directory for the guest");
    dir
}

fn guest(dir: &Path, uuid: &str, words: &str) -> Machine {
    light::machine(dir, uuid, Path::new(AGENT), &["inventory", "--json"], words)
}

/// Adds QEMU arguments, of which none holds a space.
fn add(machine: &mut Machine, arguments: &str) {
    let words = arguments.split_whitespace().map(ToOwned::to_owned);
    machine.extra.extend(words);
}

/// Adds a disk of `size` bytes that reads as zeros and takes all writes.
fn disk(machine: &mut Machine, id: &str, size: u64, device: &str) {
    add(
        machine,
        &format!(
            "-blockdev driver=null-co,node-name={id},size={size},read-zeroes=on -device {device},drive={id}"
        ),
    );
}

/// The inventory that the guest printed, after the schema has approved of it; disks and NICs are
/// sorted by what they are.
fn inventory(machine: &Machine, dir: &Path) -> Value {
    let text = light::output(machine, dir, 240).text;
    let json: String = text
        .lines()
        .map(|line| line.trim_end_matches('\r'))
        .skip_while(|line| *line != "{")
        .take_while(|line| !line.starts_with("GUEST EXIT"))
        .collect();
    let file = dir.join("inventory.json");
    fs::write(&file, &json).expect("keep the inventory");
    let check = "import json,sys,jsonschema; \
        jsonschema.Draft202012Validator(json.load(open(sys.argv[1]))).validate(json.load(open(sys.argv[2])))";
    run(Command::new(root().join("target/venv/bin/python"))
        .args(["-B", "-c", check])
        .arg(root().join("docs/inventory.schema.json"))
        .arg(&file));
    let mut found: Value = serde_json::from_str(&json).unwrap_or_else(|e| panic!("{e} in {json}"));
    for (list, key) in [("disks", "serial"), ("nics", "mac")] {
        let list = found[list].as_array_mut().expect("a list");
        list.sort_by_key(|entry| entry[key].to_string());
    }
    found
}

/// Asserts that `found` holds every field of `expected`; arrays have to be of one length.
fn assert_holds(found: &Value, expected: &Value, at: &str) {
    match (found, expected) {
        (Value::Object(found), Value::Object(expected)) => {
            for (key, expected) in expected {
                let found = found.get(key).unwrap_or(&Value::Null);
                assert_holds(found, expected, &format!("{at}.{key}"));
            }
        }
        (Value::Array(found), Value::Array(expected)) => {
            assert_eq!(found.len(), expected.len(), "{at}: {found:#?}");
            for (number, (found, expected)) in found.iter().zip(expected).enumerate() {
                assert_holds(found, expected, &format!("{at}[{number}]"));
            }
        }
        _ => assert_eq!(found, expected, "{at}"),
    }
}

#[test]
fn a_machine_with_one_of_everything() {
    let dir = directory("everything");
    let mut machine = guest(&dir, UUID, "guest.disks=6");
    machine.processors = "8,sockets=2,cores=2,threads=2".to_owned();
    machine.extra.extend(light::tpm(&dir));
    add(
        &mut machine,
        "-object memory-backend-ram,id=m0,size=640M -object memory-backend-ram,id=m1,size=384M \
         -numa node,nodeid=0,cpus=0-3,memdev=m0 -numa node,nodeid=1,cpus=4-7,memdev=m1 \
         -smbios type=0,vendor=Acme,version=F7,date=01/02/2026 \
         -smbios type=1,manufacturer=Example,product=Server-1,serial=SN1,sku=SKU1 \
         -smbios type=2,manufacturer=BoardCo,product=Board-1,serial=BN1 \
         -smbios type=3,manufacturer=BoxCo,version=Box-1,serial=CN1 \
         -smbios type=17,loc_pfx=SLOT,bank=BANK,manufacturer=Ram,serial=RN1,part=PN1,speed=3200 \
         -device e1000e,mac=52:54:00:00:00:01,addr=10 \
         -device virtio-net-pci,mac=52:54:00:00:00:02,addr=11 \
         -device vmxnet3,mac=52:54:00:00:00:03,addr=12 \
         -device virtio-scsi-pci,id=scsi,addr=13 -device qemu-xhci,id=xhci,addr=14 \
         -device nvme,id=nvme4k,serial=NVME2,addr=15",
    );
    disk(&mut machine, "nvme", 3 * GIB, "nvme,serial=NVME1,addr=16");
    disk(
        &mut machine,
        "four",
        4 * GIB,
        "nvme-ns,bus=nvme4k,logical_block_size=4096,physical_block_size=4096",
    );
    disk(
        &mut machine,
        "scsi",
        5 * GIB,
        "scsi-hd,bus=scsi.0,vendor=SPIN,product=DISK,ver=1.23,serial=SCSI1,wwn=0x5000c50012345678,rotation_rate=7200",
    );
    disk(
        &mut machine,
        "virt",
        6 * GIB,
        "virtio-blk-pci,serial=VIRT1,addr=17",
    );
    disk(
        &mut machine,
        "sata",
        7 * GIB,
        "ide-hd,bus=ide.0,model=FlashDisk,ver=2.5,serial=SATA1,rotation_rate=1",
    );
    disk(
        &mut machine,
        "usb",
        GIB,
        "usb-storage,bus=xhci.0,serial=USB1,removable=on",
    );
    let found = inventory(&machine, &dir);
    let nic = |number: u32, driver: &str, bus: &str, vendor: &str, device: &str| {
        json!({"mac": format!("52:54:00:00:00:0{number}"), "driver": driver, "bus": bus,
               "vendorId": vendor, "deviceId": device, "usb": false})
    };
    let socket =
        |number: u32| json!({"socket": number, "vendor": "AuthenticAMD", "cores": 2, "threads": 4});
    let expected = json!({
        "machine": {"uuid": UUID, "source": "smbios", "note": ""},
        "firmware": {"vendor": "Acme", "version": "F7", "date": "01/02/2026", "uefi": false, "secureBoot": null},
        "system": {"manufacturer": "Example", "product": "Server-1", "sku": "SKU1", "serial": "SN1"},
        "board": {"manufacturer": "BoardCo", "product": "Board-1", "serial": "BN1"},
        "chassis": {"manufacturer": "BoxCo", "product": "Box-1", "serial": "CN1"},
        "cpus": [socket(0), socket(1)],
        "offlineCpus": 0,
        "memory": {"installed": GIB, "source": "smbios", "modules": [
            {"locator": "SLOT 0", "bank": "BANK", "size": GIB, "type": "RAM", "speed": 3200, "configuredSpeed": 3200,
             "manufacturer": "Ram", "serial": "RN1", "part": "PN1"}]},
        "numa": [{"node": 0, "cpus": "0-3"}, {"node": 1, "cpus": "4-7"}],
        // By serial number and by MAC: names follow the order in which drivers finish.
        "disks": [
            {"serial": "NVME1", "size": 3 * GIB, "logicalBlockSize": 512, "transport": "NVMe", "bus": "0000:00:16.0",
             "leftOut": null, "health": {"good": true}},
            {"serial": "NVME2", "size": 4 * GIB, "logicalBlockSize": 4096, "physicalBlockSize": 4096,
             "vendorModel": "QEMU NVMe Ctrl", "transport": "NVMe", "bus": "0000:00:15.0",
             "rotational": false, "leftOut": null, "health": {"good": true, "warnings": [], "mediaErrors": 0}},
            {"serial": "SATA1", "size": 7 * GIB, "logicalBlockSize": 512, "vendorModel": "ATA FlashDisk",
             "firmware": "2.5", "transport": "SATA", "bus": "0000:00:1f.2", "rotational": false, "removable": false,
             "leftOut": null, "health": {"good": true, "warnings": []}},
            {"serial": "SCSI1", "size": 5 * GIB, "logicalBlockSize": 512, "vendorModel": "SPIN DISK",
             "firmware": "1.23", "wwn": "naa.5000c50012345678", "transport": "SCSI", "bus": "0000:00:13.0",
             "rotational": true, "removable": false, "leftOut": null},
            {"serial": "USB1", "size": GIB, "transport": "USB", "bus": "0000:00:14.0",
             "removable": true, "leftOut": "a USB disk", "health": null},
            {"serial": "VIRT1", "size": 6 * GIB, "name": "/dev/vda", "transport": "virtio", "bus": "0000:00:17.0",
             "leftOut": null, "health": null},
        ],
        "nics": [
            nic(1, "e1000e", "0000:00:10.0", "0x8086", "0x10d3"),
            nic(2, "virtio_net", "0000:00:11.0", "0x1af4", "0x1000"),
            nic(3, "vmxnet3", "0000:00:12.0", "0x15ad", "0x07b0"),
        ],
        "gpus": [],
        "tpm": {"name": "tpm0", "version": 2},
    });
    assert_holds(&found, &expected, "");
    assert_eq!(
        found["nics"][0]["model"],
        "82574L Gigabit Network Connection"
    );
    let usable = found["memory"]["usable"].as_u64().expect("usable memory");
    assert!((GIB * 3 / 4..GIB).contains(&usable), "{usable}");
    let nodes: Vec<u64> = found["numa"]
        .as_array()
        .expect("nodes")
        .iter()
        .map(|node| node["memory"].as_u64().expect("memory") >> 20)
        .collect();
    assert!(nodes[0] > nodes[1] && nodes[1] > 256, "{nodes:?}");
    let pci = found["pci"].as_array().expect("PCI devices");
    let class = |address: &str| {
        let device = pci.iter().find(|device| device["address"] == address);
        device.map(|device| device["className"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(
        class("0000:00:16.0").as_deref(),
        Some("Non-Volatile memory controller")
    );
    assert_eq!(class("0000:00:14.0").as_deref(), Some("USB controller"));
}

#[test]
fn a_uuid_that_thousands_share_under_uefi() {
    let dir = directory("shared_uuid");
    let shared = "03000200-0400-0500-0006-000700080009";
    let mut machine = guest(&dir, shared, "");
    machine.uefi = true;
    add(
        &mut machine,
        "-device virtio-net-pci,mac=52:54:00:00:00:07,romfile= -smbios type=1,serial=SN7",
    );
    let found = inventory(&machine, &dir);
    let expected = json!({
        "machine": {"source": "derived"},
        "system": {"serial": "SN7"},
        "firmware": {"uefi": true, "secureBoot": false},
        "cpus": [{"socket": 0, "cores": 1, "threads": 1}],
        "disks": [],
        "tpm": null,
        "nics": [{"mac": "52:54:00:00:00:07"}],
    });
    assert_holds(&found, &expected, "");
    let note = found["machine"]["note"].as_str().expect("a note");
    assert!(note.contains(shared), "{note}");
    let uuid = found["machine"]["uuid"].as_str().expect("a UUID");
    assert_eq!(&uuid[14..15], "5", "{uuid}");
}

#[test]
fn threads_that_are_offline_and_no_card_at_all() {
    let dir = directory("offline");
    let mut machine = guest(&dir, UUID, "maxcpus=4");
    machine.processors = "6,sockets=1,cores=3,threads=2".to_owned();
    let found = inventory(&machine, &dir);
    let expected = json!({
        "machine": {"uuid": UUID},
        "cpus": [{"socket": 0, "threads": 4}],
        "offlineCpus": 2,
        "nics": [], "disks": [], "gpus": [], "tpm": null,
    });
    assert_holds(&found, &expected, "");
}
