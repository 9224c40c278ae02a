//! The devices that a layout defines, by name, and what each of them is used for.

use std::path::PathBuf;

use super::disks::partition_name;
use super::plan::{Base, Kept, PlannedDisk};
use crate::control::api::{GptType, LayoutDisk};

/// What a device of the layout is in this plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// It is made.
    New(Base),
    /// It is on disks out of scope and is left as it is.
    Kept(Kept),
    /// It is on disks out of scope, and not all of them are there.
    Absent,
}

#[derive(Debug)]
struct Device {
    names: Vec<String>,
    what: What,
    gpt_type: Option<GptType>,
    /// What uses it.
    user: Option<String>,
}

/// All devices defined so far.
#[derive(Debug, Default)]
pub(super) struct Devices(Vec<Device>);

impl Devices {
    /// The partitions of a disk in scope, or the disk itself when it has none.
    pub(super) fn add_disk(&mut self, index: usize, planned: &PlannedDisk) {
        if planned.partitions.is_empty() {
            let name = planned.disk.path.to_string_lossy().into_owned();
            self.push(vec![name], What::New(Base::Disk(index)), None);
        }
        for (partition, made) in planned.partitions.iter().enumerate() {
            let base = Base::Partition {
                disk: index,
                partition,
            };
            let name = made.path.to_string_lossy().into_owned();
            self.push(vec![name], What::New(base), Some(made.gpt_type));
        }
    }

    /// The same of a disk out of scope.
    pub(super) fn add_kept(&mut self, disk: &LayoutDisk, present: bool) {
        let what = |name: &str| match present {
            true => What::Kept(Kept::Partition(PathBuf::from(name))),
            false => What::Absent,
        };
        if disk.partitions.is_empty() {
            self.push(vec![disk.device.clone()], what(&disk.device), None);
        }
        for partition in &disk.partitions {
            let name = partition_name(&disk.device, partition.number);
            let what = what(&name);
            self.push(vec![name], what, Some(partition.gpt_type));
        }
    }

    /// Adds an array or a volume. `false` when one of its names is there already.
    pub(super) fn add(&mut self, names: Vec<String>, what: What) -> bool {
        let is_new = names.iter().all(|name| self.find(name).is_none());
        if is_new {
            self.push(names, what, None);
        }
        is_new
    }

    fn push(&mut self, names: Vec<String>, what: What, gpt_type: Option<GptType>) {
        self.0.push(Device {
            names,
            what,
            gpt_type,
            user: None,
        });
    }

    fn find(&self, name: &str) -> Option<usize> {
        let has_name = |device: &Device| device.names.iter().any(|known| known == name);
        self.0.iter().position(has_name)
    }

    /// What `name` is, and its partition type, if it is a partition.
    ///
    /// # Errors
    /// When the layout defines no such device.
    pub(super) fn get(&self, name: &str) -> Result<(&What, Option<GptType>), String> {
        let index = self.find(name).ok_or_else(|| undefined(name))?;
        Ok((&self.0[index].what, self.0[index].gpt_type))
    }

    /// Gives the device to `user`, who has it alone.
    ///
    /// # Errors
    /// When it is not defined or has a user already.
    pub(super) fn take(&mut self, name: &str, user: &str) -> Result<(), String> {
        let index = self.find(name).ok_or_else(|| undefined(name))?;
        let device = &mut self.0[index];
        match &device.user {
            Some(other) => Err(format!("{name} is used by {other} already")),
            None => {
                device.user = Some(user.to_owned());
                Ok(())
            }
        }
    }
}

fn undefined(name: &str) -> String {
    let shown: String = name.chars().take(100).collect();
    format!(
        "no device of the layout is called {shown:?}; expected a partition of its disks, a disk without partitions, an array or a logical volume, defined before it is used"
    )
}
