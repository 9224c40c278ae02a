//! Allocations as the apiserver sends them. The stand-in checks them against the official message.

use serde_json::{Value, json};
use uuid::Uuid;

/// The tests' partition, as boot helper and stand-in know it.
pub const PARTITION: &str = "test-part";

/// An allocation under construction: the JSON message itself, changed in place.
#[derive(Clone, Debug)]
pub struct Allocation(pub Value);

impl Allocation {
    /// Image `url` onto `device`: an EFI system partition and an ext4 root over the rest.
    pub fn new(url: &str, device: &str) -> Self {
        let part = if device.ends_with(|c: char| c.is_ascii_digit()) {
            format!("{device}p")
        } else {
            device.to_owned()
        };
        Self(json!({
            "uuid": Uuid::new_v4().to_string(),
            "meta": {"createdAt": jiff::Timestamp::now().to_string()},
            "name": "test-machine",
            "description": "made by a test",
            "createdBy": "tester",
            "project": Uuid::new_v4().to_string(),
            "image": {"id": "test-1.0", "url": url, "name": "Test 1.0"},
            "hostname": "metal-test",
            "sshPublicKeys": [SSH_KEY],
            "userdata": "I2Nsb3VkLWNvbmZpZwo=",
            "allocationType": "MACHINE_ALLOCATION_TYPE_MACHINE",
            "networks": [{
                "network": "tenant", "prefixes": ["2001:db8:100::/64"], "ips": ["2001:db8:100::5"],
                "networkType": "NETWORK_TYPE_CHILD", "vrf": "46", "asn": 4200003073u32,
            }],
            "dnsServers": [{"ip": "2001:db8:ff::1"}],
            "ntpServers": [{"address": "2001:db8:ff::1"}],
            "filesystemLayout": {
                "id": "test-layout", "name": "Test layout",
                "disks": [{"device": device, "partitions": [
                    {"number": 1, "label": "efi", "size": "96", "gptType": "GPT_TYPE_BOOT"},
                    {"number": 2, "label": "root", "gptType": "GPT_TYPE_LINUX"},
                ]}],
                "filesystems": [
                    {"device": format!("{part}1"), "format": "FORMAT_VFAT", "path": "/boot/efi", "label": "efi"},
                    {"device": format!("{part}2"), "format": "FORMAT_EXT4", "path": "/", "label": "root"},
                    {"device": "tmpfs", "format": "FORMAT_TMPFS", "path": "/tmp",
                     "mountOptions": ["defaults", "noatime", "nosuid", "nodev", "mode=1777", "size=512M"]},
                ],
            },
        }))
    }

    /// Its uuid.
    pub fn uuid(&self) -> &str {
        self.0["uuid"].as_str().unwrap_or_default()
    }

    /// Made so long before every Register that it counts as standing.
    pub fn standing(mut self) -> Self {
        self.0["meta"]["createdAt"] = json!("2026-01-01T00:00:00Z");
        self
    }

    /// Made after every Register (an hour ahead): counts as fresh.
    pub fn fresh(mut self) -> Self {
        let hour = jiff::SignedDuration::from_hours(1);
        self.0["meta"]["createdAt"] = json!((jiff::Timestamp::now() + hour).to_string());
        self
    }

    /// Sets any field of the message, by JSON pointer.
    pub fn with(mut self, pointer: &str, value: Value) -> Self {
        match self.0.pointer_mut(pointer) {
            Some(place) => *place = value,
            None => panic!("no {pointer} in the allocation"),
        }
        self
    }

    /// Adds or replaces a top-level field.
    pub fn with_field(mut self, name: &str, value: Value) -> Self {
        self.0[name] = value;
        self
    }
}

/// A public key whose private half was thrown away.
pub const SSH_KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ3vVbBkT4Zl7xX4CtFQ3Ckz2ZkTB8QZQmGJZ6ZqTq0V test@example";
