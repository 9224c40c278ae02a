//! What the machine is made of: read from sysfs and procfs, told to the control plane.
//!
//! `inspect` only reads and takes what it finds; `register` turns that into a message
//! that the server accepts, whatever strings a vendor left in the firmware.

mod cpu;
mod dmi;
mod memory;
mod nic;
mod pci;
pub mod register;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use thiserror::Error;
use uuid::Uuid;

pub use dmi::{Board, machine_id};
pub use register::register;

use crate::control::api::{BlockDevice, Cpu, Gpu};

/// Where the kernel's file systems are: `/sys` and `/proc`, or a fixture.
#[derive(Debug, Clone, Copy)]
pub struct Roots<'a> {
    pub sys: &'a Path,
    pub proc: &'a Path,
}

impl Default for Roots<'static> {
    fn default() -> Self {
        Self {
            sys: Path::new("/sys"),
            proc: Path::new("/proc"),
        }
    }
}

/// Why the machine cannot be described.
#[derive(Debug, Error)]
pub enum Error {
    #[error(
        "no machine UUID: cannot read {}: {source}; the firmware must have an SMBIOS table with a system UUID",
        path.display()
    )]
    NoMachineId { path: PathBuf, source: io::Error },
    #[error("no machine UUID: {} reads {text:?}, which is no UUID", path.display())]
    MachineIdText { path: PathBuf, text: String },
    #[error(
        "the machine UUID {uuid} is a placeholder that many machines share; set a real system UUID in the firmware or the BMC"
    )]
    SharedMachineId { uuid: Uuid },
    #[error("cannot read {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} does not say how much memory there is: expected a line `MemTotal: <n> kB`", path.display())]
    Memory { path: PathBuf },
    #[error("{} names no processor", path.display())]
    NoCpu { path: PathBuf },
    #[error(
        "partition {partition:?} has {length} characters; the server wants 2 to 128: set `partition` in the boot helper's answer or in metal.config"
    )]
    Partition { partition: String, length: usize },
}

/// A physical network card's port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The kernel's name of the link, `eth0`.
    pub name: String,
    /// `aa:bb:cc:dd:ee:ff`, lower case.
    pub mac: String,
    /// Mbit/s; `None` while the link is down.
    pub speed: Option<u64>,
    /// The driver's name, or empty.
    pub driver: String,
    /// PCI vendor ID, `0x8086`, or empty.
    pub vendor: String,
    /// PCI device ID, `0x1572`, or empty.
    pub model: String,
}

/// The machine as the kernel shows it, before any rule of the server is applied.
#[derive(Debug, Clone, PartialEq)]
pub struct Inventory {
    pub machine: Uuid,
    /// Bytes.
    pub memory: u64,
    /// One for each socket.
    pub cpus: Vec<Cpu>,
    /// As storage found them.
    pub disks: Vec<BlockDevice>,
    pub ports: Vec<Port>,
    pub gpus: Vec<Gpu>,
    pub board: Board,
}

/// Reads everything but the disks, which storage names: device path and bytes.
///
/// # Errors
/// No usable machine UUID, no memory size, no processor, or a `/sys/class/net` that
/// cannot be read. All else that is missing is left empty.
pub fn inspect(roots: &Roots<'_>, disks: &[(String, u64)]) -> Result<Inventory, Error> {
    Ok(Inventory {
        machine: machine_id(roots.sys)?,
        memory: memory::total(roots)?,
        cpus: cpu::sockets(roots.proc)?,
        disks: disks
            .iter()
            .map(|(name, size)| BlockDevice {
                name: name.clone(),
                size: *size,
            })
            .collect(),
        ports: nic::ports(roots.sys)?,
        gpus: pci::gpus(roots.sys),
        board: Board::read(roots.sys),
    })
}

impl fmt::Display for Inventory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cores: u64 = self.cpus.iter().map(|cpu| u64::from(cpu.cores)).sum();
        write!(
            f,
            "{} ({}), {}, {}",
            counted(self.cpus.len() as u64, "CPU"),
            counted(cores, "core"),
            size(self.memory),
            counted(self.disks.len() as u64, "disk")
        )?;
        if !self.disks.is_empty() {
            let disks: Vec<String> = self
                .disks
                .iter()
                .map(|disk| format!("{} {}", disk.name, size(disk.size)))
                .collect();
            write!(f, " ({})", disks.join(", "))?;
        }
        write!(f, ", {}", counted(self.ports.len() as u64, "NIC"))?;
        if !self.gpus.is_empty() {
            write!(f, ", {}", counted(self.gpus.len() as u64, "GPU"))?;
        }
        Ok(())
    }
}

fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Bytes as people say them: `256 GiB`, `1.8 TiB`.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    let mut scale: u64 = 1 << 10;
    while unit + 1 < UNITS.len() && bytes >= scale << 10 {
        unit += 1;
        scale <<= 10;
    }
    let tenths = u128::from(bytes) * 10 / u128::from(scale);
    match tenths % 10 {
        0 => format!("{} {}", tenths / 10, UNITS[unit]),
        tenth => format!("{}.{tenth} {}", tenths / 10, UNITS[unit]),
    }
}

/// Reads at most `limit` bytes of a file; what is not UTF-8 is replaced.
fn read(path: &Path, limit: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A sysfs attribute without the spaces around it; `None` when it is missing, cannot be
/// read (a link that is down answers EINVAL) or is empty. A page is all that sysfs gives.
fn attribute(path: &Path) -> Option<String> {
    let text = read(path, 4096).ok()?;
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    (!text.is_empty()).then(|| text.to_owned())
}

/// The last part of where a symbolic link leads, `../../bus/pci/drivers/e1000` to `e1000`.
fn link_name(path: &Path) -> Option<String> {
    let target = std::fs::read_link(path).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests;
