//! Whether the disks that a re-install is about to write are those of the install before.
//!
//! Kernel names change between boots: `/dev/sda` may be a data disk today. So an install
//! records what its disks say of themselves ([`RootDisks`]) before it writes to them, and a
//! re-install holds that against what it finds. Pure: who calls has looked at the disks.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use super::disks::Disk;
use super::eligible::{Reason, Sorted};
use super::md::ArrayId;

/// Most disks that a record may name.
const MAX_DISKS: usize = 64;

/// What a disk says of itself, in every boot the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Bytes.
    pub size: u64,
    /// Empty when the disk does not say.
    pub serial: String,
    /// Empty when the disk does not say.
    pub wwn: String,
}

impl Identity {
    /// What `disk` says.
    #[must_use]
    pub fn of(disk: &Disk) -> Self {
        Self {
            size: disk.size,
            serial: disk.serial.clone(),
            wwn: disk.wwn.clone(),
        }
    }

    /// QEMU's disks and the volumes of some RAID controllers say nothing; many have one size.
    fn is_blank(&self) -> bool {
        self.serial.is_empty() && self.wwn.is_empty()
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&*self.serial, &*self.wwn) {
            ("", "") => f.write_str("a disk without serial and WWN")?,
            (serial, "") => write!(f, "serial {serial}")?,
            ("", wwn) => write!(f, "WWN {wwn}")?,
            (serial, wwn) => write!(f, "serial {serial}, WWN {wwn}")?,
        }
        write!(f, ", {} MiB", self.size >> 20)
    }
}

/// The disks under `/` and `/boot/efi` of one allocation's install.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootDisks {
    pub allocation: Uuid,
    pub disks: Vec<Identity>,
}

impl RootDisks {
    #[must_use]
    pub fn new(allocation: Uuid, disks: &[Disk]) -> Self {
        Self {
            allocation,
            disks: disks.iter().map(Identity::of).collect(),
        }
    }

    /// The record as it is stored, one line of JSON.
    #[must_use]
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads a stored record.
    ///
    /// # Errors
    /// Why it makes no sense.
    pub fn parse(text: &str) -> Result<Self, String> {
        let record: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        match record.disks.len() {
            1..=MAX_DISKS => Ok(record),
            other => Err(format!("it names {other} disks, expected 1 to {MAX_DISKS}")),
        }
    }
}

/// What stands on a disk that may be written, as far as it tells whose it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// The journal's copy on one of its EFI system partitions names the allocation.
    pub names_allocation: bool,
    /// The arrays that the disk or its partitions are members of.
    pub arrays: Vec<ArrayId>,
}

/// Why the disks in scope are not, or cannot be told to be, those of the install before.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Error {
    #[error(
        "the OS of allocation {allocation} is on {device} ({what}), which is not the layout's root disk in this boot: kernel names have changed; nothing was written. Reset the machine to try again"
    )]
    Elsewhere {
        allocation: Uuid,
        device: String,
        what: String,
    },
    #[error(
        "the journal of allocation {allocation} is on {device}, which is not the layout's root disk in this boot: kernel names have changed, or somebody copied an EFI system partition there; nothing was written. Reset the machine to try again. If it is a mere copy, delete EFI/metal-anvil on that partition"
    )]
    CopyElsewhere { allocation: Uuid, device: String },
    #[error(
        "{disk} is not a disk that allocation {allocation} was installed to, which was {recorded}; nothing was written. Put that disk back, or free the machine and allocate it anew"
    )]
    Foreign {
        allocation: Uuid,
        disk: String,
        recorded: String,
    },
    #[error(
        "allocation {allocation} was installed to {missing} too, which the layout does not name in this boot; nothing was written. Put that disk back, or free the machine and allocate it anew"
    )]
    Missing { allocation: Uuid, missing: String },
    #[error(
        "{disk} cannot be told to be a disk of allocation {allocation}: {why}, and it carries neither the journal of that install on its EFI system partition nor a member of an array of its other disks; nothing was written. Free the machine and allocate it anew"
    )]
    Untold {
        allocation: Uuid,
        disk: String,
        why: &'static str,
    },
}

/// Proves that `scope` are the disks that `allocation` was installed to.
///
/// A disk whose serial or WWN nobody shares is told by those and its size, which the record
/// has to name. Any other is told by what the install left on it: the journal's copy, or a
/// member of an array that a proven disk is a member of as well. `contents` belongs to
/// `sorted.erasable`, one for each. Without a record, which older versions of this program
/// did not make, only contents count.
///
/// # Errors
/// A disk in scope that is foreign or cannot be told, one of the record that is not in scope,
/// and an install of this allocation on another disk.
pub fn prove(
    allocation: Uuid,
    record: Option<&RootDisks>,
    sorted: &Sorted,
    contents: &[Content],
    scope: &[Disk],
) -> Result<(), Error> {
    on_no_other_disk(allocation, record, sorted, contents, scope)?;
    let mut told = Vec::new();
    if let Some(record) = record {
        let mut left = record.disks.clone();
        for disk in scope {
            let identity = Identity::of(disk);
            let Some(at) = left.iter().position(|recorded| *recorded == identity) else {
                return Err(Error::Foreign {
                    allocation,
                    disk: disk.to_string(),
                    recorded: list(&record.disks),
                });
            };
            left.swap_remove(at);
            told.push(is_unique(&identity, sorted));
        }
        if !left.is_empty() {
            return Err(Error::Missing {
                allocation,
                missing: list(&left),
            });
        }
    }
    told.resize(scope.len(), false);
    let content_of = |disk: &Disk| {
        let mut pairs = sorted.erasable.iter().zip(contents);
        pairs
            .find(|(other, _)| other.dev == disk.dev)
            .map(|(_, it)| it)
    };
    let contents: Vec<Option<&Content>> = scope.iter().map(content_of).collect();
    for (told, content) in told.iter_mut().zip(&contents) {
        *told |= content.is_some_and(|content| content.names_allocation);
    }
    // An array reaches from disk to disk: at most one more of them is proven each time.
    for _ in 0..scope.len() {
        let proven: Vec<ArrayId> = contents
            .iter()
            .zip(&told)
            .filter(|(_, told)| **told)
            .flat_map(|(content, _)| content.iter().flat_map(|content| &content.arrays))
            .copied()
            .collect();
        for (told, content) in told.iter_mut().zip(&contents) {
            *told |= content.is_some_and(|it| it.arrays.iter().any(|id| proven.contains(id)));
        }
    }
    match scope.iter().zip(told).find(|(_, told)| !told) {
        None => Ok(()),
        Some((disk, _)) => Err(Error::Untold {
            allocation,
            disk: disk.to_string(),
            why: match record {
                None => "nothing is recorded of that install's disks",
                Some(_) if Identity::of(disk).is_blank() => "it has neither serial nor WWN",
                Some(_) => "another disk has the same size, serial and WWN",
            },
        }),
    }
}

/// Looks that no disk outside `scope` is one of the install.
///
/// # Errors
/// The one that is.
pub fn on_no_other_disk(
    allocation: Uuid,
    record: Option<&RootDisks>,
    sorted: &Sorted,
    contents: &[Content],
    scope: &[Disk],
) -> Result<(), Error> {
    let outside = |disk: &&Disk| scope.iter().all(|scoped| scoped.dev != disk.dev);
    let device = |disk: &Disk| disk.path.display().to_string();
    for (disk, content) in sorted.erasable.iter().zip(contents) {
        if content.names_allocation && outside(&disk) {
            return Err(Error::CopyElsewhere {
                allocation,
                device: device(disk),
            });
        }
    }
    let recorded = record.map_or(&[][..], |record| &record.disks);
    let moved = all_disks(sorted).filter(outside).find(|disk| {
        let identity = Identity::of(disk);
        is_unique(&identity, sorted) && recorded.contains(&identity)
    });
    match moved {
        Some(disk) => Err(Error::Elsewhere {
            allocation,
            device: device(disk),
            what: Identity::of(disk).to_string(),
        }),
        None => Ok(()),
    }
}

/// Whether it tells one disk of this machine from all others.
fn is_unique(identity: &Identity, sorted: &Sorted) -> bool {
    let same = all_disks(sorted).filter(|disk| Identity::of(disk) == *identity);
    !identity.is_blank() && same.count() == 1
}

/// Every disk once, whatever it is left alone for.
fn all_disks(sorted: &Sorted) -> impl Iterator<Item = &Disk> {
    let left_alone = sorted.left_alone.iter();
    let left_alone = left_alone.filter(|(_, reason)| !matches!(reason, Reason::SecondPath(_)));
    sorted
        .erasable
        .iter()
        .chain(left_alone.map(|(disk, _)| disk))
}

fn list(identities: &[Identity]) -> String {
    let texts: Vec<String> = identities.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::testing::disk;

    const U: Uuid = Uuid::from_u128(0x11);

    /// sda and sdb were installed to, sdc and sdd hold data.
    struct Case {
        record: Option<RootDisks>,
        sorted: Sorted,
        contents: Vec<Content>,
        scope: Vec<&'static str>,
    }

    fn case() -> Case {
        let erasable = ["sda", "sdb", "sdc", "sdd"].map(|name| disk(name, 100 << 30));
        Case {
            record: Some(RootDisks::new(U, &erasable[..2])),
            contents: vec![Content::default(); erasable.len()],
            sorted: Sorted {
                erasable: erasable.to_vec(),
                left_alone: Vec::new(),
            },
            scope: vec!["sda", "sdb"],
        }
    }

    impl Case {
        fn run(&self) -> Result<(), String> {
            let erasable = self.sorted.erasable.iter();
            let scope: Vec<Disk> = erasable
                .filter(|disk| self.scope.contains(&&*disk.name))
                .cloned()
                .collect();
            let record = self.record.as_ref();
            prove(U, record, &self.sorted, &self.contents, &scope).map_err(|e| e.to_string())
        }

        fn silence(&mut self, disks: &[usize]) {
            for &index in disks {
                self.sorted.erasable[index].serial.clear();
                self.sorted.erasable[index].wwn.clear();
            }
            self.record = Some(RootDisks::new(U, &self.sorted.erasable[..2]));
        }

        /// The journal's copy is on these disks.
        fn copies(&mut self, disks: &[usize]) {
            for &index in disks {
                self.contents[index].names_allocation = true;
            }
        }

        /// Members of these arrays are on the disks, in their order.
        fn arrays(&mut self, arrays: &[&[u8]]) {
            for (content, arrays) in self.contents.iter_mut().zip(arrays) {
                content.arrays = arrays.iter().map(|&array| [array; 16]).collect();
            }
        }

        /// The names of two disks change places.
        fn swap(&mut self, a: usize, b: usize) {
            let (one, other) = (Identity::of(self.disk(a)), Identity::of(self.disk(b)));
            for (index, identity) in [(a, other), (b, one)] {
                let disk = &mut self.sorted.erasable[index];
                (disk.size, disk.serial, disk.wwn) = (identity.size, identity.serial, identity.wwn);
            }
            self.contents.swap(a, b);
        }

        fn disk(&self, index: usize) -> &Disk {
            &self.sorted.erasable[index]
        }
    }

    #[test]
    fn what_is_proven_and_what_is_not() {
        type Change = fn(&mut Case);
        let table: [(&str, Change, Result<(), &str>); 24] = [
            ("as recorded", |_| {}, Ok(())),
            ("names swapped within the scope", |c| c.swap(0, 1), Ok(())),
            (
                "root and data swapped",
                |c| c.swap(0, 2),
                Err("is on /dev/sdc (serial SER-sda, WWN naa.sda"),
            ),
            (
                "the root disk is gone, a data disk has its name",
                |c| {
                    c.swap(0, 2);
                    c.sorted.erasable.remove(2);
                    c.contents.remove(2);
                },
                Err("/dev/sda (SATA TEST, serial SER-sdc, 102400 MiB) is not a disk that"),
            ),
            (
                "a new disk of another size",
                |c| c.sorted.erasable[0].size += 1,
                Err("is not a disk that"),
            ),
            (
                "another namespace of one drive",
                |c| c.sorted.erasable[0].wwn = "eui.2".into(),
                Err("is not a disk that"),
            ),
            (
                "the layout names fewer",
                |c| {
                    c.scope.pop();
                },
                Err("is on /dev/sdb"),
            ),
            (
                "the layout names fewer and the other is gone",
                |c| {
                    c.scope.pop();
                    c.sorted.erasable.remove(1);
                    c.contents.remove(1);
                },
                Err("was installed to serial SER-sdb, WWN naa.sdb, 102400 MiB too"),
            ),
            (
                "the layout names more",
                |c| c.scope.push("sdc"),
                Err("/dev/sdc (SATA TEST, serial SER-sdc, 102400 MiB) is not a disk that"),
            ),
            (
                "the journal's copy on a data disk",
                |c| c.copies(&[3]),
                Err(
                    "on /dev/sdd, which is not the layout's root disk in this boot: kernel names have changed, or somebody copied an EFI system partition there; nothing was written. Reset the machine to try again. If it is a mere copy, delete EFI/metal-anvil on that partition",
                ),
            ),
            (
                "a recorded disk that must not be written now",
                |c| {
                    c.swap(0, 2);
                    let moved = c.sorted.erasable.remove(2);
                    c.contents.remove(2);
                    c.sorted.left_alone.push((moved, Reason::ReadOnly));
                },
                Err("is on /dev/sdc"),
            ),
            (
                "a second path is no second disk",
                |c| {
                    let mut path = c.disk(0).clone();
                    path.dev.minor = 200;
                    let reason = Reason::SecondPath("sda".into());
                    c.sorted.left_alone.push((path, reason));
                },
                Ok(()),
            ),
            (
                "disks that say nothing, and nothing is on them",
                |c| c.silence(&[0, 1, 2, 3]),
                Err(
                    "/dev/sda (SATA TEST, 102400 MiB) cannot be told to be a disk of allocation 00000000-0000-0000-0000-000000000011: it has neither",
                ),
            ),
            (
                "one that says nothing, though it is the only such one",
                |c| c.silence(&[1]),
                Err("/dev/sdb"),
            ),
            (
                "disks that say nothing and carry copies",
                |c| {
                    c.silence(&[0, 1, 2, 3]);
                    c.copies(&[0, 1]);
                },
                Ok(()),
            ),
            (
                "one carries the copy, the other a member of its array",
                |c| {
                    c.silence(&[0, 1, 2, 3]);
                    c.copies(&[0]);
                    c.arrays(&[&[7, 8], &[8]]);
                },
                Ok(()),
            ),
            (
                "a member of another array",
                |c| {
                    c.silence(&[0, 1, 2, 3]);
                    c.copies(&[0]);
                    c.arrays(&[&[7], &[9]]);
                },
                Err("/dev/sdb"),
            ),
            (
                "an array of disks of which none is proven",
                |c| {
                    c.silence(&[0, 1, 2, 3]);
                    c.arrays(&[&[7], &[7]]);
                },
                Err("/dev/sda"),
            ),
            (
                "silent disks swapped, the copy shows it",
                |c| {
                    c.silence(&[0, 1, 2, 3]);
                    c.copies(&[0]);
                    c.swap(0, 2);
                },
                Err("is on /dev/sdc, "),
            ),
            (
                "a serial that two disks share",
                |c| {
                    let shared = Identity {
                        wwn: String::new(),
                        ..Identity::of(c.disk(0))
                    };
                    for index in [0, 2] {
                        c.sorted.erasable[index].serial = shared.serial.clone();
                        c.sorted.erasable[index].wwn = String::new();
                    }
                    c.record = Some(RootDisks::new(U, &c.sorted.erasable[..2]));
                },
                Err("another disk has the same"),
            ),
            (
                "no record, and nothing on the disks",
                |c| c.record = None,
                Err("nothing is recorded"),
            ),
            (
                "no record, but the copy on one only",
                |c| {
                    c.record = None;
                    c.copies(&[0]);
                },
                Err("/dev/sdb"),
            ),
            (
                "no record, and the copy on both",
                |c| {
                    c.record = None;
                    c.copies(&[0, 1]);
                },
                Ok(()),
            ),
            (
                "no record, one copy and an array",
                |c| {
                    c.record = None;
                    c.copies(&[0]);
                    c.arrays(&[&[7], &[7]]);
                },
                Ok(()),
            ),
        ];
        for (name, change, expected) in table {
            let mut case = case();
            change(&mut case);
            let found = case.run();
            match expected {
                Ok(()) => assert_eq!(found, Ok(()), "{name}"),
                Err(words) => {
                    let error = found.expect_err(name);
                    assert!(error.contains(words), "{name}: {error}");
                    assert!(error.contains("nothing was written"), "{name}: {error}");
                }
            }
        }
    }

    #[test]
    fn an_array_is_followed_from_disk_to_disk() {
        let mut case = case();
        case.silence(&[0, 1, 2, 3]);
        case.scope = vec!["sda", "sdb", "sdc", "sdd"];
        case.record = None;
        case.copies(&[3]);
        case.arrays(&[&[1], &[1, 2], &[2, 3], &[3]]);
        assert_eq!(case.run(), Ok(()));
    }

    #[test]
    fn a_record_survives_its_text() {
        let mut odd = disk("sda", 7);
        odd.serial = "a \"b\" \\ é".into();
        let record = RootDisks::new(U, &[odd, disk("sdb", u64::MAX)]);
        assert_eq!(RootDisks::parse(&record.to_text()), Ok(record));
        let many = RootDisks::new(U, &vec![disk("sda", 1); MAX_DISKS + 1]);
        for wrong in [
            "",
            "{}",
            "[]",
            "installed x",
            r#"{"allocation":"x","disks":[]}"#,
            &RootDisks::new(U, &[]).to_text(),
            &many.to_text(),
        ] {
            assert!(RootDisks::parse(wrong).is_err(), "{wrong:.60}");
        }
    }
}
