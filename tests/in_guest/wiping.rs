//! A secure wipe of disks as they come back from tenants, and of disks that are not well. What
//! is left on them is looked for from the host (`tests/guest.rs`).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use metal_anvil::storage::disks::{Disk, discover};
use metal_anvil::storage::eligible::{Exclusions, Reason, erasable};
use metal_anvil::storage::scope::disks_in_scope;
use metal_anvil::storage::wipe::{Depth, DiskError, Rung, quick_check, wipe};

use crate::storage::every_disk;

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
    let error = wipe(&scoped, Depth::Secure).unwrap_err();
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
    let [DiskError::NoRung { path, failed }] = &error.failed[..] else {
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
    let sorted = metal_anvil::storage::eligible::Sorted {
        erasable: well,
        left_alone: vec![],
    };
    let scoped = disks_in_scope(&every_disk(), &sorted, None).unwrap();
    assert_eq!(quick_check(&scoped).unwrap(), []);
    assert!(!Path::new("/sys/block/md3").exists());
    assert!(!Path::new("/sys/block/dm-0").exists());
}
