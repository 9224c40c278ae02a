//! What can be known before the first write: whether the layout fits this machine's disks,
//! and whether the image is there. A bad order then costs nothing.

use super::allocate::Allocated;
use super::failure::{During, Failure, Step};
use crate::image::{self, ImageSource};
use crate::storage::plan::{self, Plan};
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
        let layout = &self.allocation.layout;
        let sorted = self.registered.sorted_disks()?;
        let disks =
            scope::disks_in_scope(&self.scope, &sorted, Some(layout)).during(Step::Preflight)?;
        let plan = plan::plan(layout, &sorted, &disks).during(Step::Preflight)?;
        for line in plan.to_string().lines() {
            tracing::info!("plan: {line}");
        }
        let url = self.allocation.image.url.parse().map_err(|error| {
            let why = format!(
                "the image URL {:?} is no URL: {error}",
                self.allocation.image.url
            );
            Failure::new(Step::Preflight, why)
        })?;
        let settings = &self.registered.authorized.settings;
        let image = ImageSource {
            url,
            cache: settings.image_cache.clone(),
        };
        image::probe(&self.registered.authorized.downloads, &image)
            .await
            .during(Step::Preflight)?;
        Ok(Checked { plan, disks, image })
    }
}
