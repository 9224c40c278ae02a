//! The files under `/etc/metal` that an OS installer reads (contracts.md §6).
//!
//! Rendering is pure: facts in, bytes out. Every string is quoted, so that `"46"`, `"yes"`
//! and `"~"` stay strings for YAML 1.1 readers (Python) and 1.2 readers (Go's yaml.v3) alike.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::error::Error;
use super::legacy;
use crate::control::api::{Allocation, Nic};
use crate::image::root::RootDir;

/// What os-installer gets when the agent's own command line names no serial console.
const DEFAULT_CONSOLE: &str = "ttyS1,115200n8";

/// Everything that the files say.
pub struct Facts<'a> {
    pub machine: Uuid,
    pub allocation: &'a Allocation,
    /// As registered, with the neighbours seen.
    pub nics: &'a [Nic],
    /// From [`serial_console`]; `None` becomes `ttyS1,115200n8`.
    pub console: Option<&'a str>,
    /// For the console user; also sent with `InstallationSucceeded`.
    pub password: &'a SecretString,
    pub raid_enabled: bool,
    /// UUID of the root file system.
    pub root_uuid: &'a str,
    pub timestamp: Timestamp,
    /// Top-level fields of the allocation that the installer is too old for.
    pub drop_fields: &'a [String],
}

/// A file for the target. It may hold secrets, so it cannot be printed.
pub struct TargetFile {
    pub path: &'static str,
    pub content: Zeroizing<Vec<u8>>,
    pub mode: u32,
}

/// All files of `/etc/metal` that the agent writes before an installer runs.
///
/// # Errors
/// A value that YAML cannot hold.
pub fn render(facts: &Facts<'_>) -> Result<Vec<TargetFile>, Error> {
    let details = json!({
        "id": facts.machine.to_string(),
        "nics": known_nics(facts.nics).map(nic).collect::<Vec<_>>(),
        "password": facts.password.expose_secret(),
        "console": console(facts),
        "raidenabled": facts.raid_enabled,
        "root_uuid": facts.root_uuid,
    });
    let mut allocation = facts.allocation.raw.clone();
    if let Some(fields) = allocation.as_object_mut() {
        fields.retain(|name, _| !facts.drop_fields.contains(name));
    }
    // 0600 wherever a password or the VPN's key may stand.
    let mut files = vec![
        yaml("/etc/metal/machine-details.yaml", &details, 0o600)?,
        yaml("/etc/metal/machine-allocation.yaml", &allocation, 0o600)?,
        yaml(
            "/etc/metal/install.yaml",
            &legacy::install_yaml(facts),
            0o600,
        )?,
        TargetFile {
            path: "/etc/metal/disk.json",
            content: disk_json(facts.root_uuid).into_bytes().into(),
            mode: 0o644,
        },
    ];
    if let Some(content) = userdata(&facts.allocation.userdata) {
        files.push(TargetFile {
            path: "/etc/metal/userdata",
            content,
            mode: 0o600,
        });
    }
    Ok(files)
}

/// Writes rendered files below the target root.
///
/// # Errors
/// Any of them could not be written.
pub fn write(root: &RootDir, files: &[TargetFile]) -> Result<(), Error> {
    for file in files {
        root.write(Path::new(file.path), &file.content, file.mode)
            .map_err(Error::file(file.path, "write"))?;
    }
    Ok(())
}

/// Writes `/etc/fstab`. Called once more after the installer, because images may write their own.
///
/// # Errors
/// It could not be written.
pub fn write_fstab(root: &RootDir, content: &str) -> Result<(), Error> {
    root.write(Path::new("/etc/fstab"), content.as_bytes(), 0o644)
        .map_err(Error::file("/etc/fstab", "write"))
}

/// Writes how this boot went into the installed OS, as far as it is by now. An OS without that
/// record is as good as one with it: what does not work is told and nothing more.
pub fn write_timeline(root: &Path, timeline: &Value) {
    const PATH: &str = "/var/log/metal-anvil/boot.json";
    let write = || {
        let root = RootDir::open(root)?;
        root.write(Path::new(PATH), format!("{timeline:#}\n").as_bytes(), 0o644)
    };
    if let Err(error) = write() {
        tracing::warn!("{PATH} of the installed OS was not written: {error}");
    }
}

/// The serial console of a kernel command line in the form that os-installer demands,
/// `ttyS<n>,<speed>n8`: the last one that has this form or means the same to the kernel
/// (parity `n` and 8 bits are its defaults, Documentation/admin-guide/serial-console.rst).
#[must_use]
pub fn serial_console(command_line: &str) -> Option<String> {
    command_line
        .split_ascii_whitespace()
        .filter_map(|word| word.strip_prefix("console="))
        .filter_map(|value| {
            let (port, options) = value.split_once(',')?;
            let number = port.strip_prefix("ttyS")?;
            let speed = options.strip_suffix("n8").unwrap_or(options);
            let digits = |text: &str, most: usize| {
                (1..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit())
            };
            (digits(number, 3) && digits(speed, 7)).then(|| format!("{port},{speed}n8"))
        })
        .next_back()
}

pub(super) fn console<'a>(facts: &Facts<'a>) -> &'a str {
    facts.console.unwrap_or(DEFAULT_CONSOLE)
}

/// Only these help an installer: the cable's other end is known.
pub(super) fn known_nics(nics: &[Nic]) -> impl Iterator<Item = &Nic> {
    nics.iter().filter(|nic| {
        !nic.neighbors.is_empty() && nic.neighbors.iter().all(|n| !n.identifier.is_empty())
    })
}

/// A `MachineNic` as Go's yaml.v3 reads the generated struct: field names in lower case.
fn nic(nic: &Nic) -> Value {
    json!({
        "mac": nic.mac,
        "name": nic.name,
        "identifier": nic.identifier,
        "vendor": nic.vendor,
        "model": nic.model,
        "speed": nic.speed,
        "hostname": nic.hostname,
        "neighbors": nic.neighbors.iter().map(self::nic).collect::<Vec<_>>(),
    })
}

fn disk_json(root_uuid: &str) -> String {
    json!({
        "Device": "legacy",
        "Partitions": [{
            "Label": "root",
            "Filesystem": "ext4",
            "Properties": {"UUID": root_uuid},
        }],
    })
    .to_string()
}

/// Decoded when it is base64, else as it is; nothing when there is none.
fn userdata(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    if text.is_empty() {
        return None;
    }
    // Go's decoder, which metal-hammer uses, skips line breaks.
    let joined: Zeroizing<String> = text
        .chars()
        .filter(|c| !matches!(c, '\n' | '\r'))
        .collect::<String>()
        .into();
    let decoded = STANDARD.decode(joined.as_bytes());
    Some(decoded.unwrap_or_else(|_| text.as_bytes().to_vec()).into())
}

/// What an installer may print but nobody shall read: userdata as it was sent and as it is
/// stored, the key to the VPN, and the console password.
#[must_use]
pub fn secrets(facts: &Facts<'_>) -> Vec<SecretString> {
    let sent = &facts.allocation.userdata;
    let stored = userdata(sent).map(|bytes| {
        let text = Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned());
        SecretString::from(text.as_str())
    });
    let sent = SecretString::from(sent.as_str());
    let vpn = legacy::field(&facts.allocation.raw, "vpn");
    let key = legacy::field(vpn, "authKey").as_str();
    [facts.password.clone(), sent]
        .into_iter()
        .chain(stored)
        .chain(key.map(SecretString::from))
        .collect()
}

fn yaml(path: &'static str, value: &Value, mode: u32) -> Result<TargetFile, Error> {
    Ok(TargetFile {
        path,
        content: to_yaml(path, value)?.into_bytes().into(),
        mode,
    })
}

/// A document with every string quoted.
pub(super) fn to_yaml(path: &str, value: &Value) -> Result<String, Error> {
    let options = serde_saphyr::ser_options! { quote_all: true };
    serde_saphyr::to_string_with_options(value, options)
        .map_err(|error| Error::content(path, format!("cannot be written as YAML: {error}")))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    #[test]
    fn userdata_in_both_its_forms_and_the_vpns_key_are_secrets() {
        let secrets = with_facts(secrets);
        let texts: Vec<_> = secrets.iter().map(ExposeSecret::expose_secret).collect();
        assert_eq!(
            texts,
            [
                "0123456789",
                "I2Nsb3VkLWNvbmZpZwo=",
                "#cloud-config\n",
                "k3y"
            ]
        );
    }

    pub fn allocation() -> Allocation {
        serde_json::from_value(json!({
            "uuid": "7b0b6ad5-6a4f-4f7e-a0e7-0c2a8a8f8f10",
            "hostname": "web-1",
            "image": {"id": "debian-12", "url": "http://[2001:db8::1]/img.tar.lz4"},
            "filesystemLayout": {"id": "default"},
            "sshPublicKeys": ["ssh-ed25519 AAAA a", "ssh-ed25519 BBBB b"],
            "userdata": "I2Nsb3VkLWNvbmZpZwo=",
            "allocationType": "MACHINE_ALLOCATION_TYPE_MACHINE",
            "networks": [{
                "network": "internet", "vrf": "46", "asn": 4_200_000_001_u32,
                "prefixes": ["2001:db8::/32"], "ips": ["2001:db8::5"],
                "destinationPrefixes": ["::/0"], "project": "p",
                "networkType": "NETWORK_TYPE_EXTERNAL", "natType": "NAT_TYPE_IPV4_MASQUERADE"
            }],
            "dnsServers": [{"ip": "2001:db8::53"}],
            "ntpServers": [{"address": "ntp.example"}],
            "vpn": {"controlPlaneAddress": "https://vpn", "authKey": "k3y"},
            "firewallRules": {"egress": [{
                "comment": "out", "protocol": "IP_PROTOCOL_TCP", "ports": [443], "to": ["::/0"]
            }]},
            "placementLabels": {"rack": "1", "yes": "no"},
            "description": "line one\n  line two\n",
            "future": {"deep": ["0x1", "1e3", "null", "~", " lead", "trail ", "", 7, true, null]}
        }))
        .unwrap()
    }

    pub fn nics() -> Vec<Nic> {
        let neighbor = |identifier: &str| Nic {
            mac: "00:00:5e:00:53:01".into(),
            name: "Ethernet0".into(),
            identifier: identifier.into(),
            hostname: "leaf01".into(),
            ..Nic::default()
        };
        let nic = |name: &str, neighbors| Nic {
            mac: "00:00:5e:00:53:aa".into(),
            name: name.into(),
            identifier: "00:00:5e:00:53:aa".into(),
            neighbors,
            ..Nic::default()
        };
        vec![
            nic("eth0", vec![neighbor("00:00:5e:00:53:01")]),
            nic("eth1", vec![neighbor("00:00:5e:00:53:01"), neighbor("")]),
            nic("eth2", vec![]),
        ]
    }

    pub fn with_facts<T>(test: impl FnOnce(&Facts<'_>) -> T) -> T {
        let (allocation, nics) = (allocation(), nics());
        let password = SecretString::from("0123456789");
        let drop_fields = ["placementLabels".to_owned()];
        test(&Facts {
            machine: "00000000-0000-0000-0000-ac1f6b7aabcd".parse().unwrap(),
            allocation: &allocation,
            nics: &nics,
            console: Some("ttyS0,115200n8"),
            password: &password,
            raid_enabled: false,
            root_uuid: "9e2f",
            timestamp: "2026-11-22T08:00:00Z".parse().unwrap(),
            drop_fields: &drop_fields,
        })
    }

    pub fn parsed(files: &[TargetFile], path: &str) -> Value {
        let file = files.iter().find(|file| file.path == path).unwrap();
        serde_saphyr::from_slice(&file.content).unwrap()
    }

    #[test]
    fn machine_details() {
        let files = with_facts(|facts| render(facts).unwrap());
        let details = parsed(&files, "/etc/metal/machine-details.yaml");
        assert_eq!(details["id"], "00000000-0000-0000-0000-ac1f6b7aabcd");
        assert_eq!(details["password"], "0123456789");
        assert_eq!(details["console"], "ttyS0,115200n8");
        assert_eq!(details["raidenabled"], false);
        assert_eq!(details["root_uuid"], "9e2f");
        let nics = details["nics"].as_array().unwrap();
        assert_eq!(
            nics.len(),
            1,
            "only eth0 has neighbours that are all identified"
        );
        assert_eq!(nics[0]["neighbors"][0]["identifier"], "00:00:5e:00:53:01");
        let file = &files[0];
        assert_eq!(
            (file.path, file.mode),
            ("/etc/metal/machine-details.yaml", 0o600)
        );
    }

    #[test]
    fn the_allocation_survives_but_for_dropped_fields() {
        let files = with_facts(|facts| render(facts).unwrap());
        let mut expected = allocation().raw;
        expected.as_object_mut().unwrap().remove("placementLabels");
        assert_eq!(
            parsed(&files, "/etc/metal/machine-allocation.yaml"),
            expected
        );
    }

    /// Python's reader is a YAML 1.1 one: it would take `yes`, `0x1` or `1e3` for something else.
    #[test]
    fn another_yaml_reader_sees_the_same() {
        let files = with_facts(|facts| render(facts).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        std::fs::write(&path, &*files[1].content).unwrap();
        let program =
            "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))";
        let output = std::process::Command::new("/usr/bin/python3")
            .args(["-c", program])
            .arg(&path)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "python3 with yaml (python3-yaml) is needed: {error}"
        );
        let seen: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(seen, parsed(&files, "/etc/metal/machine-allocation.yaml"));
    }

    #[test]
    fn user_data() {
        for (text, expected) in [
            ("I2Nsb3VkLWNvbmZpZwo=", Some(&b"#cloud-config\n"[..])),
            ("I2Nsb3Vk\r\nLWNvbmZpZwo=\n", Some(b"#cloud-config\n")),
            ("#cloud-config\n", Some(b"#cloud-config\n")),
            ("I2Nsb3VkLWNvbmZpZwo", Some(b"I2Nsb3VkLWNvbmZpZwo")),
            ("/wA=", Some(b"\xff\0")),
            ("", None),
        ] {
            assert_eq!(
                userdata(text).as_ref().map(|u| &u[..]),
                expected,
                "{text:?}"
            );
        }
    }

    #[test]
    fn disk_json_is_the_known_form() {
        assert_eq!(
            disk_json("abc"),
            r#"{"Device":"legacy","Partitions":[{"Label":"root","Filesystem":"ext4","Properties":{"UUID":"abc"}}]}"#
        );
    }

    #[test]
    fn serial_consoles() {
        for (line, expected) in [
            (
                "console=tty0 console=ttyS1,57600n8 quiet",
                Some("ttyS1,57600n8"),
            ),
            (
                "console=ttyS0,115200n8 console=tty0",
                Some("ttyS0,115200n8"),
            ),
            (
                "console=ttyS0,9600n8 console=ttyS1,115200n8",
                Some("ttyS1,115200n8"),
            ),
            ("console=ttyS0,115200", Some("ttyS0,115200n8")),
            ("console=ttyS0", None),
            ("console=ttyS0,115200e7", None),
            ("console=ttyAMA0,115200n8", None),
            ("console=ttyS,115200n8 console=ttyS0,n8", None),
            ("xconsole=ttyS0,115200n8", None),
            ("", None),
        ] {
            assert_eq!(serial_console(line).as_deref(), expected, "{line:?}");
        }
        with_facts(|facts| assert_eq!(console(facts), "ttyS0,115200n8"));
    }

    #[test]
    fn files_land_in_the_target_with_their_modes() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let root = RootDir::open(dir.path()).unwrap();
        with_facts(|facts| write(&root, &render(facts).unwrap()).unwrap());
        write_fstab(&root, "UUID=x / ext4 defaults 0 1\n").unwrap();
        for (path, mode) in [
            ("etc/metal/machine-details.yaml", 0o600),
            ("etc/metal/machine-allocation.yaml", 0o600),
            ("etc/metal/install.yaml", 0o600),
            ("etc/metal/userdata", 0o600),
            ("etc/metal/disk.json", 0o644),
            ("etc/fstab", 0o644),
        ] {
            let metadata = std::fs::metadata(dir.path().join(path)).unwrap();
            assert_eq!(metadata.permissions().mode() & 0o7777, mode, "{path}");
        }
    }

    #[test]
    fn the_timeline_lands_in_the_target_whatever_links_say() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["var", "data/log"] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        std::os::unix::fs::symlink("/data/log", dir.path().join("var/log")).unwrap();
        write_timeline(dir.path(), &json!({"steps": []}));
        let written = std::fs::read(dir.path().join("data/log/metal-anvil/boot.json")).unwrap();
        assert_eq!(written, b"{\n  \"steps\": []\n}\n");
        // Nothing to write to is no reason to fail.
        write_timeline(Path::new("/nonexistent"), &json!({}));
    }

    proptest::proptest! {
        #[test]
        fn any_string_survives(text: String, key: String) {
            let value = json!({ key: [text] });
            let yaml = to_yaml("test", &value).unwrap();
            let back: Value = serde_saphyr::from_str(&yaml).unwrap();
            proptest::prop_assert_eq!(back, value);
        }
    }
}
