//! What the agent keeps in, and asks of, the UEFI firmware: the install journal and the
//! boot order.
//!
//! `vars` reads and writes single variables, `journal` keeps the install journal in one,
//! `root_disks` beside it which disks that install stands on, `boot` handles BootNext, BootOrder and the boot entries, `load_option` and
//! `device_path` are their wire format, `gpt` and `esp` find and open the EFI system
//! partitions of the machine's disks.

pub mod boot;
pub mod device_path;
pub mod disk_boots;
pub mod esp;
pub mod failures;
pub mod gpt;
pub mod journal;
pub mod load_option;
pub mod root_disks;
pub mod vars;

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Where the kernel shows the firmware's variables (mounted by `init`).
pub const EFIVARS: &str = "/sys/firmware/efi/efivars";

/// Everything that can go wrong with firmware variables and EFI system partitions.
#[derive(Debug, Error)]
pub enum Error {
    #[error(
        "booted without UEFI: {} does not exist; metal-anvil needs UEFI firmware, so set the boot mode to UEFI (no legacy or CSM boot)",
        root.display()
    )]
    NoEfi { root: PathBuf },
    #[error(
        "{} holds no variable at all: efivarfs is not mounted there, or the firmware offers no variables at run time (is `noefi` or `efi=noruntime` on the kernel command line?)",
        root.display()
    )]
    NoVariables { root: PathBuf },
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "the firmware has no room for {name} ({bytes} bytes): its NVRAM is full; delete unused boot entries in the firmware's setup, or reset it to defaults"
    )]
    NvramFull { name: String, bytes: usize },
    #[error(
        "the firmware failed to store {name} (EIO): its NVRAM may be damaged or locked by a setup password"
    )]
    NvramFailed { name: String },
    #[error(
        "the firmware refuses to store {name}: {source}; look for a variable or boot order lock in its setup"
    )]
    NvramRefused { name: String, source: io::Error },
    #[error("EFI variable {name} is {bytes} bytes long, more than the {limit} that are accepted")]
    TooLong {
        name: String,
        bytes: usize,
        limit: usize,
    },
    #[error("EFI variable {name}: {problem}")]
    Malformed { name: String, problem: String },
    #[error(
        "the firmware did not keep what was written to {name}: it reads {found:?}, not {written:?}"
    )]
    NotKept {
        name: String,
        written: String,
        found: String,
    },
    #[error("no partition was given to make a boot entry for")]
    NoPartition,
    #[error("all 65536 boot entries of the firmware are in use")]
    NoFreeEntry,
    #[error(
        "bootloader_id {id:?} (boot-info.yaml) is no directory name: expected 1 to 64 letters, digits, `-`, `_`, `.` or `+`"
    )]
    BootloaderId { id: String },
    #[error("no boot loader on the EFI system partition at {}: looked for {looked_for}", esp.display())]
    NoLoader { esp: PathBuf, looked_for: String },
    #[error(
        "nothing to boot from disk: no boot entry points to a partition of {disks}, and no EFI system partition among them ({esps}) holds EFI/*/shimx64.efi, EFI/*/grubx64.efi or EFI/BOOT/BOOTX64.EFI"
    )]
    NothingToBoot { disks: String, esps: String },
    #[error("partition table of {}: {problem}", disk.display())]
    PartitionTable { disk: PathBuf, problem: String },
}

impl Error {
    /// The firmware takes no more variables: it is full, broken or locked.
    #[must_use]
    pub fn is_nvram(&self) -> bool {
        matches!(
            self,
            Self::NvramFull { .. }
                | Self::NvramFailed { .. }
                | Self::NvramRefused { .. }
                | Self::NoFreeEntry
        )
    }

    /// For `map_err`: an I/O error with what was done to which path.
    pub(crate) fn io<'a>(
        action: &'static str,
        path: &'a std::path::Path,
    ) -> impl Fn(io::Error) -> Self + 'a {
        move |source| Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }
}
