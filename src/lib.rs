//! metal-anvil: the boot stage that turns an empty server into a running one.
//!
//! The list below is the program. `sequence` is the boot from top to bottom; everything
//! else is what its steps are made of.

pub mod bmc;
pub mod boot_helper;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod decide;
pub mod efi;
pub mod hardware;
pub mod image;
pub mod init;
pub mod install;
pub mod net;
pub mod password;
pub mod report;
pub mod rescue;
pub mod sequence;
pub mod storage;
pub mod watchdog;
