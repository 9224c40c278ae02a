//! The rescue part: what a medium holds, and the shells in a guest that has it.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use support::disk::{Bus, Disk};
use support::guest::{End, Guest};
use support::initrd::{joined, names};
use support::machine::{Machine, Media, Start};
use support::media::{self, CONSOLE, NO_TIMER_CHECK};
use support::netns::{Netns, SERVICE};
use support::process::run;
use support::screen::{self, Font};
use support::{root, services};

const MACHINE: &str = "5d0f36a4-7f6e-4c5e-9d53-0f7b1f6e1c11";
/// Power-on to the words of the agent; emulated, on a busy host.
const UP: u64 = 300;
/// A command in the guest.
const SOON: u64 = 60;
/// What a shell says when it starts.
const GREETING: &str = "A rescue shell:";

fn directory(name: &str) -> PathBuf {
    let dir = root().join("target/e2e").join(name);
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("create {}: {e}", dir.display()));
    dir
}

/// A machine with these archives as its initrd and no network.
fn machine(dir: &Path, archives: &[&str], words: &str) -> Machine {
    let parts: Vec<PathBuf> = archives.iter().map(|name| media::part(name)).collect();
    let initrd = dir.join("initrd");
    fs::write(&initrd, joined(&parts)).unwrap_or_else(|e| panic!("{}: {e}", initrd.display()));
    let start = Start::Direct {
        kernel: media::part("vmlinuz"),
        initrd,
        append: format!("{CONSOLE} {NO_TIMER_CHECK} loglevel=4 {words}"),
    };
    let disks = ["one", "two"].map(|name| Disk::with_pattern(dir, name, Bus::Virtio, 64));
    let mut machine = Machine::new(dir, MACHINE, start, disks.into());
    machine.cards.clear();
    machine
}

fn hashes(machine: &Machine) -> Vec<String> {
    machine.disks.iter().map(Disk::hash).collect()
}

/// Has the guest's shell run this, and waits for a line that the command alone can print.
fn ask(guest: &mut Guest, command: &str, answer: &str) -> String {
    assert!(!command.contains(answer), "the terminal would echo it");
    guest.type_in(&format!("{command}\n"));
    guest.wait_for(answer, SOON)
}

#[test]
fn the_usual_medium_holds_nothing_of_it() {
    let usual = names(&media::part("initrd.img"));
    assert!(usual.iter().any(|name| name == "init"), "{usual:?}");
    let programs = [
        "busybox",
        "sh",
        "dropbear",
        "dropbearkey",
        "sshd",
        "getty",
        "login",
    ];
    let forbidden = ["passwd", "shadow", "authorized_keys"];
    for name in &usual {
        let last = name.rsplit('/').next().unwrap_or_default();
        assert!(
            !programs.contains(&last) && !forbidden.contains(&last),
            "{name}"
        );
    }
    // Where it is asked for, they are found; a key is in neither.
    let part = names(&media::part("rescue.img"));
    for wanted in ["usr/sbin/busybox", "usr/sbin/sh", "usr/sbin/dropbear"] {
        assert!(
            part.iter().any(|name| name == wanted),
            "{wanted} is missing"
        );
    }
    let keys = ["authorized_keys", "host_key", "host-key"];
    assert!(
        !part
            .iter()
            .any(|name| keys.iter().any(|key| name.contains(key)))
    );
    // And it covers nothing of the other: mke2fs and mkfs.vfat stay what they are.
    let both: Vec<_> = usual.iter().filter(|name| part.contains(name)).collect();
    assert_eq!(
        both,
        ["etc", "usr", "usr/lib", "usr/sbin"],
        "directories alone"
    );
}

#[test]
fn the_part_without_ssh_has_no_server() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("rescue.img");
    run(Command::new(root().join("scripts/build-rescue"))
        .arg("--output")
        .arg(&image));
    let part = names(&image);
    assert!(part.iter().any(|name| name == "usr/sbin/sh"));
    assert!(!part.iter().any(|name| name.contains("dropbear")));
}

#[test]
fn a_medium_has_it_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("kernel"), [0x4b; 9000]).unwrap();
    fs::write(path("initrd"), [0x49; 5001]).unwrap();
    let listing = |more: &[&str]| {
        run(Command::new(root().join("scripts/build-iso"))
            .arg("--kernel")
            .arg(path("kernel"))
            .arg("--initrd")
            .arg(path("initrd"))
            .arg("--output")
            .arg(path("iso"))
            .args(more));
        let mut xorriso = Command::new("xorriso");
        run(xorriso
            .args(["-osirrox", "on", "-indev"])
            .arg(path("iso"))
            .args(["-extract", "/EFI/BOOT/grub.cfg"])
            .arg(path("grub.cfg"))
            .args(["-find", "/boot"]))
    };
    assert!(!listing(&[]).contains("rescue"));
    let grub = fs::read_to_string(path("grub.cfg")).unwrap();
    assert!(
        grub.contains("initrd /boot/initrd.img;") && !grub.contains("rescue"),
        "{grub}"
    );
    assert!(listing(&["--rescue"]).contains("'/boot/rescue.img'"));
    let grub = fs::read_to_string(path("grub.cfg")).unwrap();
    assert!(
        grub.contains("initrd /boot/initrd.img /boot/rescue.img;"),
        "{grub}"
    );
}

#[test]
fn a_shell_on_every_console_and_disks_as_they_were() {
    let dir = directory("rescue_shell");
    let words = "console=tty0 vt.global_cursor_default=0 rescue=1 anvil.partition=secret-of-pid-1";
    let machine = machine(&dir, &["initrd.img", "rescue.img"], words);
    let before = hashes(&machine);
    let mut guest = machine.power_on(Command::new("qemu-system-x86_64"), &dir);
    let line = guest.see("holding: rescue (kernel command line)", UP);
    for word in [
        "a shell on ttyS0 (press Enter) and on the screen (Alt-F2",
        "no ssh: no key may log in",
        "Nothing is written to any disk",
    ] {
        assert!(line.contains(word), "{word:?} is not in {line:?}");
    }
    // The hardware is looked at.
    guest.see("machine 5d0f36a4", SOON);
    guest.see("/dev/vdb  64 MiB", SOON);

    guest.wait_for(GREETING, SOON);
    let answer = ask(&mut guest, "echo SUM-$((20+22)) on `tty`", "SUM-42");
    assert!(answer.contains("on /dev/ttyS0"), "{answer}");
    // Ctrl-C reaches what runs: the shell has the terminal. A program that speaks has taken it.
    guest.type_in("sh -c 'echo SLEEPS-$((1+1)); exec sleep 1000'\n");
    guest.wait_for("SLEEPS-2", SOON);
    guest.type_in("\x03");
    ask(&mut guest, "echo BACK-$((1+1))", "BACK-2");
    // What the agent knows is not for it, though both are root.
    let look = "for p in 1 self; do for f in environ maps mem; do \
                (: </proc/$p/$f) 2>/dev/null && echo OPEN-$p-$f; done; \
                readlink /proc/$p/fd/0 >/dev/null 2>&1 && echo OPEN-$p-fd; done; echo LOOKED-$((1+1))";
    ask(&mut guest, look, "LOOKED-2");
    let text = guest.text();
    let open: Vec<&str> = text
        .lines()
        .filter(|line| {
            ["OPEN-1-", "OPEN-self-"]
                .iter()
                .any(|it| line.starts_with(it))
        })
        .collect();
    assert_eq!(
        open,
        [
            "OPEN-self-environ",
            "OPEN-self-maps",
            "OPEN-self-mem",
            "OPEN-self-fd"
        ]
    );
    let own = "env | grep -v -e PATH= -e HOME= -e PS1= -e TERM= -e PWD= -e SHLVL= -e _= | sed s/^/EXTRA-/; \
               echo ENV-$((1+1))";
    ask(&mut guest, own, "ENV-2");
    assert!(
        !guest.text().contains("\nEXTRA-"),
        "the agent's environment"
    );
    let tools = "metal-anvil inventory | grep -c vd[ab] | sed s/^/DISKS-/; mdadm --version 2>&1 | sed s/^/TOOL-/";
    ask(&mut guest, tools, "TOOL-mdadm");
    guest.see("DISKS-2", 1);

    // The screen shows the other shell; the dashboard is behind it.
    let font = Font::of_kernel(&media::part("vmlinuz"));
    screen::see(&guest, &font, &dir, "shell", &[GREETING, "rescue#"]);
    guest.control(
        "send-key",
        json!({"keys": [{"type": "qcode", "data": "alt"}, {"type": "qcode", "data": "f1"}]}),
    );
    screen::see(
        &guest,
        &font,
        &dir,
        "dashboard",
        &["HOLDING for", ">  rescue "],
    );

    // A shell that ends is followed by another, and the agent's lines still come.
    guest.type_in("exit\n");
    guest.wait_for(GREETING, SOON);
    ask(&mut guest, "echo AGAIN-$((3*14))", "AGAIN-42");
    guest.type_in("reboot\n");
    guest.wait_for("SIGTERM was sent: rebooting", SOON);
    assert_eq!(guest.wait_end(SOON), End::Reset);
    assert!(!guest.text().contains("job control turned off"));
    assert_eq!(hashes(&machine), before, "a disk was written");
}

#[test]
fn the_part_without_the_word_is_as_good_as_none() {
    let dir = directory("rescue_no_word");
    let words = "anvil.policy.reboot_delay_seconds=10";
    let mut machine = machine(&dir, &["initrd.img", "rescue.img"], words);
    // No firmware variables: the boot fails at once, which leaves time to knock.
    machine.uefi = false;
    let mut guest = machine.power_on(Command::new("qemu-system-x86_64"), &dir);
    guest.wait_for("FAILED: start", UP);
    guest.type_in("\necho SUM-$((20+22))\n");
    assert_eq!(guest.wait_end(SOON), End::Reset);
    let text = guest.text();
    assert!(
        !text.contains("SUM-42") && !text.contains(GREETING),
        "a shell"
    );
}

#[test]
fn the_word_without_the_part_holds_and_says_so() {
    let dir = directory("rescue_no_part");
    let mut machine = machine(&dir, &["initrd.img"], "rescue=1");
    machine.uefi = false;
    let before = hashes(&machine);
    let mut guest = machine.power_on(Command::new("qemu-system-x86_64"), &dir);
    let line = guest.wait_for("holding: rescue (kernel command line)", UP);
    assert!(
        line.contains("this medium has no rescue part: scripts/build-iso --rescue"),
        "{line}"
    );
    guest.wait_for("this machine has no network card", UP);
    assert!(!guest.text().contains("FAILED"), "it stays");
    guest.power_cut();
    assert_eq!(hashes(&machine), before, "a disk was written");
}

#[test]
fn ssh_lets_in_the_keys_of_the_medium_and_nobody_else() {
    let dir = directory("rescue_ssh");
    for name in ["right", "wrong"] {
        let mut keygen = Command::new("ssh-keygen");
        keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]);
        run(keygen.arg(dir.join(name)));
    }
    let key = fs::read_to_string(dir.join("right.pub")).expect("own key");
    let config = json!({"rescue": true, "rescue_ssh_keys": [key.trim()]});
    let start = media::iso_as(&dir, &config, Media::SataCd, &["--rescue=ssh"]);
    let ns = Netns::create();
    let _radvd = services::radvd(&ns, &dir);
    let disks = vec![Disk::with_pattern(&dir, "one", Bus::Virtio, 64)];
    let machine = Machine::new(&dir, MACHINE, start, disks);
    let before = hashes(&machine);
    let mut guest = machine.power_on(ns.command("qemu-system-x86_64"), &dir);
    let line = guest.wait_for("holding: rescue (metal.config)", UP);
    let said = line.split("host key ").nth(1).expect("its fingerprint");
    let said = said.split('.').next().unwrap_or_default().to_owned();
    let line = guest.wait_for("INFO address ", UP);
    let mut words = line
        .split_whitespace()
        .skip_while(|word| *word != "address");
    let address = words.nth(1).expect("an address").to_owned();

    let known = dir.join("known_hosts");
    let ssh = |options: &[&str], command: &str| {
        let mut ssh = ns.command("ssh");
        ssh.args([
            "-F",
            "none",
            "-b",
            SERVICE,
            "-o",
            "BatchMode=yes",
            "-o",
            "ConnectTimeout=30",
        ]);
        ssh.args([
            "-o",
            "StrictHostKeyChecking=accept-new",
            "-o",
            "IdentitiesOnly=yes",
            "-o",
        ]);
        ssh.arg(format!("UserKnownHostsFile={}", known.display()));
        ssh.args(options)
            .arg(format!("root@{address}"))
            .arg(command);
        let output = ssh.output().unwrap_or_else(|e| panic!("ssh: {e}"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.success(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let right = dir.join("right").display().to_string();
    let (good, out, err) = ssh(
        &["-tt", "-i", &right],
        "echo SUM-$((20+22)); tty; (: </proc/1/environ) && echo OPEN",
    );
    assert!(
        out.contains("SUM-42") && out.contains("/dev/pts/"),
        "{good} {out} {err}"
    );
    assert!(!out.contains("OPEN"), "{out}");
    // It is the machine that the console shows.
    let shown = run(Command::new("ssh-keygen").arg("-lf").arg(&known));
    assert!(
        shown.contains(&said) && said.starts_with("SHA256:"),
        "{said} {shown}"
    );

    let wrong = dir.join("wrong").display().to_string();
    let passwords = "PreferredAuthentications=password,keyboard-interactive";
    for options in [
        &["-i", wrong.as_str()][..],
        &["-o", passwords],
        &["-o", "PubkeyAuthentication=no"],
    ] {
        let (good, out, err) = ssh(options, "echo SUM-$((20+22))");
        assert!(!good && !out.contains("SUM-42"), "{options:?}: {out}");
        // Passwords are not even offered.
        assert!(
            err.contains("Permission denied (publickey)."),
            "{options:?}: {err}"
        );
    }
    guest.see("ssh: ", SOON);
    guest.power_cut();
    assert_eq!(hashes(&machine), before, "a disk was written");
}
