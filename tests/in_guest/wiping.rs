//! A secure wipe of disks as they come back from tenants, and of disks that are not well. What
//! is left on them is looked for from the host (`tests/guest.rs`).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use metal_anvil::control::api::FilesystemLayout;
use metal_anvil::decide::{Adopt, Age, Answer, Decision, Extent, Journal, WipeScope, decide};
use metal_anvil::storage::disks::{Disk, discover};
use metal_anvil::storage::eligible::{Exclusions, Reason, Sorted, erasable};
use metal_anvil::storage::scope::disks_in_scope;
use metal_anvil::storage::wipe::{Depth, DiskError, Rung, quick_check, wipe};
use metal_anvil::storage::wipe_policy::{Occasion, depth};
use metal_anvil::watchdog::Progress;
use uuid::Uuid;

use crate::storage::{content, every_disk};

fn tool(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .env("DM_DISABLE_UDEV", "1")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn known<'d>(disks: &'d [Disk], serial: &str) -> &'d Disk {
    let found = disks.iter().find(|disk| disk.serial == serial);
    found.unwrap_or_else(|| panic!("no disk {serial} in {disks:?}"))
}

#[test]
fn every_disk_is_erased_or_named() {
    assert!(std::env::var_os("METAL_ANVIL_IN_GUEST").is_some());
    let disks = discover(Path::new("/sys")).unwrap();
    let path = |serial: &str| known(&disks, serial).path.to_str().unwrap().to_owned();
    // An array and a group that run, as an operator's hand may have left them.
    let (liar, sata) = (path("liar"), path("sata0"));
    let md = [
        "--create",
        "/dev/md3",
        "--run",
        "--level=1",
        "--raid-devices=2",
        "--metadata=1.0",
        &liar,
        "missing",
    ];
    tool("/usr/sbin/mdadm", &md);
    tool("/usr/sbin/lvm", &["pvcreate", "-ff", "-y", &sata]);
    tool("/usr/sbin/lvm", &["vgcreate", "left", &sata]);
    tool(
        "/usr/sbin/lvm",
        &["lvcreate", "-y", "-l", "4", "-n", "over", "left"],
    );
    let mut luks = [0; 6];
    File::open(path("nvme1"))
        .unwrap()
        .read_exact_at(&mut luks, 0)
        .unwrap();
    assert_eq!(&luks, b"LUKS\xba\xbe");

    let sorted = erasable(disks, None, &Exclusions::default());
    let left: Vec<_> = sorted
        .left_alone
        .iter()
        .map(|(disk, why)| (disk.serial.as_str(), why))
        .collect();
    assert_eq!(left, [("protected", &Reason::ReadOnly)]);
    let scoped = disks_in_scope(&every_disk(), &sorted, None).unwrap();
    let error = wipe(&scoped, Depth::Secure, &Progress::unwatched()).unwrap_err();
    println!("{error}");
    for wiped in &error.wiped {
        println!("{wiped}");
    }

    let rung = |serial: &str| {
        let wiped = error
            .wiped
            .iter()
            .find(|wiped| wiped.disk.serial == serial)
            .unwrap();
        let failed: Vec<_> = wiped.failed.iter().map(|failed| failed.rung).collect();
        assert!(
            wiped.verified >= 256 && wiped.bytes == wiped.disk.size,
            "{wiped}"
        );
        (wiped.rung, failed)
    };
    assert_eq!(rung("liar"), (Rung::ZeroOut, vec![Rung::Discard]));
    assert_eq!(rung("nvme1"), (Rung::NvmeFormatData, vec![]));
    assert_eq!(rung("sata0"), (Rung::Discard, vec![]));
    let [DiskError::NoRung { path, failed, .. }] = &error.failed[..] else {
        panic!("{error}");
    };
    assert_eq!(
        *path,
        known(&sorted.erasable, "broken").path.display().to_string()
    );
    assert_eq!(failed.last().unwrap().rung, Rung::Overwrite);
    assert!(
        failed
            .last()
            .unwrap()
            .why
            .contains("1 MiB could not be written"),
        "{error}"
    );

    let well: Vec<_> = sorted
        .erasable
        .iter()
        .filter(|disk| disk.serial != "broken")
        .cloned()
        .collect();
    let sorted = Sorted {
        erasable: well,
        left_alone: vec![],
    };
    let scoped = disks_in_scope(&every_disk(), &sorted, None).unwrap();
    assert_eq!(quick_check(&scoped).unwrap(), []);
    assert!(!Path::new("/sys/block/md3").exists());
    assert!(!Path::new("/sys/block/dm-0").exists());
}

/// What a cell of the decision table must do to the root's disk and to the other one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Touches {
    Nothing,
    Root,
    Both,
}

/// Every cell of the table (contracts.md §9): exactly the disks that it may erase have changed,
/// every other byte is as it was.
#[test]
fn each_cell_of_the_decision_table_touches_its_disks_only() {
    use Touches::{Both, Nothing, Root};
    let (ours, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let cut = |extent| Journal::Installing {
        allocation: ours,
        extent,
    };
    let allocation = |uuid, age, ordered| Answer::Allocation { uuid, age, ordered };
    let (silence, installed) = (
        Answer::NoAllocation,
        Journal::Installed { allocation: ours },
    );
    let standing = allocation(ours, Age::Standing, false);
    let fresh = allocation(other, Age::Fresh, false);
    let ordered = allocation(ours, Age::Standing, true);
    let elsewhere = allocation(other, Age::Standing, false);
    let (every, root) = (Extent::EveryDisk, Extent::RootDisks);
    let cells = [
        (Journal::None, silence, Adopt::Hold, Both),
        (Journal::None, fresh, Adopt::Hold, Both),
        (Journal::None, standing, Adopt::Hold, Nothing),
        (Journal::None, standing, Adopt::BootDisk, Nothing),
        (Journal::None, standing, Adopt::Wipe, Both),
        (Journal::None, ordered, Adopt::Hold, Root),
        (Journal::Wiped, silence, Adopt::Hold, Nothing),
        (Journal::Wiped, fresh, Adopt::Hold, Nothing),
        (Journal::Wiped, standing, Adopt::Hold, Nothing),
        (cut(every), silence, Adopt::Hold, Both),
        (cut(every), fresh, Adopt::Hold, Both),
        (cut(every), standing, Adopt::Hold, Both),
        (cut(root), standing, Adopt::Hold, Root),
        (cut(root), elsewhere, Adopt::Hold, Both),
        (installed.clone(), silence, Adopt::Hold, Both),
        (installed.clone(), fresh, Adopt::Hold, Both),
        (installed.clone(), elsewhere, Adopt::Hold, Both),
        (installed.clone(), ordered, Adopt::Hold, Root),
        (installed, standing, Adopt::Hold, Nothing),
    ];
    let disks = discover(Path::new("/sys")).unwrap();
    let two = ["cell-root", "cell-data"].map(|serial| known(&disks, serial).clone());
    let name = |disk: &Disk| disk.path.display().to_string();
    let layout: FilesystemLayout = serde_json::from_value(serde_json::json!({
        "id": "cells",
        "disks": two.each_ref().map(|disk| serde_json::json!({"device": name(disk), "partitions": [{"number": 1}]})),
        "filesystems": [
            {"device": format!("{}1", name(&two[0])), "format": "FORMAT_EXT4", "path": "/"},
            {"device": format!("{}1", name(&two[1])), "format": "FORMAT_EXT4", "path": "/data"},
        ],
    }))
    .unwrap();
    let sorted = Sorted {
        erasable: two.to_vec(),
        left_alone: vec![],
    };
    let used = b"precious\n".repeat(1 << 20);
    for (index, (journal, answer, adopt, expected)) in cells.into_iter().enumerate() {
        let before = two.each_ref().map(|disk| {
            let file = File::options().write(true).open(&disk.path).unwrap();
            file.write_all_at(&used[..1 << 20], 1 << 20).unwrap();
            file.write_all_at(&used[..1 << 20], disk.size - (2 << 20))
                .unwrap();
            file.sync_all().unwrap();
            content(disk)
        });
        let in_scope = |scope: &WipeScope| disks_in_scope(scope, &sorted, Some(&layout)).unwrap();
        match decide(&journal, answer, adopt) {
            Decision::WipeAndWait(scope) | Decision::WipeAndInstall(scope) => {
                let occasion = match scope.extent() {
                    Extent::EveryDisk => Occasion::ChangeOfHands,
                    Extent::RootDisks => Occasion::Reinstall,
                };
                wipe(
                    &in_scope(&scope),
                    depth(None, occasion),
                    &Progress::unwatched(),
                )
                .unwrap();
            }
            Decision::CheckAndWait(scope) => drop(quick_check(&in_scope(&scope)).unwrap()),
            Decision::Install(_) | Decision::BootDisk | Decision::Hold => {}
        }
        let changed = [0, 1].map(|disk| content(&two[disk]) != before[disk]);
        let touched = match changed {
            [false, false] => Nothing,
            [true, false] => Root,
            [true, true] => Both,
            [false, true] => panic!("cell {index}: only the data disk was written"),
        };
        assert_eq!(
            touched, expected,
            "cell {index}: {journal}, {answer:?}, {adopt:?}"
        );
    }
}
