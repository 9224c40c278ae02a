//! EFI system partitions: find them, look into them without writing, find their loaders.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tracing::warn;

use super::Error;
use super::gpt::{ESP_TYPE, Partition, partitions};

/// Most entries of one directory that are looked at.
const MAX_ENTRIES: usize = 4096;

/// Every partition of the disks. A disk that cannot be read is left out with a warning.
#[must_use]
pub fn partitions_of(disks: &[PathBuf]) -> Vec<Partition> {
    disks
        .iter()
        .flat_map(|disk| {
            partitions(disk).unwrap_or_else(|error| {
                warn!(%error, "disk left out while looking for partitions");
                Vec::new()
            })
        })
        .collect()
}

/// The EFI system partitions of the disks, in the disks' order.
#[must_use]
pub fn esps_of(disks: &[PathBuf]) -> Vec<Partition> {
    let mut found = partitions_of(disks);
    found.retain(|partition| partition.type_guid == ESP_TYPE);
    found
}

/// A FAT file system mounted read-only; dropping it unmounts it.
#[derive(Debug)]
pub struct ReadOnly {
    mountpoint: PathBuf,
}

impl ReadOnly {
    /// Mounts `device` at `mountpoint`, which is made if need be. Nothing is written to
    /// the device: vfat marks a volume dirty only when it is mounted for writing.
    ///
    /// # Errors
    /// When the directory cannot be made or the kernel refuses the mount.
    pub fn mount(device: &Path, mountpoint: &Path) -> Result<Self, Error> {
        fs::create_dir_all(mountpoint).map_err(Error::io("make", mountpoint))?;
        let flags =
            MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some(device), mountpoint, Some("vfat"), flags, None::<&str>)
            .map_err(|errno| Error::io("mount read-only, as vfat,", device)(errno.into()))?;
        Ok(Self {
            mountpoint: mountpoint.to_owned(),
        })
    }

    /// Where the file system is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.mountpoint
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.mountpoint, MntFlags::MNT_DETACH) {
            warn!(%error, mountpoint = %self.mountpoint.display(), "cannot unmount");
        }
    }
}

/// The loader of an installed system, as boot entries name it (`\EFI\debian\shimx64.efi`):
/// the first that exists of `EFI/<id>/shimx64.efi`, `EFI/<id>/grubx64.efi` and
/// `EFI/BOOT/BOOTX64.EFI` (contracts.md §6).
///
/// # Errors
/// [`Error::BootloaderId`] for an id that is no plain directory name, [`Error::NoLoader`]
/// with what was looked for.
pub fn loader_in(esp: &Path, bootloader_id: &str) -> Result<String, Error> {
    let plain = (1..=64).contains(&bootloader_id.len())
        && bootloader_id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte))
        && !bootloader_id.starts_with('.');
    if !plain {
        return Err(Error::BootloaderId {
            id: bootloader_id.chars().take(80).collect(),
        });
    }
    let candidates = [
        ["EFI", bootloader_id, "shimx64.efi"],
        ["EFI", bootloader_id, "grubx64.efi"],
        ["EFI", "BOOT", "BOOTX64.EFI"],
    ];
    candidates
        .iter()
        .find_map(|path| file_ignoring_case(esp, path))
        .ok_or_else(|| Error::NoLoader {
            esp: esp.to_owned(),
            looked_for: candidates.map(|path| path.join("/")).join(", "),
        })
}

/// Makes sure that `EFI/BOOT/BOOTX64.EFI` exists, which firmware starts from a disk that no
/// boot entry leads to (UEFI 2.10, 3.5.1.1). One that is there stays: it is the image's.
/// Otherwise it becomes a copy of `loader` (as [`loader_in`] gives it), with the programs
/// beside it that a shim starts by their name.
///
/// # Errors
/// A file could not be copied.
pub fn make_removable(esp: &Path, loader: &str) -> Result<(), Error> {
    if file_ignoring_case(esp, &["EFI", "BOOT", "BOOTX64.EFI"]).is_some() {
        return Ok(());
    }
    let from = esp.join(loader.trim_start_matches('\\').replace('\\', "/"));
    let directory = match entry_ignoring_case(&esp.join("EFI"), "BOOT") {
        Some((path, _)) => path,
        None => esp.join("EFI/BOOT"),
    };
    fs::create_dir_all(&directory).map_err(Error::io("make", &directory))?;
    let beside = from.parent().unwrap_or(esp);
    for name in ["grubx64.efi", "mmx64.efi"] {
        if let Some((file, name)) = entry_ignoring_case(beside, name) {
            copy(&file, &directory.join(name))?;
        }
    }
    // Last: a loader without what it loads would boot into nothing.
    copy(&from, &directory.join("BOOTX64.EFI"))
}

/// Copies a file onto the disk; it has its name only when all of it is there.
fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    let unfinished = to.with_extension("NEW");
    fs::copy(from, &unfinished).map_err(Error::io("copy", from))?;
    fs::File::open(&unfinished)
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(&unfinished, to))
        .map_err(Error::io("write", to))
}

/// A loader of whatever system is on the partition: `EFI/*/shimx64.efi`, then
/// `EFI/*/grubx64.efi`, then `EFI/BOOT/BOOTX64.EFI`.
#[must_use]
pub fn any_loader_in(esp: &Path) -> Option<String> {
    let (efi, _) = entry_ignoring_case(esp, "EFI")?;
    let mut systems = names(&efi);
    systems.sort_unstable();
    ["shimx64.efi", "grubx64.efi"]
        .iter()
        .find_map(|loader| {
            systems
                .iter()
                .find_map(|system| file_ignoring_case(esp, &["EFI", system, loader]))
        })
        .or_else(|| file_ignoring_case(esp, &["EFI", "BOOT", "BOOTX64.EFI"]))
}

/// `\EFI\debian\grubx64.efi`, as it is spelled on the file system, when it is there and a
/// plain file. Follows no symbolic link (FAT has none; what else may be mounted there
/// must not lead out of it).
fn file_ignoring_case(root: &Path, components: &[&str]) -> Option<String> {
    let mut at = root.to_owned();
    let mut spelled = String::new();
    for component in components {
        let (path, name) = entry_ignoring_case(&at, component)?;
        at = path;
        spelled.push('\\');
        spelled.push_str(&name);
    }
    fs::symlink_metadata(&at).ok()?.is_file().then_some(spelled)
}

fn entry_ignoring_case(directory: &Path, wanted: &str) -> Option<(PathBuf, String)> {
    if !fs::symlink_metadata(directory).ok()?.is_dir() {
        return None;
    }
    let name = names(directory)
        .into_iter()
        .find(|name| name.eq_ignore_ascii_case(wanted))?;
    Some((directory.join(&name), name))
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .take(MAX_ENTRIES)
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"MZ").unwrap();
        }
        dir
    }

    #[test]
    fn the_best_loader_wins_and_is_spelled_as_on_disk() {
        let all = [
            "efi/Debian/SHIMX64.efi",
            "efi/Debian/grubx64.efi",
            "efi/boot/bootx64.efi",
        ];
        let table = [
            (&all[..], "\\efi\\Debian\\SHIMX64.efi"),
            (&all[1..], "\\efi\\Debian\\grubx64.efi"),
            (&all[2..], "\\efi\\boot\\bootx64.efi"),
        ];
        for (files, expected) in table {
            assert_eq!(loader_in(tree(files).path(), "debian").unwrap(), expected);
        }
        let error = loader_in(tree(&["EFI/ubuntu/shimx64.efi"]).path(), "debian").unwrap_err();
        assert!(
            error.to_string().contains("EFI/debian/grubx64.efi"),
            "{error}"
        );
    }

    #[test]
    fn an_id_that_is_a_path_is_refused() {
        let dir = tree(&["EFI/BOOT/BOOTX64.EFI"]);
        for id in ["", "..", "a/b", "a\\b", "a b", "é", &"x".repeat(65)] {
            let error = loader_in(dir.path(), id).unwrap_err();
            assert!(matches!(error, Error::BootloaderId { .. }), "{id}: {error}");
        }
    }

    #[test]
    fn links_and_directories_are_no_loaders() {
        let outside = tree(&["shimx64.efi"]);
        let dir = tree(&["EFI/BOOT/BOOTX64.EFI"]);
        std::os::unix::fs::symlink(outside.path(), dir.path().join("EFI/debian")).unwrap();
        fs::create_dir_all(dir.path().join("EFI/dir/grubx64.efi")).unwrap();
        for id in ["debian", "dir"] {
            let found = loader_in(dir.path(), id).unwrap();
            assert_eq!(found, "\\EFI\\BOOT\\BOOTX64.EFI");
        }
    }

    #[test]
    fn the_removable_path_is_made_once_with_all_that_shim_needs() {
        let dir = tree(&[
            "EFI/debian/shimx64.efi",
            "EFI/debian/GRUBX64.EFI",
            "EFI/debian/fbx64.efi",
        ]);
        fs::write(dir.path().join("EFI/debian/shimx64.efi"), b"MZ shim").unwrap();
        let loader = loader_in(dir.path(), "debian").unwrap();
        make_removable(dir.path(), &loader).unwrap();
        let mut made = names(&dir.path().join("EFI/BOOT"));
        made.sort();
        assert_eq!(made, ["BOOTX64.EFI", "GRUBX64.EFI"]);
        let bytes = || fs::read(dir.path().join("EFI/BOOT/BOOTX64.EFI")).unwrap();
        assert_eq!(bytes(), b"MZ shim");
        // What is there belongs to the image.
        fs::write(dir.path().join("EFI/BOOT/BOOTX64.EFI"), b"MZ other").unwrap();
        make_removable(dir.path(), &loader).unwrap();
        assert_eq!(bytes(), b"MZ other");
        let error = make_removable(tree(&["EFI/x"]).path(), "\\EFI\\x\\shimx64.efi").unwrap_err();
        assert!(error.to_string().contains("shimx64.efi"), "{error}");
    }

    #[test]
    fn any_loader_prefers_shim_over_grub_over_the_fallback() {
        let all = [
            "EFI/ubuntu/shimx64.efi",
            "EFI/debian/grubx64.efi",
            "EFI/BOOT/BOOTX64.EFI",
        ];
        let found = |files: &[&str]| any_loader_in(tree(files).path());
        assert_eq!(found(&all).unwrap(), "\\EFI\\ubuntu\\shimx64.efi");
        assert_eq!(found(&all[1..]).unwrap(), "\\EFI\\debian\\grubx64.efi");
        assert_eq!(found(&all[2..]).unwrap(), "\\EFI\\BOOT\\BOOTX64.EFI");
        assert_eq!(found(&["EFI/x/readme.txt"]), None);
        assert_eq!(found(&["readme.txt"]), None);
    }

    #[test]
    fn unreadable_disks_do_not_hide_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let good = dir.path().join("disk7");
        super::super::gpt::tests::disk(&good, 512, Uuid::from_u128(1));
        let found = esps_of(&[dir.path().join("missing"), good.clone()]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].device(), dir.path().join("disk7p1"));
        assert_eq!(partitions_of(&[good]).len(), 2);
    }

    #[test]
    fn a_device_that_is_no_file_system_is_named() {
        let dir = tree(&["device"]);
        let error = ReadOnly::mount(&dir.path().join("device"), &dir.path().join("mnt"));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("device"), "{error}");
    }
}
