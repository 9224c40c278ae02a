//! A machine before power-on, and the QEMU command line that it makes.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::disk::{Bus, Disk};
use super::netns::LEAVES;
use super::wire::{self, Wiring};

/// Debian's OVMF: code, and the empty variable store that is copied for each test.
const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
/// The same with Secure Boot, which wants System Management Mode.
const OVMF_SECURE_BOOT: &str = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd";
const OVMF_VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
/// The emulated processor. Not one that is fast at strings of bytes: QEMU moves them one by one,
/// and Linux then clears freed memory with 10 MB/s instead of several times that.
const EMULATED: &str = "max,-erms,-fsrm";

/// How the ISO is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Media {
    /// A CD drive on AHCI.
    SataCd,
    /// A CD drive on virtio-scsi.
    ScsiCd,
    /// A USB CD drive, as BMCs emulate it.
    UsbCd,
    /// A USB stick: the same file as a disk.
    UsbStick,
}

/// What the machine starts from.
#[derive(Clone, Debug)]
pub enum Start {
    /// Kernel and initrd given to the firmware directly: fast, and efivars exist.
    Direct {
        /// Linux kernel.
        kernel: PathBuf,
        /// Its initramfs.
        initrd: PathBuf,
        /// Its command line.
        append: String,
    },
    /// An ISO as a drive.
    Iso(PathBuf, Media),
    /// What the firmware finds on the disks.
    Disks,
}

/// What the firmware is told to try first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// The disks, the medium last.
    MediaLast,
    /// The medium, then the disks: a BMC told to boot the CD.
    MediaFirst,
}

/// The machine before power-on. Disks and `vars` are files that outlive it.
#[derive(Clone, Debug)]
pub struct Machine {
    /// SMBIOS UUID, the machine id.
    pub uuid: String,
    /// Where to start from.
    pub start: Start,
    /// The disks, in order.
    pub disks: Vec<Disk>,
    /// The firmware's variables: made from OVMF's empty store when missing.
    pub vars: PathBuf,
    /// MiB of memory.
    pub memory: u32,
    /// Processors and their topology, as `-smp` takes them.
    pub processors: String,
    /// OVMF; without it QEMU's legacy BIOS, which is seconds faster.
    pub uefi: bool,
    /// OVMF with Secure Boot; what it trusts stands in `vars` (`secure_boot::Keys`).
    pub secure_boot: bool,
    /// An order for the firmware (`bootindex`); `None`: its own BootOrder rules.
    pub order: Option<Order>,
    /// The network cards, one on each leaf in turn, by QEMU device (`virtio-net-pci`).
    pub cards: Vec<&'static str>,
    /// Wires with weather between cards and leaves; `None`: QEMU holds the taps itself.
    pub wiring: Option<Wiring>,
    /// More words for each disk's `-drive` (`,werror=report`).
    pub drive_words: &'static str,
    /// More QEMU arguments.
    pub extra: Vec<String>,
    /// Name of the log files (`NAME.console`, `NAME.qemu`).
    pub name: String,
    /// Show the console live on stdout behind this prefix.
    pub show: Option<String>,
}

impl Machine {
    /// A machine with files in `dir`.
    pub fn new(dir: &Path, uuid: &str, start: Start, disks: Vec<Disk>) -> Self {
        Self {
            uuid: uuid.to_owned(),
            start,
            disks,
            vars: dir.join("vars.fd"),
            memory: 1024,
            processors: "1".to_owned(),
            uefi: true,
            secure_boot: false,
            order: None,
            cards: vec!["virtio-net-pci"; LEAVES.len()],
            wiring: None,
            drive_words: "",
            extra: Vec::new(),
            name: "guest".to_owned(),
            show: None,
        }
    }

    /// The MAC address of network card `number`: from the machine id, so that machines differ.
    pub fn mac(&self, number: usize) -> String {
        let hex: Vec<char> = self.uuid.chars().filter(|c| *c != '-').collect();
        let tail: String = hex[hex.len() - 4..].iter().collect();
        format!("52:54:00:{}:{}:{number:02x}", &tail[..2], &tail[2..])
    }

    /// The command line for somebody else who runs QEMU: the BMC.
    pub fn command_line(&self, qmp: &Path) -> Vec<String> {
        self.make_vars();
        let mut command = Command::new("qemu-system-x86_64");
        self.arguments(&mut command, qmp);
        std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_string_lossy().into_owned())
            .collect()
    }

    pub(super) fn make_vars(&self) {
        if self.uefi && !self.vars.exists() {
            std::fs::copy(OVMF_VARS, &self.vars)
                .unwrap_or_else(|e| panic!("copy {OVMF_VARS} (package ovmf): {e}"));
        }
    }

    pub(super) fn arguments(&self, command: &mut Command, qmp: &Path) {
        let accel = std::env::var("METAL_ANVIL_ACCEL").unwrap_or_else(|_| "tcg".to_owned());
        let cpu = if accel == "kvm" { "host" } else { EMULATED };
        // With a thread per processor, QEMU 7.2 can crash: the memory map changes under one that
        // is just writing to a device (mr is NULL in memory_region_dispatch_write).
        let threads = if accel == "tcg" && self.processors != "1" {
            ",thread=single"
        } else {
            ""
        };
        let mut a = |text: &str| {
            command.args(text.split_whitespace());
        };
        a("-nodefaults -no-user-config -display none -vga std");
        let (smm, firmware) = if self.secure_boot {
            ("on", OVMF_SECURE_BOOT)
        } else {
            ("off", OVMF_CODE)
        };
        a(&format!(
            "-machine q35,smm={smm} -accel {accel}{threads} -cpu {cpu} -smp {} -m {}",
            self.processors, self.memory
        ));
        if self.secure_boot {
            a("-global driver=cfi.pflash01,property=secure,value=on -global ICH9-LPC.disable_s3=1");
        }
        a(&format!("-uuid {}", self.uuid));
        // A reset ends QEMU: the test sees it, and decides what the next power-on looks like.
        a("-action reboot=shutdown,watchdog=reset");
        a("-chardev stdio,id=serial,signal=off -serial chardev:serial");
        a(&format!("-qmp unix:{},server=on,wait=off", qmp.display()));
        if self.uefi {
            a(&format!(
                "-drive if=pflash,format=raw,unit=0,readonly=on,file={firmware}"
            ));
            a(&format!(
                "-drive if=pflash,format=raw,unit=1,file={}",
                self.vars.display()
            ));
        }
        a("-device virtio-rng-pci");
        if self.cards.iter().any(|card| card.starts_with("usb")) {
            a("-device qemu-xhci,id=cards");
        }
        for (number, (card, leaf)) in self.cards.iter().zip(&LEAVES).enumerate() {
            let mac = self.mac(number);
            a(&match &self.wiring {
                None => format!(
                    "-netdev tap,id=net{number},ifname={},script=no,downscript=no",
                    leaf.tap
                ),
                Some(_) => {
                    let sockets = qmp.parent().expect("a socket in a directory");
                    let (card, wire) = wire::ends(sockets, number);
                    format!(
                        "-netdev dgram,id=net{number},local.type=unix,local.path={},\
                         remote.type=unix,remote.path={}",
                        card.display(),
                        wire.display()
                    )
                }
            });
            // No option ROM: OVMF would try to boot from the network. USB devices have none.
            let rom = if card.starts_with("usb") {
                ""
            } else {
                ",romfile="
            };
            a(&format!(
                "-device {card},id=card{number},netdev=net{number},mac={mac}{rom}"
            ));
        }
        if self.disks.iter().any(|d| d.bus == Bus::Scsi)
            || matches!(self.start, Start::Iso(_, Media::ScsiCd))
        {
            a("-device virtio-scsi-pci,id=scsi");
        }
        for (number, disk) in self.disks.iter().enumerate() {
            a(&format!(
                "-drive if=none,id=disk{number},format=raw,cache=unsafe,discard=unmap{},file={}",
                self.drive_words,
                disk.path.display()
            ));
            // Number 0 is left to the medium.
            let order = match self.order {
                Some(_) => format!(",bootindex={}", number + 1),
                None => String::new(),
            };
            let (device, kind) = match disk.bus {
                Bus::Virtio => ("virtio-blk-pci".to_owned(), "virt"),
                Bus::Sata => (format!("ide-hd,bus=ide.{number}"), "sata"),
                Bus::Scsi => ("scsi-hd,bus=scsi.0".to_owned(), "scsi"),
                Bus::Nvme => ("nvme".to_owned(), "nvme"),
                Bus::Nvme4k => (
                    "nvme,logical_block_size=4096,physical_block_size=4096".to_owned(),
                    "nvme",
                ),
            };
            let serial = match &disk.serial {
                Some(serial) => serial.clone(),
                None => format!("{kind}{number}"),
            };
            a(&format!(
                "-device {device},drive=disk{number},serial={serial}{order}"
            ));
        }
        match &self.start {
            Start::Disks => {}
            Start::Direct {
                kernel,
                initrd,
                append,
            } => {
                command.arg("-kernel").arg(kernel);
                command.arg("-initrd").arg(initrd);
                command.args(["-append", append]);
            }
            Start::Iso(iso, media) => {
                let order = match self.order {
                    Some(Order::MediaFirst) => ",bootindex=0",
                    Some(Order::MediaLast) => ",bootindex=99",
                    None => "",
                };
                let kind = if *media == Media::UsbStick {
                    "disk"
                } else {
                    "cdrom"
                };
                a(&format!(
                    "-drive if=none,id=iso,format=raw,readonly=on,media={kind},file={}",
                    iso.display()
                ));
                match media {
                    Media::SataCd => a(&format!("-device ide-cd,bus=ide.5,drive=iso{order}")),
                    Media::ScsiCd => a(&format!("-device scsi-cd,bus=scsi.0,drive=iso{order}")),
                    Media::UsbCd => {
                        a("-device qemu-xhci,id=xhci -device usb-bot,id=bot,bus=xhci.0");
                        a(&format!("-device scsi-cd,bus=bot.0,drive=iso{order}"));
                    }
                    Media::UsbStick => {
                        a("-device qemu-xhci,id=xhci");
                        a(&format!(
                            "-device usb-storage,bus=xhci.0,removable=on,drive=iso{order}"
                        ));
                    }
                }
            }
        }
        command.args(&self.extra);
    }
}
