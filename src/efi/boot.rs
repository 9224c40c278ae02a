//! BootNext, BootOrder and boot entries (UEFI 2.10, 3.1 and 3.3).

use std::fmt;
use std::path::{Path, PathBuf};

use tracing::{info, warn};

use super::Error;
use super::device_path::EspLocation;
use super::esp::{ReadOnly, any_loader_in, esps_of, partitions_of};
use super::gpt::Partition;
use super::load_option::{self, LoadOption};
use super::vars::{GLOBAL, NV_BS_RT, Vars};

/// The first word of the description of every entry that this project makes: how a later
/// install knows which entries it may delete.
pub const MARK: &str = "metal-anvil";

/// Longest operating system name taken into a description, in characters.
const MAX_NAME: usize = 40;

/// What became of BootNext.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The next boot uses this entry.
    Set(u16),
    /// The firmware does not say what it booted from.
    Skipped,
}

/// What the disk boot was set to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chosen {
    /// An entry that the firmware had.
    Existing { number: u16, description: String },
    /// An entry made for a loader that was found.
    Made {
        number: u16,
        device: PathBuf,
        loader: String,
    },
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Existing {
                number,
                description,
            } => write!(f, "boot entry {number:04X} {description:?}"),
            Self::Made {
                number,
                device,
                loader,
            } => write!(
                f,
                "new boot entry {number:04X} for {loader} on {}",
                device.display()
            ),
        }
    }
}

/// The entry that the firmware booted from, if it says so.
///
/// # Errors
/// An unreadable or ill-formed BootCurrent.
pub fn current(vars: &Vars) -> Result<Option<u16>, Error> {
    match &numbers(vars, "BootCurrent")?[..] {
        [] => Ok(None),
        [number] => Ok(Some(*number)),
        more => Err(malformed("BootCurrent", format!("{} numbers", more.len()))),
    }
}

/// Whether the firmware starts signed programs alone (UEFI 2.10, 3.3: SecureBoot). What cannot
/// be read counts as off: nothing is decided by it, it only explains.
#[must_use]
pub fn secure_boot(vars: &Vars) -> bool {
    match vars.read("SecureBoot", GLOBAL) {
        Ok(variable) => variable.is_some_and(|variable| variable.data == [1]),
        Err(error) => {
            warn!("{error}; taking Secure Boot for off");
            false
        }
    }
}

/// Makes the next boot use the entry of this boot: a "boot once" virtual CD is spent, and
/// a reset in the middle of an install must not boot a half-written disk.
///
/// # Errors
/// What the firmware answers to the write.
pub fn set_next_to_current(vars: &Vars) -> Result<Next, Error> {
    let Some(number) = current(vars)? else {
        warn!(
            "the firmware does not say what it booted from (no BootCurrent): a reset during the install boots by its own order"
        );
        return Ok(Next::Skipped);
    };
    set_next(vars, number)?;
    Ok(Next::Set(number))
}

/// Makes the next boot use one entry, whatever BootOrder says.
///
/// # Errors
/// What the firmware answers to the write.
pub fn set_next(vars: &Vars, number: u16) -> Result<(), Error> {
    vars.write("BootNext", GLOBAL, NV_BS_RT, &number.to_le_bytes())?;
    Ok(())
}

/// Takes BootNext away, so that BootOrder counts again.
///
/// # Errors
/// What the firmware answers.
pub fn clear_next(vars: &Vars) -> Result<(), Error> {
    vars.delete("BootNext", GLOBAL).map(drop)
}

/// BootOrder; empty when there is none.
///
/// # Errors
/// An unreadable or ill-formed BootOrder.
pub fn order(vars: &Vars) -> Result<Vec<u16>, Error> {
    numbers(vars, "BootOrder")
}

/// Makes one entry for each partition (several when the EFI system partition is on
/// RAID1), first in BootOrder and in the order given; every other entry stays and keeps
/// its place. An entry that is there already is used again; older entries with this
/// project's mark, which lead to disks as they were before, are deleted.
///
/// `os` (the bootloader_id, say) is shown in the firmware's menu; `loader` is a path as
/// [`super::esp::loader_in`] gives it. The entries come before the order and the order
/// before the deletions, so that a reset in between leaves a machine that boots.
///
/// # Errors
/// [`Error::NoPartition`], [`Error::NoFreeEntry`], a BootOrder that is not understood,
/// and what the firmware answers.
pub fn install_entries(
    vars: &Vars,
    os: &str,
    partitions: &[EspLocation],
    loader: &str,
) -> Result<Vec<u16>, Error> {
    if partitions.is_empty() {
        return Err(Error::NoPartition);
    }
    let old_order = order(vars)?;
    let description = description(os);
    let mut ours: Vec<u16> = Vec::new();
    let mut deleted: Vec<u16> = Vec::new();
    for partition in partitions {
        let made = match entry_for(vars, &description, partition, loader, &old_order) {
            Err(Error::NvramFull { .. }) => {
                let old = stale(vars, &ours)?;
                warn!(entries = ?old, "no room for a boot entry: our old ones go first");
                for number in old {
                    vars.delete(&entry_name(number), GLOBAL)?;
                    deleted.push(number);
                }
                entry_for(vars, &description, partition, loader, &old_order)
            }
            made => made,
        };
        let number = made?;
        if !ours.contains(&number) {
            ours.push(number);
        }
    }
    let stale = stale(vars, &ours)?;
    let mut new_order = ours.clone();
    for number in old_order {
        let gone = stale.contains(&number) || deleted.contains(&number);
        if !new_order.contains(&number) && !gone {
            new_order.push(number);
        }
    }
    set_order(vars, &new_order)?;
    for number in stale {
        vars.delete(&entry_name(number), GLOBAL)?;
        deleted.push(number);
    }
    info!(entries = ?ours, ?deleted, order = ?new_order, loader, "boot order set");
    Ok(ours)
}

/// Makes the next boot use the system on the machine's disks, without writing to a disk.
///
/// That is the first active entry in BootOrder whose partition exists on one of `disks`
/// and that this boot did not come from. Without one, the EFI system partitions of the
/// disks are looked into, one after the other, at `mountpoint`, and the first loader gets
/// an entry, last in BootOrder.
///
/// # Errors
/// [`Error::NothingToBoot`] with what was looked for, and what the firmware answers.
pub fn boot_disk(vars: &Vars, disks: &[PathBuf], mountpoint: &Path) -> Result<Chosen, Error> {
    let look = |esp: &Partition| -> Result<Option<String>, Error> {
        let mounted = ReadOnly::mount(&esp.device(), mountpoint)?;
        Ok(any_loader_in(mounted.root()))
    };
    boot_disk_with(vars, disks, look)
}

fn boot_disk_with(
    vars: &Vars,
    disks: &[PathBuf],
    look: impl Fn(&Partition) -> Result<Option<String>, Error>,
) -> Result<Chosen, Error> {
    let own = partitions_of(disks);
    let current = current(vars)?;
    let order = order(vars)?;
    let known = entries(vars)?;
    let existing = order
        .iter()
        .filter(|number| Some(**number) != current)
        .filter_map(|number| known.iter().find(|(known, _)| known == number))
        .find(|(_, entry)| {
            entry.attributes & load_option::ACTIVE != 0
                && own
                    .iter()
                    .any(|partition| entry.partition() == Some(partition.location.guid))
        });
    if let Some((number, entry)) = existing {
        set_next(vars, *number)?;
        return Ok(Chosen::Existing {
            number: *number,
            description: entry.description.clone(),
        });
    }
    let esps = esps_of(disks);
    for esp in &esps {
        let loader = look(esp).unwrap_or_else(|error| {
            warn!(%error, "EFI system partition left out while looking for a loader");
            None
        });
        let Some(loader) = loader else { continue };
        let name = description("disk");
        let number = entry_for(vars, &name, &esp.location, &loader, &order)?;
        if !order.contains(&number) {
            let mut longer = order.clone();
            longer.push(number);
            set_order(vars, &longer)?;
        }
        set_next(vars, number)?;
        return Ok(Chosen::Made {
            number,
            device: esp.device(),
            loader,
        });
    }
    let list = |paths: Vec<PathBuf>| match paths.is_empty() {
        true => "none".to_owned(),
        false => paths
            .iter()
            .map(|path| path.display().to_string())
            .collect::<Vec<_>>()
            .join(", "),
    };
    Err(Error::NothingToBoot {
        disks: list(disks.to_vec()),
        esps: list(esps.iter().map(Partition::device).collect()),
    })
}

/// Entries with our mark other than `ours`.
fn stale(vars: &Vars, ours: &[u16]) -> Result<Vec<u16>, Error> {
    Ok(entries(vars)?
        .into_iter()
        .filter(|(number, entry)| is_marked(&entry.description) && !ours.contains(number))
        .map(|(number, _)| number)
        .collect())
}

/// The number of an entry that loads `loader` from `partition`: one that does so already
/// and exactly as it should, or a new one.
fn entry_for(
    vars: &Vars,
    description: &str,
    partition: &EspLocation,
    loader: &str,
    order: &[u16],
) -> Result<u16, Error> {
    let wanted = load_option::encode(description, partition, loader);
    let taken = vars.boot_entry_numbers()?;
    for (number, entry) in entries(vars)? {
        if !is_marked(&entry.description) || !entry.loads(partition.guid, loader) {
            continue;
        }
        // Same place, same file, ours: bring it up to date where it stands.
        vars.write(&entry_name(number), GLOBAL, NV_BS_RT, &wanted)?;
        return Ok(number);
    }
    // A number in BootOrder without an entry is left alone: some firmware hides entries.
    let number = (0..=u16::MAX)
        .find(|number| !taken.contains(number) && !order.contains(number))
        .ok_or(Error::NoFreeEntry)?;
    vars.write(&entry_name(number), GLOBAL, NV_BS_RT, &wanted)?;
    Ok(number)
}

/// Every boot entry that can be understood. What cannot is none of ours and stays.
fn entries(vars: &Vars) -> Result<Vec<(u16, LoadOption)>, Error> {
    let mut found = Vec::new();
    for number in vars.boot_entry_numbers()? {
        let name = entry_name(number);
        match vars.read(&name, GLOBAL) {
            Ok(None) => {}
            Ok(Some(variable)) => match LoadOption::parse(&variable.data) {
                Ok(entry) => found.push((number, entry)),
                Err(problem) => {
                    warn!("boot entry {name} is not understood and left alone: {problem}")
                }
            },
            Err(error) => warn!(%error, "boot entry {name} cannot be read and is left alone"),
        }
    }
    Ok(found)
}

fn entry_name(number: u16) -> String {
    format!("Boot{number:04X}")
}

fn description(os: &str) -> String {
    let name: String = os
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .take(MAX_NAME)
        .collect();
    format!("{MARK} {name}")
}

fn is_marked(description: &str) -> bool {
    description
        .strip_prefix(MARK)
        .is_some_and(|rest| rest.starts_with(' '))
}

fn set_order(vars: &Vars, order: &[u16]) -> Result<(), Error> {
    let bytes: Vec<u8> = order.iter().flat_map(|it| it.to_le_bytes()).collect();
    vars.write("BootOrder", GLOBAL, NV_BS_RT, &bytes)?;
    Ok(())
}

fn numbers(vars: &Vars, name: &str) -> Result<Vec<u16>, Error> {
    let Some(variable) = vars.read(name, GLOBAL)? else {
        return Ok(Vec::new());
    };
    if variable.data.len() % 2 != 0 {
        let problem = format!(
            "{} bytes are no list of 16-bit numbers",
            variable.data.len()
        );
        return Err(malformed(name, problem));
    }
    Ok(variable
        .data
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .collect())
}

fn malformed(name: &str, problem: String) -> Error {
    Error::Malformed {
        name: name.to_owned(),
        problem,
    }
}

#[cfg(test)]
mod tests;
