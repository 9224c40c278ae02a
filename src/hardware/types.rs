//! The inventory: what a machine is made of. Its JSON is described by
//! `docs/inventory.schema.json`; a field that is not known is `null` or empty, never absent.

use serde::Serialize;
use uuid::Uuid;

/// Version of the JSON; a field that goes or changes its meaning makes it grow.
pub const SCHEMA: u32 = 1;

/// The machine as the kernel shows it, before any rule of the server is applied.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inventory {
    pub schema: u32,
    pub machine: Machine,
    pub firmware: Firmware,
    pub system: System,
    pub board: Part,
    pub chassis: Part,
    /// One for each socket that has a thread online.
    pub cpus: Vec<Socket>,
    /// Threads that are there and not online; sysfs does not say whose they are.
    pub offline_cpus: u32,
    pub memory: Memory,
    pub numa: Vec<Node>,
    pub disks: Vec<Disk>,
    pub nics: Vec<Port>,
    pub gpus: Vec<Gpu>,
    pub tpm: Option<Tpm>,
    pub pci: Vec<PciDevice>,
}

/// The name that the machine has in the control plane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    pub uuid: Option<Uuid>,
    pub source: IdSource,
    /// Why it is not the firmware's, or why there is none.
    pub note: String,
}

/// Where the machine's UUID comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum IdSource {
    /// SMBIOS type 1.
    Smbios,
    /// Made of serials and a MAC (RFC 4122 version 5), for want of a usable one.
    Derived,
    /// There is none.
    Unknown,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Firmware {
    pub vendor: String,
    pub version: String,
    pub date: String,
    pub uefi: bool,
    /// `null`: the firmware does not say.
    pub secure_boot: Option<bool>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct System {
    pub manufacturer: String,
    pub product: String,
    pub sku: String,
    pub serial: String,
}

/// The board or the chassis.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Part {
    pub manufacturer: String,
    pub product: String,
    pub serial: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Socket {
    /// The kernel's physical package ID.
    pub socket: u32,
    pub vendor: String,
    pub model: String,
    /// With a thread online.
    pub cores: u32,
    /// Online.
    pub threads: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// Bytes built in.
    pub installed: u64,
    /// Who says so.
    pub source: MemorySource,
    /// Bytes that the kernel can give to programs.
    pub usable: u64,
    pub modules: Vec<Module>,
}

/// Who says how much memory is built in, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MemorySource {
    /// SMBIOS type 17.
    Smbios,
    /// The kernel's memory blocks.
    Blocks,
    /// `MemTotal`, which lacks what kernel and firmware took.
    Meminfo,
}

/// A memory slot; size 0: nothing is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Module {
    /// As printed on the board.
    pub locator: String,
    pub bank: String,
    /// Bytes.
    pub size: u64,
    /// `DDR4`; empty: not known.
    #[serde(rename = "type")]
    pub kind: String,
    /// MT/s that the module can do.
    pub speed: Option<u32>,
    /// MT/s that it runs at.
    pub configured_speed: Option<u32>,
    pub manufacturer: String,
    pub serial: String,
    pub part: String,
    pub ranks: Option<u8>,
    pub ecc: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    pub node: u32,
    /// As the kernel lists them, `0-3,8-11`.
    pub cpus: String,
    /// Bytes usable.
    pub memory: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Disk {
    /// Device node, `/dev/sda`.
    pub name: String,
    /// Bytes.
    pub size: u64,
    pub logical_block_size: u32,
    pub physical_block_size: u32,
    pub vendor_model: String,
    pub serial: String,
    pub wwn: String,
    pub firmware: String,
    pub transport: String,
    /// PCI address of the controller, or empty.
    pub bus: String,
    pub rotational: bool,
    pub removable: bool,
    pub read_only: bool,
    /// Why it is no disk that the control plane may count on; `null`: it is one.
    pub left_out: Option<String>,
    /// `null`: the disk does not say, or cannot be asked.
    pub health: Option<Health>,
}

/// What a disk says of its state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    pub good: bool,
    /// What is wrong, in the disk's own categories.
    pub warnings: Vec<String>,
    /// Degrees Celsius.
    pub temperature: Option<i32>,
    /// Of its rated life, in percent; may exceed 100.
    pub percent_used: Option<u32>,
    pub power_on_hours: Option<u64>,
    pub media_errors: Option<u64>,
}

/// A physical network card's port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// The kernel's name of the link, `eth0`.
    pub name: String,
    /// The permanent address, `aa:bb:cc:dd:ee:ff`, lower case.
    pub mac: String,
    /// Mbit/s; `null` while the link is down, or where the driver does not know.
    pub speed: Option<u64>,
    /// The driver's name, or empty.
    pub driver: String,
    /// PCI address, or the USB interface.
    pub bus: String,
    pub usb: bool,
    /// PCI vendor ID, `0x8086`, or empty.
    pub vendor_id: String,
    /// PCI device ID, `0x1572`, or empty.
    pub device_id: String,
    pub vendor: String,
    pub model: String,
    pub firmware: String,
    /// What LLDP heard there: `leaf01 swp7`.
    pub switch_ports: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Gpu {
    /// PCI address.
    pub bus: String,
    pub vendor: String,
    pub device_id: String,
    /// By name, or the PCI device ID.
    pub model: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tpm {
    pub name: String,
    /// `1` or `2`; `null`: the kernel does not say.
    pub version: Option<u8>,
    /// Hash algorithms of its PCR banks, `sha256`.
    pub banks: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PciDevice {
    /// `0000:00:1f.2`.
    pub address: String,
    /// Base class, subclass and programming interface, `0x020000`.
    pub class: String,
    pub class_name: String,
    pub vendor_id: String,
    pub device_id: String,
    pub vendor: String,
    pub model: String,
    pub driver: String,
}
