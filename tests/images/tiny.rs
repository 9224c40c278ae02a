//! The `tiny` test image's only program: its init and its installer, without any crate.
//!
//! A stand-in for a distribution: a real one (the `debian` image) takes a minute to unpack and boot
//! under emulation, and most tests only ask whether the installed system starts and what it found.
//! Built by `scripts/build-images` with plain `rustc`. What it does depends on its name:
//!
//! * `init`: prints `TINY-OS ...` lines about how it was booted and what is on its disk, powers off.
//! * `install-go`, or `os-installer` when the agent brings it: what runs in the chroot; puts a boot
//!   loader into the EFI system partition and writes `/etc/metal/boot-info.yaml`.
//!   `/etc/tiny/installer` may order a fault:
//!   `exit 3`, `no-boot-info`, `hang` (with a bootable disk behind it: the worst moment for a power cut).

use std::ffi::{CString, c_char, c_int, c_ulong, c_void};
use std::fmt::Write as _;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::ExitCode;
use std::{fs, io};

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
/// `linux/mount.h`: MS_REMOUNT | MS_RDONLY.
const REMOUNT_READ_ONLY: c_ulong = 32 | 1;
/// Where an ext2/3/4 superblock keeps its UUID: 1024 + offsetof(s_uuid) (`fs/ext4/ext4.h`).
const EXT4_UUID_AT: u64 = 1024 + 0x68;

fn main() -> ExitCode {
    let name = std::env::args().next().unwrap_or_default();
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
    let (Ok(kind), Ok(target)) = (CString::new(kind), CString::new(target)) else {
        return;
    };
    // SAFETY: three NUL-terminated strings that outlive the call; no data.
    unsafe {
        mount(
            kind.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            std::ptr::null(),
        );
    }
}

/// PID 1 of the installed system: tells what it sees and powers off.
fn init() -> ExitCode {
    mount_kind("proc", "/proc", 0);
    mount_kind("sysfs", "/sys", 0);
    mount_kind("devtmpfs", "/dev", 0);
    let facts = facts();
    // One write: kernel messages must not come between a line's halves.
    if let Ok(mut console) = fs::OpenOptions::new().write(true).open("/dev/console") {
        let _ = console.write_all(facts.as_bytes());
        let _ = console.flush();
    }
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

/// UUID of the ext4 file system that `/` is on, read from the partition itself.
fn root_uuid() -> io::Result<String> {
    let device = fs::metadata("/")?.dev();
    // glibc's major/minor split of dev_t (`sys/sysmacros.h`), for the small numbers used here.
    let (major, minor) = (
        (device >> 8) & 0xfff,
        (device & 0xff) | ((device >> 12) & 0xf_ff00),
    );
    let uevent = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent"))?;
    let name = uevent
        .lines()
        .find_map(|line| line.strip_prefix("DEVNAME="))
        .ok_or_else(|| io::Error::other("uevent without DEVNAME"))?;
    let mut file = fs::File::open(Path::new("/dev").join(name))?;
    file.seek(SeekFrom::Start(EXT4_UUID_AT))?;
    let mut raw = [0u8; 16];
    file.read_exact(&mut raw)?;
    let hex: String = raw.iter().map(|b| format!("{b:02x}")).collect();
    Ok(format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    ))
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
    fs::write(
        "/etc/metal/boot-info.yaml",
        format!(
            "initrd: \"\"\ncmdline: \"{cmdline} tiny.boot=kexec\"\nkernel: /boot/vmlinuz\nbootloader_id: tiny\n"
        ),
    )?;
    Ok(ExitCode::SUCCESS)
}
