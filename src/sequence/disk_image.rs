//! An image that is a disk: written as it is, and then looked into for what makes it boot.

use std::path::Path;

use secrecy::SecretString;
use tokio::task::block_in_place;

use super::allocate::Allocated;
use super::failure::{During, Failure, Step};
use super::finish::NewKernel;
use super::install::{TARGET, esp_of, show};
use super::preflight::Checked;
use super::silence;
use crate::efi::gpt::{ESP_TYPE, Partition};
use crate::efi::{esp, gpt};
use crate::image::root::RootDir;
use crate::image::{self, DiskTarget, VerifiedImage};
use crate::install;
use crate::report::steps;
use crate::storage::disks::Disk;
use crate::storage::{device, disk_image, stack};
use crate::watchdog::Progress;

impl Allocated {
    /// Writes the image and makes the firmware boot it. An installer is run where the image has
    /// a root that can be mounted; otherwise the image is taken as complete.
    pub(super) async fn write_disk_image(
        &self,
        checked: &Checked,
        disk: &Disk,
        password: &SecretString,
        progress: &Progress,
    ) -> Result<NewKernel, Failure> {
        let image = self.write_image(checked, disk, progress).await?;
        steps::begin(Step::Installer);
        progress.begin(silence::INSTALLER);
        let partitions = gpt::partitions(&disk.path).during(Step::Partitioning)?;
        let is_esp = |partition: &&Partition| partition.type_guid == ESP_TYPE;
        let Some(esp) = partitions.iter().find(is_esp) else {
            let why =
                "the disk image has no EFI system partition, so the firmware could never boot it";
            return Err(Failure::new(Step::BootEntry, why));
        };
        let target = block_in_place(|| {
            disk_image::mount(disk, &partitions, esp, Path::new(TARGET)).during(Step::Partitioning)
        })?;
        let boot_info = match target.root_uuid.is_empty() {
            true => {
                tracing::info!(
                    "the disk image has no root that this kernel can mount: it is taken as complete"
                );
                None
            }
            false => {
                let root = RootDir::open(&target.root).during(Step::Installer)?;
                match self
                    .run_installer(&root, &target, password, progress)
                    .await?
                {
                    true => Some(install::boot_info(&root).during(Step::Installer)?),
                    false => None,
                }
            }
        };
        steps::begin(Step::BootEntry);
        progress.begin(silence::FLUSH);
        let mounted = esp_of(&target)?;
        let id = boot_info
            .as_ref()
            .and_then(|info| info.bootloader_id.clone());
        let loader = match &id {
            Some(id) => esp::loader_in(&mounted, id).during(Step::BootEntry)?,
            None => esp::any_loader_in(&mounted).ok_or_else(|| {
                let why = "the disk image's EFI system partition holds none of EFI/*/shimx64.efi, \
                           EFI/*/grubx64.efi and EFI/BOOT/BOOTX64.EFI";
                Failure::new(Step::BootEntry, why)
            })?,
        };
        // `\\EFI\\debian\\shimx64.efi`: the second word is the system's.
        let name = id.or_else(|| loader.split('\\').nth(2).map(str::to_owned));
        let entry = self.make_bootable(&target, &name.unwrap_or_default(), &loader)?;
        let loaded = match &boot_info {
            Some(boot_info) => self.load_kernel(boot_info, &image),
            None => Err(install::Error::NoKernel),
        };
        drop(boot_info);
        self.finish(target, &checked.root_disks)?;
        Ok(NewKernel { loaded, entry })
    }

    /// Streams the image onto the disk, once more from the origin should what the cache has
    /// break off or be damaged, and shows the kernel the partitions that came with it.
    async fn write_image(
        &self,
        checked: &Checked,
        disk: &Disk,
        progress: &Progress,
    ) -> Result<VerifiedImage, Failure> {
        let mut source = checked.image.clone();
        loop {
            steps::begin(Step::Image);
            progress.begin(silence::image());
            let file = block_in_place(|| {
                stack::take_down(std::slice::from_ref(disk)).during(Step::Partitioning)?;
                device::open_exclusive(disk).during(Step::Partitioning)
            })?;
            let (path, block) = (disk.path.to_string_lossy(), disk.logical_block_size);
            let target = DiskTarget::new(file, &path, disk.size, block.into());
            let downloads = &self.registered.authorized.downloads;
            let show = show(progress);
            match image::install_disk(downloads, &source, target, &show).await {
                Ok((image, mut file)) => {
                    tracing::info!("{}", image.summary());
                    block_in_place(|| disk_image::settle(&mut file, disk))
                        .during(Step::Partitioning)?;
                    return Ok(image);
                }
                // Opened anew above, and its first MiB is only written after the last byte.
                Err(error) if source.leave_cache(&error) => {}
                Err(error) => return Err(error).during(Step::Image),
            }
        }
    }
}
