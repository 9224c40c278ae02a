//! Firmware variables through efivarfs (kernel: Documentation/filesystems/efivarfs.rst):
//! one file per variable, `<name>-<vendor GUID>`, four bytes of attributes and the data.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use uuid::{Uuid, uuid};

use super::Error;

/// EFI_GLOBAL_VARIABLE (UEFI 2.10, 3.3): the vendor GUID of BootOrder and its kin.
pub const GLOBAL: Uuid = uuid!("8be4df61-93ca-11d2-aa0d-00e098032b8c");

/// EFI_VARIABLE_NON_VOLATILE | _BOOTSERVICE_ACCESS | _RUNTIME_ACCESS (UEFI 2.10, 8.2.1).
pub const NV_BS_RT: u32 = 0x7;

/// Longest accepted data of one variable, in bytes.
pub const MAX_DATA: usize = 64 << 10;

/// `FS_IMMUTABLE_FL`, include/uapi/linux/fs.h.
const FS_IMMUTABLE_FL: libc::c_int = 0x10;

// FS_IOC_GETFLAGS and FS_IOC_SETFLAGS, include/uapi/linux/fs.h. The header says `long`
// and that is in the request number, but the kernel moves an `int`.
nix::ioctl_read!(fs_get_flags, b'f', 1, libc::c_long);
nix::ioctl_write_ptr!(fs_set_flags, b'f', 2, libc::c_long);

/// One variable as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    pub attributes: u32,
    pub data: Vec<u8>,
}

/// What a write did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    Changed,
    /// The variable held exactly this already; the NVRAM was spared.
    AlreadySo,
}

/// The firmware's variables below one directory.
#[derive(Debug, Clone)]
pub struct Vars {
    root: PathBuf,
}

impl Vars {
    /// Opens `root`, on a machine [`super::EFIVARS`].
    ///
    /// # Errors
    /// [`Error::NoEfi`] without that directory, [`Error::NoVariables`] when it is empty:
    /// no firmware has no variables, and reading "no journal" from an unmounted
    /// directory must not pass for an empty machine.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let mut entries = match fs::read_dir(root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NoEfi {
                    root: root.to_owned(),
                });
            }
            Err(error) => return Err(Error::io("read", root)(error)),
        };
        if entries.next().is_none() {
            return Err(Error::NoVariables {
                root: root.to_owned(),
            });
        }
        Ok(Self {
            root: root.to_owned(),
        })
    }

    fn path(&self, name: &str, vendor: Uuid) -> PathBuf {
        self.root.join(format!("{name}-{vendor}"))
    }

    /// Reads a variable; `None` when there is none of that name.
    ///
    /// # Errors
    /// I/O errors, data over [`MAX_DATA`], and a file shorter than its attributes.
    pub fn read(&self, name: &str, vendor: Uuid) -> Result<Option<Variable>, Error> {
        let path = self.path(name, vendor);
        let mut bytes = Vec::new();
        let read = File::open(&path)
            .and_then(|file| file.take(MAX_DATA as u64 + 5).read_to_end(&mut bytes));
        match read {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", &path)(error)),
        }
        if bytes.is_empty() {
            // A file that was created while its first write failed: the firmware has no
            // such variable.
            return Ok(None);
        }
        let Some((attributes, data)) = bytes.split_first_chunk::<4>() else {
            return Err(Error::Malformed {
                name: name.to_owned(),
                problem: format!("{} bytes are too few for its attributes", bytes.len()),
            });
        };
        check_length(name, data.len())?;
        Ok(Some(Variable {
            attributes: u32::from_le_bytes(*attributes),
            data: data.to_vec(),
        }))
    }

    /// Writes a variable, unless it holds the same already.
    ///
    /// # Errors
    /// [`Error::NvramFull`], [`Error::NvramFailed`], [`Error::NvramRefused`] for what the
    /// firmware answers; [`Error::TooLong`]; I/O errors.
    pub fn write(
        &self,
        name: &str,
        vendor: Uuid,
        attributes: u32,
        data: &[u8],
    ) -> Result<Written, Error> {
        check_length(name, data.len())?;
        let current = self.read(name, vendor)?;
        let existed = current.is_some();
        if current.is_some_and(|it| it.attributes == attributes && it.data == data) {
            return Ok(Written::AlreadySo);
        }
        let path = self.path(name, vendor);
        allow_change(&path)?;
        let mut bytes = attributes.to_le_bytes().to_vec();
        bytes.extend_from_slice(data);
        // No O_TRUNC: a write that fails must leave the old value visible.
        let outcome = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .and_then(|file| write_at_once(file, &bytes));
        outcome.map_err(|error| {
            if !existed {
                // Only tidies up the empty file that O_CREAT made; the write's own error
                // is the one to report.
                let _ = fs::remove_file(&path);
            }
            write_error(name, bytes.len(), &path, error)
        })?;
        Ok(Written::Changed)
    }

    /// Writes a text that survives a power cut, and reads it back.
    ///
    /// # Errors
    /// As [`Vars::write`], and [`Error::NotKept`] when the firmware lost the text.
    pub fn write_and_check(&self, name: &str, vendor: Uuid, text: &str) -> Result<(), Error> {
        self.write(name, vendor, NV_BS_RT, text.as_bytes())?;
        let found = self.read(name, vendor)?.map(|it| it.data);
        let found = found.unwrap_or_default();
        if found == text.as_bytes() {
            return Ok(());
        }
        Err(Error::NotKept {
            name: name.to_owned(),
            written: text.to_owned(),
            found: String::from_utf8_lossy(&found).chars().take(80).collect(),
        })
    }

    /// Deletes a variable; says whether there was one.
    ///
    /// # Errors
    /// What the firmware or the file system answers.
    pub fn delete(&self, name: &str, vendor: Uuid) -> Result<bool, Error> {
        let path = self.path(name, vendor);
        allow_change(&path)?;
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(write_error(name, 0, &path, error)),
        }
    }

    /// The numbers of all boot entries (`Boot####`), ascending.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn boot_entry_numbers(&self) -> Result<Vec<u16>, Error> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(Error::io("read", &self.root))? {
            let entry = entry.map_err(Error::io("read", &self.root))?;
            if let Some(number) = entry.file_name().to_str().and_then(boot_entry_number) {
                numbers.push(number);
            }
        }
        numbers.sort_unstable();
        Ok(numbers)
    }
}

/// `Boot0A1B-<global GUID>` is 0x0A1B; anything else is no boot entry. Four upper-case
/// hexadecimal digits, UEFI 2.10, 3.3.
fn boot_entry_number(file_name: &str) -> Option<u16> {
    let (name, vendor) = file_name.split_once('-')?;
    let digits = name.strip_prefix("Boot")?;
    let well_formed = digits.len() == 4
        && digits
            .bytes()
            .all(|digit| matches!(digit, b'0'..=b'9' | b'A'..=b'F'))
        && Uuid::try_parse(vendor) == Ok(GLOBAL);
    well_formed.then(|| u16::from_str_radix(digits, 16).ok())?
}

fn check_length(name: &str, bytes: usize) -> Result<(), Error> {
    if bytes > MAX_DATA {
        return Err(Error::TooLong {
            name: name.to_owned(),
            bytes,
            limit: MAX_DATA,
        });
    }
    Ok(())
}

/// efivarfs takes a variable in exactly one write(2).
fn write_at_once(mut file: File, bytes: &[u8]) -> io::Result<()> {
    let written = loop {
        match file.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    if written != bytes.len() {
        return Err(io::Error::other(format!(
            "only {written} of {} bytes were taken",
            bytes.len()
        )));
    }
    // efivarfs sets the length itself; a plain directory (a dump, a fixture) does not.
    if file.metadata()?.len() > bytes.len() as u64 {
        file.set_len(bytes.len() as u64)?;
    }
    Ok(())
}

fn write_error(name: &str, bytes: usize, path: &Path, error: io::Error) -> Error {
    let name = name.to_owned();
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOSPC) => Error::NvramFull { name, bytes },
        Some(Errno::EIO) => Error::NvramFailed { name },
        Some(Errno::EPERM | Errno::EACCES | Errno::EROFS | Errno::EINVAL) => Error::NvramRefused {
            name,
            source: error,
        },
        _ => Error::io("write", path)(error),
    }
}

/// Takes the immutable flag away, which the kernel puts on every variable that it does
/// not know, against `rm -rf` (fs/efivarfs). A file that does not exist needs nothing.
fn allow_change(path: &Path) -> Result<(), Error> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("open", path)(error)),
    };
    let mut flags: libc::c_long = 0;
    // SAFETY: the descriptor is open, and the kernel writes at most a long to `flags`.
    match unsafe { fs_get_flags(file.as_raw_fd(), &raw mut flags) } {
        Ok(_) => {}
        // A file system without such flags protects nothing.
        Err(Errno::ENOTTY | Errno::EOPNOTSUPP | Errno::ENOSYS) => return Ok(()),
        Err(errno) => return Err(Error::io("read the flags of", path)(errno.into())),
    }
    let immutable = libc::c_long::from(FS_IMMUTABLE_FL);
    if flags & immutable == 0 {
        return Ok(());
    }
    flags &= !immutable;
    // SAFETY: the descriptor is open, and the kernel only reads from `flags`.
    unsafe { fs_set_flags(file.as_raw_fd(), &raw const flags) }
        .map(drop)
        .map_err(|errno| Error::io("make changeable", path)(errno.into()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A directory that looks like the efivarfs of a machine with nothing special in it.
    pub(crate) fn fixture() -> (tempfile::TempDir, Vars) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path().join(format!("Timeout-{GLOBAL}")),
            [7, 0, 0, 0, 5, 0],
        )
        .unwrap();
        let vars = Vars::open(dir.path()).unwrap();
        (dir, vars)
    }

    #[test]
    fn a_machine_without_uefi_and_one_without_variables_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let missing = Vars::open(&dir.path().join("efivars")).unwrap_err();
        assert!(matches!(missing, Error::NoEfi { .. }), "{missing}");
        assert!(missing.to_string().contains("booted without UEFI"));
        let empty = Vars::open(dir.path()).unwrap_err();
        assert!(matches!(empty, Error::NoVariables { .. }), "{empty}");
    }

    #[test]
    fn what_is_written_is_read_and_a_shorter_value_leaves_no_tail() {
        let (dir, vars) = fixture();
        assert_eq!(vars.read("Probe", GLOBAL).unwrap(), None);
        let write = |data: &[u8]| vars.write("Probe", GLOBAL, NV_BS_RT, data).unwrap();
        assert_eq!(write(b"a longer value"), Written::Changed);
        assert_eq!(write(b"short"), Written::Changed);
        let raw = fs::read(dir.path().join(format!("Probe-{GLOBAL}"))).unwrap();
        assert_eq!(raw, b"\x07\0\0\0short");
        assert_eq!(write(b"short"), Written::AlreadySo);
        assert!(vars.delete("Probe", GLOBAL).unwrap());
        assert!(!vars.delete("Probe", GLOBAL).unwrap());
    }

    #[test]
    fn odd_sizes_are_refused() {
        let (dir, vars) = fixture();
        let file = |bytes: &[u8]| {
            fs::write(dir.path().join(format!("Odd-{GLOBAL}")), bytes).unwrap();
            vars.read("Odd", GLOBAL)
        };
        assert_eq!(file(b"").unwrap(), None);
        assert!(matches!(file(b"\x07\0\0"), Err(Error::Malformed { .. })));
        assert_eq!(file(b"\x07\0\0\0").unwrap().unwrap().data, b"");
        assert_eq!(
            file(&[0; MAX_DATA + 4]).unwrap().unwrap().data.len(),
            MAX_DATA
        );
        assert!(matches!(
            file(&[0; MAX_DATA + 5]),
            Err(Error::TooLong { .. })
        ));
        let too_long = vars.write("New", GLOBAL, NV_BS_RT, &[0; MAX_DATA + 1]);
        assert!(matches!(too_long, Err(Error::TooLong { .. })));
    }

    #[test]
    fn firmware_answers_become_their_own_errors() {
        let error = |errno: Errno| write_error("X", 9, Path::new("/x"), errno.into());
        assert!(matches!(
            error(Errno::ENOSPC),
            Error::NvramFull { bytes: 9, .. }
        ));
        assert!(matches!(error(Errno::EIO), Error::NvramFailed { .. }));
        assert!(matches!(error(Errno::EROFS), Error::NvramRefused { .. }));
        assert!(matches!(error(Errno::ENOMEM), Error::Io { .. }));
    }

    #[test]
    fn a_write_that_the_file_system_refuses_is_reported() {
        let (dir, vars) = fixture();
        fs::create_dir(dir.path().join(format!("Dir-{GLOBAL}"))).unwrap();
        assert!(vars.write("Dir", GLOBAL, NV_BS_RT, b"x").is_err());
        assert!(vars.delete("Dir", GLOBAL).is_err());
    }

    #[test]
    fn boot_entries_are_those_with_four_upper_case_digits_and_the_global_guid() {
        let (dir, vars) = fixture();
        for name in [
            "Boot0001",
            "Boot00FF",
            "Boot00ff",
            "Boot1",
            "BootOrder",
            "BootXYZW",
            "Boot+001",
        ] {
            fs::write(dir.path().join(format!("{name}-{GLOBAL}")), [7, 0, 0, 0]).unwrap();
        }
        fs::write(
            dir.path().join(format!("Boot0002-{}", Uuid::max())),
            [7, 0, 0, 0],
        )
        .unwrap();
        assert_eq!(vars.boot_entry_numbers().unwrap(), [0x01, 0xff]);
    }
}
