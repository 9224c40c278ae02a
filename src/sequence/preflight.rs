//! What can be known before the first write: whether the layout fits this machine's disks,
//! and whether the image is there. A bad order then costs nothing.

use std::path::Path;

use uuid::Uuid;

use super::allocate::Allocated;
use super::failure::{During, Failure, Step};
use crate::control::api::Format;
use crate::decide::{Extent, Journal};
use crate::efi::gpt::Partition;
use crate::efi::{esp, journal};
use crate::image::{self, ImageSource};
use crate::report::steps;
use crate::storage::disks::Disk;
use crate::storage::eligible::Sorted;
use crate::storage::plan::{self, Plan, PlannedFilesystem};
use crate::storage::scope::{self, ScopedDisks};

/// An install that fits.
pub(super) struct Checked {
    pub plan: Plan,
    /// The disks that are wiped and written.
    pub disks: ScopedDisks,
    pub image: ImageSource,
}

impl Allocated {
    /// Plans the install and looks whether the image and its checksum are there.
    ///
    /// # Errors
    /// The layout does not fit the disks, or the image cannot be had. Nothing was written.
    pub(super) async fn check(&self) -> Result<Checked, Failure> {
        steps::begin(Step::Preflight);
        let layout = self.allocation.layout.as_ref().map_err(|error| {
            let why = format!("the allocation's filesystemLayout cannot be understood: {error}");
            Failure::new(Step::Preflight, why)
        })?;
        let sorted = self.registered.sorted_disks()?;
        let disks =
            scope::disks_in_scope(&self.scope, &sorted, Some(layout)).during(Step::Preflight)?;
        self.check_identity(&sorted, &disks)?;
        let plan = plan::plan(layout, &sorted, &disks).during(Step::Preflight)?;
        for line in plan.to_string().lines() {
            tracing::info!("plan: {line}");
        }
        for warning in plan.warnings() {
            tracing::warn!("plan: {warning}");
        }
        let esp = |filesystem: &PlannedFilesystem| {
            filesystem.path == "/boot/efi" && filesystem.format == Format::Vfat
        };
        if !plan.filesystems().iter().any(esp) {
            let why = format!(
                "layout {:?} has no EFI system partition, so the firmware could never boot this machine; \
                 expected a GPT_TYPE_BOOT partition with vfat at /boot/efi",
                layout.id
            );
            return Err(Failure::new(Step::Preflight, why));
        }
        let url = self.allocation.image.url.parse().map_err(|error| {
            // The text stays out: a URL may hold credentials.
            let why = format!("the allocation's image URL cannot be understood: {error}");
            Failure::new(Step::Preflight, why)
        })?;
        let settings = &self.registered.authorized.settings;
        let image = ImageSource {
            url,
            cache: settings.image_cache.clone(),
            without_checksum: settings.policy.image_without_checksum == Some(true),
            limit: settings.policy.image_limit(),
        };
        image::probe(&self.registered.authorized.downloads, &image)
            .await
            .during(Step::Preflight)?;
        Ok(Checked { plan, disks, image })
    }

    /// Makes sure that an install to the root disks alone hits the disk of the install
    /// before: kernel names change between boots, and `/dev/sda` may be a data disk today.
    fn check_identity(&self, sorted: &Sorted, disks: &ScopedDisks) -> Result<(), Failure> {
        if self.scope.extent() == Extent::EveryDisk {
            return Ok(());
        }
        let uuid = self.allocation.uuid;
        let holders: Vec<&Disk> = sorted
            .erasable
            .iter()
            .filter(|disk| holds_install_of(disk, uuid))
            .collect();
        if let Some(other) = holders.iter().find(|disk| !disks.contains(disk)) {
            let why = format!(
                "the OS of allocation {uuid} is on {}, which is not the layout's root disk in this boot: \
                 kernel names have changed; nothing was written",
                other.path.display()
            );
            return Err(Failure::new(Step::Preflight, why));
        }
        if self.reinstall && holders.is_empty() {
            let why = format!(
                "no disk carries the journal of allocation {uuid} on its EFI system partition, so the layout's \
                 root disk cannot be told for sure; nothing was written. Free the machine and allocate it anew"
            );
            return Err(Failure::new(Step::Preflight, why));
        }
        Ok(())
    }
}

/// Whether the journal's copy on a disk names this allocation.
fn holds_install_of(disk: &Disk, uuid: Uuid) -> bool {
    let esps: Vec<_> = esp::esps_of(std::slice::from_ref(&disk.path))
        .iter()
        .map(Partition::device)
        .collect();
    journal::esp_copies(&esps, Path::new(super::ESP_MOUNT))
        .iter()
        .any(|copy| match copy.text.parse() {
            Ok(Journal::Installing { allocation, .. } | Journal::Installed { allocation }) => {
                allocation == uuid
            }
            Ok(Journal::None | Journal::Wiped) | Err(_) => false,
        })
}
