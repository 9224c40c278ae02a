//! Where the install journal (`decide::Journal`, contracts.md §9) is kept: in a firmware
//! variable, and as a copy on the EFI system partition once there is one.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use tracing::{error, info, warn};
use uuid::{Uuid, uuid};

use super::Error;
use super::esp::ReadOnly;
use super::vars::Vars;
use crate::decide::Journal;

/// The project's own vendor GUID; never used for anything else.
pub const VENDOR: Uuid = uuid!("4e7a9c53-2f0d-4b61-9d38-c5e16ab70f24");

/// The variable's name.
pub const NAME: &str = "MetalAnvilJournal";

/// The copy, below the root of an EFI system partition.
pub const ESP_DIRECTORY: &str = "EFI/metal-anvil";
const ESP_FILE: &str = "journal";

/// Longest accepted text in bytes; the longest true one has 55.
const MAX_TEXT: usize = 4096;

/// A copy of the journal that was found on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EspCopy {
    /// The partition that it was read from.
    pub device: PathBuf,
    pub text: String,
}

/// Whether the variable exists. Without it, copies on the disks are worth looking for.
///
/// # Errors
/// When the firmware's variables cannot be read.
pub fn is_present(vars: &Vars) -> Result<bool, Error> {
    Ok(vars.read(NAME, VENDOR)?.is_some())
}

/// Reads the journal. The variable wins; a copy counts only when there is no variable.
///
/// A text that makes no sense is [`Journal::None`] with a loud warning, even when there
/// is a copy: the copy may be older than the variable that was lost, and without a
/// journal nothing that was there before this boot is ever erased by default, while no
/// allocation at all means the same for every journal.
///
/// # Errors
/// When the firmware's variables cannot be read.
pub fn read(vars: &Vars, esp_copy: Option<&str>) -> Result<Journal, Error> {
    if let Some(variable) = vars.read(NAME, VENDOR)? {
        let text = String::from_utf8_lossy(&variable.data);
        return Ok(understand(&text, "the EFI variable MetalAnvilJournal"));
    }
    Ok(esp_copy.map_or(Journal::None, |text| {
        info!("no install journal in the firmware, taking the copy on the EFI system partition");
        understand(text, "the copy on the EFI system partition")
    }))
}

fn understand(text: &str, from: &str) -> Journal {
    text.parse().unwrap_or_else(|problem| {
        error!(
            "{from}: {problem}; going on as if the machine had no journal: an allocation that was there before this boot is not installed unless policy or an explicit order says so"
        );
        Journal::None
    })
}

/// Writes the journal to the firmware and reads it back. [`Journal::None`] deletes it.
///
/// # Errors
/// What the firmware answers, and [`Error::NotKept`] when it lost the text.
pub fn write(vars: &Vars, journal: &Journal) -> Result<(), Error> {
    if *journal == Journal::None {
        vars.delete(NAME, VENDOR)?;
        return Ok(());
    }
    let text = journal.to_string();
    vars.write_and_check(NAME, VENDOR, &text)?;
    info!(journal = %text, "install journal written");
    Ok(())
}

/// Copies the journal to a mounted EFI system partition, as a whole or not at all.
///
/// # Errors
/// The step that failed, on which path.
pub fn copy_to_esp(esp_root: &Path, journal: &Journal) -> Result<(), Error> {
    let directory = esp_root.join(ESP_DIRECTORY);
    let path = directory.join(ESP_FILE);
    if *journal == Journal::None {
        return match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("delete", &path)(error))
            }
            _ => Ok(()),
        };
    }
    store_on_esp(esp_root, ESP_FILE, &journal.to_string())
}

/// The copy on a mounted EFI system partition, if there is one.
///
/// # Errors
/// When it exists and cannot be read, or is longer than any journal.
pub fn copy_on_esp(esp_root: &Path) -> Result<Option<String>, Error> {
    read_on_esp(esp_root, ESP_FILE, MAX_TEXT)
}

/// Writes a line of text into a file of ours, as a whole or not at all.
pub(super) fn store_on_esp(esp_root: &Path, name: &str, text: &str) -> Result<(), Error> {
    let directory = esp_root.join(ESP_DIRECTORY);
    let path = directory.join(name);
    fs::create_dir_all(&directory).map_err(Error::io("make", &directory))?;
    let temporary = directory.join(format!("{name}.new"));
    let mut file = File::create(&temporary).map_err(Error::io("make", &temporary))?;
    file.write_all(format!("{text}\n").as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(Error::io("write", &temporary))?;
    fs::rename(&temporary, &path).map_err(Error::io("put in place", &path))?;
    File::open(&directory)
        .and_then(|directory| directory.sync_all())
        .map_err(Error::io("flush", &directory))
}

/// The text of a file of ours, which has at most `limit` bytes.
pub(super) fn read_on_esp(
    esp_root: &Path,
    name: &str,
    limit: usize,
) -> Result<Option<String>, Error> {
    let path = esp_root.join(ESP_DIRECTORY).join(name);
    let mut bytes = Vec::new();
    match File::open(&path).and_then(|file| file.take(limit as u64 + 1).read_to_end(&mut bytes)) {
        Ok(_) if bytes.len() > limit => Err(Error::TooLong {
            name: path.display().to_string(),
            bytes: bytes.len(),
            limit,
        }),
        Ok(_) => Ok(Some(String::from_utf8_lossy(&bytes).trim().to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", &path)(error)),
    }
}

/// The copies on EFI system partitions (device nodes), each mounted read-only at
/// `mountpoint`. A partition that cannot be read is left out with a warning.
#[must_use]
pub fn esp_copies(devices: &[PathBuf], mountpoint: &Path) -> Vec<EspCopy> {
    devices
        .iter()
        .filter_map(|device| {
            let text = ReadOnly::mount(device, mountpoint).and_then(|esp| copy_on_esp(esp.root()));
            match text {
                Ok(text) => text.map(|text| EspCopy {
                    device: device.clone(),
                    text,
                }),
                Err(error) => {
                    warn!(%error, "partition left out while looking for a copy of the install journal");
                    None
                }
            }
        })
        .collect()
}

/// What a copy is worth without the variable: a disk's past must not widen what may be erased,
/// so it counts only where it names the allocation that stands. A true copy never says `wiped`.
#[must_use]
pub fn for_standing(copy: &Journal, allocation: Option<Uuid>) -> Journal {
    match copy {
        Journal::Installing {
            allocation: its, ..
        }
        | Journal::Installed { allocation: its }
            if Some(*its) == allocation =>
        {
            copy.clone()
        }
        _ => Journal::None,
    }
}

/// The one text that all copies agree on. Copies that differ come from disks with
/// different histories; none of them can be trusted to be this machine's.
#[must_use]
pub fn agreed(copies: &[EspCopy]) -> Option<&str> {
    let first = copies.first()?;
    if let Some(other) = copies.iter().find(|copy| copy.text != first.text) {
        warn!(
            "the copies of the install journal differ: {} says {:?}, {} says {:?}; ignoring them all",
            first.device.display(),
            first.text,
            other.device.display(),
            other.text
        );
        return None;
    }
    Some(&first.text)
}

#[cfg(test)]
mod tests {
    use super::super::vars::NV_BS_RT;
    use super::super::vars::tests::fixture;
    use super::*;
    use crate::decide::Extent;

    const U: Uuid = Uuid::from_u128(0x11);

    fn all() -> [Journal; 4] {
        [
            Journal::Wiped,
            Journal::Installing {
                allocation: U,
                extent: Extent::EveryDisk,
            },
            Journal::Installing {
                allocation: U,
                extent: Extent::RootDisks,
            },
            Journal::Installed { allocation: U },
        ]
    }

    #[test]
    fn what_is_written_is_read() {
        let (dir, vars) = fixture();
        assert_eq!(read(&vars, None).unwrap(), Journal::None);
        assert!(!is_present(&vars).unwrap());
        for journal in all() {
            write(&vars, &journal).unwrap();
            assert_eq!(read(&vars, None).unwrap(), journal);
            assert!(is_present(&vars).unwrap());
        }
        let file = dir
            .path()
            .join("MetalAnvilJournal-4e7a9c53-2f0d-4b61-9d38-c5e16ab70f24");
        assert_eq!(fs::read(file).unwrap()[..13], *b"\x07\0\0\0installed");
        write(&vars, &Journal::None).unwrap();
        assert!(!is_present(&vars).unwrap());
    }

    #[test]
    fn the_variable_wins_over_the_copy_even_when_it_is_unreadable() {
        let (_dir, vars) = fixture();
        let copy = format!("installed {U}\n");
        let installed = Journal::Installed { allocation: U };
        assert_eq!(read(&vars, Some(&copy)).unwrap(), installed);
        assert_eq!(read(&vars, Some("nonsense")).unwrap(), Journal::None);
        write(&vars, &Journal::Wiped).unwrap();
        assert_eq!(read(&vars, Some(&copy)).unwrap(), Journal::Wiped);
        for damage in [&b"installed"[..], b"\xff\xfe", b"", b"installed 11 extra"] {
            vars.write(NAME, VENDOR, NV_BS_RT, damage).unwrap();
            assert_eq!(read(&vars, Some(&copy)).unwrap(), Journal::None);
        }
    }

    #[test]
    fn an_unreadable_variable_is_an_error_not_an_empty_journal() {
        let (dir, vars) = fixture();
        fs::create_dir(dir.path().join(format!("{NAME}-{VENDOR}"))).unwrap();
        assert!(read(&vars, None).is_err());
    }

    #[test]
    fn the_copy_is_replaced_as_a_whole() {
        let esp = tempfile::tempdir().unwrap();
        assert_eq!(copy_on_esp(esp.path()).unwrap(), None);
        for journal in all() {
            copy_to_esp(esp.path(), &journal).unwrap();
            let text = copy_on_esp(esp.path()).unwrap().unwrap();
            assert_eq!(text.parse(), Ok(journal));
        }
        let names: Vec<_> = fs::read_dir(esp.path().join(ESP_DIRECTORY))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["journal"]);
        copy_to_esp(esp.path(), &Journal::None).unwrap();
        assert_eq!(copy_on_esp(esp.path()).unwrap(), None);
        fs::write(esp.path().join(ESP_DIRECTORY).join("journal"), [b'x'; 5000]).unwrap();
        assert!(matches!(
            copy_on_esp(esp.path()),
            Err(Error::TooLong { .. })
        ));
    }

    #[test]
    fn a_copy_counts_only_for_the_allocation_that_it_names() {
        for journal in all() {
            let expected = match journal {
                Journal::Wiped => Journal::None,
                _ => journal.clone(),
            };
            assert_eq!(for_standing(&journal, Some(U)), expected);
            for other in [None, Some(Uuid::from_u128(0x22))] {
                assert_eq!(for_standing(&journal, other), Journal::None, "{journal}");
            }
        }
    }

    #[test]
    fn copies_count_only_when_they_agree() {
        let copy = |device: &str, text: &str| EspCopy {
            device: device.into(),
            text: text.to_owned(),
        };
        assert_eq!(agreed(&[]), None);
        let a = copy("/dev/sda1", "wiped");
        let b = copy("/dev/sdb1", "wiped");
        assert_eq!(agreed(&[a.clone(), b]), Some("wiped"));
        assert_eq!(agreed(&[a, copy("/dev/sdb1", "installed x")]), None);
    }

    #[test]
    fn partitions_that_cannot_be_mounted_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("no-device");
        assert_eq!(esp_copies(&[device], &dir.path().join("mnt")), []);
    }
}
