//! A light guest: the kernel, one program, and hardware of the test's choice. No firmware of its
//! own, no network, nothing of the medium: it is up in seconds.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::initrd::{built, newc};
use super::machine::{Machine, Start};
use super::media::{self, CONSOLE, NO_TIMER_CHECK};
use super::process::run;

/// What a program printed in a guest, and how long it ran there.
pub struct Output {
    /// Its lines on the console.
    pub text: String,
    /// Milliseconds.
    pub took: f64,
}

/// A machine that runs `agent` with `arguments` (no commas in them) and powers itself off.
pub fn machine(dir: &Path, uuid: &str, agent: &Path, arguments: &[&str], words: &str) -> Machine {
    // Symbols are most of a test build; they would only have to be copied by the guest's firmware.
    let bare = dir.join("agent");
    run(Command::new("strip").arg("-o").arg(&bare).arg(agent));
    let names = super::machines::directory().join("pci.ids");
    let archive = newc(&[
        ("init", built("--example", "guest_init")),
        ("agent", bare),
        ("usr/share/misc/pci.ids", names),
    ]);
    let initrd: PathBuf = dir.join("initrd");
    std::fs::write(&initrd, archive).unwrap_or_else(|e| panic!("{}: {e}", initrd.display()));

    let start = Start::Direct {
        kernel: media::part("vmlinuz"),
        initrd,
        append: format!(
            "{CONSOLE} panic=-1 loglevel=1 {NO_TIMER_CHECK} {words} guest.run=/agent,{}",
            arguments.join(",")
        ),
    };
    let mut machine = Machine::new(dir, uuid, start, Vec::new());
    machine.cards.clear();
    machine.uefi = false;
    machine
}

/// Switches the machine on and waits for what its program has to say.
pub fn output(machine: &Machine, dir: &Path, seconds: u64) -> Output {
    let mut guest = machine.power_on(Command::new("qemu-system-x86_64"), dir);
    let exit = guest.wait_for("GUEST EXIT", seconds);
    let words: Vec<&str> = exit.split_whitespace().collect();
    assert_eq!(words[2], "0", "the program failed in the guest");
    let took = words[4].parse().expect("milliseconds");
    Output {
        text: guest.text(),
        took,
    }
}

/// The TPM of one power-on; it ends with its machine, which holds its only connection.
pub fn tpm(dir: &Path) -> Vec<String> {
    let state = dir.join("tpm");
    let _ = std::fs::remove_dir_all(&state);
    std::fs::create_dir_all(&state).expect("directory for the TPM");
    // Short, for socket paths are limited to 107 bytes.
    let socket = std::env::temp_dir().join(format!("ma-tpm-{}", std::process::id()));
    run(Command::new("swtpm")
        .args(["socket", "--tpm2", "--terminate", "--daemon"])
        .arg("--tpmstate")
        .arg(format!("dir={}", state.display()))
        .arg("--ctrl")
        .arg(format!("type=unixio,path={}", socket.display()))
        .stdin(Stdio::null()));
    let text = format!(
        "-chardev socket,id=tpm,path={} -tpmdev emulator,id=tpm0,chardev=tpm -device tpm-crb,tpmdev=tpm0",
        socket.display()
    );
    text.split_whitespace().map(ToOwned::to_owned).collect()
}
