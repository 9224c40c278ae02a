//! Where the record of an install's root disks (`storage::identity`) is kept: beside the
//! journal, in a firmware variable and on the EFI system partition. The journal's own text is
//! a contract (contracts.md §9) and stays as it is.

use std::path::Path;

use super::Error;
use super::journal::{VENDOR, read_on_esp, store_on_esp};
use super::vars::Vars;
use crate::storage::identity::RootDisks;

/// The variable's name; its vendor is that of the journal.
pub const NAME: &str = "MetalAnvilScope";
const ESP_FILE: &str = "scope";

/// Longest accepted record in bytes: 64 disks of some 300.
const MAX_TEXT: usize = 32 << 10;

/// Stores the record in the firmware and reads it back.
///
/// # Errors
/// What the firmware answers.
pub fn write(vars: &Vars, record: &RootDisks) -> Result<(), Error> {
    vars.write_and_check(NAME, VENDOR, &record.to_text())
}

/// The record in the firmware.
///
/// # Errors
/// When it cannot be read or understood: then nobody can say which disks may be written.
pub fn read(vars: &Vars) -> Result<Option<RootDisks>, Error> {
    let Some(variable) = vars.read(NAME, VENDOR)? else {
        return Ok(None);
    };
    let malformed = |problem| Error::Malformed {
        name: NAME.to_owned(),
        problem,
    };
    if variable.data.len() > MAX_TEXT {
        return Err(malformed(format!("{} bytes long", variable.data.len())));
    }
    RootDisks::parse(&String::from_utf8_lossy(&variable.data))
        .map(Some)
        .map_err(malformed)
}

/// Takes the record out of the firmware: an old one would vouch for the wrong disks.
///
/// # Errors
/// What the firmware answers.
pub fn forget(vars: &Vars) -> Result<(), Error> {
    vars.delete(NAME, VENDOR).map(drop)
}

/// Stores the record on a mounted EFI system partition.
///
/// # Errors
/// The step that failed, on which path.
pub fn copy_to_esp(esp_root: &Path, record: &RootDisks) -> Result<(), Error> {
    store_on_esp(esp_root, ESP_FILE, &record.to_text())
}

/// The record on a mounted EFI system partition. A tenant may have written it: one that makes
/// no sense is none.
///
/// # Errors
/// When there is one and it cannot be read.
pub fn copy_on_esp(esp_root: &Path) -> Result<Option<RootDisks>, Error> {
    let text = read_on_esp(esp_root, ESP_FILE, MAX_TEXT)?;
    Ok(text.and_then(|text| RootDisks::parse(&text).ok()))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::vars::NV_BS_RT;
    use super::super::vars::tests::fixture;
    use super::*;
    use crate::storage::testing::disk;

    #[test]
    fn what_is_written_is_read() {
        let (_dir, vars) = fixture();
        assert_eq!(read(&vars).unwrap(), None);
        let record = RootDisks::new(Uuid::from_u128(1), &[disk("sda", 1 << 30)]);
        write(&vars, &record).unwrap();
        assert_eq!(read(&vars).unwrap(), Some(record.clone()));
        forget(&vars).unwrap();
        forget(&vars).unwrap();
        assert_eq!(read(&vars).unwrap(), None);
        let esp = tempfile::tempdir().unwrap();
        assert_eq!(copy_on_esp(esp.path()).unwrap(), None);
        copy_to_esp(esp.path(), &record).unwrap();
        assert_eq!(copy_on_esp(esp.path()).unwrap(), Some(record));
    }

    #[test]
    fn a_damaged_record_is_an_error_in_the_firmware_and_nothing_on_a_disk() {
        let (_dir, vars) = fixture();
        let record = RootDisks::new(Uuid::from_u128(1), &[disk("sda", 1 << 30)]);
        let mut endless = record.to_text();
        endless.push_str(&" ".repeat(MAX_TEXT));
        for damage in [&b"{}"[..], b"", b"\xff", endless.as_bytes()] {
            vars.write(NAME, VENDOR, NV_BS_RT, damage).unwrap();
            let error = read(&vars).unwrap_err().to_string();
            assert!(error.contains("MetalAnvilScope"), "{error}");
        }
        let esp = tempfile::tempdir().unwrap();
        store_on_esp(esp.path(), ESP_FILE, "installed 11").unwrap();
        assert_eq!(copy_on_esp(esp.path()).unwrap(), None);
    }
}
