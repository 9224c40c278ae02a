//! Disks: found, sorted into what may be erased, wiped, laid out, mounted.
//!
//! The way through, each step taking what the one before returned:
//! [`disks::discover`] → [`eligible::erasable`] → [`scope::disks_in_scope`] →
//! [`wipe::wipe`] → [`plan::plan`] → [`apply::apply`] → [`target::Target`].
//! Nothing below writes to a disk that is not in a [`scope::ScopedDisks`].

pub mod apply;
mod apply_stacks;
pub mod ata;
pub mod device;
pub mod disk_image;
pub mod disks;
mod drive;
pub mod eligible;
pub mod gpt;
pub mod identity;
pub mod ladder;
pub mod lvm;
pub mod md;
pub mod nvme;
pub mod old_table;
pub mod plan;
mod plan_checks;
mod plan_devices;
mod plan_filesystems;
mod plan_show;
pub mod plan_stacks;
pub mod preview;
pub mod reservation;
pub mod scope;
pub mod scsi;
pub mod signatures;
pub mod stack;
pub mod superblock;
pub mod target;
pub mod tools;
pub mod wipe;
mod wipe_disk;
pub mod wipe_policy;

#[cfg(test)]
pub(crate) mod testing;
