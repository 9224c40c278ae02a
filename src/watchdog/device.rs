//! One watchdog timer: `linux/watchdog.h`, Documentation/watchdog/watchdog-api.rst.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// `WDIOS_DISABLECARD`, `linux/watchdog.h`.
const DISABLE_CARD: libc::c_int = 1;

/// `linux/watchdog.h`. Some of the header's directions are wrong, and part of the ABI.
mod ioctl {
    nix::ioctl_read!(set_options, b'W', 4, libc::c_int);
    nix::ioctl_read!(keep_alive, b'W', 5, libc::c_int);
    nix::ioctl_readwrite!(set_timeout, b'W', 6, libc::c_int);
    nix::ioctl_read!(get_timeout, b'W', 7, libc::c_int);
}

/// A timer that resets the machine unless it is petted.
pub trait Timer: Send {
    /// Asks for a timeout and answers the one that the driver made of it, in seconds.
    ///
    /// # Errors
    /// The driver knows no such timeout, or does not say what it has.
    fn set_timeout(&mut self, seconds: u32) -> io::Result<u32>;

    /// Starts the time anew.
    ///
    /// # Errors
    /// The driver failed.
    fn pet(&mut self) -> io::Result<()>;

    /// Stops the timer, which stays open.
    ///
    /// # Errors
    /// It cannot be stopped: `nowayout`, or the driver failed. It runs on then.
    fn disarm(&mut self) -> io::Result<()>;
}

/// A device below `/dev`. Opening it has started it.
#[derive(Debug)]
pub struct Device(File);

impl Device {
    /// Opens and thereby starts the timer.
    ///
    /// # Errors
    /// There is none, or somebody else has it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_CLOEXEC)
            .open(path)?;
        Ok(Self(file))
    }
}

impl Timer for Device {
    fn set_timeout(&mut self, seconds: u32) -> io::Result<u32> {
        let fd = self.0.as_raw_fd();
        let mut value = libc::c_int::try_from(seconds).map_err(io::Error::other)?;
        // SAFETY: the descriptor is open, and the kernel reads and writes one int at `value`.
        unsafe { ioctl::set_timeout(fd, &raw mut value) }?;
        // SAFETY: as above; the kernel writes only.
        unsafe { ioctl::get_timeout(fd, &raw mut value) }?;
        u32::try_from(value).map_err(io::Error::other)
    }

    fn pet(&mut self) -> io::Result<()> {
        let mut unused = 0;
        // SAFETY: the descriptor is open; the kernel leaves the argument alone.
        unsafe { ioctl::keep_alive(self.0.as_raw_fd(), &raw mut unused) }?;
        Ok(())
    }

    fn disarm(&mut self) -> io::Result<()> {
        // The magic letter, for the close at the end of this process.
        self.0.write_all(b"V")?;
        let mut options = DISABLE_CARD;
        // SAFETY: the descriptor is open, and the kernel reads one int at `options`.
        unsafe { ioctl::set_options(self.0.as_raw_fd(), &raw mut options) }?;
        Ok(())
    }
}
