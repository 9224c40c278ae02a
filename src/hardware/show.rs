//! The inventory for people: one line for the log's head, a table for the rest.

use std::fmt;

use super::types::{Disk, Health, IdSource, Inventory, MemorySource};

impl fmt::Display for Inventory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cores: u64 = self.cpus.iter().map(|cpu| u64::from(cpu.cores)).sum();
        write!(
            f,
            "{} ({}), {}, {}",
            counted(self.cpus.len(), "CPU"),
            counted(cores as usize, "core"),
            size(self.memory.installed),
            counted(self.disks.len(), "disk")
        )?;
        if !self.disks.is_empty() {
            let disks: Vec<String> = self
                .disks
                .iter()
                .map(|disk| format!("{} {}", disk.name, size(disk.size)))
                .collect();
            write!(f, " ({})", disks.join(", "))?;
        }
        write!(f, ", {}", counted(self.nics.len(), "NIC"))?;
        if !self.gpus.is_empty() {
            write!(f, ", {}", counted(self.gpus.len(), "GPU"))?;
        }
        Ok(())
    }
}

/// A heading and its rows, each a list of cells.
struct Section {
    title: &'static str,
    rows: Vec<Vec<String>>,
}

impl Inventory {
    /// The lines of the table. Without `all` memory slots and PCI devices are left out, for
    /// they fill screens.
    #[must_use]
    pub fn table(&self, all: bool) -> Vec<String> {
        let mut sections = vec![
            Section {
                title: "machine",
                rows: self.facts(),
            },
            self.cpu_rows(),
            self.numa_rows(),
            self.disk_rows(),
            self.nic_rows(),
            self.gpu_rows(),
        ];
        if all {
            sections.extend([self.module_rows(), self.pci_rows()]);
        }
        sections
            .into_iter()
            .filter(|section| !section.rows.is_empty())
            .flat_map(|section| lines(&section))
            .collect()
    }

    fn facts(&self) -> Vec<Vec<String>> {
        let id = match (self.machine.uuid, self.machine.source) {
            (Some(uuid), IdSource::Derived) => format!("{uuid} (derived: {})", self.machine.note),
            (Some(uuid), _) => uuid.to_string(),
            (None, _) => format!("none: {}", self.machine.note),
        };
        let firmware = &self.firmware;
        let boot = match (firmware.uefi, firmware.secure_boot) {
            (false, _) => "legacy BIOS",
            (true, Some(true)) => "UEFI, Secure Boot on",
            (true, Some(false)) => "UEFI, Secure Boot off",
            (true, None) => "UEFI",
        };
        let tpm = self.tpm.as_ref().map_or_else(
            || "none".to_owned(),
            |tpm| {
                let version = tpm.version.map_or("?".to_owned(), |it| it.to_string());
                format!("version {version} ({})", tpm.banks.join(", "))
            },
        );
        let memory = &self.memory;
        let source = match memory.source {
            MemorySource::Smbios => "SMBIOS",
            MemorySource::Blocks => "memory blocks",
            MemorySource::Meminfo => "as the kernel sees it",
        };
        let full = memory.modules.iter().filter(|it| it.size > 0).count();
        let mut rows = vec![
            vec!["id".into(), id],
            vec![
                "system".into(),
                words(&[
                    &self.system.manufacturer,
                    &self.system.product,
                    &labelled("serial", &self.system.serial),
                ]),
            ],
            vec![
                "board".into(),
                words(&[
                    &self.board.manufacturer,
                    &self.board.product,
                    &labelled("serial", &self.board.serial),
                ]),
            ],
            vec![
                "firmware".into(),
                words(&[&firmware.vendor, &firmware.version, &firmware.date, boot]),
            ],
            vec!["TPM".into(), tpm],
            vec![
                "memory".into(),
                format!(
                    "{} installed ({source}), {} usable, {full} of {} slots filled",
                    size(memory.installed),
                    size(memory.usable),
                    memory.modules.len()
                ),
            ],
        ];
        if self.offline_cpus > 0 {
            rows.push(vec![
                "offline".into(),
                counted(self.offline_cpus as usize, "thread"),
            ]);
        }
        rows
    }

    fn cpu_rows(&self) -> Section {
        let rows = self.cpus.iter().map(|cpu| {
            vec![
                format!("socket {}", cpu.socket),
                counted(cpu.cores as usize, "core"),
                counted(cpu.threads as usize, "thread"),
                words(&[&cpu.vendor, &cpu.model]),
            ]
        });
        section("CPUs", rows)
    }

    fn numa_rows(&self) -> Section {
        let rows = self.numa.iter().map(|node| {
            vec![
                format!("node {}", node.node),
                size(node.memory),
                format!("CPUs {}", node.cpus),
            ]
        });
        section("NUMA", rows)
    }

    fn disk_rows(&self) -> Section {
        let rows = self.disks.iter().map(|disk| {
            vec![
                disk.name.clone(),
                size(disk.size),
                disk.transport.clone(),
                if disk.rotational { "HDD" } else { "SSD" }.to_owned(),
                format!("{}/{}", disk.logical_block_size, disk.physical_block_size),
                disk.vendor_model.clone(),
                disk.serial.clone(),
                disk.firmware.clone(),
                state(disk),
            ]
        });
        section("disks", rows)
    }

    fn nic_rows(&self) -> Section {
        let rows = self.nics.iter().map(|nic| {
            vec![
                nic.name.clone(),
                nic.mac.clone(),
                nic.speed
                    .map_or("speed ?".into(), |it| format!("{it} Mbit/s")),
                nic.driver.clone(),
                nic.bus.clone(),
                words(&[
                    &nic.vendor,
                    if nic.model.is_empty() {
                        &nic.device_id
                    } else {
                        &nic.model
                    },
                    &labelled("firmware", &nic.firmware),
                ]),
                nic.switch_ports.join(", "),
            ]
        });
        section("NICs", rows)
    }

    fn gpu_rows(&self) -> Section {
        let rows = self
            .gpus
            .iter()
            .map(|gpu| vec![gpu.bus.clone(), gpu.vendor.clone(), gpu.model.clone()]);
        section("GPUs", rows)
    }

    fn module_rows(&self) -> Section {
        let rows = self.memory.modules.iter().map(|module| {
            if module.size == 0 {
                return vec![module.locator.clone(), "empty".into()];
            }
            let speed = module.configured_speed.or(module.speed);
            vec![
                module.locator.clone(),
                size(module.size),
                module.kind.clone(),
                speed.map_or(String::new(), |it| format!("{it} MT/s")),
                if module.ecc == Some(true) { "ECC" } else { "" }.to_owned(),
                words(&[
                    &module.manufacturer,
                    &module.part,
                    &labelled("serial", &module.serial),
                ]),
            ]
        });
        section("memory slots", rows)
    }

    fn pci_rows(&self) -> Section {
        let rows = self.pci.iter().map(|it| {
            let id = |id: &str| id.trim_start_matches("0x").to_owned();
            vec![
                it.address.clone(),
                format!("{}:{}", id(&it.vendor_id), id(&it.device_id)),
                if it.class_name.is_empty() {
                    &it.class
                } else {
                    &it.class_name
                }
                .clone(),
                words(&[&it.vendor, &it.model]),
                it.driver.clone(),
            ]
        });
        section("PCI", rows)
    }
}

fn section(title: &'static str, rows: impl Iterator<Item = Vec<String>>) -> Section {
    Section {
        title,
        rows: rows.collect(),
    }
}

/// What there is to say about a disk beside what it is.
fn state(disk: &Disk) -> String {
    let health = disk.health.as_ref().map(shown).unwrap_or_default();
    let left_out = disk.left_out.as_deref().unwrap_or_default();
    let read_only = if disk.read_only { "read-only" } else { "" };
    let parts = [left_out, read_only, &health];
    let parts = parts.into_iter().filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join(", ")
}

fn shown(health: &Health) -> String {
    let mut parts = if health.good {
        vec!["healthy".to_owned()]
    } else {
        vec![format!("FAILING: {}", health.warnings.join(", "))]
    };
    parts.extend(health.temperature.map(|it| format!("{it} °C")));
    parts.extend(health.percent_used.map(|it| format!("{it} % used")));
    parts.join(", ")
}

/// A heading, then the rows in columns; the last cell of a row is never padded.
fn lines(section: &Section) -> Vec<String> {
    let columns = section.rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let cells = section.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let row = |row: &Vec<String>| {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .filter(|(_, width)| **width > 0)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        format!("  {}", cells.join("  ")).trim_end().to_owned()
    };
    std::iter::once(section.title.to_owned())
        .chain(section.rows.iter().map(row))
        .collect()
}

fn words(parts: &[&str]) -> String {
    let parts = parts.iter().filter(|part| !part.is_empty());
    parts.copied().collect::<Vec<_>>().join(" ")
}

fn labelled(label: &str, value: &str) -> String {
    if value.is_empty() {
        return String::new();
    }
    format!("{label} {value}")
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Bytes as people say them: `256 GiB`, `1.8 TiB`.
pub(super) fn size(bytes: u64) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_said_in_binary_units() {
        let table = [
            (0, "0 KiB"),
            (1024, "1 KiB"),
            ((1 << 20) - 1, "1023.9 KiB"),
            (1 << 20, "1 MiB"),
            (256 << 30, "256 GiB"),
            (3 << 39, "1.5 TiB"),
            (u64::MAX, "16383.9 PiB"),
        ];
        for (bytes, text) in table {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_empty_ones_go() {
        let cells = |row: [&str; 4]| row.map(String::from).to_vec();
        let section = Section {
            title: "things",
            rows: vec![cells(["a", "", "ü", "x"]), cells(["bbb", "", "long", ""])],
        };
        assert_eq!(lines(&section), ["things", "  a    ü     x", "  bbb  long"]);
    }
}
