//! The test bed: network, services, images and QEMU guests, put together by `Bed`.
//!
//! A bed is everything that one end-to-end test needs, in a network namespace of its own; dropping
//! it ends all of it, also when the test fails. Files and logs stay under `target/e2e/<test>/`.

// Every test target compiles this module and uses its own part of it.
#![allow(dead_code)]

pub mod allocation;
pub mod bed;
pub mod console;
pub mod disk;
pub mod examine;
pub mod guest;
pub mod images;
pub mod initrd;
pub mod ipmi;
pub mod light;
pub mod loki;
pub mod machine;
pub mod machines;
pub mod media;
pub mod mock_bmc;
pub mod netns;
pub mod process;
pub mod qmp;
pub mod screen;
pub mod secure_boot;
pub mod services;
pub mod standin;
pub mod wire;

use std::path::PathBuf;

/// The clone's root.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
