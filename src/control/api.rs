//! The messages of `metalstack.infra.v2.BootService` that a machine sends and receives,
//! in protobuf's JSON form.
//!
//! Unknown fields are ignored, as protobuf JSON demands of a reader that is older than
//! its server. 64-bit integers travel as strings; numbers are accepted too.

use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// `BootServiceRegisterRequest`: what the machine is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Register {
    pub uuid: Uuid,
    pub hardware: Hardware,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bios: Option<Bios>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bmc: Option<Bmc>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fru: Option<Fru>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    pub metal_hammer_version: String,
    /// Mandatory, 2 to 128 characters.
    pub partition: String,
}

/// `MachineHardware`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hardware {
    /// Bytes.
    #[serde(with = "u64_text")]
    pub memory: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<BlockDevice>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<Cpu>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<Gpu>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<Nic>,
}

/// `MachineBlockDevice`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockDevice {
    /// Device path, for example `/dev/sda`.
    pub name: String,
    /// Bytes.
    #[serde(with = "u64_text")]
    pub size: u64,
}

/// `MetalCPU`: one socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cpu {
    pub vendor: String,
    pub model: String,
    pub cores: u32,
    pub threads: u32,
}

/// `MetalGPU`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gpu {
    pub vendor: String,
    pub model: String,
}

/// `MachineNic`; a neighbour is a NIC too (contracts: mac = identifier = port ID).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Nic {
    pub mac: String,
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub identifier: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub vendor: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub model: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub speed: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub neighbors: Vec<Nic>,
}

/// `MachineBios`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bios {
    pub version: String,
    pub vendor: String,
    pub date: String,
}

/// `MachineBMC`. Serialising it writes its password: only for the request itself.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bmc {
    pub address: String,
    pub mac: String,
    pub user: String,
    #[serde(with = "secret")]
    pub password: SecretString,
    pub interface: String,
    pub version: String,
    pub power_state: String,
}

impl std::fmt::Debug for Bmc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bmc")
            .field("address", &self.address)
            .field("mac", &self.mac)
            .finish_non_exhaustive()
    }
}

impl PartialEq for Bmc {
    fn eq(&self, other: &Self) -> bool {
        self.address == other.address
            && self.mac == other.mac
            && self.user == other.user
            && self.password.expose_secret() == other.password.expose_secret()
            && self.interface == other.interface
            && self.version == other.version
            && self.power_state == other.power_state
    }
}

/// A secret that travels as text. Its value stands in no error.
mod secret {
    use secrecy::{ExposeSecret, SecretString};

    use super::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(secret: &SecretString, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(secret.expose_secret())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SecretString, D::Error> {
        Ok(String::deserialize(from)?.into())
    }
}

/// `MachineFRU`. Empty values are left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Fru {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub chassis_part_number: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub chassis_part_serial: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub board_mfg: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub board_mfg_serial: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub board_part_number: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub product_manufacturer: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub product_part_number: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub product_serial: String,
}

/// `MachineProvisioningEventType`, those a machine sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventType {
    #[serde(rename = "MACHINE_PROVISIONING_EVENT_TYPE_ALIVE")]
    Alive,
    #[serde(rename = "MACHINE_PROVISIONING_EVENT_TYPE_CRASHED")]
    Crashed,
    #[serde(rename = "MACHINE_PROVISIONING_EVENT_TYPE_PLANNED_REBOOT")]
    PlannedReboot,
    #[serde(rename = "MACHINE_PROVISIONING_EVENT_TYPE_PREPARING")]
    Preparing,
    #[serde(rename = "MACHINE_PROVISIONING_EVENT_TYPE_REGISTERING")]
    Registering,
    #[serde(rename = "MACHINE_PROVISIONING_EVENT_TYPE_WAITING")]
    Waiting,
    #[serde(rename = "MACHINE_PROVISIONING_EVENT_TYPE_INSTALLING")]
    Installing,
    #[serde(rename = "MACHINE_PROVISIONING_EVENT_TYPE_BOOTING_NEW_KERNEL")]
    BootingNewKernel,
}

/// What `Wait` answered: the parts of `MachineAllocation` that the agent acts on, and
/// the whole message as the server sent it.
#[derive(Debug, Clone, PartialEq)]
pub struct Allocation {
    pub uuid: Uuid,
    pub hostname: String,
    pub image: Image,
    /// What is wrong with it otherwise: a machine that is only to boot its disk needs no
    /// layout, and must not be held up by one that is newer than this agent.
    pub layout: Result<FilesystemLayout, String>,
    pub ssh_public_keys: Vec<String>,
    /// As sent: base64 or plain text; a secret as far as logs are concerned.
    pub userdata: String,
    /// `MACHINE_ALLOCATION_TYPE_MACHINE` or `_FIREWALL`; empty when the server said nothing.
    pub allocation_type: String,
    /// `meta.createdAt`.
    pub created_at: Option<Timestamp>,
    /// `reinstall`, a field that future servers may send.
    pub reinstall: bool,
    /// The message, unchanged: what goes into `machine-allocation.yaml`.
    pub raw: serde_json::Value,
}

impl<'de> Deserialize<'de> for Allocation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Wire {
            uuid: Uuid,
            #[serde(default)]
            meta: Option<Meta>,
            #[serde(default, deserialize_with = "null_is_default")]
            hostname: String,
            #[serde(default, deserialize_with = "null_is_default")]
            image: Image,
            #[serde(default, alias = "filesystem_layout")]
            filesystem_layout: serde_json::Value,
            #[serde(
                default,
                alias = "ssh_public_keys",
                deserialize_with = "null_is_default"
            )]
            ssh_public_keys: Vec<String>,
            #[serde(default, deserialize_with = "null_is_default")]
            userdata: String,
            #[serde(
                default,
                alias = "allocation_type",
                deserialize_with = "null_is_default"
            )]
            allocation_type: String,
            #[serde(default, deserialize_with = "null_is_default")]
            reinstall: bool,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Meta {
            #[serde(default, alias = "created_at")]
            created_at: Option<Timestamp>,
        }
        let raw = serde_json::Value::deserialize(deserializer)?;
        let wire = Wire::deserialize(&raw).map_err(serde::de::Error::custom)?;
        Ok(Self {
            uuid: wire.uuid,
            hostname: wire.hostname,
            image: wire.image,
            layout: FilesystemLayout::deserialize(wire.filesystem_layout)
                .map_err(|error| error.to_string()),
            ssh_public_keys: wire.ssh_public_keys,
            userdata: wire.userdata,
            allocation_type: wire.allocation_type,
            created_at: wire.meta.and_then(|meta| meta.created_at),
            reinstall: wire.reinstall,
            raw,
        })
    }
}

/// `Image`: where the operating system comes from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Image {
    #[serde(default, deserialize_with = "null_is_default")]
    pub id: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub url: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub name: String,
}

/// `FilesystemLayout` (contracts.md §4).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FilesystemLayout {
    pub id: String,
    #[serde(deserialize_with = "null_is_default")]
    pub name: String,
    pub filesystems: Vec<Filesystem>,
    pub disks: Vec<LayoutDisk>,
    pub raid: Vec<Raid>,
    #[serde(alias = "volume_groups")]
    pub volume_groups: Vec<VolumeGroup>,
    #[serde(alias = "logical_volumes")]
    pub logical_volumes: Vec<LogicalVolume>,
}

/// One file system of a layout.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Filesystem {
    /// The partition, array or volume, for example `/dev/sda2`.
    pub device: String,
    pub format: Format,
    /// Mount point in the target; empty for swap.
    #[serde(deserialize_with = "null_is_default")]
    pub path: String,
    #[serde(deserialize_with = "null_is_default")]
    pub label: String,
    #[serde(alias = "mount_options")]
    pub mount_options: Vec<String>,
    #[serde(alias = "create_options")]
    pub create_options: Vec<String>,
}

/// `Format`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    #[default]
    #[serde(rename = "FORMAT_UNSPECIFIED")]
    Unspecified,
    #[serde(rename = "FORMAT_VFAT")]
    Vfat,
    #[serde(rename = "FORMAT_EXT3")]
    Ext3,
    #[serde(rename = "FORMAT_EXT4")]
    Ext4,
    #[serde(rename = "FORMAT_SWAP")]
    Swap,
    #[serde(rename = "FORMAT_TMPFS")]
    Tmpfs,
    #[serde(rename = "FORMAT_NONE")]
    None,
}

/// A disk of a layout and its partitions.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LayoutDisk {
    pub device: String,
    pub partitions: Vec<Partition>,
}

/// A partition of a layout.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Partition {
    pub number: u32,
    #[serde(deserialize_with = "null_is_default")]
    pub label: String,
    /// MiB; 0 = what is left of the disk.
    #[serde(with = "u64_text")]
    pub size: u64,
    #[serde(alias = "gpt_type", deserialize_with = "null_is_default")]
    pub gpt_type: GptType,
}

/// `GPTType`, with metal-hammer's sgdisk type codes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum GptType {
    #[default]
    #[serde(rename = "GPT_TYPE_UNSPECIFIED")]
    Unspecified,
    /// EF00
    #[serde(rename = "GPT_TYPE_BOOT")]
    Boot,
    /// 8300
    #[serde(rename = "GPT_TYPE_LINUX")]
    Linux,
    /// FD00
    #[serde(rename = "GPT_TYPE_LINUX_RAID")]
    LinuxRaid,
    /// 8E00
    #[serde(rename = "GPT_TYPE_LINUX_LVM")]
    LinuxLvm,
}

/// A RAID array of a layout.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Raid {
    #[serde(alias = "array_name")]
    pub array_name: String,
    pub devices: Vec<String>,
    /// `RAID_LEVEL_0` or `RAID_LEVEL_1`.
    pub level: String,
    #[serde(alias = "create_options")]
    pub create_options: Vec<String>,
    pub spares: i32,
}

/// A volume group of a layout.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeGroup {
    pub name: String,
    pub devices: Vec<String>,
    pub tags: Vec<String>,
}

/// A logical volume of a layout.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LogicalVolume {
    pub name: String,
    #[serde(alias = "volume_group")]
    pub volume_group: String,
    /// MiB; 0 = what is left of the group.
    #[serde(with = "u64_text")]
    pub size: u64,
    /// `LVM_TYPE_LINEAR`, `_STRIPED` or `_RAID1`.
    #[serde(alias = "lvm_type")]
    pub lvm_type: String,
}

/// Protobuf JSON may send `null` for any field; it means the default.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// protobuf JSON's 64-bit integers: written as text, read as text or number.
mod u64_text {
    use super::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u64),
            Text(String),
            Nothing(()),
        }
        match Either::deserialize(deserializer)? {
            Either::Number(number) => Ok(number),
            Either::Text(text) => text.parse().map_err(|_| {
                serde::de::Error::custom(format!("expected a 64-bit integer, got {text:?}"))
            }),
            Either::Nothing(()) => Ok(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allocation_keeps_what_it_does_not_know() {
        let text = r#"{"uuid":"7b0b6ad5-6a4f-4f7e-a0e7-0c2a8a8f8f10","hostname":"web-1",
            "meta":{"createdAt":"2026-11-22T08:00:00Z"},
            "image":{"id":"debian-12","url":"http://[2001:db8::1]/img.tar.lz4","name":null},
            "filesystemLayout":{"id":"default","disks":[{"device":"/dev/sda","partitions":[
              {"number":1,"label":"efi","size":"500","gptType":"GPT_TYPE_BOOT"},
              {"number":2,"label":"root","size":5000}, {"number":3,"label":"var","size":null}]}]},
            "futureField":{"deep":[1,2]}}"#;
        let allocation: Allocation = serde_json::from_str(text).unwrap();
        assert_eq!(allocation.hostname, "web-1");
        let layout = allocation.layout.unwrap();
        let partitions = &layout.disks[0].partitions;
        assert_eq!(
            partitions.iter().map(|p| p.size).collect::<Vec<_>>(),
            [500, 5000, 0]
        );
        assert_eq!(allocation.raw["futureField"]["deep"][1], 2);
        assert_eq!(
            allocation.created_at.map(|at| at.to_string()).as_deref(),
            Some("2026-11-22T08:00:00Z")
        );
    }

    #[test]
    fn a_layout_from_the_future_does_not_hide_the_allocation() {
        let text = r#"{"uuid":"7b0b6ad5-6a4f-4f7e-a0e7-0c2a8a8f8f10","hostname":null,
            "filesystemLayout":{"filesystems":[{"format":"FORMAT_BTRFS"}]}}"#;
        let allocation: Allocation = serde_json::from_str(text).unwrap();
        assert!(allocation.layout.unwrap_err().contains("FORMAT_BTRFS"));
        assert_eq!(allocation.hostname, "");
    }

    #[test]
    fn sizes_travel_as_text() {
        let disk = BlockDevice {
            name: "/dev/sda".into(),
            size: u64::MAX,
        };
        let text = serde_json::to_string(&disk).unwrap();
        assert_eq!(text, r#"{"name":"/dev/sda","size":"18446744073709551615"}"#);
        let wrong = serde_json::from_str::<BlockDevice>(r#"{"name":"a","size":"12x"}"#);
        assert!(wrong.unwrap_err().to_string().contains("12x"));
    }
}
