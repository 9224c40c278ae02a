//! The guest is what the other tests take it for.

use std::fs;
use std::path::Path;

/// Size of every disk: 256 MiB in sectors of 512 bytes.
const SECTORS: &str = "524288";

#[test]
fn every_kind_of_disk_is_there() {
    for name in ["vda", "sda", "sdb", "nvme0n1"] {
        let size = fs::read_to_string(format!("/sys/block/{name}/size"))
            .unwrap_or_else(|e| panic!("disk {name}: {e}"));
        assert_eq!(size.trim(), SECTORS, "size of {name}");
        assert!(Path::new("/dev").join(name).exists(), "no node for {name}");
    }
}

#[test]
fn we_are_root_under_efi_with_the_tools() {
    assert!(nix::unistd::geteuid().is_root());
    assert!(Path::new("/sys/firmware/efi/efivars").is_dir());
    for tool in ["/usr/sbin/mke2fs", "/usr/sbin/mkfs.vfat"] {
        assert!(Path::new(tool).exists(), "{tool} is missing");
    }
}
