//! Init of the BMC tests: sets the BMC up as the agent does, prints the Register that the
//! agent would send, without its password, and powers off.
//!
//! Passwords stay off the console: the super-user's is read from the first sector of
//! /dev/vda, the machine user's is written to the second.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use metal_anvil::bmc::{self, Report, SUPER_USER, USER, Wanted};
use metal_anvil::control::api::Register;
use metal_anvil::hardware::{self, Roots};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use secrecy::{ExposeSecret, SecretString};

const SECTOR: usize = 512;

fn main() {
    // On a host it would write to a disk and to the BMC.
    assert_eq!(std::process::id(), 1, "this is the init of a QEMU guest");
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        // What is mounted already fails here; what is missing fails below.
        let _ = fs::create_dir_all(target);
        let _ = mount(
            Some(kind),
            target,
            Some(kind),
            MsFlags::empty(),
            None::<&str>,
        );
    }
    if let Ok(mut console) = File::options().write(true).open("/dev/console") {
        let _ = match run(&mut console) {
            Ok(()) => writeln!(console, "GUEST DONE"),
            Err(error) => writeln!(console, "GUEST FAILED {error}"),
        };
        let _ = console.flush();
    }
    let _ = reboot(RebootMode::RB_POWER_OFF);
}

fn run(console: &mut File) -> Result<(), Box<dyn std::error::Error>> {
    let secrets = File::options().read(true).write(true).open("/dev/vda")?;
    let mut sector = [0; SECTOR];
    secrets.read_exact_at(&mut sector, 0)?;
    let length = sector.iter().position(|byte| *byte == 0).unwrap_or(SECTOR);
    let text = std::str::from_utf8(&sector[..length])?;
    let super_user = (!text.is_empty()).then(|| SecretString::from(text));

    let report = match bmc::survey(Path::new(bmc::DEVICE), Path::new("/sys")) {
        Ok(survey) => survey.secure(&Wanted {
            user: USER,
            super_user: SUPER_USER,
            super_user_password: super_user.as_ref(),
        }),
        Err(error) => Report::without(error),
    };
    for fault in &report.faults {
        writeln!(console, "GUEST FAULT {fault}")?;
    }
    for note in &report.notes {
        writeln!(console, "GUEST NOTE {note}")?;
    }
    writeln!(console, "GUEST WARNING {:?}", report.warning())?;
    if let Some(bmc) = &report.bmc {
        let mut sector = [0; SECTOR];
        let password = bmc.password.expose_secret().as_bytes();
        sector[..password.len()].copy_from_slice(password);
        secrets.write_all_at(&sector, SECTOR as u64)?;
        secrets.sync_all()?;
    }
    let inventory = hardware::inspect(&Roots::live(), None)?;
    let register = hardware::register(&inventory, &[], "test-part", "guest", &[])?;
    let register = hardware::register::with_bmc(register, report.bmc, &report.fru);
    writeln!(console, "GUEST REGISTER {}", shown(&register)?)?;
    Ok(())
}

/// The message without its secret.
fn shown(register: &Register) -> Result<String, serde_json::Error> {
    let mut message = serde_json::to_value(register)?;
    if let Some(bmc) = message.get_mut("bmc").and_then(|bmc| bmc.as_object_mut()) {
        bmc.remove("password");
    }
    serde_json::to_string(&message)
}
