//! A layout's disks looked at from outside, with the tools of other people: sgdisk, e2fsck,
//! fsck.fat, blkid and mdadm. Nothing is written: all loop devices are read-only.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::disk::{Disk, MIB};
use super::process::run;

/// A read-only loop device over a part of a file; gone when dropped.
struct Loop(PathBuf);

impl Loop {
    fn new(file: &Path, block: u64, offset: u64, size: u64) -> Self {
        let mut losetup = Command::new("losetup");
        losetup.args(["--find", "--show", "--read-only"]);
        losetup.arg(format!("--sector-size={block}"));
        losetup.arg(format!("--offset={offset}"));
        losetup.arg(format!("--sizelimit={size}"));
        Self(PathBuf::from(run(losetup.arg(file)).trim()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.0)
            .status();
    }
}

/// A partition as sgdisk sees it, in bytes.
struct Part {
    start: u64,
    size: u64,
}

/// The disks of one layout, by kernel name.
struct Examined<'d> {
    layout: &'d Value,
    disks: BTreeMap<String, &'d Disk>,
}

/// Examines everything that the layout names; panics at what is not as it says.
pub fn examine(layout: &Value, disks: BTreeMap<String, &Disk>) {
    let examined = Examined { layout, disks };
    for disk in list(layout, "disks") {
        if !list(disk, "partitions").is_empty() {
            examined.table(disk);
        }
    }
    for raid in list(layout, "raid") {
        examined.array(raid);
    }
    for filesystem in list(layout, "filesystems") {
        examined.filesystem(filesystem);
    }
}

/// The list that a message's field holds, empty when it is left out.
pub fn list<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

/// The text that a message's field holds, empty when it is left out.
pub fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_default()
}

impl Examined<'_> {
    fn disk(&self, device: &str) -> &Disk {
        let name = device
            .strip_prefix("/dev/")
            .expect("a device of the layout");
        self.disks
            .get(name)
            .unwrap_or_else(|| panic!("the guest has no {device}"))
    }

    fn whole(&self, device: &str) -> Loop {
        let disk = self.disk(device);
        Loop::new(&disk.path, disk.bus.block(), 0, disk.size())
    }

    /// The partition table against the layout, and against sgdisk's own rules.
    fn table(&self, disk: &Value) {
        let device = text(disk, "device");
        let whole = self.whole(device);
        let verified = run(Command::new("sgdisk").arg("--verify").arg(&whole.0));
        assert!(
            verified.contains("No problems found"),
            "{device}: {verified}"
        );
        let mut ends = 0;
        for partition in list(disk, "partitions") {
            let number = partition["number"].as_u64().expect("a number");
            let info = self.info(&whole, number);
            let says = |line: String| {
                assert!(
                    info.contains(&line),
                    "{device} {number}: {line:?} is not in {info}"
                )
            };
            let code = match text(partition, "gptType") {
                "GPT_TYPE_BOOT" => "C12A7328-F81F-11D2-BA4B-00A0C93EC93B",
                "GPT_TYPE_LINUX_RAID" => "A19D880F-05FC-4D3B-A006-743F0F84911E",
                "GPT_TYPE_LINUX_LVM" => "E6D6D379-F507-44C2-A23C-238F2A3DF928",
                _ => "0FC63DAF-8483-4772-8E79-3D69D8477DE4",
            };
            says(format!("Partition GUID code: {code}"));
            says(format!("Partition name: '{}'", text(partition, "label")));
            let part = self.part(&whole, device, number);
            assert_eq!(part.start % MIB, 0, "{device} {number} is not aligned");
            match text(partition, "size").parse::<u64>() {
                Ok(mib) => assert_eq!(part.size, mib * MIB, "{device} {number}"),
                Err(_) => {
                    let end = self.disk(device).size();
                    let left = end - (part.start + part.size);
                    assert!(
                        (1..=2 * MIB).contains(&left),
                        "{device} {number} leaves {left} bytes"
                    );
                }
            }
            ends += 1;
        }
        let table = run(Command::new("sgdisk").arg("--print").arg(&whole.0));
        let rows = table
            .lines()
            .skip_while(|line| !line.starts_with("Number"))
            .skip(1);
        assert_eq!(rows.count(), ends, "{table}");
    }

    fn info(&self, whole: &Loop, number: u64) -> String {
        run(Command::new("sgdisk")
            .arg(format!("--info={number}"))
            .arg(&whole.0))
    }

    fn part(&self, whole: &Loop, device: &str, number: u64) -> Part {
        let info = self.info(whole, number);
        let block = self.disk(device).bus.block();
        let field = |name: &str| -> u64 {
            let line = info.lines().find_map(|line| line.strip_prefix(name));
            let word = line.and_then(|line| line.split_whitespace().next());
            word.and_then(|word| word.parse().ok())
                .unwrap_or_else(|| panic!("no {name} in {info}"))
        };
        Part {
            start: field("First sector: ") * block,
            size: field("Partition size: ") * block,
        }
    }

    /// The image file behind a partition or a whole disk, with block size, start and size.
    fn place(&self, device: &str) -> Option<(&Disk, u64, u64)> {
        for disk in list(self.layout, "disks") {
            let name = text(disk, "device");
            if name == device {
                let disk = self.disk(name);
                return Some((disk, 0, disk.size()));
            }
            for partition in list(disk, "partitions") {
                let number = partition["number"].as_u64().expect("a number");
                let separator = if name.ends_with(|c: char| c.is_ascii_digit()) {
                    "p"
                } else {
                    ""
                };
                if format!("{name}{separator}{number}") == device {
                    let part = self.part(&self.whole(name), name, number);
                    return Some((self.disk(name), part.start, part.size));
                }
            }
        }
        None
    }

    fn open(&self, device: &str, skip: u64) -> Option<Loop> {
        let (disk, start, size) = self.place(device)?;
        Some(Loop::new(
            &disk.path,
            disk.bus.block(),
            start + skip,
            size - skip,
        ))
    }

    /// Superblocks of all members of an array that stands on partitions or disks.
    fn array(&self, raid: &Value) {
        let spares = raid["spares"].as_u64().unwrap_or(0) as usize;
        let members = list(raid, "devices");
        let mut uuids = Vec::new();
        for (index, member) in members.iter().enumerate() {
            let member = member.as_str().expect("a device");
            let Some(opened) = self.open(member, 0) else {
                continue;
            };
            let text_of = run(Command::new("mdadm").arg("--examine").arg(&opened.0));
            let field = |name: &str| {
                let line = text_of
                    .lines()
                    .find_map(|line| line.trim().strip_prefix(name));
                line.map(|line| line.trim_start_matches([' ', ':']).to_owned())
                    .unwrap_or_default()
            };
            let level = text(raid, "level").replace("RAID_LEVEL_", "raid");
            assert_eq!(field("Raid Level"), level, "{text_of}");
            assert_eq!(
                field("Raid Devices"),
                (members.len() - spares).to_string(),
                "{text_of}"
            );
            let role = match index < members.len() - spares {
                true => format!("Active device {index}"),
                false => "spare".to_owned(),
            };
            assert_eq!(field("Device Role"), role, "{text_of}");
            assert!(field("Checksum").ends_with("correct"), "{text_of}");
            // 64 words are the space for a name; "any" belongs to every host.
            assert!(field("Name").starts_with("any:"), "{text_of}");
            uuids.push(field("Array UUID"));
        }
        uuids.dedup();
        assert!(uuids.len() <= 1, "members of different arrays: {uuids:?}");
    }

    /// Where the start of an array's data can be read from outside: each active member of a mirror.
    fn mirrors(&self, device: &str) -> Vec<Loop> {
        let raid = list(self.layout, "raid")
            .iter()
            .find(|raid| text(raid, "arrayName") == device);
        let Some(raid) = raid.filter(|raid| text(raid, "level") == "RAID_LEVEL_1") else {
            return Vec::new();
        };
        let spares = raid["spares"].as_u64().unwrap_or(0) as usize;
        let members = list(raid, "devices");
        let active = members[..members.len() - spares].iter();
        let opened = active.filter_map(|member| {
            let member = member.as_str()?;
            let whole = self.open(member, 0)?;
            let examined = run(Command::new("mdadm").arg("--examine").arg(&whole.0));
            let field = |name: &str| -> Option<u64> {
                let line = examined
                    .lines()
                    .find_map(|line| line.trim().strip_prefix(name))?;
                line.trim_start_matches([' ', ':'])
                    .split(' ')
                    .next()?
                    .parse()
                    .ok()
            };
            let (start, sectors) = (
                field("Data Offset").unwrap_or(0) * 512,
                field("Used Dev Size"),
            );
            let (disk, at, size) = self.place(member)?;
            let size = sectors.map_or(size - start, |sectors| sectors * 512);
            Some(Loop::new(&disk.path, disk.bus.block(), at + start, size))
        });
        opened.collect()
    }

    fn filesystem(&self, filesystem: &Value) {
        let device = text(filesystem, "device");
        let (kind, fsck): (_, &[&str]) = match text(filesystem, "format") {
            "FORMAT_VFAT" => ("vfat", &["fsck.fat", "-n", "-V"]),
            "FORMAT_EXT3" => ("ext3", &["e2fsck", "-f", "-n"]),
            "FORMAT_EXT4" => ("ext4", &["e2fsck", "-f", "-n"]),
            "FORMAT_SWAP" => ("swap", &[]),
            _ => return,
        };
        let mut opened = self.mirrors(device);
        opened.extend(self.open(device, 0));
        for place in &opened {
            let mut blkid = Command::new("blkid");
            blkid.args(["--probe", "--output", "export"]).arg(&place.0);
            let found = run(&mut blkid);
            let says = |line: String| found.lines().any(|found| found == line);
            assert!(says(format!("TYPE={kind}")), "{device}: {found}");
            let label = text(filesystem, "label");
            assert!(
                label.is_empty() || says(format!("LABEL={label}")),
                "{device}: {found}"
            );
            if let [program, arguments @ ..] = fsck {
                run(Command::new(program).args(arguments).arg(&place.0));
            }
        }
        if kind == "vfat" && text(filesystem, "path") == "/boot/efi" {
            assert!(!opened.is_empty(), "firmware finds no {device}");
            for place in &opened {
                let mut sector = [0; 512];
                let file = std::fs::File::open(&place.0).expect("own loop device");
                file.read_exact_at(&mut sector, 0)
                    .expect("read own loop device");
                assert_eq!(&sector[82..90], b"FAT32   ", "{device}");
            }
        }
    }
}
