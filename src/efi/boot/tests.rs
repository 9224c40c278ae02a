use std::fs;

use uuid::Uuid;

use super::super::gpt::tests::disk;
use super::super::load_option::tests::{OVMF, unhex};
use super::super::vars::tests::fixture;
use super::*;

const LOADER: &str = "\\EFI\\debian\\shimx64.efi";

fn location(guid: u128) -> EspLocation {
    EspLocation {
        number: 1,
        start_lba: 2048,
        size_lba: 4096,
        guid: Uuid::from_u128(guid),
    }
}

fn put(vars: &Vars, name: &str, data: &[u8]) {
    vars.write(name, GLOBAL, NV_BS_RT, data).unwrap();
}

fn put_numbers(vars: &Vars, name: &str, numbers: &[u16]) {
    let bytes: Vec<u8> = numbers.iter().flat_map(|it| it.to_le_bytes()).collect();
    put(vars, name, &bytes);
}

/// OVMF's own three entries, Boot0000 to Boot0002.
fn ovmf() -> (tempfile::TempDir, Vars) {
    let (dir, vars) = fixture();
    for (number, text) in OVMF.iter().enumerate() {
        put(&vars, &format!("Boot{number:04X}"), &unhex(text));
    }
    put_numbers(&vars, "BootOrder", &[0, 1, 2]);
    (dir, vars)
}

fn next(vars: &Vars) -> Vec<u16> {
    numbers(vars, "BootNext").unwrap()
}

fn entry(vars: &Vars, number: u16) -> LoadOption {
    let variable = vars.read(&entry_name(number), GLOBAL).unwrap().unwrap();
    LoadOption::parse(&variable.data).unwrap()
}

#[test]
fn the_next_boot_is_this_boot_until_it_is_cleared() {
    let (_dir, vars) = ovmf();
    assert_eq!(set_next_to_current(&vars).unwrap(), Next::Skipped);
    assert_eq!(next(&vars), Vec::<u16>::new());
    put_numbers(&vars, "BootCurrent", &[0x1a]);
    assert_eq!(set_next_to_current(&vars).unwrap(), Next::Set(0x1a));
    assert_eq!(next(&vars), [0x1a]);
    clear_next(&vars).unwrap();
    assert_eq!(next(&vars), Vec::<u16>::new());
    clear_next(&vars).unwrap();
}

#[test]
fn odd_numbers_are_named() {
    let (_dir, vars) = ovmf();
    put(&vars, "BootCurrent", &[1, 0, 2, 0]);
    assert!(
        set_next_to_current(&vars)
            .unwrap_err()
            .to_string()
            .contains("BootCurrent")
    );
    put(&vars, "BootOrder", &[1, 0, 2]);
    let error = install_entries(&vars, "debian", &[location(7)], LOADER).unwrap_err();
    assert!(error.to_string().contains("BootOrder"), "{error}");
    assert_eq!(vars.boot_entry_numbers().unwrap(), [0, 1, 2]);
}

#[test]
fn a_new_entry_is_first_and_nothing_else_is_lost() {
    let (_dir, vars) = ovmf();
    // 3 is in the order but has no variable: its number is not taken.
    put_numbers(&vars, "BootOrder", &[2, 0, 3, 1]);
    let made = install_entries(&vars, "debian", &[location(7)], LOADER).unwrap();
    assert_eq!(made, [4]);
    assert_eq!(order(&vars).unwrap(), [4, 2, 0, 3, 1]);
    assert_eq!(entry(&vars, 4).description, "metal-anvil debian");
    assert!(entry(&vars, 4).loads(Uuid::from_u128(7), LOADER));
    for (number, text) in OVMF.iter().enumerate() {
        let name = entry_name(u16::try_from(number).unwrap());
        assert_eq!(vars.read(&name, GLOBAL).unwrap().unwrap().data, unhex(text));
    }
}

#[test]
fn a_second_run_changes_nothing() {
    let (dir, vars) = ovmf();
    install_entries(&vars, "debian", &[location(7)], LOADER).unwrap();
    let snapshot = || {
        let mut files: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|it| it.unwrap().path())
            .map(|path| (fs::read(&path).unwrap(), path))
            .collect();
        files.sort();
        files
    };
    let before = snapshot();
    assert_eq!(
        install_entries(&vars, "debian", &[location(7)], LOADER).unwrap(),
        [3]
    );
    assert_eq!(snapshot(), before);
}

#[test]
fn entries_of_earlier_installs_go_and_those_of_others_stay() {
    let (_dir, vars) = ovmf();
    install_entries(&vars, "ubuntu", &[location(5), location(6)], LOADER).unwrap();
    // Another system's entry with the very same target, and one that only looks like ours.
    put(
        &vars,
        "Boot0010",
        &load_option::encode("debian", &location(7), LOADER),
    );
    put(
        &vars,
        "Boot0011",
        &load_option::encode("metal-anvilish", &location(9), LOADER),
    );
    put(&vars, "Boot0012", b"garbage");
    put_numbers(&vars, "BootOrder", &[3, 0x10, 4, 0, 0x11, 0x12]);
    let made = install_entries(&vars, "debian", &[location(7)], LOADER).unwrap();
    assert_eq!(made, [5]);
    assert_eq!(order(&vars).unwrap(), [5, 0x10, 0, 0x11, 0x12]);
    assert_eq!(
        vars.boot_entry_numbers().unwrap(),
        [0, 1, 2, 5, 0x10, 0x11, 0x12]
    );
}

#[test]
fn every_member_of_a_raid1_gets_an_entry() {
    let (_dir, vars) = ovmf();
    let both = [location(7), location(8)];
    assert_eq!(
        install_entries(&vars, "debian", &both, LOADER).unwrap(),
        [3, 4]
    );
    assert_eq!(order(&vars).unwrap(), [3, 4, 0, 1, 2]);
    let reversed = [location(8), location(7)];
    assert_eq!(
        install_entries(&vars, "debian", &reversed, LOADER).unwrap(),
        [4, 3]
    );
    assert_eq!(order(&vars).unwrap(), [4, 3, 0, 1, 2]);
    let none = install_entries(&vars, "debian", &[], LOADER).unwrap_err();
    assert!(matches!(none, Error::NoPartition));
}

#[test]
fn a_partition_that_moved_updates_its_entry() {
    let (_dir, vars) = ovmf();
    install_entries(&vars, "debian", &[location(7)], LOADER).unwrap();
    let moved = EspLocation {
        start_lba: 8192,
        ..location(7)
    };
    assert_eq!(
        install_entries(&vars, "ubuntu", &[moved], LOADER).unwrap(),
        [3]
    );
    let entry = entry(&vars, 3);
    assert_eq!(entry.description, "metal-anvil ubuntu");
    assert_eq!(
        entry.path[0],
        super::super::device_path::Node::Partition(moved)
    );
}

#[test]
fn descriptions_are_bounded() {
    assert_eq!(description("a\n\u{1b}b"), "metal-anvil a??b");
    assert_eq!(description(&"é".repeat(500)).chars().count(), 12 + MAX_NAME);
}

/// A machine with one disk, whose ESP has GUID 7.
fn machine() -> (tempfile::TempDir, Vars, Vec<PathBuf>) {
    let (dir, vars) = ovmf();
    let disks = vec![dir.path().join("disk0"), dir.path().join("missing")];
    disk(&disks[0], 512, Uuid::from_u128(7));
    (dir, vars, disks)
}

fn must_not_look(esp: &Partition) -> Result<Option<String>, Error> {
    panic!("looked into {}", esp.device().display());
}

#[test]
fn the_disk_boot_takes_the_first_entry_for_a_partition_that_exists() {
    let (_dir, vars, disks) = machine();
    let other_file = "\\EFI\\ubuntu\\grubx64.efi";
    put(
        &vars,
        "Boot0004",
        &load_option::encode("gone", &location(99), LOADER),
    );
    put(
        &vars,
        "Boot0005",
        &load_option::encode("this boot", &location(7), LOADER),
    );
    put(
        &vars,
        "Boot0006",
        &load_option::encode("ubuntu", &location(7), other_file),
    );
    put(
        &vars,
        "Boot0007",
        &load_option::encode("later", &location(7), LOADER),
    );
    let mut inactive = load_option::encode("inactive", &location(7), LOADER);
    inactive[0] = 0;
    put(&vars, "Boot0008", &inactive);
    put(
        &vars,
        "Boot0003",
        &load_option::encode("not in order", &location(7), LOADER),
    );
    put_numbers(&vars, "BootOrder", &[0, 1, 2, 0x55, 4, 5, 8, 6, 7]);
    put_numbers(&vars, "BootCurrent", &[5]);
    let chosen = boot_disk_with(&vars, &disks, must_not_look).unwrap();
    let expected = Chosen::Existing {
        number: 6,
        description: "ubuntu".into(),
    };
    assert_eq!(chosen, expected);
    assert_eq!(next(&vars), [6]);
    assert_eq!(order(&vars).unwrap(), [0, 1, 2, 0x55, 4, 5, 8, 6, 7]);
}

#[test]
fn a_loader_without_an_entry_gets_one_last_in_the_order() {
    let (_dir, vars, disks) = machine();
    let before = fs::read(&disks[0]).unwrap();
    let look = |esp: &Partition| {
        assert_eq!(esp.location.guid, Uuid::from_u128(7));
        Ok(Some(LOADER.to_owned()))
    };
    let chosen = boot_disk_with(&vars, &disks, look).unwrap();
    let expected = Chosen::Made {
        number: 3,
        device: disks[0].with_file_name("disk0p1"),
        loader: LOADER.into(),
    };
    assert_eq!(chosen, expected);
    assert_eq!(order(&vars).unwrap(), [0, 1, 2, 3]);
    assert_eq!(next(&vars), [3]);
    assert!(entry(&vars, 3).loads(Uuid::from_u128(7), LOADER));
    assert_eq!(fs::read(&disks[0]).unwrap(), before);
}

#[test]
fn nothing_to_boot_says_what_was_looked_for() {
    let (dir, vars, disks) = machine();
    let broken = |_: &Partition| Err(Error::NoPartition);
    for error in [
        boot_disk_with(&vars, &disks, |_| Ok(None)).unwrap_err(),
        boot_disk_with(&vars, &disks, broken).unwrap_err(),
        boot_disk(&vars, &disks, &dir.path().join("mnt")).unwrap_err(),
    ] {
        let text = error.to_string();
        assert!(
            text.contains("disk0p1") && text.contains("missing"),
            "{text}"
        );
    }
    let error = boot_disk_with(&vars, &[], must_not_look).unwrap_err();
    assert!(error.to_string().contains("partition of none"), "{error}");
    assert_eq!(next(&vars), Vec::<u16>::new());
    assert_eq!(order(&vars).unwrap(), [0, 1, 2]);
}

/// Firmware without room: a tmpfs whose inodes are used up answers as efivarfs does.
#[test]
fn a_full_nvram_costs_our_old_entries_first_and_never_those_of_others() {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};

    // A mount namespace of this thread: what is mounted here goes with it.
    unshare(CloneFlags::CLONE_NEWNS).expect("this test needs root");
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let options = Some("nr_inodes=16");
    mount(
        Some("tmpfs"),
        dir.path(),
        Some("tmpfs"),
        MsFlags::empty(),
        options,
    )
    .unwrap();
    fs::write(dir.path().join("Lang-x"), b"x").unwrap();
    let vars = Vars::open(dir.path()).unwrap();
    for (number, text) in OVMF.iter().enumerate() {
        put(&vars, &format!("Boot{number:04X}"), &unhex(text));
    }
    let old = load_option::encode("metal-anvil ubuntu", &location(5), LOADER);
    put(&vars, "Boot0010", &old);
    put_numbers(&vars, "BootOrder", &[0x10, 0, 1, 2]);
    let mut filler = 0;
    while fs::write(dir.path().join(format!("filler-{filler}")), b"").is_ok() {
        filler += 1;
    }
    let made = install_entries(&vars, "debian", &[location(7)], LOADER).unwrap();
    assert_eq!(vars.boot_entry_numbers().unwrap(), [0, 1, 2, made[0]]);
    assert_eq!(order(&vars).unwrap(), [made[0], 0, 1, 2]);

    // Nothing of ours is left to go: the caller falls back on the removable path.
    let other = load_option::encode("debian", &location(7), LOADER);
    put(&vars, &entry_name(made[0]), &other);
    let error = install_entries(&vars, "debian", &[location(7)], LOADER).unwrap_err();
    assert!(error.is_nvram(), "{error}");
    assert_eq!(vars.boot_entry_numbers().unwrap(), [0, 1, 2, made[0]]);
}

#[test]
fn secure_boot_is_on_when_the_firmware_says_one() {
    let (_dir, vars) = ovmf();
    assert!(!secure_boot(&vars), "no variable");
    for (data, on) in [
        (&[0][..], false),
        (&[1], true),
        (&[1, 0], false),
        (&[], false),
    ] {
        put(&vars, "SecureBoot", data);
        assert_eq!(secure_boot(&vars), on, "{data:?}");
    }
}
