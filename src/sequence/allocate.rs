//! Registered -> Allocated: what may be erased is decided, done, and an allocation is there.

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use tokio::task::block_in_place;

use super::class::NoDisk;
use super::failure::{During, Failure, Step};
use super::register::Registered;
use super::{boot_disk, come_back, silence};
use crate::control::api::{Allocation, EventType};
use crate::decide::{
    Age, Answer, Decision, Journal, WipeScope, decide, silence_that_proves_no_allocation,
};
use crate::efi::gpt::Partition;
use crate::efi::{esp, journal};
use crate::init::power;
use crate::report::steps;
use crate::storage::eligible::{self, Exclusions, Reason, Sorted};
use crate::storage::scope::ScopedDisks;
use crate::storage::wipe;
use crate::storage::wipe_policy::{Occasion, OnFailure, depth};
use crate::storage::{disks, reservation, scope};
use crate::watchdog::Progress;

/// How often a machine that holds looks whether something has changed.
const HOLD: Duration = Duration::from_secs(60);

/// A machine with an allocation, and the right to write it to its disks.
pub struct Allocated {
    pub(super) registered: Registered,
    pub(super) allocation: Allocation,
    pub(super) scope: WipeScope,
    /// Whether the scope's disks still hold what was there before.
    pub(super) disks_are_empty: bool,
    /// A finished install of this very allocation stands on the disk.
    pub(super) reinstall: bool,
    /// The journal names this very allocation, so its disks can be told, and have to be.
    pub(super) is_known: bool,
}

impl Registered {
    /// Decides what may be erased (contracts.md §9), erases it, and waits for an allocation.
    ///
    /// # Errors
    /// The control plane cannot be asked, the journal cannot be read or written, or a disk
    /// could not be wiped.
    pub(super) async fn allocate(self, progress: Progress) -> Result<Allocated, Failure> {
        progress.begin(silence::START);
        let (read, is_copy) = self.read_journal()?;
        tracing::info!("install journal: {read}");
        let mut reported_hold = false;
        loop {
            let standing = progress.endless(self.ask(&read)).await?;
            progress.begin(silence::START);
            let journal = if is_copy {
                journal::for_standing(&read, standing.as_ref().map(|it| it.uuid))
            } else {
                read.clone()
            };
            if journal != read {
                tracing::warn!(
                    "the copy of the install journal does not name the allocation that stands: it does not count"
                );
            }
            let answer = self.answer(standing.as_ref());
            let adopt = self.authorized.settings.policy.adopt.unwrap_or_default();
            let decision = decide(&journal, answer, adopt);
            tracing::info!("decision: {decision}");
            match (decision, standing) {
                (Decision::WipeAndInstall(scope), Some(allocation)) => {
                    let (reinstall, is_known) = match journal {
                        Journal::Installed { allocation: its } => (true, its == allocation.uuid),
                        Journal::Installing {
                            allocation: its, ..
                        } => (false, its == allocation.uuid),
                        Journal::None | Journal::Wiped => (false, false),
                    };
                    return Ok(Allocated {
                        reinstall: reinstall && is_known,
                        is_known,
                        ..self.allocated(allocation, scope, false)
                    });
                }
                (Decision::Install(scope), Some(allocation)) => {
                    self.check(&scope, &progress)?;
                    return Ok(self.allocated(allocation, scope, true));
                }
                (Decision::WipeAndWait(scope), _) => {
                    let disks = self.in_scope(&scope)?;
                    self.wipe(&disks, &progress)?;
                    return self.wait(&progress).await;
                }
                (Decision::CheckAndWait(scope), _) => {
                    self.check(&scope, &progress)?;
                    return self.wait(&progress).await;
                }
                (Decision::BootDisk, _) => {
                    match boot_disk::boot(&self.authorized, &progress).await? {}
                }
                (Decision::Hold, _) => {
                    progress.endless(self.hold(&mut reported_hold)).await;
                    steps::again();
                }
                (Decision::WipeAndInstall(_) | Decision::Install(_), None) => {
                    let why = "an install was decided without an allocation; this is a defect of the agent";
                    return Err(Failure::new(Step::Allocation, why));
                }
            }
        }
    }

    /// To be installed on a machine that nothing is known of.
    fn allocated(
        self,
        allocation: Allocation,
        scope: WipeScope,
        disks_are_empty: bool,
    ) -> Allocated {
        Allocated {
            registered: self,
            allocation,
            scope,
            disks_are_empty,
            reinstall: false,
            is_known: false,
        }
    }

    /// The journal, and whether it is only the copy on a disk. A stick or a fabric disk says
    /// nothing of this machine: copies count on disks that it may erase.
    fn read_journal(&self) -> Result<(Journal, bool), Failure> {
        let efi = &self.authorized.connected.booted.efi;
        if journal::is_present(efi).during(Step::Allocation)? {
            let journal = journal::read(efi, None).during(Step::Allocation)?;
            return Ok((journal, false));
        }
        let disks = self.sorted_disks()?.erasable;
        let disks: Vec<_> = disks.into_iter().map(|disk| disk.path).collect();
        let esps: Vec<_> = esp::esps_of(&disks).iter().map(Partition::device).collect();
        let copies = journal::esp_copies(&esps, Path::new(super::ESP_MOUNT));
        let journal = journal::read(efi, journal::agreed(&copies)).during(Step::Allocation)?;
        Ok((journal, true))
    }

    /// Whether the machine has an allocation: `None` only after a silence that proves it.
    async fn ask(&self, journal: &Journal) -> Result<Option<Allocation>, Failure> {
        let (silence, waits) = silence_that_proves_no_allocation(journal);
        steps::begin(Step::Allocation);
        let seconds = silence.as_secs();
        let what = format!("asking for an allocation; {seconds} s of silence mean none");
        steps::doing(what, None);
        self.authorized.probe(silence, waits).await
    }

    fn answer(&self, allocation: Option<&Allocation>) -> Answer {
        let Some(allocation) = allocation else {
            return Answer::NoAllocation;
        };
        let order = self.authorized.settings.order.as_ref();
        Answer::Allocation {
            uuid: allocation.uuid,
            age: Age::of(allocation.created_at, self.at),
            ordered: allocation.reinstall
                || order.is_some_and(|order| order.value == allocation.uuid),
        }
    }

    /// Says that a standing allocation meets a machine without a journal, then pauses.
    async fn hold(&self, reported: &mut bool) {
        let why = "this machine has an allocation but no install journal, so its disks may be in use; \
                   nothing was written. Order the install with machine.allocation in metal.config, set policy.adopt, \
                   or free the machine";
        steps::hold(why);
        if !*reported {
            match self
                .authorized
                .apiserver
                .send_event(EventType::Crashed, &format!("holding: {why}"))
                .await
            {
                Ok(()) => *reported = true,
                Err(error) => tracing::warn!("cannot report that the machine holds: {error}"),
            }
        }
        tokio::time::sleep(HOLD).await;
    }

    /// The machine's disks, sorted into those that may be touched and those that may not.
    pub(super) fn sorted_disks(&self) -> Result<Sorted, Failure> {
        let disks = disks::discover(Path::new("/sys")).during(Step::Wipe)?;
        let excluded = &self.authorized.settings.policy.exclude_disks;
        let exclusions = Exclusions::new(excluded).during(Step::Wipe)?;
        let medium = &self.authorized.connected.booted.medium;
        let sorted = eligible::erasable(disks, medium.iter().map(String::as_str), &exclusions);
        let held = block_in_place(|| reservation::held(&sorted.erasable));
        let sorted = sorted.without_reserved(&held);
        for (disk, reason) in &sorted.left_alone {
            let path = disk.path.display();
            match reason {
                // It may well be this machine's own, reserved by the OS that ran here.
                Reason::Reserved => tracing::error!("{path} is left alone and NOT WIPED: {reason}"),
                _ => tracing::info!("{path} is left alone: {reason}"),
            }
        }
        Ok(sorted)
    }

    fn in_scope(&self, scope: &WipeScope) -> Result<ScopedDisks, Failure> {
        let disks = scope::disks_in_scope(scope, &self.sorted_disks()?, None).during(Step::Wipe)?;
        if disks.disks().is_empty() {
            return Err(NoDisk).during(Step::Wipe);
        }
        Ok(disks)
    }

    fn wipe(&self, disks: &ScopedDisks, progress: &Progress) -> Result<(), Failure> {
        let efi = &self.authorized.connected.booted.efi;
        come_back(efi);
        block_in_place(|| self.wipe_disks(disks, Occasion::ChangeOfHands, progress))?;
        journal::write(efi, &Journal::Wiped).during(Step::Wipe)
    }

    /// Wipes as thoroughly as policy wants, and reports on each disk. A disk that could not be
    /// wiped ends the boot, unless policy goes on without it.
    pub(super) fn wipe_disks(
        &self,
        disks: &ScopedDisks,
        occasion: Occasion,
        progress: &Progress,
    ) -> Result<(), Failure> {
        steps::begin(Step::Wipe);
        steps::doing(format!("wiping {} disks", disks.disks().len()), None);
        let policy = &self.authorized.settings.policy;
        let result = wipe::wipe(disks, depth(policy.wipe, occasion), progress);
        let (wiped, error) = match result {
            Ok(wiped) => (wiped, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        for disk in error.iter().flat_map(|error| &error.wiped).chain(&wiped) {
            tracing::info!("{disk}");
        }
        match (error, policy.wipe_failures.unwrap_or_default()) {
            (Some(error), OnFailure::Report) => {
                tracing::error!("{error}; policy.wipe_failures says to go on");
                Ok(())
            }
            (Some(error), OnFailure::Block) => Err(error).during(Step::Wipe),
            (None, _) => Ok(()),
        }
    }

    /// Disks that an earlier boot wiped are looked at. Those that carry something are wiped
    /// again, and those that cannot be read: a wipe unlocks a drive whose erase was cut.
    fn check(&self, scope: &WipeScope, progress: &Progress) -> Result<(), Failure> {
        steps::begin(Step::Wipe);
        progress.begin(silence::FLUSH);
        let disks = self.in_scope(scope)?;
        let dirty = block_in_place(|| wipe::not_known_empty(&disks));
        if dirty.disks().is_empty() {
            tracing::info!("{} disks are still empty", disks.disks().len());
            return Ok(());
        }
        // A wipe that is cut, or fails, takes away what shows that the disk is not empty.
        let efi = &self.authorized.connected.booted.efi;
        journal::write(efi, &Journal::NOT_WIPED).during(Step::Wipe)?;
        self.wipe(&dirty, progress)
    }

    /// Waits for an allocation, for as long as it takes or until the planned reboot.
    async fn wait(self, progress: &Progress) -> Result<Allocated, Failure> {
        steps::begin(Step::Wait);
        progress.begin(silence::calls(&self.authorized.settings.policy));
        self.authorized
            .send_event(EventType::Waiting, "", Step::Allocation)
            .await?;
        steps::doing("waiting for an allocation", None);
        self.authorized.connected.booted.lifeline.succeeded();
        // An idle machine reboots, so that new agents and firmware settings reach it; at a random
        // time, so that a fleet does not reboot at once.
        let wait = self.authorized.settings.policy.wait();
        let patience = wait + wait.mul_f64(rand::random());
        let Ok(allocation) = progress
            .endless(tokio::time::timeout(
                patience,
                self.authorized.wait_for_allocation(),
            ))
            .await
        else {
            progress.begin(silence::calls(&self.authorized.settings.policy));
            match self.planned_reboot().await {}
        };
        let allocation = allocation?;
        match decide(
            &Journal::Wiped,
            self.answer(Some(&allocation)),
            Default::default(),
        ) {
            Decision::Install(scope) => {
                // Disks may have come since they were looked at: a wait takes days.
                self.check(&scope, progress)?;
                Ok(self.allocated(allocation, scope, true))
            }
            other => {
                let why = format!(
                    "wiped disks and an allocation lead to {other}; this is a defect of the agent"
                );
                Err(Failure::new(Step::Allocation, why))
            }
        }
    }

    async fn planned_reboot(&self) -> Infallible {
        tracing::info!("no allocation for a day and more: planned reboot");
        let event = self
            .authorized
            .apiserver
            .send_event(EventType::PlannedReboot, "");
        if let Err(error) = event.await {
            tracing::warn!("cannot announce the planned reboot: {error}");
        }
        come_back(&self.authorized.connected.booted.efi);
        power::reboot_now()
    }
}
