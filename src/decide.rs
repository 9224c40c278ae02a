//! What may be erased (contracts.md §9).
//!
//! The control plane knows neither "not allocated" nor "re-install": it answers with
//! silence or with an allocation. Three very different machines look alike to it: a first
//! install cut by power, a re-install, and a production machine that booted the medium by
//! accident. The install journal tells them apart, and [`decide`] is the one place where
//! journal and answer meet. A [`WipeScope`] is made nowhere else, and nothing that writes
//! to a disk can be called without one.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use thiserror::Error;
use uuid::Uuid;

/// How much of the machine a wipe or an install may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Every disk that is neither boot medium, removable, read-only, shared nor excluded.
    EveryDisk,
    /// Only the disk or disks that carry the layout's `/` and `/boot/efi`.
    RootDisks,
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EveryDisk => "machine",
            Self::RootDisks => "root",
        })
    }
}

/// The right to write to disks, no further than its extent. Only [`decide`] makes one.
#[derive(Debug, PartialEq, Eq)]
pub struct WipeScope {
    extent: Extent,
}

impl WipeScope {
    /// How far the right goes.
    #[must_use]
    pub fn extent(&self) -> Extent {
        self.extent
    }
}

/// The install journal: the only state the agent leaves on a machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Journal {
    /// Nothing was ever written, or it was lost with the NVRAM.
    #[default]
    None,
    /// Every disk was wiped and nothing was installed since.
    Wiped,
    /// An install has begun.
    Installing { allocation: Uuid, extent: Extent },
    /// An install was finished and verified.
    Installed { allocation: Uuid },
}

/// A journal text that says none of the three things a journal can say.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "the install journal reads {0:?}; expected `wiped`, `installing <allocation> <machine|root>` or `installed <allocation>`"
)]
pub struct JournalTextError(String);

impl Journal {
    /// What stands while disks that were wiped once are wiped again: an install of nobody's. Whatever
    /// the control plane answers to it, every disk is wiped before anything else happens.
    pub const NOT_WIPED: Self = Self::Installing {
        allocation: Uuid::nil(),
        extent: Extent::EveryDisk,
    };
}

impl fmt::Display for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Wiped => f.write_str("wiped"),
            Self::Installing { allocation, extent } => {
                write!(f, "installing {allocation} {extent}")
            }
            Self::Installed { allocation } => write!(f, "installed {allocation}"),
        }
    }
}

impl FromStr for Journal {
    type Err = JournalTextError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || JournalTextError(text.chars().take(80).collect());
        let uuid = |word: &str| Uuid::try_parse(word).map_err(|_| wrong());
        match text.split_whitespace().collect::<Vec<_>>()[..] {
            ["wiped"] => Ok(Self::Wiped),
            ["installing", allocation, "machine"] => Ok(Self::Installing {
                allocation: uuid(allocation)?,
                extent: Extent::EveryDisk,
            }),
            ["installing", allocation, "root"] => Ok(Self::Installing {
                allocation: uuid(allocation)?,
                extent: Extent::RootDisks,
            }),
            ["installed", allocation] => Ok(Self::Installed {
                allocation: uuid(allocation)?,
            }),
            _ => Err(wrong()),
        }
    }
}

/// Whether an allocation was there before this boot asked for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Age {
    /// Made after the machine registered in this boot.
    Fresh,
    /// Made before that, or the server does not say when.
    Standing,
}

impl Age {
    /// Standing when `created_at` is not later than the server's clock at Register, or when
    /// either is missing.
    #[must_use]
    pub fn of(created_at: Option<Timestamp>, registered_at: Option<Timestamp>) -> Self {
        match (created_at, registered_at) {
            (Some(created_at), Some(registered_at)) if created_at > registered_at => Self::Fresh,
            _ => Self::Standing,
        }
    }
}

/// What the control plane answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// `Wait` stayed silent for [`silence_that_proves_no_allocation`] while an event was answered.
    NoAllocation,
    /// `Wait` sent an allocation.
    Allocation {
        uuid: Uuid,
        age: Age,
        /// Somebody explicitly asked for this very allocation to be installed (again).
        ordered: bool,
    },
}

/// What to do with an allocation that stood before a machine without a journal booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Adopt {
    /// Report it, write nothing, ask again later.
    #[default]
    Hold,
    /// Boot what the disk holds.
    BootDisk,
    /// Wipe every disk and install.
    Wipe,
}

/// What this boot may and must do. Each variant that writes carries its scope.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// Wipe every disk, say `wiped` in the journal, wait for an allocation.
    WipeAndWait(WipeScope),
    /// The disks were wiped by an earlier boot: check quickly that they still are, wait.
    CheckAndWait(WipeScope),
    /// Wipe what the scope names, then install.
    WipeAndInstall(WipeScope),
    /// The disks are empty already: install.
    Install(WipeScope),
    /// Write nothing and boot the disk.
    BootDisk,
    /// Write nothing, report why, ask again later.
    Hold,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |scope: &WipeScope| match scope.extent {
            Extent::EveryDisk => "every disk",
            Extent::RootDisks => "the root disks only",
        };
        match self {
            Self::WipeAndWait(scope) => write!(f, "wipe {}, then wait", of(scope)),
            Self::CheckAndWait(_) => f.write_str("check that the wiped disks still are, then wait"),
            Self::WipeAndInstall(scope) => write!(f, "wipe and install {}", of(scope)),
            Self::Install(_) => f.write_str("install to the wiped disks"),
            Self::BootDisk => f.write_str("write nothing and boot the disk"),
            Self::Hold => f.write_str("write nothing and hold"),
        }
    }
}

/// The decision table of contracts.md §9. Pure: no disk, no clock, no network.
///
/// Two cells are not in that table and are filled with the narrower right: an allocation
/// that the journal names is treated as standing whatever its date says, and an explicit
/// order on a machine without a journal installs to the root disks only.
#[must_use]
pub fn decide(journal: &Journal, answer: Answer, adopt: Adopt) -> Decision {
    let every = || WipeScope {
        extent: Extent::EveryDisk,
    };
    let root = || WipeScope {
        extent: Extent::RootDisks,
    };
    let Answer::Allocation { uuid, age, ordered } = answer else {
        return match journal {
            Journal::Wiped => Decision::CheckAndWait(every()),
            Journal::None | Journal::Installing { .. } | Journal::Installed { .. } => {
                Decision::WipeAndWait(every())
            }
        };
    };
    match journal {
        Journal::None => match (age, ordered, adopt) {
            (Age::Fresh, _, _) | (Age::Standing, false, Adopt::Wipe) => {
                Decision::WipeAndInstall(every())
            }
            (Age::Standing, true, _) => Decision::WipeAndInstall(root()),
            (Age::Standing, false, Adopt::Hold) => Decision::Hold,
            (Age::Standing, false, Adopt::BootDisk) => Decision::BootDisk,
        },
        Journal::Wiped => Decision::Install(every()),
        Journal::Installing { allocation, extent } if *allocation == uuid => {
            Decision::WipeAndInstall(WipeScope { extent: *extent })
        }
        Journal::Installed { allocation } if *allocation == uuid => {
            if ordered {
                Decision::WipeAndInstall(root())
            } else {
                Decision::BootDisk
            }
        }
        Journal::Installing { .. } | Journal::Installed { .. } => Decision::WipeAndInstall(every()),
    }
}

/// How long `Wait` must stay silent, and over how many Waits, before silence means
/// "no allocation". A machine that was installed gets the benefit of the doubt.
#[must_use]
pub fn silence_that_proves_no_allocation(journal: &Journal) -> (Duration, u32) {
    match journal {
        Journal::Installed { .. } => (Duration::from_secs(120), 2),
        _ => (Duration::from_secs(10), 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const U: Uuid = Uuid::from_u128(0x11);
    const OTHER: Uuid = Uuid::from_u128(0x22);

    fn allocation(uuid: Uuid, age: Age, ordered: bool) -> Answer {
        Answer::Allocation { uuid, age, ordered }
    }

    fn every() -> WipeScope {
        WipeScope {
            extent: Extent::EveryDisk,
        }
    }

    fn root() -> WipeScope {
        WipeScope {
            extent: Extent::RootDisks,
        }
    }

    #[test]
    fn every_cell_of_the_table() {
        use Adopt::{BootDisk as AdoptBootDisk, Hold as AdoptHold, Wipe as AdoptWipe};
        use Age::{Fresh, Standing};
        use Decision::{BootDisk, CheckAndWait, Hold, Install, WipeAndInstall, WipeAndWait};
        let none = Journal::None;
        let wiped = Journal::Wiped;
        let cut = |extent| Journal::Installing {
            allocation: U,
            extent,
        };
        let cut_machine = cut(Extent::EveryDisk);
        let cut_root = cut(Extent::RootDisks);
        let installed = Journal::Installed { allocation: U };
        let silence = Answer::NoAllocation;
        let table = [
            // journal, answer, adopt policy, decision
            (&none, silence, AdoptHold, WipeAndWait(every())),
            (
                &none,
                allocation(U, Fresh, false),
                AdoptHold,
                WipeAndInstall(every()),
            ),
            (
                &none,
                allocation(U, Fresh, true),
                AdoptHold,
                WipeAndInstall(every()),
            ),
            (&none, allocation(U, Standing, false), AdoptHold, Hold),
            (
                &none,
                allocation(U, Standing, false),
                AdoptBootDisk,
                BootDisk,
            ),
            (
                &none,
                allocation(U, Standing, false),
                AdoptWipe,
                WipeAndInstall(every()),
            ),
            (
                &none,
                allocation(U, Standing, true),
                AdoptHold,
                WipeAndInstall(root()),
            ),
            (&wiped, silence, AdoptHold, CheckAndWait(every())),
            (
                &wiped,
                allocation(U, Fresh, false),
                AdoptHold,
                Install(every()),
            ),
            (
                &wiped,
                allocation(U, Standing, false),
                AdoptHold,
                Install(every()),
            ),
            (&cut_machine, silence, AdoptHold, WipeAndWait(every())),
            (&cut_root, silence, AdoptHold, WipeAndWait(every())),
            (
                &cut_machine,
                allocation(OTHER, Fresh, false),
                AdoptHold,
                WipeAndInstall(every()),
            ),
            (
                &cut_root,
                allocation(OTHER, Fresh, false),
                AdoptHold,
                WipeAndInstall(every()),
            ),
            (
                &cut_machine,
                allocation(U, Standing, false),
                AdoptHold,
                WipeAndInstall(every()),
            ),
            (
                &cut_root,
                allocation(U, Standing, false),
                AdoptHold,
                WipeAndInstall(root()),
            ),
            (
                &cut_root,
                allocation(U, Fresh, false),
                AdoptHold,
                WipeAndInstall(root()),
            ),
            (
                &cut_root,
                allocation(OTHER, Standing, false),
                AdoptHold,
                WipeAndInstall(every()),
            ),
            (&installed, silence, AdoptHold, WipeAndWait(every())),
            (
                &installed,
                allocation(OTHER, Fresh, false),
                AdoptHold,
                WipeAndInstall(every()),
            ),
            (
                &installed,
                allocation(OTHER, Standing, false),
                AdoptHold,
                WipeAndInstall(every()),
            ),
            (
                &installed,
                allocation(U, Standing, true),
                AdoptHold,
                WipeAndInstall(root()),
            ),
            (
                &installed,
                allocation(U, Standing, false),
                AdoptHold,
                BootDisk,
            ),
            (
                &installed,
                allocation(U, Standing, false),
                AdoptWipe,
                BootDisk,
            ),
            (&installed, allocation(U, Fresh, false), AdoptWipe, BootDisk),
        ];
        for (journal, answer, adopt, expected) in table {
            let decision = decide(journal, answer, adopt);
            assert_eq!(
                decision, expected,
                "journal `{journal}`, {answer:?}, {adopt:?}"
            );
        }
    }

    #[test]
    fn the_journal_survives_its_text() {
        let extent = Extent::RootDisks;
        for journal in [
            Journal::Wiped,
            Journal::Installing {
                allocation: U,
                extent,
            },
            Journal::Installing {
                allocation: U,
                extent: Extent::EveryDisk,
            },
            Journal::Installed { allocation: U },
            Journal::NOT_WIPED,
        ] {
            assert_eq!(journal.to_string().parse(), Ok(journal));
        }
        for wrong in [
            "",
            "wipe",
            "installed",
            "installed x",
            "installing 11 root",
            "installed \u{0}",
        ] {
            assert!(wrong.parse::<Journal>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_wipe_that_was_cut_is_begun_again_whoever_gets_the_machine() {
        for adopt in [Adopt::Hold, Adopt::BootDisk, Adopt::Wipe] {
            let decided = |answer| decide(&Journal::NOT_WIPED, answer, adopt);
            assert_eq!(
                decided(Answer::NoAllocation),
                Decision::WipeAndWait(every())
            );
            for uuid in [U, Uuid::nil()] {
                for age in [Age::Fresh, Age::Standing] {
                    let answer = allocation(uuid, age, false);
                    assert_eq!(decided(answer), Decision::WipeAndInstall(every()));
                }
            }
        }
    }

    #[test]
    fn an_allocation_without_a_date_is_standing() {
        let registered: Option<Timestamp> = "2026-11-22T08:00:00Z".parse().ok();
        let later: Option<Timestamp> = "2026-11-22T08:00:01Z".parse().ok();
        assert!(registered.is_some() && later.is_some());
        assert_eq!(Age::of(None, registered), Age::Standing);
        assert_eq!(Age::of(registered, registered), Age::Standing);
        assert_eq!(Age::of(later, registered), Age::Fresh);
        assert_eq!(Age::of(later, None), Age::Standing);
    }

    #[test]
    fn an_installed_machine_is_given_longer() {
        let installed = Journal::Installed { allocation: U };
        assert_eq!(
            silence_that_proves_no_allocation(&installed),
            (Duration::from_secs(120), 2)
        );
        assert_eq!(
            silence_that_proves_no_allocation(&Journal::None),
            (Duration::from_secs(10), 1)
        );
    }
}
