//! The `tiny` test image's only program: its init and its installer, without any crate.
//!
//! A stand-in for a distribution: a real one (the `debian` image) takes a minute to unpack and boot
//! under emulation, and most tests only ask whether the installed system starts and what it found.
//! Built by `scripts/build-images` with plain `rustc`. What it does depends on its name:
//!
//! * `init`: prints `TINY-OS ...` lines about how it was booted and what is on its disk, powers off.
//! * `/init`, in the initramfs of `tiny-stacked`: assembles arrays, activates volumes, finds the file
//!   system that is labelled `root`, mounts what its `/etc/fstab` names, tells what mdadm and LVM say,
//!   and hands over to the `init` there.
//! * `install-go`, or `os-installer` when the agent brings it: what runs in the chroot; puts a boot
//!   loader into the EFI system partition and writes `/etc/metal/boot-info.yaml`.
//!   `/etc/tiny/installer` may order a fault:
//!   `exit 3`, `no-boot-info`, `hang` (with a bootable disk behind it: the worst moment for a power cut).

use std::ffi::{CString, c_char, c_int, c_ulong, c_void};
use std::fmt::Write as _;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chroot};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;
use std::{fs, io, thread};

unsafe extern "C" {
    fn mount(
        source: *const c_char,
        target: *const c_char,
        fstype: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
    fn sync();
    fn reboot(command: c_int) -> c_int;
}

/// `linux/reboot.h`: LINUX_REBOOT_CMD_POWER_OFF.
const POWER_OFF: c_int = 0x4321_fedc;
/// `linux/mount.h`: MS_RDONLY.
const READ_ONLY: c_ulong = 1;
/// `linux/mount.h`: MS_REMOUNT | MS_RDONLY.
const REMOUNT_READ_ONLY: c_ulong = 32 | READ_ONLY;
/// `linux/mount.h`: MS_MOVE.
const MOVE: c_ulong = 8192;
/// Where the initramfs mounts the root.
const NEW_ROOT: &str = "/mnt/root";
/// Where an ext2/3/4 superblock keeps its magic number, its UUID and its label (`fs/ext4/ext4.h`).
const EXT_MAGIC_AT: usize = 1024 + 0x38;
const EXT_UUID_AT: usize = 1024 + 0x68;
const EXT_LABEL_AT: usize = 1024 + 0x78;
/// The same of a swap area with pages of 4 KiB (`linux/swap.h`).
const SWAP_MAGIC_AT: usize = 4096 - 10;
const SWAP_UUID_AT: usize = 1024 + 12;

fn main() -> ExitCode {
    let name = std::env::args().next().unwrap_or_default();
    if name == "/init" {
        let Err(error) = initramfs();
        say(&format!("TINY-OS initramfs: {error}\n"));
        // PID 1 that ends is a panic, and `panic=-1` a reset.
        return ExitCode::FAILURE;
    }
    match Path::new(&name).file_name().and_then(|n| n.to_str()) {
        Some("install-go" | "os-installer") => match install() {
            Ok(code) => code,
            Err(error) => {
                eprintln!("tiny installer: {error}");
                ExitCode::from(1)
            }
        },
        _ => init(),
    }
}

/// Mounts `kind` on `target`; what cannot be mounted shows in the facts.
fn mount_kind(kind: &str, target: &str, flags: c_ulong) {
    mount_from(kind, target, kind, flags);
}

fn mount_from(source: &str, target: &str, kind: &str, flags: c_ulong) {
    let strings = [source, target, kind].map(CString::new);
    let [Ok(source), Ok(target), Ok(kind)] = strings else {
        return;
    };
    // SAFETY: three NUL-terminated strings that outlive the call; no data.
    unsafe {
        mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            std::ptr::null(),
        );
    }
}

/// In one write: kernel messages must not come between a line's halves.
fn say(text: &str) {
    if let Ok(mut console) = fs::OpenOptions::new().write(true).open("/dev/console") {
        let _ = console.write_all(text.as_bytes());
        let _ = console.flush();
    }
}

/// What a distribution's initramfs does for file systems on arrays and volumes.
fn initramfs() -> io::Result<std::convert::Infallible> {
    mount_kind("proc", "/proc", 0);
    mount_kind("sysfs", "/sys", 0);
    mount_kind("devtmpfs", "/dev", 0);
    let root = awaited("no file system is labelled root", |it| it.label == "root")?;
    mount_from(&node(&root), NEW_ROOT, "ext4", 0);
    for line in fs::read_to_string(format!("{NEW_ROOT}/etc/fstab"))?.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [spec, path, kind, ..] = words[..] else {
            continue;
        };
        let Some(uuid) = spec.strip_prefix("UUID=").filter(|_| path != "/") else {
            continue;
        };
        let device = awaited(line, |it| it.uuid == uuid)?;
        if kind == "swap" {
            say(&format!("TINY-OS swap={device}\n"));
        } else {
            mount_from(
                &node(&device),
                &format!("{NEW_ROOT}{path}"),
                kind,
                READ_ONLY,
            );
        }
    }
    say(&stacks());
    std::env::set_current_dir(NEW_ROOT)?;
    mount_from(".", "/", "none", MOVE);
    chroot(".")?;
    std::env::set_current_dir("/")?;
    Err(Command::new("/sbin/init").exec())
}

fn node(device: &str) -> String {
    format!("/dev/{device}")
}

/// Waits for the one device that `is_it`: NVMe disks appear after PID 1, an array on arrays in the
/// second round. Members of a mirror look like the mirror until it is assembled: two are none.
fn awaited(what: &str, is_it: impl Fn(&Superblock) -> bool) -> io::Result<String> {
    for _ in 0..100 {
        let mut found: Vec<String> = block_devices()
            .filter(|name| !is_held(name) && superblock(name).is_some_and(|it| is_it(&it)))
            .collect();
        if let (Some(device), []) = (found.pop(), &found[..]) {
            return Ok(device);
        }
        run(
            "/usr/sbin/mdadm",
            &["--assemble", "--scan", "--no-degraded"],
        );
        run("/usr/sbin/lvm", &["vgchange", "--activate", "y"]);
        thread::sleep(Duration::from_millis(50));
    }
    Err(io::Error::other(format!("not found: {what}")))
}

fn run(tool: &str, arguments: &[&str]) -> String {
    let output = Command::new(tool)
        .args(arguments)
        .env("DM_DISABLE_UDEV", "1")
        .env("LVM_SUPPRESS_FD_WARNINGS", "1")
        .output();
    output.map_or_else(
        |e| e.to_string(),
        |output| String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

/// The kernel's names of all block devices.
fn block_devices() -> impl Iterator<Item = String> {
    let entries = fs::read_dir("/sys/class/block").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}

/// Whether an array or a volume stands on it.
fn is_held(device: &str) -> bool {
    fs::read_dir(format!("/sys/class/block/{device}/holders"))
        .is_ok_and(|mut holders| holders.next().is_some())
}

/// What a file system or swap area is called.
struct Superblock {
    uuid: String,
    label: String,
}

/// ext2/3/4, swap, FAT; nothing else has a line in fstab.
fn superblock(device: &str) -> Option<Superblock> {
    let mut start = [0; 4096];
    fs::File::open(node(device))
        .ok()?
        .read_exact_at(&mut start, 0)
        .ok()?;
    let at = |at: usize, length: usize| &start[at..at + length];
    let uuid = if at(EXT_MAGIC_AT, 2) == [0x53, 0xef] {
        dashed(at(EXT_UUID_AT, 16))
    } else if at(SWAP_MAGIC_AT, 10) == b"SWAPSPACE2" {
        dashed(at(SWAP_UUID_AT, 16))
    } else {
        // The serial number: BPB of FAT32 or of FAT12 and FAT16.
        let serial = match (at(82, 5), at(54, 4)) {
            (b"FAT32", _) => at(67, 4),
            (_, b"FAT1") => at(39, 4),
            _ => return None,
        };
        let hex: Vec<String> = serial.iter().rev().map(|b| format!("{b:02X}")).collect();
        format!("{}{}-{}{}", hex[0], hex[1], hex[2], hex[3])
    };
    let label = at(EXT_LABEL_AT, 16).split(|byte| *byte == 0).next()?;
    Some(Superblock {
        uuid,
        label: String::from_utf8_lossy(label).into_owned(),
    })
}

/// What mdadm and LVM say of the arrays and volumes: a line each.
fn stacks() -> String {
    let mut out = String::from("\n");
    for array in block_devices().filter(|name| name.starts_with("md")) {
        // mdadm opens what it has known before, and the kernel makes an empty array of that.
        if read(&format!("/sys/class/block/{array}/size")) != "0" {
            let detail = run("/usr/sbin/mdadm", &["--detail", "--export", &node(&array)]);
            let _ = writeln!(
                out,
                "TINY-OS detail={array} {}",
                detail.trim().replace('\n', " ")
            );
        }
    }
    let volumes = run(
        "/usr/sbin/lvm",
        &[
            "lvs",
            "--noheadings",
            "--units=m",
            "--nosuffix",
            "--separator=;",
            "-o",
            "vg_name,lv_name,lv_size,segtype,vg_tags",
        ],
    );
    for volume in volumes.lines() {
        let _ = writeln!(out, "TINY-OS volume={}", volume.trim());
    }
    out
}

/// PID 1 of the installed system: tells what it sees and powers off.
fn init() -> ExitCode {
    mount_kind("proc", "/proc", 0);
    mount_kind("sysfs", "/sys", 0);
    mount_kind("devtmpfs", "/dev", 0);
    say(&facts());
    mount_kind("none", "/", REMOUNT_READ_ONLY);
    // SAFETY: neither call takes a pointer; power-off is what PID 1 is here for.
    unsafe {
        sync();
        reboot(POWER_OFF);
    }
    loop {
        std::thread::park();
    }
}

/// The lines that tests read.
fn facts() -> String {
    let cmdline = read("/proc/cmdline");
    let how = cmdline
        .split_whitespace()
        .find_map(|word| word.strip_prefix("tiny.boot="))
        .unwrap_or("unknown");
    let mut out = format!("\nTINY-OS BOOTED via {how} cmdline={cmdline}\n");
    let mut fact = |name: &str, value: &str| {
        let _ = writeln!(out, "TINY-OS {name}={value}");
    };
    fact("root", &root_uuid().unwrap_or_else(|e| e.to_string()));
    fact("device", &root_device().unwrap_or_else(|e| e.to_string()));
    // An array has two lines: what it is, and which of its members work (`[UU]`).
    for array in read("/proc/mdstat").split("\nmd").skip(1) {
        let line: Vec<_> = array.split_whitespace().collect();
        fact("array", &format!("md{}", line.join(" ")));
    }
    for line in read("/proc/mounts")
        .lines()
        .filter(|line| line.starts_with("/dev/"))
    {
        let words: Vec<_> = line.split(' ').collect();
        fact(
            "mounted",
            &format!("{} {} {}", words[1], words[2], words[0]),
        );
    }
    fact("hostname", &read("/etc/hostname"));
    fact("machine-id", &read("/etc/machine-id"));
    for line in read("/etc/fstab").lines() {
        fact("fstab", line);
    }
    for line in read("/etc/metal/machine-details.yaml").lines() {
        // The password stays out of the log, as everywhere.
        if line.starts_with("root_uuid") || line.starts_with("id:") || line.starts_with("console") {
            fact("details", line);
        }
    }
    for line in read("/etc/metal/machine-allocation.yaml").lines() {
        if !line.starts_with([' ', '-']) {
            fact("allocation", line);
        }
    }
    fact("disk.json", &read("/etc/metal/disk.json"));
    let timeline = read("/var/log/metal-anvil/boot.json");
    fact("timeline", &timeline.replace('\n', " "));
    fact("userdata", &read("/etc/metal/userdata"));
    let mut names: Vec<_> = fs::read_dir("/etc/metal")
        .map(|dir| dir.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    names.sort();
    for path in names {
        if let Ok(meta) = fs::metadata(&path) {
            let mode = meta.permissions().mode() & 0o7777;
            fact(
                "file",
                &format!("{} {mode:04o} {}", path.display(), meta.len()),
            );
        }
    }
    fact("efi", &Path::new("/sys/firmware/efi").exists().to_string());
    out.push_str("TINY-OS DONE\n");
    out
}

/// The kernel's name of the device that `/` is on.
fn root_device() -> io::Result<String> {
    let device = fs::metadata("/")?.dev();
    // glibc's major/minor split of dev_t (`sys/sysmacros.h`), for the small numbers used here.
    let (major, minor) = (
        (device >> 8) & 0xfff,
        (device & 0xff) | ((device >> 12) & 0xf_ff00),
    );
    let uevent = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent"))?;
    uevent
        .lines()
        .find_map(|line| line.strip_prefix("DEVNAME=").map(str::to_owned))
        .ok_or_else(|| io::Error::other("uevent without DEVNAME"))
}

/// UUID of the ext4 file system that `/` is on, read from the device itself.
fn root_uuid() -> io::Result<String> {
    let found = superblock(&root_device()?);
    found
        .map(|it| it.uuid)
        .ok_or_else(|| io::Error::other("no superblock"))
}

/// 16 bytes as a UUID is written.
fn dashed(uuid: &[u8]) -> String {
    let hex: String = uuid.iter().map(|b| format!("{b:02x}")).collect();
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

/// A small file's text without the final newline; an error reads as `<error>`.
fn read(path: &str) -> String {
    match fs::read_to_string(path) {
        Ok(text) => text.trim_end().to_owned(),
        Err(error) => format!("<{error}>"),
    }
}

/// What a distribution's installer does: boot loader, boot-info.
fn install() -> io::Result<ExitCode> {
    let order = fs::read_to_string("/etc/tiny/installer").unwrap_or_default();
    println!("tiny installer: order {:?}", order.trim());
    match order.trim() {
        "exit 3" => return Ok(ExitCode::from(3)),
        _ => {}
    }
    for needed in ["/proc/self", "/sys/class", "/dev/null"] {
        if !Path::new(needed).exists() {
            return Err(io::Error::other(format!("{needed} is not there")));
        }
    }
    let esp = Path::new("/boot/efi/EFI");
    for target in ["tiny/grubx64.efi", "BOOT/BOOTX64.EFI"] {
        let target = esp.join(target);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::copy("/boot/tiny.efi", &target)?;
        println!("tiny installer: wrote {}", target.display());
    }
    if order.trim() == "hang" {
        // SAFETY: no pointer; what was written has to be on the disk when the power goes.
        unsafe { sync() };
        println!("tiny installer: hanging");
        loop {
            std::thread::park();
        }
    }
    if order.trim() == "no-boot-info" {
        return Ok(ExitCode::SUCCESS);
    }
    let cmdline = read("/boot/cmdline");
    let initrd = match Path::new("/boot/initrd.img").exists() {
        true => "/boot/initrd.img",
        false => "",
    };
    fs::write(
        "/etc/metal/boot-info.yaml",
        format!(
            "initrd: \"{initrd}\"\ncmdline: \"{cmdline} tiny.boot=kexec\"\nkernel: /boot/vmlinuz\nbootloader_id: tiny\n"
        ),
    )?;
    Ok(ExitCode::SUCCESS)
}
