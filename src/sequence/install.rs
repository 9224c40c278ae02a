//! Allocated -> Installed: disks laid out, image streamed and verified, OS made bootable.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use secrecy::SecretString;
use tokio::task::block_in_place;
use uuid::Uuid;

use super::allocate::Allocated;
use super::come_back;
use super::failure::{During, Failure, OnDisk, Step};
use super::finish::{Installed, NewKernel};
use super::preflight::{Checked, Way};
use super::silence;
use crate::control::api::EventType;
use crate::decide::{Extent, Journal};
use crate::efi::device_path::EspLocation;
use crate::efi::{boot, esp, journal, root_disks};
use crate::image::root::RootDir;
use crate::image::{self, VerifiedImage};
use crate::install::files::{self, Facts};
use crate::install::kexec::Loaded;
use crate::install::{self, BootInfo, chroot, denylist, kexec, native};
use crate::report::steps;
use crate::storage::apply::apply;
use crate::storage::disks;
use crate::storage::identity::RootDisks;
use crate::storage::plan::Plan;
use crate::storage::target::{EfiPartition, Target};
use crate::storage::tools::Tools;
use crate::storage::wipe;
use crate::storage::wipe_policy::{Occasion, depth};
use crate::watchdog::Progress;

/// Where the new root is mounted.
pub(super) const TARGET: &str = "/mnt/root";

impl Allocated {
    /// Installs the allocation's image.
    ///
    /// # Errors
    /// Anything that went wrong. What a failure after the first write leaves is not bootable.
    pub(super) async fn install(self, progress: Progress) -> Result<Installed, Failure> {
        progress.begin(silence::image());
        let lifeline = &self.registered.authorized.connected.booted.lifeline;
        if self.reinstall {
            lifeline.on_disk(OnDisk::Os);
        }
        let checked = self.check().await?;
        let password = install::console_password().during(Step::Preflight)?;
        progress.begin(silence::calls(&self.registered.authorized.settings.policy));
        self.announce(&checked.root_disks).await?;
        lifeline.on_disk(OnDisk::NothingWhole);
        match self.write(&checked, &password, &progress).await {
            Ok(kernel) => Ok(Installed {
                allocated: self,
                password,
                kernel,
            }),
            Err(failure) => {
                // A disk that is dying may hang in what follows, and hide why.
                tracing::error!("the install failed: {failure}");
                self.spoil(&checked, &progress);
                Err(failure)
            }
        }
    }

    /// Says what is about to happen, last of all where a power cut cannot erase it: from
    /// then on this boot may write, and the next one knows that it did.
    async fn announce(&self, root_disks: &RootDisks) -> Result<(), Failure> {
        self.registered
            .authorized
            .send_event(
                EventType::Installing,
                &self.allocation.image.id,
                Step::Preflight,
            )
            .await?;
        let efi = &self.registered.authorized.connected.booted.efi;
        come_back(efi);
        // Before the journal: a re-install that is cut has to find its disks again.
        match (root_disks::write(efi, root_disks), self.scope.extent()) {
            (Err(error), Extent::EveryDisk) => {
                // One that stayed from an earlier try would vouch for disks that are data disks now.
                root_disks::forget(efi).during(Step::Preflight)?;
                tracing::warn!(
                    "{error}; a re-install will have to tell the disks by what stands on them"
                );
            }
            (written, _) => written.during(Step::Preflight)?,
        }
        journal::write(efi, &self.begun()).during(Step::Preflight)
    }

    pub(super) fn begun(&self) -> Journal {
        Journal::Installing {
            allocation: self.allocation.uuid,
            extent: self.scope.extent(),
        }
    }

    fn done(&self) -> Journal {
        Journal::Installed {
            allocation: self.allocation.uuid,
        }
    }

    /// Everything that writes to disks, and the boot entry that makes it count.
    async fn write(
        &self,
        checked: &Checked,
        password: &SecretString,
        progress: &Progress,
    ) -> Result<NewKernel, Failure> {
        if !self.disks_are_empty {
            // What the layout does not cover must not survive, or be found by the next OS.
            let occasion = match self.scope.extent() {
                Extent::RootDisks => Occasion::Reinstall,
                Extent::EveryDisk => Occasion::ChangeOfHands,
            };
            block_in_place(|| {
                self.registered
                    .wipe_disks(&checked.disks, occasion, progress)
            })?;
        }
        let kernel = match &checked.way {
            Way::Layout(plan) => self.write_layout(checked, plan, password, progress).await?,
            Way::DiskImage(disk) => {
                self.write_disk_image(checked, disk, password, progress)
                    .await?
            }
        };
        let booted = &self.registered.authorized.connected.booted;
        let efi = &booted.efi;
        booted.lifeline.on_disk(OnDisk::Unreported(self.begun()));
        // In this order: a cut between the two leads back here, to a journal that boots the disk.
        journal::write(efi, &self.done()).during(Step::BootEntry)?;
        boot::clear_next(efi).during(Step::BootEntry)?;
        Ok(kernel)
    }

    async fn write_layout(
        &self,
        checked: &Checked,
        plan: &Plan,
        password: &SecretString,
        progress: &Progress,
    ) -> Result<NewKernel, Failure> {
        let (target, image) = self.unpack(checked, plan, progress).await?;
        steps::begin(Step::Installer);
        progress.begin(silence::INSTALLER);
        let boot_info = self.prepare(&target, password, progress).await?;
        steps::begin(Step::BootEntry);
        progress.begin(silence::FLUSH);
        // The removable path is looked at last, whatever the directory.
        let id = boot_info.bootloader_id.as_deref().unwrap_or("BOOT");
        let esp = esp_of(&target)?;
        let loader = esp::loader_in(&esp, id).during(Step::BootEntry)?;
        let entry = self.make_bootable(&target, id, &loader)?;
        let loaded = self.load_kernel(&boot_info, &image);
        // Its open files would keep the target busy.
        drop(boot_info);
        self.finish(target, &checked.root_disks)?;
        Ok(NewKernel { loaded, entry })
    }

    /// Leaves the timeline and the journal's copy on the target and takes it down.
    pub(super) fn finish(&self, target: Target, root_disks: &RootDisks) -> Result<(), Failure> {
        // A disk image's root need not be one that can be mounted here.
        if !target.root_uuid.is_empty() {
            files::write_timeline(&target.root, &steps::record());
        }
        self.copy_journal(&target, &self.done(), root_disks)?;
        block_in_place(|| target.unmount()).during(Step::BootEntry)
    }

    /// Lays out the disks and streams the image onto them. Should what the image
    /// cache has break off or be damaged, once more from the origin, onto fresh file systems.
    async fn unpack(
        &self,
        checked: &Checked,
        plan: &Plan,
        progress: &Progress,
    ) -> Result<(Target, VerifiedImage), Failure> {
        let mut source = checked.image.clone();
        loop {
            steps::begin(Step::Partitioning);
            progress.begin(silence::LAYOUT);
            let target = block_in_place(|| apply(plan, Path::new(TARGET), &Tools::default()))
                .during(Step::Partitioning)?;
            self.copy_journal(&target, &self.begun(), &checked.root_disks)?;
            let downloads = &self.registered.authorized.downloads;
            steps::begin(Step::Image);
            progress.begin(silence::image());
            let show = show(progress);
            match image::install(downloads, &source, &target.root, &show).await {
                Ok(image) => {
                    tracing::info!("{}", image.summary());
                    return Ok((target, image));
                }
                Err(error) if source.leave_cache(&error) => {
                    block_in_place(|| target.unmount()).during(Step::Image)?;
                }
                Err(error) => return Err(error).during(Step::Image),
            }
        }
    }

    /// Writes what the installer reads, runs it, and reads what it left.
    async fn prepare(
        &self,
        target: &Target,
        password: &SecretString,
        progress: &Progress,
    ) -> Result<BootInfo, Failure> {
        let root = RootDir::open(&target.root).during(Step::Installer)?;
        let fstab = target.fstab();
        files::write_fstab(&root, &fstab).during(Step::Installer)?;
        if !self
            .run_installer(&root, target, password, progress)
            .await?
        {
            tracing::info!("the image ships no installer: the agent does its work");
            let console = self.console();
            let facts = native::Facts {
                hostname: &self.allocation.hostname,
                ssh_public_keys: &self.allocation.ssh_public_keys,
                root_uuid: &target.root_uuid,
                root_partition: root_partition(target),
                console: console.as_deref(),
            };
            native::configure(&root, &facts).during(Step::Installer)?;
        }
        // Images may write their own.
        files::write_fstab(&root, &fstab).during(Step::Installer)?;
        install::boot_info(&root).during(Step::Installer)
    }

    /// An installer wants a serial console, which need not be the last one.
    fn console(&self) -> Option<String> {
        let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
        files::serial_console(&line).or_else(|| {
            let console = self.registered.authorized.settings.console.as_ref()?;
            files::serial_console(&format!("console={console}"))
        })
    }

    /// Writes what an installer reads and runs the image's, or the one that was brought. False:
    /// there is none.
    pub(super) async fn run_installer(
        &self,
        root: &RootDir,
        target: &Target,
        password: &SecretString,
        progress: &Progress,
    ) -> Result<bool, Failure> {
        let settings = &self.registered.authorized.settings;
        let console = self.console();
        // What our installer does not understand is no reason to keep it from the image's own.
        let own = chroot::find_installer(root).during(Step::Installer)?;
        let brought = settings.os_installer.as_ref().filter(|_| own.is_none());
        let facts = Facts {
            machine: self.registered.authorized.connected.booted.machine,
            allocation: &self.allocation,
            nics: &self.registered.nics,
            console: console.as_deref(),
            password,
            raid_enabled: target.has_arrays,
            root_uuid: &target.root_uuid,
            timestamp: Timestamp::now(),
            drop_fields: brought.map_or(&[], |installer| &installer.drop_fields),
        };
        let rendered = files::render(&facts).during(Step::Installer)?;
        files::write(root, &rendered).during(Step::Installer)?;
        // A captured image may hold one of another machine; only this install's counts.
        root.remove(Path::new(install::BOOT_INFO))
            .during(Step::Installer)?;
        if let Some(installer) = brought {
            let downloads = &self.registered.authorized.downloads;
            let (url, sha256) = (&installer.url, &installer.sha256);
            install::fetch_installer(downloads, url, sha256, root, &|| progress.beat())
                .await
                .during(Step::Installer)?;
            progress.begin(silence::INSTALLER);
        }
        let Some(installer) = chroot::find_installer(root).during(Step::Installer)? else {
            return Ok(false);
        };
        let secrets = files::secrets(&facts);
        chroot::run(root, installer, chroot::DEADLINE, &secrets)
            .await
            .during(Step::Installer)?;
        Ok(true)
    }

    /// Puts the disk first in the firmware's order, by the loader at this path of its EFI
    /// system partition. Answers the boot entry; none where the firmware takes none.
    pub(super) fn make_bootable(
        &self,
        target: &Target,
        id: &str,
        loader: &str,
    ) -> Result<Option<u16>, Failure> {
        let locations: Vec<_> = target
            .esp
            .iter()
            .chain(&target.esp_mirrors)
            .map(location)
            .collect();
        let efi = &self.registered.authorized.connected.booted.efi;
        match boot::install_entries(efi, id, &locations, loader) {
            Ok(entries) => Ok(entries.first().copied()),
            Err(error) if error.is_nvram() => {
                tracing::warn!(
                    "{error}; falling back on the removable path, which firmware tries without an entry"
                );
                esp::make_removable(&esp_of(target)?, loader).during(Step::BootEntry)?;
                Ok(None)
            }
            Err(error) => Err(error).during(Step::BootEntry),
        }
    }

    /// Loads the new kernel, unless policy says that kexec does not work on this machine. Only
    /// a verified image gets this far.
    pub(super) fn load_kernel(
        &self,
        boot_info: &BootInfo,
        image: &VerifiedImage,
    ) -> Result<Loaded, install::Error> {
        let denied = &self.registered.authorized.settings.policy.kexec_denylist;
        match denylist::entry_that_fits(Path::new("/sys"), denied) {
            Some(entry) => Err(install::Error::Kexec {
                kernel: boot_info.kernel_path.clone(),
                reason: format!("policy.kexec_denylist has {entry:?}, which is this machine"),
            }),
            None => kexec::load(boot_info, image),
        }
    }

    /// A copy for the day the firmware forgets its variables. Where the EFI system partition is
    /// mirrored, each member has it.
    fn copy_journal(
        &self,
        target: &Target,
        journal: &Journal,
        root_disks: &RootDisks,
    ) -> Result<(), Failure> {
        if target.esp.is_none() {
            return Ok(());
        }
        let esp = esp_of(target)?;
        root_disks::copy_to_esp(&esp, root_disks)
            .and_then(|()| journal::copy_to_esp(&esp, journal))
            .during(Step::BootEntry)
    }

    /// Makes sure that a half-written disk boots nowhere, should the firmware find it before
    /// this medium. Best effort: the journal says `installing` and the next boot begins anew.
    fn spoil(&self, checked: &Checked, progress: &Progress) {
        // A journal that calls the disks installed must not outlive what is on them.
        let efi = &self.registered.authorized.connected.booted.efi;
        if let Err(error) = journal::write(efi, &self.begun()) {
            tracing::error!("{error}; the disks are left as they are");
            return;
        }
        block_in_place(|| {
            unmount_below(Path::new(TARGET));
            match wipe::wipe(&checked.disks, depth(None, Occasion::Spoiled), progress) {
                Ok(_) => tracing::info!("the half-written disks were made unbootable"),
                Err(error) => tracing::warn!("a half-written disk may be bootable: {error}"),
            }
        });
    }
}

/// Tells how an image comes on, and that it does.
pub(super) fn show(progress: &Progress) -> impl Fn(image::Progress) + Send + Sync {
    let before = AtomicU64::new(0);
    move |so_far: image::Progress| {
        // Both only ever grow: a sum that changed is an image that moved.
        let sum = so_far.downloaded.wrapping_add(so_far.unpacked);
        if before.swap(sum, Ordering::Relaxed) != sum {
            progress.beat();
        }
        steps::progress(so_far);
    }
}

/// What a boot entry says of a partition.
fn location(partition: &EfiPartition) -> EspLocation {
    EspLocation {
        number: partition.number,
        start_lba: partition.start_lba,
        size_lba: partition.size_lba,
        guid: partition.guid,
    }
}

/// Where the EFI system partition of the target is mounted.
pub(super) fn esp_of(target: &Target) -> Result<PathBuf, Failure> {
    match &target.esp {
        Some(partition) => Ok(target.root.join(partition.path.trim_start_matches('/'))),
        None => {
            let why = "there is no EFI system partition, so the firmware could never boot this disk; \
                       expected a GPT_TYPE_BOOT partition with vfat at /boot/efi";
            Err(Failure::new(Step::BootEntry, why))
        }
    }
}

/// The GUID of the partition that is the target's `/`.
fn root_partition(target: &Target) -> Option<Uuid> {
    let filesystem = target.filesystems.iter().find(|fs| fs.path == "/")?;
    let device = filesystem.device.as_ref()?;
    let disks = disks::discover(Path::new("/sys")).ok()?;
    let disks: Vec<_> = disks.into_iter().map(|disk| disk.path).collect();
    let mut partitions = esp::partitions_of(&disks).into_iter();
    let partition = partitions.find(|partition| partition.device() == *device)?;
    Some(partition.location.guid)
}

/// Unmounts what a failed install left, innermost first; a lazy unmount would keep the disk
/// busy behind our back, so what is still in use stays and is told.
fn unmount_below(root: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for mountpoint in mounts_below(&mounts, root).iter().rev() {
        if let Err(errno) = nix::mount::umount(mountpoint) {
            tracing::warn!("cannot unmount {}: {errno}", mountpoint.display());
        }
    }
}

/// The mount points at and below `root`, in the order of `/proc/self/mounts`, which is that
/// of mounting.
fn mounts_below(mounts: &str, root: &Path) -> Vec<PathBuf> {
    mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(unescaped)
        .filter(|path| path.starts_with(root))
        .collect()
}

/// A field of `/proc/self/mounts`, where space, tab, newline and backslash are three octal
/// digits after a backslash (kernel, `fs/proc_namespace.c`, `mangle`).
fn unescaped(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        let (byte, left) = match byte {
            Some(byte) if first == b'\\' => (byte, &after[3..]),
            _ => (first, after),
        };
        bytes.push(byte);
        rest = left;
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_last_is_unmounted_first() {
        let mounts = "rootfs / rootfs rw 0 0\n/dev/vda2 /mnt/root ext4 rw 0 0\n\
                      /dev/vda1 /mnt/root/boot/efi vfat rw 0 0\n/dev/vdb /mnt/rooted ext4 rw 0 0\n";
        let below = mounts_below(mounts, Path::new("/mnt/root"));
        assert_eq!(
            below,
            [Path::new("/mnt/root"), Path::new("/mnt/root/boot/efi")]
        );
    }

    #[test]
    fn mount_points_are_read_as_the_kernel_writes_them() {
        for (field, path) in [
            ("/mnt/root/a\\040b", "/mnt/root/a b"),
            ("/mnt/root/\\011\\012\\134", "/mnt/root/\t\n\\"),
            ("/mnt/root/\\134040", "/mnt/root/\\040"),
            ("/mnt/root/040\\", "/mnt/root/040\\"),
            ("/mnt/root/\\999\\04", "/mnt/root/\\999\\04"),
        ] {
            let mounts = format!("tmpfs {field} tmpfs rw 0 0\n");
            let below = mounts_below(&mounts, Path::new("/mnt/root"));
            assert_eq!(below, [Path::new(path)], "{field}");
        }
    }
}
