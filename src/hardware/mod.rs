//! What the machine is made of: read from sysfs and procfs, told to the control plane.
//!
//! `inspect` only reads and takes what it finds; `register` turns that into a message
//! that the server accepts, whatever strings a vendor left in the firmware.

pub mod ask;
pub mod capture;
mod cpu;
mod disk;
mod health;
mod identity;
mod memory;
mod nic;
mod numa;
mod pci;
mod pci_ids;
mod platform;
pub mod register;
mod show;
mod smbios;
mod tags;
mod text;
mod types;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use uuid::Uuid;

pub use identity::machine_id;
pub use platform::title;
pub use register::register;
pub use types::*;

use crate::control::api::Nic;
use crate::storage::disks;

/// Where the kernel's file systems are, and who answers for the devices.
#[derive(Debug, Clone)]
pub struct Roots {
    /// `/sys`.
    pub sys: PathBuf,
    /// `/proc`.
    pub proc: PathBuf,
    /// Places of `pci.ids`; the first that exists counts.
    pub ids: Vec<PathBuf>,
    pub ask: Arc<dyn ask::Ask>,
}

impl Roots {
    /// This machine.
    #[must_use]
    pub fn live() -> Self {
        Self {
            sys: "/sys".into(),
            proc: "/proc".into(),
            ids: pci_ids::PLACES.map(PathBuf::from).to_vec(),
            ask: Arc::new(ask::Live),
        }
    }

    /// A machine that [`capture`] recorded below `dir`.
    #[must_use]
    pub fn recorded(dir: &Path) -> Self {
        Self {
            sys: dir.join("sys"),
            proc: dir.join("proc"),
            ids: pci_ids::PLACES.map(PathBuf::from).to_vec(),
            ask: Arc::new(ask::Recorded(dir.join(capture::ANSWERS))),
        }
    }
}

/// Why the machine cannot be described.
#[derive(Debug, Error)]
pub enum Error {
    #[error("no machine UUID: {why}")]
    NoMachineId { why: String },
    #[error("cannot read {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} does not say how much memory there is: expected a line `MemTotal: <n> kB`", path.display())]
    Memory { path: PathBuf },
    #[error("{} names no processor", path.display())]
    NoCpu { path: PathBuf },
    #[error(transparent)]
    Disks(#[from] disks::Error),
    #[error(
        "partition {partition:?} has {length} characters; the server wants 2 to 128: set `partition` in the boot helper's answer or in metal.config"
    )]
    Partition { partition: String, length: usize },
}

/// Reads everything. `boot_medium` is what the machine was booted from, a disk or one of
/// its partitions, as kernel name, device node or `major:minor`.
///
/// # Errors
/// No memory size, no processor, or a directory of links or disks that cannot be read. All
/// else that is missing is left empty, the machine's UUID too.
pub fn inspect(roots: &Roots, boot_medium: Option<&str>) -> Result<Inventory, Error> {
    let sys = &roots.sys;
    let (system, board) = (platform::system(sys), platform::board(sys));
    let pci = pci::devices(roots);
    let mut nics = nic::ports(roots)?;
    nic::name(&mut nics, &pci);
    Ok(Inventory {
        schema: SCHEMA,
        machine: identity::identify(roots, &system, &board, &nics),
        firmware: platform::firmware(sys),
        system,
        board,
        chassis: platform::chassis(sys),
        cpus: cpu::sockets(roots)?,
        offline_cpus: cpu::offline(sys),
        memory: memory::memory(roots)?,
        numa: numa::nodes(sys),
        disks: disk::disks(roots, boot_medium)?,
        nics,
        gpus: pci::gpus(roots, &pci),
        tpm: platform::tpm(sys),
        pci,
    })
}

impl Inventory {
    /// The inventory of a machine that has been known by this UUID since it started, and
    /// of what LLDP heard at its ports, by the name of the link.
    #[must_use]
    pub fn known(mut self, machine: Uuid, neighbours: &[(String, Vec<Nic>)]) -> Self {
        self.machine.uuid = Some(machine);
        for port in &mut self.nics {
            port.switch_ports = neighbours
                .iter()
                .filter(|(link, _)| *link == port.name)
                .flat_map(|(_, seen)| seen)
                .map(|seen| text::clean(&format!("{} {}", seen.hostname, seen.name), 256))
                .collect();
        }
        self
    }
}

/// Reads at most `limit` bytes of a file.
fn read_bytes(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads at most `limit` bytes of a file; what is not UTF-8 is replaced.
fn read(path: &Path, limit: u64) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&read_bytes(path, limit)?).into_owned())
}

/// Longest attribute that is kept, in characters.
const MAX_ATTRIBUTE: usize = 256;

/// A sysfs attribute without control characters and the spaces around it; `None` when it is
/// missing, cannot be read (a link that is down answers EINVAL) or is empty. A page is all
/// that sysfs gives.
fn attribute(path: &Path) -> Option<String> {
    let text = text::clean(&read(path, 4096).ok()?, MAX_ATTRIBUTE);
    (!text.is_empty()).then_some(text)
}

/// The last part of where a symbolic link leads, `../../bus/pci/drivers/e1000` to `e1000`.
fn link_name(path: &Path) -> Option<String> {
    let target = std::fs::read_link(path).ok()?;
    let name = target.file_name()?.to_string_lossy();
    Some(text::clean(&name, MAX_ATTRIBUTE))
}

#[cfg(test)]
mod recorded_tests;
#[cfg(test)]
mod tests;
