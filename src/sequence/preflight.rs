//! What can be known before the first write: whether the layout fits this machine's disks,
//! and whether the image is there. A bad order then costs nothing.

use std::fs::File;
use std::path::Path;

use uuid::Uuid;

use super::allocate::Allocated;
use super::failure::{During, Failure, Step};
use crate::control::api::{FilesystemLayout, Format};
use crate::decide::{Extent, Journal};
use crate::efi::{esp, journal, root_disks};
use crate::image::{self, ImageSource};
use crate::report::steps;
use crate::storage::disks::Disk;
use crate::storage::eligible::Sorted;
use crate::storage::identity::{self, Content, RootDisks};
use crate::storage::md::{self, ArrayId};
use crate::storage::plan::{self, Plan, PlannedFilesystem};
use crate::storage::scope::{self, ScopedDisks};

/// An install that fits.
pub(super) struct Checked {
    pub way: Way,
    /// The disks that are wiped and written.
    pub disks: ScopedDisks,
    /// What a later re-install will tell them by.
    pub root_disks: RootDisks,
    pub image: ImageSource,
}

/// What the install makes of its disks.
pub(super) enum Way {
    /// The layout, with the tree of the image in it.
    Layout(Plan),
    /// The image is the disk; of the layout only the root's disk counts.
    DiskImage(Disk),
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
        let root = scope::root_disks(&sorted, layout).during(Step::Preflight)?;
        let root_disks = RootDisks::new(self.allocation.uuid, &root);
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
        let downloads = &self.registered.authorized.downloads;
        let way = if image::is_disk_image(image.url.path()) {
            let disk = the_one(&root, &layout.id)?;
            let (path, block) = (disk.path.to_string_lossy(), disk.logical_block_size);
            image::probe_disk(downloads, &image, &path, disk.size, block.into())
                .await
                .during(Step::Preflight)?;
            tracing::info!("plan: the disk image becomes {disk}; the layout is not used");
            Way::DiskImage(disk)
        } else {
            let plan = plan_of(layout, &sorted, &disks)?;
            image::probe(downloads, &image)
                .await
                .during(Step::Preflight)?;
            Way::Layout(plan)
        };
        Ok(Checked {
            way,
            disks,
            root_disks,
            image,
        })
    }

    /// Makes sure that an install to the root disks alone hits the disks of the install
    /// before: kernel names change between boots, and `/dev/sda` may be a data disk today.
    fn check_identity(&self, sorted: &Sorted, disks: &ScopedDisks) -> Result<(), Failure> {
        if self.scope.extent() == Extent::EveryDisk {
            return Ok(());
        }
        let allocation = self.allocation.uuid;
        let found: Vec<Found> = sorted
            .erasable
            .iter()
            .map(|it| look(it, allocation))
            .collect();
        let efi = &self.registered.authorized.connected.booted.efi;
        let copies = found.iter().filter_map(|found| found.record.clone());
        let kept = root_disks::read(efi).during(Step::Preflight)?;
        let record = record_of(allocation, kept, copies);
        let contents: Vec<Content> = found.into_iter().map(|found| found.content).collect();
        let (record, scope) = (record.as_ref(), disks.disks());
        if self.is_known || record.is_some() {
            identity::prove(allocation, record, sorted, &contents, scope)
        } else {
            // Ordered on a machine that nothing is known of: then the layout's names count.
            identity::on_no_other_disk(allocation, record, sorted, &contents, scope)
        }
        .during(Step::Preflight)
    }
}

/// What the layout becomes, which the log is told.
fn plan_of(
    layout: &FilesystemLayout,
    sorted: &Sorted,
    disks: &ScopedDisks,
) -> Result<Plan, Failure> {
    let plan = plan::plan(layout, sorted, disks).during(Step::Preflight)?;
    for line in plan.to_string().lines() {
        tracing::info!("plan: {line}");
    }
    for warning in plan.warnings() {
        tracing::warn!("plan: {warning}");
    }
    let esp = |filesystem: &PlannedFilesystem| {
        filesystem.path == "/boot/efi" && filesystem.format == Format::Vfat
    };
    if plan.filesystems().iter().any(esp) {
        return Ok(plan);
    }
    let why = format!(
        "layout {:?} has no EFI system partition, so the firmware could never boot this machine; \
         expected a GPT_TYPE_BOOT partition with vfat at /boot/efi",
        layout.id
    );
    Err(Failure::new(Step::Preflight, why))
}

/// The only root disk.
fn the_one(root: &[Disk], layout: &str) -> Result<Disk, Failure> {
    match root {
        [disk] => Ok(disk.clone()),
        more => {
            let names: Vec<String> = more.iter().map(ToString::to_string).collect();
            let why = format!(
                "a disk image goes to one disk, but the root of layout {layout:?} is on {}: {}",
                more.len(),
                names.join(", ")
            );
            Err(Failure::new(Step::Preflight, why))
        }
    }
}

/// The record of this very allocation: the firmware's, else that on which all copies agree.
fn record_of(
    allocation: Uuid,
    kept: Option<RootDisks>,
    copies: impl Iterator<Item = RootDisks>,
) -> Option<RootDisks> {
    kept.into_iter()
        .chain(agreed(copies))
        .find(|record| record.allocation == allocation)
}

/// The one record that all copies agree on.
fn agreed(mut copies: impl Iterator<Item = RootDisks>) -> Option<RootDisks> {
    let first = copies.next()?;
    copies.all(|copy| copy == first).then_some(first)
}

/// What an install left on a disk.
struct Found {
    content: Content,
    /// The record of the allocation's root disks.
    record: Option<RootDisks>,
}

/// Reads what stands on a disk. What cannot be read is not there: it only proves less.
fn look(disk: &Disk, allocation: Uuid) -> Found {
    let mut found = Found {
        content: Content {
            names_allocation: false,
            arrays: arrays_on(disk),
        },
        record: None,
    };
    for partition in esp::esps_of(std::slice::from_ref(&disk.path)) {
        let device = partition.device();
        let read = esp::ReadOnly::mount(&device, Path::new(super::ESP_MOUNT)).and_then(|esp| {
            let journal = journal::copy_on_esp(esp.root())?;
            Ok((journal, root_disks::copy_on_esp(esp.root())?))
        });
        let (text, record) = match read {
            Ok(read) => read,
            Err(error) => {
                tracing::warn!(%error, "partition left out while looking for the install's disks");
                continue;
            }
        };
        let journal = text.and_then(|text| text.parse().ok());
        found.content.names_allocation |= matches!(
            journal,
            Some(Journal::Installing { allocation: its, .. } | Journal::Installed { allocation: its })
                if its == allocation
        );
        let record = record.filter(|record| record.allocation == allocation);
        found.record = found.record.or(record);
    }
    found
}

/// The arrays that a disk or its partitions are members of.
fn arrays_on(disk: &Disk) -> Vec<ArrayId> {
    let partitions = disk.partitions.iter();
    let devices = partitions.map(|it| (Path::new("/dev").join(&it.name), it.size));
    devices
        .chain([(disk.path.clone(), disk.size)])
        .filter_map(|(path, size)| {
            let read = File::open(&path).and_then(|file| md::array_on(&file, size));
            read.unwrap_or_else(|error| {
                tracing::warn!(%error, device = %path.display(), "cannot look for an array");
                None
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::testing::disk;

    #[test]
    fn a_disk_image_needs_one_root_disk() {
        let [a, b] = ["sda", "sdb"].map(|name| disk(name, 1 << 30));
        assert_eq!(the_one(std::slice::from_ref(&a), "l").unwrap(), a);
        for wrong in [&[][..], &[a, b]] {
            let failure = the_one(wrong, "l").err().unwrap();
            assert_eq!(failure.step, Step::Preflight);
            let words = format!("the root of layout \"l\" is on {}", wrong.len());
            assert!(failure.cause.contains(&words), "{}", failure.cause);
        }
    }

    #[test]
    fn only_a_record_of_this_allocation_counts() {
        let (its, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let record = |allocation, disks: &[&str]| {
            let disks: Vec<Disk> = disks.iter().map(|name| disk(name, 1 << 30)).collect();
            RootDisks::new(allocation, &disks)
        };
        let (a, b, foreign) = (
            record(its, &["sda"]),
            record(its, &["sdb"]),
            record(other, &["sda"]),
        );
        type Records<'r> = &'r [&'r RootDisks];
        let table: [(Option<&RootDisks>, Records<'_>, Option<&RootDisks>); 8] = [
            (None, &[], None),
            (Some(&a), &[], Some(&a)),
            // The firmware's is the newer one.
            (Some(&a), &[&b], Some(&a)),
            (Some(&foreign), &[], None),
            (Some(&foreign), &[&b], Some(&b)),
            (None, &[&b, &b], Some(&b)),
            (None, &[&a, &b], None),
            (None, &[&foreign], None),
        ];
        for (index, (kept, copies, expected)) in table.into_iter().enumerate() {
            let copies = copies.iter().copied().cloned();
            let found = record_of(its, kept.cloned(), copies);
            assert_eq!(found.as_ref(), expected, "{index}");
        }
    }
}
