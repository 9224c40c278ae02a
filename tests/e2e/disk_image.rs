//! An image that is a whole disk.

use std::fs;
use std::path::Path;
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::common::*;
use crate::support::allocation::Allocation;
use crate::support::bed::Bed;
use crate::support::disk::{Disk, MIB};
use crate::support::guest::End;
use crate::support::machine::Start;
use crate::support::media;
use crate::support::netns::SERVICE;
use crate::support::process::run;
use crate::support::root;
use crate::support::services::IMAGE_PORT;

/// Where the partitions of the image are, in MiB.
const ESP: (u64, u64) = (1, 64);
const ROOT: (u64, u64) = (65, 96);

/// Makes a disk out of tiny: an EFI system partition with its loader, and its tree as the root,
/// without the files that are `left_out`. Answers the URL of the published image.
fn publish(bed: &Bed, left_out: &[&str]) -> String {
    let image = disk_of_tiny(&bed.dir, left_out);
    let www = bed.dir.join("www/raw");
    fs::create_dir_all(&www).expect("image directory");
    let packed = www.join("img.raw.zst");
    run(Command::new("zstd")
        .args(["-q", "-3"])
        .arg(&image.path)
        .arg("-o")
        .arg(&packed));
    let digest = Sha256::digest(fs::read(&packed).expect("packed image"));
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(
        www.join("img.raw.zst.sha256"),
        format!("{digest}  img.raw.zst\n"),
    )
    .expect("write");
    format!("http://[{SERVICE}]:{IMAGE_PORT}/raw/img.raw.zst")
}

fn disk_of_tiny(dir: &Path, left_out: &[&str]) -> Disk {
    let disk = Disk::empty(
        dir,
        "image",
        crate::support::disk::Bus::Virtio,
        ROOT.0 + ROOT.1 + 1,
    );
    let tree = dir.join("tree");
    fs::create_dir(&tree).expect("directory for the tree");
    let tar = root().join("target/images/tiny/img.tar");
    run(Command::new("tar")
        .arg("-xf")
        .arg(&tar)
        .arg("-C")
        .arg(&tree));
    for file in left_out {
        fs::remove_file(tree.join(file)).expect("a file of tiny");
    }
    let mib = |(start, size): (u64, u64)| format!("{}:{}", start * 2048, (start + size) * 2048 - 1);
    run(Command::new("sgdisk")
        .arg(format!("--new=1:{}", mib(ESP)))
        .arg("--typecode=1:ef00")
        .arg(format!("--new=2:{}", mib(ROOT)))
        .args(["--typecode=2:8300", "--change-name=2:root"])
        .arg(&disk.path));
    let image = disk.path.display();
    let at = |(start, _): (u64, u64)| (start * MIB).to_string();
    run(Command::new("mkfs.vfat")
        .args(["-F", "32", "--offset", &(ESP.0 * 2048).to_string()])
        .arg(&disk.path)
        .arg((ESP.1 * 1024).to_string()));
    let esp = format!("{image}@@{}", at(ESP));
    // mtools want a geometry that nothing has had for thirty years.
    let mtool = |name: &str| {
        let mut command = Command::new(name);
        command.env("MTOOLS_SKIP_CHECK", "1");
        command
    };
    run(mtool("mmd").args(["-i", &esp, "::/EFI", "::/EFI/BOOT"]));
    run(mtool("mcopy")
        .args(["-i", &esp])
        .arg(tree.join("boot/tiny.efi"))
        .arg("::/EFI/BOOT/BOOTX64.EFI"));
    run(Command::new("mke2fs")
        .args([
            "-q",
            "-t",
            "ext4",
            "-E",
            &format!("offset={}", at(ROOT)),
            "-d",
        ])
        .arg(&tree)
        .arg(&disk.path)
        .arg(format!("{}M", ROOT.1)));
    disk
}

#[test]
fn a_disk_image_is_written_and_boots_from_a_larger_disk() {
    let bed = Bed::plan("disk_image").start();
    let url = publish(&bed, &[]);
    let mut machine = bed.machine(media::agent(), vec![used_disk(&bed, "disk")]);
    let allocation = Allocation::new(&url, "/dev/vda");
    let mut guest = install(&bed, &machine, &allocation);
    assert_eq!(guest.wait_end(90), End::PowerOff);
    assert_eq!(bed.standin.events(&bed.machine), GOOD);
    let details = guest.text();
    let mut details = details
        .lines()
        .filter(|line| line.starts_with("TINY-OS details="));
    assert!(
        details.any(|line| line.contains(&bed.machine)),
        "the installer's files are not there"
    );

    let disk = &machine.disks[0];
    let verdict = run(Command::new("sgdisk").arg("--verify").arg(&disk.path));
    assert!(verdict.contains("No problems found"), "{verdict}");
    assert!(disk.holds(
        format!("installed {}\n", allocation.uuid()).as_bytes(),
        65 * MIB
    ));
    let places = disk.places_of(PATTERN);
    assert_eq!(places, [0_u64; 0], "the tenant before shines through");

    machine.start = Start::Disks;
    machine.name = "second".to_owned();
    let mut second = bed.power_on(&machine);
    second.wait_for("TINY-OS BOOTED via firmware", 120);
}

/// Nobody can say how its kernel is started: the machine is reset into the image's own loader.
#[test]
fn a_disk_image_without_an_installer_is_booted_by_a_reset() {
    let bed = Bed::plan("disk_image_reset").start();
    let url = publish(&bed, &["install-go"]);
    let mut machine = bed.machine(media::agent(), vec![used_disk(&bed, "disk")]);
    let allocation = Allocation::new(&url, "/dev/vda").fresh();
    bed.allocate(&allocation);
    let mut guest = bed.power_on(&machine);
    guest.wait_for("booting the disk by a reset instead", TO_WAITING);
    assert_eq!(guest.wait_end(90), End::Reset);
    let record = bed.standin.record();
    let last = record.iter().rfind(|line| line["method"] == "SendEvent");
    let event = &last.expect("an event")["message"]["event"];
    assert!(
        event
            .to_string()
            .contains("it does not say how its kernel is started"),
        "{event}"
    );
    let disk = &machine.disks[0];
    let journal = format!("installed {}\n", allocation.uuid());
    assert!(disk.holds(journal.as_bytes(), 65 * MIB));

    machine.start = Start::Disks;
    machine.name = "second".to_owned();
    let mut second = bed.power_on(&machine);
    second.wait_for("TINY-OS BOOTED via firmware", 120);
}
