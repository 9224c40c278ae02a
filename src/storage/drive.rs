//! A drive behind its block device: asked what it can, and told to erase itself. System
//! calls only; what is said is chosen in `nvme`, `ata`, `scsi` and `ladder`.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::ata::{self, Security, Transfer};
use super::device;
use super::disks::{Disk, Transport};
use super::ladder::{Facts, Rung};
use super::nvme::{self, Command, IDENTIFY_SIZE, Nvme, Sanitized};
use super::reservation;
use super::scsi::{self, Progress, REPORT_SIZE, SENSE_SIZE, Sanitize};
use super::wipe;
use super::wipe_disk::{self, Drive};
use crate::watchdog;

/// A sanitize ends in the background: looked at this often, for this long at most.
const POLL: Duration = Duration::from_secs(2);
const SANITIZE_LIMIT: Duration = Duration::from_secs(24 * 3600);
/// Milliseconds for a short SCSI or ATA command.
const SHORT_MS: u32 = 30_000;

/// A drive that is open for oneself alone.
pub(super) struct OpenDrive<'d> {
    pub file: &'d File,
    pub disk: &'d Disk,
    pub progress: &'d watchdog::Progress,
}

impl Drive for OpenDrive<'_> {
    /// Brings a drive back whose erase was cut: a sanitize goes on by itself, a password that
    /// an ATA erase left is taken off.
    fn make_ready(&self) -> io::Result<()> {
        match self.disk.transport {
            Transport::Nvme => nvme::make_ready(
                |command, data| self.admin(command, data),
                || self.wait_for_nvme(),
            ),
            Transport::Sata => match self.security() {
                Ok(security) if security.is_enabled && !security.is_frozen => {
                    self.take_password_off()
                }
                Ok(_) | Err(_) => Ok(()),
            },
            Transport::Scsi => match self.sense() {
                Ok(Progress::Running(_)) => self.wait_for_scsi(),
                Ok(_) | Err(_) => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn facts(&self) -> Facts {
        let mut facts = Facts::default();
        let asked = match self.disk.transport {
            Transport::Nvme => self.nvme().map(|nvme| facts.nvme = Some(nvme)),
            Transport::Sata => self.security().map(|security| facts.ata = Some(security)),
            Transport::Scsi => {
                facts.scsi_sanitize_crypto = self.has_sanitize(Sanitize::Crypto);
                facts.scsi_sanitize_block = self.has_sanitize(Sanitize::Block);
                Ok(())
            }
            _ => Ok(()),
        };
        if let Err(error) = asked {
            tracing::info!(disk = %self.disk.path.display(), %error, "the drive does not say how it can be erased");
        }
        facts
    }

    fn beat(&self) {
        self.progress.beat();
    }

    fn erase(&self, rung: Rung) -> io::Result<()> {
        match rung {
            Rung::NvmeSanitizeCrypto => self.nvme_sanitize(nvme::Erase::Crypto),
            Rung::NvmeSanitizeBlock => self.nvme_sanitize(nvme::Erase::Data),
            Rung::NvmeFormatCrypto => self.nvme_format(nvme::Erase::Crypto),
            Rung::NvmeFormatData => self.nvme_format(nvme::Erase::Data),
            Rung::AtaEraseEnhanced => self.ata_erase(true),
            Rung::AtaErase => self.ata_erase(false),
            Rung::ScsiSanitizeCrypto => self.scsi_sanitize(Sanitize::Crypto),
            Rung::ScsiSanitizeBlock => self.scsi_sanitize(Sanitize::Block),
            Rung::SecureDiscard => device::secure_discard(self.file, self.disk.size, self.progress),
            Rung::Discard => device::discard(self.file, self.disk.size, self.progress),
            Rung::ZeroOut => device::zero_out(self.file, self.disk.size, self.progress),
            Rung::Overwrite => wipe_disk::overwrite(self.file, self.disk.size, self.progress),
            Rung::Marks => Ok(()),
        }
    }
}

impl OpenDrive<'_> {
    /// One NVMe admin command; answers completion dword 0.
    fn admin(&self, command: Command, data: &mut [u8]) -> io::Result<u32> {
        self.nvme_command(command, data, ioctl::nvme_admin)
    }

    fn nvme_command(
        &self,
        mut command: Command,
        data: &mut [u8],
        send: unsafe fn(i32, *mut Command) -> nix::Result<i32>,
    ) -> io::Result<u32> {
        command.addr = data.as_mut_ptr() as u64;
        command.data_len = u32::try_from(data.len()).map_err(io::Error::other)?;
        // SAFETY: `send` is one of the two below that take a command; the kernel reads `command`
        // and transfers at most `data_len` bytes to or from `data`; both live through the call.
        let status = unsafe { send(self.file.as_raw_fd(), &raw mut command) }?;
        // A negative answer is an errno, a positive one the controller's status.
        match status {
            0 => Ok(command.result),
            status => Err(io::Error::other(format!(
                "the controller answers status {status:#05x} to command {:#04x}",
                command.opcode
            ))),
        }
    }

    fn namespace(&self) -> io::Result<u32> {
        // SAFETY: NVME_IOCTL_ID takes no argument.
        let nsid = unsafe { ioctl::nvme_id(self.file.as_raw_fd()) }?;
        u32::try_from(nsid).map_err(io::Error::other)
    }

    /// Whether somebody holds a reservation.
    ///
    /// # Errors
    /// `ResourceBusy` when another host has the whole drive; else when the drive knows no reservations, or does not answer.
    pub fn is_reserved(&self) -> io::Result<bool> {
        if self.disk.transport == Transport::Nvme {
            let nsid = self.namespace()?;
            let mut answer = [0; reservation::NVME_SIZE];
            let mut ask = |extended| {
                let report = reservation::nvme_report(nsid, extended);
                self.nvme_command(report, &mut answer, ioctl::nvme_io)
            };
            ask(false).or_else(|_| ask(true))?;
            return Ok(reservation::nvme_is_held(&answer));
        }
        let mut answer = [0; reservation::SCSI_SIZE];
        self.scsi(
            &reservation::scsi_cdb(),
            Transfer::In,
            &mut answer,
            reservation::ANSWER_MS,
        )?;
        Ok(reservation::scsi_is_held(&answer))
    }

    fn identify(&self, about: nvme::About) -> io::Result<Box<[u8; IDENTIFY_SIZE]>> {
        let mut data = Box::new([0; IDENTIFY_SIZE]);
        self.admin(nvme::identify(about), &mut data[..])?;
        Ok(data)
    }

    fn nvme(&self) -> io::Result<Nvme> {
        let nsid = self.namespace()?;
        Ok(Nvme::parse(
            nsid,
            &*self.identify(nvme::About::Controller)?,
            &*self.identify(nvme::About::Namespace(nsid))?,
            &*self.identify(nvme::About::ActiveNamespaces)?,
        ))
    }

    fn nvme_format(&self, erase: nvme::Erase) -> io::Result<()> {
        let command = nvme::format(&self.nvme()?, erase);
        let limit = Duration::from_millis(command.timeout_ms.into());
        self.silently(limit, || self.admin(command, &mut []).map(drop))
    }

    fn nvme_sanitize(&self, erase: nvme::Erase) -> io::Result<()> {
        nvme::run_sanitize(
            erase,
            |command, data| self.admin(command, data),
            || self.wait_for_nvme(),
        )
    }

    fn wait_for_nvme(&self) -> io::Result<()> {
        self.wait("Sanitize", || {
            let sanitized = nvme::sanitized(|command, data| self.admin(command, data))?;
            Ok(match sanitized {
                Sanitized::InProgress(share) => Progress::Running(share),
                Sanitized::Failed => Progress::Failed,
                Sanitized::Done | Sanitized::Never => Progress::Idle,
            })
        })
    }

    /// A command that the drive answers only when it is done, which it bounds itself.
    fn silently<T>(&self, limit: Duration, command: impl FnOnce() -> T) -> T {
        self.progress.begin(limit + wipe::SILENCE);
        let done = command();
        self.progress.begin(wipe::SILENCE);
        done
    }

    fn wait(&self, what: &str, progress: impl Fn() -> io::Result<Progress>) -> io::Result<()> {
        let disk = self.disk.path.display();
        let deadline = Instant::now() + SANITIZE_LIMIT;
        let mut told = 0;
        loop {
            match progress()? {
                Progress::Idle => return Ok(()),
                Progress::Failed => return Err(io::Error::other(format!("{what} failed"))),
                Progress::Running(_) if Instant::now() >= deadline => {
                    return Err(io::Error::other(format!("{what} does not end")));
                }
                Progress::Running(share) => {
                    let tenths = u32::from(share) * 10 / 65536;
                    if tenths > told {
                        tracing::info!("{disk}: {what} is at {} %", tenths * 10);
                        told = tenths;
                    }
                    // The drive says that it is at work: no sign of ours, but one of life.
                    self.progress.beat();
                    std::thread::sleep(POLL);
                }
            }
        }
    }

    /// One SCSI command.
    fn scsi(&self, cdb: &[u8], transfer: Transfer, data: &mut [u8], ms: u32) -> io::Result<()> {
        let mut sense = [0; SENSE_SIZE];
        let mut header = SgIoHeader {
            interface_id: i32::from(b'S'),
            direction: match transfer {
                Transfer::None => -1,
                Transfer::Out => -2,
                Transfer::In => -3,
            },
            command_length: cdb.len() as u8,
            sense_size: SENSE_SIZE as u8,
            data_length: data.len() as u32,
            data: data.as_mut_ptr(),
            command: cdb.as_ptr(),
            sense: sense.as_mut_ptr(),
            timeout_ms: ms,
            ..SgIoHeader::EMPTY
        };
        // SAFETY: the kernel reads `command_length` bytes of `cdb`, and transfers at most
        // `data_length` bytes of `data` and `sense_size` of `sense`; all live through the call.
        unsafe { ioctl::sg_io(self.file.as_raw_fd(), &raw mut header) }?;
        if (
            header.status,
            header.host_status,
            header.driver_status & 0xf,
        ) == (0, 0, 0)
        {
            return Ok(());
        }
        let kind = match header.status {
            scsi::RESERVATION_CONFLICT => io::ErrorKind::ResourceBusy,
            _ => io::ErrorKind::Other,
        };
        let answer = format!(
            "the drive answers status {:#04x}, host {:#x}, sense {:02x?} to command {:#04x}",
            header.status,
            header.host_status,
            &sense[..18],
            cdb[0]
        );
        Err(io::Error::new(kind, answer))
    }

    fn has_sanitize(&self, sanitize: Sanitize) -> bool {
        let mut report = [0; REPORT_SIZE];
        let asked = self.scsi(&sanitize.report_cdb(), Transfer::In, &mut report, SHORT_MS);
        asked.is_ok() && scsi::is_supported(&report)
    }

    fn sense(&self) -> io::Result<Progress> {
        let mut sense = [0; SENSE_SIZE];
        self.scsi(
            &scsi::request_sense_cdb(),
            Transfer::In,
            &mut sense,
            SHORT_MS,
        )?;
        Ok(scsi::progress(&sense))
    }

    fn scsi_sanitize(&self, sanitize: Sanitize) -> io::Result<()> {
        self.scsi(&sanitize.cdb(), Transfer::None, &mut [], SHORT_MS)?;
        self.wait_for_scsi()
    }

    fn wait_for_scsi(&self) -> io::Result<()> {
        self.wait("SANITIZE", || self.sense())
    }

    fn ata(&self, command: ata::Command, ms: u32) -> io::Result<[u8; ata::SECTOR]> {
        let mut data = command.data();
        let length = match command.transfer() {
            Transfer::None => 0,
            Transfer::In | Transfer::Out => ata::SECTOR,
        };
        self.scsi(&command.cdb(), command.transfer(), &mut data[..length], ms)?;
        Ok(data)
    }

    fn security(&self) -> io::Result<Security> {
        self.ata(ata::Command::Identify, SHORT_MS)
            .map(|identify| Security::parse(&identify))
    }

    fn take_password_off(&self) -> io::Result<()> {
        let security = self.security()?;
        if security.is_locked {
            self.ata(ata::Command::Unlock, SHORT_MS)?;
        }
        if security.is_enabled {
            self.ata(ata::Command::DisablePassword, SHORT_MS)?;
        }
        Ok(())
    }

    /// A drive must not stay locked, whatever became of the erase.
    fn ata_erase(&self, enhanced: bool) -> io::Result<()> {
        let security = self.security()?;
        let estimate = match enhanced {
            true => security.enhanced_takes,
            false => security.takes,
        };
        let ms = u32::try_from(ata::patience(estimate).as_millis()).unwrap_or(u32::MAX);
        self.ata(ata::Command::SetPassword, SHORT_MS)?;
        let erased = self
            .ata(ata::Command::ErasePrepare, SHORT_MS)
            .and_then(|_| {
                let limit = Duration::from_millis(ms.into());
                let erase = ata::Command::EraseUnit { enhanced };
                self.silently(limit, || self.ata(erase, ms))
            });
        // A successful erase has taken the password off by itself.
        let unlocked = self.take_password_off();
        erased?;
        unlocked
    }
}

/// Kernel, `include/scsi/sg.h`, `struct sg_io_hdr`.
#[repr(C)]
struct SgIoHeader {
    interface_id: i32,
    direction: i32,
    command_length: u8,
    sense_size: u8,
    iovec_count: u16,
    data_length: u32,
    data: *mut u8,
    command: *const u8,
    sense: *mut u8,
    timeout_ms: u32,
    flags: u32,
    pack_id: i32,
    user: *mut u8,
    status: u8,
    masked_status: u8,
    message_status: u8,
    sense_written: u8,
    host_status: u16,
    driver_status: u16,
    residual: i32,
    duration: u32,
    info: u32,
}

const _: () = assert!(size_of::<SgIoHeader>() == 88);

impl SgIoHeader {
    const EMPTY: Self = Self {
        interface_id: 0,
        direction: 0,
        command_length: 0,
        sense_size: 0,
        iovec_count: 0,
        data_length: 0,
        data: std::ptr::null_mut(),
        command: std::ptr::null(),
        sense: std::ptr::null_mut(),
        timeout_ms: 0,
        flags: 0,
        pack_id: 0,
        user: std::ptr::null_mut(),
        status: 0,
        masked_status: 0,
        message_status: 0,
        sense_written: 0,
        host_status: 0,
        driver_status: 0,
        residual: 0,
        duration: 0,
        info: 0,
    };
}

/// Kernel, `include/uapi/linux/nvme_ioctl.h` and `include/scsi/sg.h`.
mod ioctl {
    nix::ioctl_none!(nvme_id, b'N', 0x40);
    nix::ioctl_readwrite!(nvme_admin, b'N', 0x41, super::Command);
    nix::ioctl_readwrite!(nvme_io, b'N', 0x43, super::Command);
    nix::ioctl_readwrite_bad!(sg_io, 0x2285, super::SgIoHeader);
}
