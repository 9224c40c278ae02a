//! The disks of the machine, as sysfs shows them.

use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Longest attribute that is read from sysfs, in bytes. `vpd_pg80` has at most 255 + 4.
const MAX_ATTRIBUTE: u64 = 4096;
/// Longest model, serial number or WWN that is kept, in characters.
const MAX_IDENTITY: usize = 128;
/// Size unit of sysfs' `size` and `start`, whatever the disk's block size is
/// (kernel, `Documentation/ABI/stable/sysfs-block`).
const SYSFS_SECTOR: u64 = 512;

/// Major numbers that are never a disk of the machine: ram, floppy, loop, md, SCSI
/// CD-ROM, mtdblock, nbd (kernel, `Documentation/admin-guide/devices.txt`).
const NO_DISK_MAJORS: [u32; 7] = [1, 2, 7, 9, 11, 31, 43];
/// SCSI peripheral device types that are disks: direct access, reduced block commands,
/// host managed zoned (kernel, `include/scsi/scsi_proto.h`).
const SCSI_DISK_TYPES: [&str; 3] = ["0", "14", "20"];

/// How a disk is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// ATA behind libata.
    Sata,
    /// Parallel SCSI, SAS, a RAID controller's volume, virtio-scsi.
    Scsi,
    /// NVMe over PCIe.
    Nvme,
    /// virtio-blk.
    Virtio,
    /// USB, also a BMC's virtual media.
    Usb,
    /// NVMe over TCP, RDMA or Fibre Channel.
    NvmeFabrics,
    /// Fibre Channel.
    FibreChannel,
    /// iSCSI.
    Iscsi,
    /// Anything else, for example eMMC.
    Other,
}

impl Transport {
    /// Whether the disk stands in another machine and may be in use there.
    #[must_use]
    pub fn is_fabric(self) -> bool {
        matches!(self, Self::NvmeFabrics | Self::FibreChannel | Self::Iscsi)
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sata => "SATA",
            Self::Scsi => "SCSI",
            Self::Nvme => "NVMe",
            Self::Virtio => "virtio",
            Self::Usb => "USB",
            Self::NvmeFabrics => "NVMe-oF",
            Self::FibreChannel => "Fibre Channel",
            Self::Iscsi => "iSCSI",
            Self::Other => "other",
        })
    }
}

/// Major and minor number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DevId {
    pub major: u32,
    pub minor: u32,
}

impl fmt::Display for DevId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl std::str::FromStr for DevId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (major, minor) = text.split_once(':').ok_or(())?;
        Ok(Self {
            major: major.parse().map_err(|_| ())?,
            minor: minor.parse().map_err(|_| ())?,
        })
    }
}

/// A partition that the kernel had found when the disk was discovered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPartition {
    /// Kernel name, for example `nvme0n1p2`.
    pub name: String,
    pub dev: DevId,
    pub number: u32,
    /// Bytes from the start of the disk.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

/// A whole disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Kernel name, for example `nvme0n1`.
    pub name: String,
    /// Device node, for example `/dev/nvme0n1`.
    pub path: PathBuf,
    pub dev: DevId,
    /// Bytes.
    pub size: u64,
    /// Bytes: 512 or 4096.
    pub logical_block_size: u32,
    /// Bytes: what the disk, or the array behind a controller, likes to be written at a time;
    /// 0 when it does not say.
    pub optimal_io_size: u64,
    /// Vendor and model; empty when the disk does not say.
    pub model: String,
    /// Empty when the disk does not say.
    pub serial: String,
    /// `wwid` of sysfs, for example `naa.5000c500a1b2c3d4`; empty when the disk does not say.
    pub wwn: String,
    pub transport: Transport,
    pub rotational: bool,
    /// The medium can be taken out.
    pub removable: bool,
    pub read_only: bool,
    pub partitions: Vec<DiskPartition>,
}

impl Disk {
    /// The node of a partition, as the kernel names it: a `p` goes between a name that
    /// ends in a digit and the number (kernel, `block/genhd.c`, `disk_name`).
    #[must_use]
    pub fn partition_path(&self, number: u32) -> PathBuf {
        PathBuf::from(partition_name(&self.path.to_string_lossy(), number))
    }
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", self.path.display(), self.transport)?;
        if !self.model.is_empty() {
            write!(f, " {}", self.model)?;
        }
        if !self.serial.is_empty() {
            write!(f, ", serial {}", self.serial)?;
        }
        write!(f, ", {} MiB)", self.size >> 20)
    }
}

/// The name of partition `number` of the disk `device`, with or without `/dev/`.
#[must_use]
pub fn partition_name(device: &str, number: u32) -> String {
    let separator = if device.ends_with(|c: char| c.is_ascii_digit()) {
        "p"
    } else {
        ""
    };
    format!("{device}{separator}{number}")
}

/// Why the disks could not be listed.
#[derive(Debug, Error)]
pub enum Error {
    #[error("cannot read {path}: {source}; is sysfs mounted?")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} reads {text:?}; expected {expected}")]
    Attribute {
        path: PathBuf,
        text: String,
        expected: &'static str,
    },
}

/// Lists the disks below `sys` (usually `/sys`), smallest name first.
///
/// Left out: what is no disk of its own (ram, loop, zram, md, dm, CD-ROM, network block
/// devices, floppies, the hidden paths of an NVMe multipath head, partitions) and drives
/// without a medium (size 0). A disk that disappears while it is read is left out too.
///
/// # Errors
/// When `block` cannot be listed, or an attribute that every disk has is not what the
/// kernel's ABI says.
pub fn discover(sys: &Path) -> Result<Vec<Disk>, Error> {
    let mut disks = each(sys)?.into_iter().collect::<Result<Vec<_>, _>>()?;
    sort(&mut disks);
    Ok(disks)
}

/// As [`discover`], without the disks that make no sense, which are said in the log: good
/// enough to describe a machine, not to decide what is written.
///
/// # Errors
/// When `block` cannot be listed.
pub fn discover_usable(sys: &Path) -> Result<Vec<Disk>, Error> {
    let warned = |error: &Error| tracing::warn!("a disk is left out: {error}");
    let found = each(sys)?.into_iter();
    let mut disks: Vec<Disk> = found
        .filter_map(|disk| disk.inspect_err(warned).ok())
        .collect();
    sort(&mut disks);
    Ok(disks)
}

fn sort(disks: &mut [Disk]) {
    disks.sort_by(|a, b| (a.name.len(), &a.name).cmp(&(b.name.len(), &b.name)));
}

/// Every disk, or why it makes no sense.
fn each(sys: &Path) -> Result<Vec<Result<Disk, Error>>, Error> {
    let block = sys.join("block");
    let entries = fs::read_dir(&block).map_err(|source| Error::Read {
        path: block.clone(),
        source,
    })?;
    let mut disks = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| Error::Read {
            path: block.clone(),
            source,
        })?;
        match read_disk(&entry.path()) {
            Ok(Some(disk)) => disks.push(Ok(disk)),
            Ok(None) => {}
            Err(Error::Read { path, source }) if source.kind() == io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), "a block device disappeared while it was read");
            }
            Err(error) => disks.push(Err(error)),
        }
    }
    Ok(disks)
}

fn read_disk(dir: &Path) -> Result<Option<Disk>, Error> {
    let real = fs::canonicalize(dir).map_err(|source| Error::Read {
        path: dir.to_path_buf(),
        source,
    })?;
    let dev = number_pair(&real.join("dev"))?;
    let is_no_disk = NO_DISK_MAJORS.contains(&dev.major)
        || real.to_string_lossy().contains("/devices/virtual/block/")
        || ["loop", "dm", "md", "partition"]
            .iter()
            .any(|kind| real.join(kind).exists())
        || optional(&real.join("hidden")).is_some_and(|hidden| hidden == "1")
        || optional(&real.join("device/type"))
            .is_some_and(|kind| !kind.is_empty() && is_foreign_scsi_type(&real, &kind));
    let size = number(&real.join("size"))?.saturating_mul(SYSFS_SECTOR);
    if is_no_disk || size == 0 {
        return Ok(None);
    }
    let name = real
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let model = [
        optional(&real.join("device/vendor")).filter(|vendor| !vendor.starts_with("0x")),
        optional(&real.join("device/model")).or_else(|| optional(&real.join("device/name"))),
    ];
    let block_size_path = real.join("queue/logical_block_size");
    let block_size = number(&block_size_path)?;
    let logical_block_size = u32::try_from(block_size)
        .ok()
        .filter(|size| (512..=65536).contains(size) && size.is_power_of_two())
        .ok_or_else(|| Error::Attribute {
            path: block_size_path,
            text: block_size.to_string(),
            expected: "a power of two from 512 to 65536",
        })?;
    Ok(Some(Disk {
        path: Path::new("/dev").join(name.replace('!', "/")),
        dev,
        size,
        logical_block_size,
        optimal_io_size: number(&real.join("queue/optimal_io_size")).unwrap_or(0),
        model: clean(&model.into_iter().flatten().collect::<Vec<_>>().join(" ")),
        serial: serial(&real),
        wwn: clean(
            &optional(&real.join("wwid"))
                .or_else(|| optional(&real.join("device/wwid")))
                .unwrap_or_default(),
        ),
        transport: transport(&real, &name),
        rotational: flag(&real.join("queue/rotational"))?,
        removable: flag(&real.join("removable"))?,
        read_only: flag(&real.join("ro"))?,
        partitions: partitions(&real)?,
        name,
    }))
}

/// `device/type` is a number for SCSI devices; eMMC says `MMC` or `SD`.
fn is_foreign_scsi_type(real: &Path, kind: &str) -> bool {
    real.join("device/scsi_level").exists() && !SCSI_DISK_TYPES.contains(&kind)
}

/// The transport, from the devices on the way from the root of the device tree to the disk.
fn transport(real: &Path, name: &str) -> Transport {
    let has = |prefix: &str| {
        real.components().any(|component| {
            component
                .as_os_str()
                .to_string_lossy()
                .strip_prefix(prefix)
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit() || c == '-'))
        })
    };
    if has("usb") {
        Transport::Usb
    } else if has("session") {
        Transport::Iscsi
    } else if has("rport") {
        Transport::FibreChannel
    } else if name.starts_with("nvme") {
        nvme_transport(real)
    } else if has("ata") {
        Transport::Sata
    } else if real.join("device/scsi_level").exists() {
        Transport::Scsi
    } else if has("virtio") {
        Transport::Virtio
    } else {
        Transport::Other
    }
}

/// `device` is the controller, or the subsystem of a multipath head, which then holds
/// one link for each controller. One controller that is not PCIe makes it a fabric disk;
/// so does an unknown one, because wrongly erasing another host's disk is the worse error.
fn nvme_transport(real: &Path) -> Transport {
    let device = real.join("device");
    let mut transports: Vec<String> = optional(&device.join("transport")).into_iter().collect();
    if transports.is_empty() {
        let controllers = fs::read_dir(&device).into_iter().flatten().flatten();
        transports = controllers
            .filter_map(|entry| optional(&entry.path().join("transport")))
            .collect();
    }
    if !transports.is_empty() && transports.iter().all(|transport| transport == "pcie") {
        Transport::Nvme
    } else {
        Transport::NvmeFabrics
    }
}

/// The serial number: an attribute for NVMe, virtio and eMMC, VPD page 0x80 for SCSI
/// (4 bytes of header, then text; SPC-5 §7.7.19).
fn serial(real: &Path) -> String {
    if let Some(text) =
        optional(&real.join("serial")).or_else(|| optional(&real.join("device/serial")))
    {
        return clean(&text);
    }
    match read_bounded(&real.join("device/vpd_pg80")) {
        Ok(page) if page.len() > 4 => clean(&String::from_utf8_lossy(&page[4..])),
        _ => String::new(),
    }
}

fn partitions(real: &Path) -> Result<Vec<DiskPartition>, Error> {
    let entries = fs::read_dir(real).map_err(|source| Error::Read {
        path: real.to_path_buf(),
        source,
    })?;
    let mut partitions = Vec::new();
    for entry in entries.flatten() {
        let dir = entry.path();
        if !dir.join("partition").exists() {
            continue;
        }
        let number_path = dir.join("partition");
        let index = number(&number_path)?;
        let index = u32::try_from(index).map_err(|_| Error::Attribute {
            path: number_path,
            text: index.to_string(),
            expected: "a partition number",
        })?;
        partitions.push(DiskPartition {
            name: entry.file_name().to_string_lossy().into_owned(),
            dev: number_pair(&dir.join("dev"))?,
            number: index,
            start: number(&dir.join("start"))?.saturating_mul(SYSFS_SECTOR),
            size: number(&dir.join("size"))?.saturating_mul(SYSFS_SECTOR),
        });
    }
    partitions.sort_by_key(|partition| partition.number);
    Ok(partitions)
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?
        .take(MAX_ATTRIBUTE)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn text(path: &Path) -> Result<String, Error> {
    let bytes = read_bounded(path).map_err(|source| Error::Read {
        path: path.to_path_buf(),
        source,
    })?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

/// An attribute that not every disk has, or that a drive refuses to answer.
fn optional(path: &Path) -> Option<String> {
    text(path).ok().filter(|text| !text.is_empty())
}

fn number(path: &Path) -> Result<u64, Error> {
    let text = text(path)?;
    text.parse().map_err(|_| Error::Attribute {
        path: path.to_path_buf(),
        text: clean(&text),
        expected: "a number",
    })
}

fn number_pair(path: &Path) -> Result<DevId, Error> {
    let text = text(path)?;
    text.parse().map_err(|()| Error::Attribute {
        path: path.to_path_buf(),
        text: clean(&text),
        expected: "major:minor",
    })
}

fn flag(path: &Path) -> Result<bool, Error> {
    Ok(number(path)? != 0)
}

/// What a drive says of itself ends up in logs: control characters go, length is bounded.
fn clean(text: &str) -> String {
    let printable = text.chars().filter(|c| !c.is_control()).take(MAX_IDENTITY);
    printable
        .collect::<String>()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
#[path = "disks_tests.rs"]
mod tests;
