//! End to end: the agent in a QEMU guest, against real services and the stand-in apiserver.
//!
//! Needs what `scripts/test` prepares (media, images, virtual environment) and root. Each test has a
//! bed of its own; run at most two for each core at a time (`--test-threads=4`). Logs: `target/e2e/<test>/`.

mod support;

#[path = "e2e/bmc.rs"]
mod bmc;
#[path = "e2e/common.rs"]
mod common;
#[path = "e2e/control.rs"]
mod control;
#[path = "e2e/cuts.rs"]
mod cuts;
#[path = "e2e/debian.rs"]
mod debian;
#[path = "e2e/disk_image.rs"]
mod disk_image;
#[path = "e2e/failure.rs"]
mod failure;
#[path = "e2e/hang.rs"]
mod hang;
#[path = "e2e/happy.rs"]
mod happy;
#[path = "e2e/helper.rs"]
mod helper;
#[path = "e2e/image.rs"]
mod image;
#[path = "e2e/installer.rs"]
mod installer;
#[path = "e2e/journal.rs"]
mod journal;
#[path = "e2e/layout.rs"]
mod layout;
#[path = "e2e/media.rs"]
mod media;
#[path = "e2e/medium.rs"]
mod medium;
#[path = "e2e/processes.rs"]
mod processes;
#[path = "e2e/reinstall.rs"]
mod reinstall;
#[path = "e2e/screens.rs"]
mod screens;
#[path = "e2e/secure_boot.rs"]
mod secure_boot;
