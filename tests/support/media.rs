//! The boot media under test, made by the scripts before the tests run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::machine::{Media, Start};
use super::netns::SERVICE;
use super::process::run;
use super::root;

/// What the serial console of a guest is called on kernel command lines.
pub const CONSOLE: &str = "console=ttyS0,115200n8";

/// A busy host stops an emulated machine for longer than Linux's check of its timer allows.
pub const NO_TIMER_CHECK: &str = "no_timer_check";

/// The boot helper's base URL.
pub fn helper_url() -> String {
    format!("http://[{SERVICE}]:4242")
}

/// `target/media/NAME`.
pub fn part(name: &str) -> PathBuf {
    let path = root().join("target/media").join(name);
    assert!(
        path.exists(),
        "{} is missing: scripts/test builds it",
        path.display()
    );
    path
}

/// Kernel and initrd of the media, started directly, with more words on the command line.
pub fn direct(more: &str) -> Start {
    Start::Direct {
        kernel: part("vmlinuz"),
        initrd: part("initrd.img"),
        append: format!("{CONSOLE} {NO_TIMER_CHECK} {more}"),
    }
}

/// The agent started directly, sent to the bed's boot helper. It does not dwell on failures
/// as it does for a technician: no test learns anything from that.
pub fn agent() -> Start {
    agent_with("")
}

/// The same, with more words on its command line.
pub fn agent_with(more: &str) -> Start {
    direct(&format!(
        "PIXIE_API_URL={} anvil.policy.reboot_delay_seconds=1 anvil.policy.boot_helper_timeout_seconds=20 {more}",
        helper_url()
    ))
}

/// The ISO with this metal.config, attached as `media`.
pub fn iso(dir: &Path, config: &Value, media: Media) -> Start {
    iso_as(dir, config, media, &[])
}

/// The same by `scripts/build-iso` with more options.
pub fn iso_as(dir: &Path, config: &Value, media: Media, more: &[&str]) -> Start {
    let file = dir.join("metal.config");
    let mut config = config.clone();
    config["policy"]["reboot_delay_seconds"] = 1.into();
    fs::write(&file, config.to_string()).expect("write metal.config");
    let iso = dir.join("metal-anvil.iso");
    run(Command::new(root().join("scripts/build-iso"))
        .args([
            "--cmdline",
            &format!("{CONSOLE} {NO_TIMER_CHECK} loglevel=4"),
        ])
        .arg("--config")
        .arg(&file)
        .args(more)
        .arg("--output")
        .arg(&iso));
    Start::Iso(iso, media)
}

/// The iPXE ISO for this boot helper, attached as `media`.
pub fn ipxe(dir: &Path, helper: &str, media: Media) -> Start {
    let iso = dir.join("ipxe.iso");
    run(Command::new(root().join("scripts/build-iso"))
        .args(["--ipxe", helper])
        .arg("--output")
        .arg(&iso));
    Start::Iso(iso, media)
}
