//! Tests that run as root inside a QEMU guest, on our kernel and with real devices.
//!
//! `tests/guest.rs` boots the guest: disks `vda`, `sda`, `sdb` and `nvme0n1` of 256 MiB each, all
//! blank and free to be destroyed; the media's tools (mke2fs, mkfs.vfat, mdadm, lvm) are in place.
//! This program is built by cargo like any test but never started on the host (`test = false`); one
//! file per module under test.

mod bed;
mod image_write;
mod layouts;
mod storage;
mod wiping;
