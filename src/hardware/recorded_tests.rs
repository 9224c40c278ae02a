//! The recorded machines of `tests/fixtures/machines`: what they are, what they register as,
//! and that no string in them can spoil that.
//!
//! `register.json` of each is what `tests/apiserver/test_registers.py` lets the server's own
//! rules judge; here the agent is held to it, byte for byte. `METAL_ANVIL_BLESS=1` writes the
//! snapshots anew.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::tests::broken_rules;
use super::*;

#[path = "../../tests/support/machines.rs"]
mod machines;

const PARTITION: &str = "fra-equ01";
const VERSION: &str = "metal-anvil test";

struct Recorded {
    dir: tempfile::TempDir,
    files: Vec<PathBuf>,
}

impl Recorded {
    fn unpack(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let files = machines::unpack(name, dir.path());
        Self { dir, files }
    }

    fn roots(&self) -> Roots {
        Roots {
            ids: vec![machines::directory().join("pci.ids")],
            ..Roots::recorded(self.dir.path())
        }
    }

    fn inspect(&self) -> Result<Inventory, Error> {
        inspect(&self.roots(), None)
    }
}

fn inventory(name: &str) -> Inventory {
    Recorded::unpack(name).inspect().unwrap()
}

/// The switch ports of a machine's first two cards.
fn switches(inventory: &Inventory) -> Vec<(String, Vec<Nic>)> {
    let heard = |leaf: usize| Nic {
        mac: format!("44:38:39:00:00:{leaf:02x}"),
        identifier: format!("44:38:39:00:00:{leaf:02x}"),
        name: format!("swp{leaf}"),
        hostname: format!("leaf{leaf:02}"),
        ..Nic::default()
    };
    let cards = inventory.nics.iter().filter(|nic| !nic.usb).take(2);
    cards
        .enumerate()
        .map(|(index, nic)| (nic.name.clone(), vec![heard(index + 1)]))
        .collect()
}

fn snapshot(path: &Path, text: String) {
    let text = text + "\n";
    if std::env::var_os("METAL_ANVIL_BLESS").is_some() {
        fs::write(path, &text).unwrap();
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    assert!(
        expected == text,
        "{} is not what the agent says now; METAL_ANVIL_BLESS=1 writes it anew. It says:\n{text}",
        path.display()
    );
}

#[test]
fn every_machine_is_described_and_registered_as_before() {
    let names = machines::names();
    assert!(names.len() >= 12, "{names:?}");
    for name in names {
        let machine = Recorded::unpack(&name);
        let inventory = machine.inspect().unwrap();
        assert_eq!(machine.inspect().unwrap(), inventory, "{name}: not stable");
        let neighbours = switches(&inventory);
        let message = register(&inventory, &neighbours, PARTITION, VERSION, &[]).unwrap();
        assert_eq!(broken_rules(&message), Vec::<String>::new(), "{name}");
        let dir = machines::directory().join(&name);
        let message = serde_json::to_string_pretty(&message).unwrap();
        snapshot(&dir.join("register.json"), message);
        let inventory = serde_json::to_string_pretty(&inventory).unwrap();
        snapshot(&dir.join("inventory.json"), inventory);
    }
}

/// (machine, sockets, cores, threads, installed GiB, source, disks counted on, NICs, GPUs)
type Facts = (
    &'static str,
    usize,
    u32,
    u32,
    u64,
    MemorySource,
    usize,
    usize,
    usize,
);

#[test]
fn the_machines_are_what_they_were_made_as() {
    use MemorySource::{Blocks, Meminfo, Smbios};
    let table: [Facts; 13] = [
        ("dell-like", 2, 16, 32, 512, Smbios, 4, 5, 0),
        ("supermicro-like", 1, 16, 32, 512, Smbios, 10, 4, 0),
        ("hpe-like", 2, 24, 48, 384, Smbios, 4, 4, 0),
        ("lenovo-like", 2, 64, 128, 2048, Smbios, 2, 2, 2),
        ("sixty-four-disks", 1, 8, 8, 64, Smbios, 60, 1, 0),
        ("sixteen-nics", 1, 4, 4, 32, Blocks, 1, 16, 0),
        ("bogus-uuid", 1, 8, 8, 16, Smbios, 1, 2, 0),
        ("odd-text", 1, 2, 4, 8, Smbios, 1, 1, 0),
        ("nothing-inside", 1, 1, 1, 0, Meminfo, 0, 0, 0),
        ("gpus-of-two-makers", 2, 48, 96, 2304, Smbios, 1, 2, 2),
        ("old-bios", 2, 4, 4, 4, Smbios, 1, 1, 0),
        ("nvme-multipath", 1, 4, 8, 32, Blocks, 1, 1, 0),
        ("two-kinds-of-cores", 1, 8, 12, 32, Blocks, 1, 2, 1),
    ];
    for (name, sockets, cores, threads, gib, source, disks, nics, gpus) in table {
        let found = inventory(name);
        assert_eq!(found.cpus.len(), sockets, "{name}: sockets");
        let sum = |count: fn(&Socket) -> u32| found.cpus.iter().map(count).sum::<u32>();
        assert_eq!(
            (sum(|it| it.cores), sum(|it| it.threads)),
            (cores, threads),
            "{name}"
        );
        assert_eq!(
            (found.memory.installed >> 30, found.memory.source),
            (gib, source),
            "{name}"
        );
        let counted = found.disks.iter().filter(|disk| disk.left_out.is_none());
        assert_eq!(counted.count(), disks, "{name}: disks");
        assert_eq!((found.nics.len(), found.gpus.len()), (nics, gpus), "{name}");
    }
}

#[test]
fn the_raw_table_and_the_kernel_agree_on_the_uuid() {
    let mut seen = 0;
    for name in machines::names() {
        let machine = Recorded::unpack(&name);
        let Some(table) = smbios::Table::read(&machine.roots().sys) else {
            continue;
        };
        let kernel = fs::read_to_string(machine.roots().sys.join("class/dmi/id/product_uuid"));
        let kernel = kernel.unwrap().trim().to_lowercase();
        assert_eq!(table.system_uuid().unwrap().to_string(), kernel, "{name}");
        seen += 1;
    }
    assert!(seen >= 8, "{seen} machines with a table");
}

#[test]
fn a_recording_of_a_recording_is_the_same_machine() {
    for name in machines::names() {
        let machine = Recorded::unpack(&name);
        let again = Recorded {
            dir: tempfile::tempdir().unwrap(),
            files: Vec::new(),
        };
        let files = capture::capture(&machine.roots(), again.dir.path()).unwrap();
        assert!(files > 0);
        // A machine without links or disks has empty directories, which are no files.
        for directory in ["sys/class/net", "sys/block"] {
            fs::create_dir_all(again.dir.path().join(directory)).unwrap();
        }
        assert_eq!(
            again.inspect().unwrap(),
            machine.inspect().unwrap(),
            "{name}"
        );
        let error = capture::capture(&machine.roots(), again.dir.path()).unwrap_err();
        assert!(matches!(error, capture::Error::NotEmpty { .. }), "{error}");
    }
}

#[test]
fn odd_characters_reach_neither_screen_nor_message() {
    let inventory = inventory("odd-text");
    let message = register(&inventory, &[], PARTITION, VERSION, &[]).unwrap();
    let texts = [
        inventory.table(true).concat(),
        inventory.to_string(),
        message.bios.unwrap().version,
    ];
    for text in texts {
        assert!(!text.chars().any(char::is_control), "{text:?}");
    }
    assert_eq!(inventory.system.product.chars().count(), 256);
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    let any_bytes = prop::collection::vec(any::<u8>(), 0..60);
    let long = ("[a-z0-9 ü\u{0}\n]{1,4}", 1..400usize).prop_map(|(text, n)| text.repeat(n).into());
    let number = any::<u64>().prop_map(|n| format!("{n}\n").into_bytes());
    let hex = any::<u32>().prop_map(|n| format!("0x{n:x}\n").into_bytes());
    prop_oneof![any_bytes, long, number, hex]
}

/// A machine some of whose files hold something else until it is restored: unpacking a whole
/// machine for every case would be most of the time.
struct Spoilt<'a> {
    machine: &'a Recorded,
    before: Vec<(PathBuf, Vec<u8>)>,
}

impl<'a> Spoilt<'a> {
    fn spoil(
        machine: &'a Recorded,
        under: &str,
        changes: &[(prop::sample::Index, Vec<u8>)],
    ) -> Self {
        let below = machine.dir.path().join(under);
        let files: Vec<&PathBuf> = machine
            .files
            .iter()
            .filter(|file| file.starts_with(&below))
            .collect();
        let mut before = Vec::new();
        for (index, content) in changes {
            let file = index.get(&files).to_path_buf();
            before.push((file.clone(), fs::read(&file).unwrap()));
            fs::write(&file, content).unwrap();
        }
        Self { machine, before }
    }
}

impl Drop for Spoilt<'_> {
    fn drop(&mut self) {
        for (file, content) in self.before.iter().rev() {
            fs::write(file, content).unwrap();
        }
    }
}

/// A configuration without a file of failures beside the sources, and without hours of shrinking.
fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        max_shrink_iters: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

#[test]
fn no_content_of_sysfs_makes_a_message_that_the_server_refuses() {
    let machines = ["bogus-uuid", "nvme-multipath", "old-bios"].map(Recorded::unpack);
    proptest!(cases(64), |(
        which in 0..machines.len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), content()), 1..40),
        label in ".{0,200}", id in ".{0,200}", version in ".{0,300}",
        tags in prop::collection::vec(".{0,40}", 0..3),
    )| {
        let spoilt = Spoilt::spoil(&machines[which], "sys", &changes);
        let seen = Nic { name: label, identifier: id, ..Nic::default() };
        let neighbours = [("eth0".to_owned(), vec![seen])];
        let inventory = spoilt.machine.inspect().unwrap().known(Uuid::from_u128(1), &neighbours);
        let message = register(&inventory, &neighbours, PARTITION, &version, &tags).unwrap();
        prop_assert_eq!(broken_rules(&message), Vec::<String>::new());
        prop_assert!(!inventory.table(true).concat().chars().any(char::is_control));
    });
}

#[test]
fn no_answer_of_a_device_does_either() {
    let machine = Recorded::unpack("dell-like");
    proptest!(cases(32), |(
        changes in prop::collection::vec((any::<prop::sample::Index>(), content()), 1..20),
    )| {
        let spoilt = Spoilt::spoil(&machine, "ask", &changes);
        let inventory = spoilt.machine.inspect().unwrap();
        let message = register(&inventory, &[], PARTITION, VERSION, &[]).unwrap();
        prop_assert_eq!(broken_rules(&message), Vec::<String>::new());
    });
}
