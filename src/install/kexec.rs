//! Starting the installed kernel: `kexec_file_load(2)`, then `reboot(RB_KEXEC)`.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::reboot::{RebootMode, reboot};

use super::boot_info::BootInfo;
use super::error::Error;
use super::forget;
use crate::image::VerifiedImage;

/// An archive that holds nothing (newc, Documentation/driver-api/early-userspace/buffer-format.rst):
/// the header of the entry that ends every archive, its name, and padding to four bytes.
///
/// It is loaded where an image brings no initrd. Started with `KEXEC_FILE_NO_INITRAMFS` below
/// UEFI, Linux 6.12 panics before its console works ("Cannot find place for new RAMDISK"): the
/// EFI stub of the first boot left a configuration table about *its* initrd, and the next kernel
/// reads place and size from memory that has been used again since.
const EMPTY_INITRD: &[u8; 124] = b"070701\
    00000000000000000000000000000000000000010000000000000000000000000000000000000000000000000000000B00000000\
    TRAILER!!!\0\0\0\0";

/// Neither unload nor crash kernel nor a missing initrd (`linux/kexec.h`).
const NO_FLAGS: libc::c_ulong = 0;

/// The kernel holds a copy of the next one, ready to be started.
#[derive(Debug)]
#[must_use = "a loaded kernel does nothing until it is executed"]
pub struct Loaded {
    kernel: String,
}

/// Loads kernel and initrd into memory; the files are not needed any more afterwards. The
/// command line is boot-info's, unchanged. Only a verified image is ever started.
///
/// # Errors
/// The running kernel refused; the reason is spelled out.
pub fn load(info: &BootInfo, image: &VerifiedImage) -> Result<Loaded, Error> {
    let refused = |reason: String| Error::Kexec {
        kernel: info.kernel_path.clone(),
        reason,
    };
    let command_line = CString::new(info.command_line.as_str())
        .map_err(|_| refused("the command line holds a zero byte".to_owned()))?;
    let empty;
    let initrd = match &info.initrd {
        Some(file) => file,
        None => {
            empty = empty_initrd().map_err(|error| refused(format!("no empty initrd: {error}")))?;
            &empty
        }
    };
    let bytes = command_line.as_bytes_with_nul();
    // SAFETY: both descriptors are open, and the command line's length includes its zero byte.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            info.kernel.as_raw_fd(),
            initrd.as_raw_fd(),
            bytes.len(),
            bytes.as_ptr(),
            NO_FLAGS,
        )
    };
    Errno::result(result).map_err(|errno| refused(explain(errno)))?;
    tracing::info!(
        kernel = info.kernel_path,
        command_line = info.command_line,
        image = image.summary().digest,
        "the installed kernel is loaded"
    );
    Ok(Loaded {
        kernel: info.kernel_path.clone(),
    })
}

fn empty_initrd() -> io::Result<File> {
    let mut file = File::from(memfd_create(c"empty-initrd", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(EMPTY_INITRD)?;
    Ok(file)
}

impl Loaded {
    /// Leaves for the loaded kernel. What has to be flushed or unmounted must be by now.
    ///
    /// This program becomes another first, which knows no secret ([`forget`]); should the kernel
    /// refuse it then, a reset leads to the boot entry `entry`.
    ///
    /// # Errors
    /// The reboot call came back.
    pub fn execute(self, entry: Option<u16>) -> Result<Infallible, Error> {
        let error = forget::everything(entry);
        tracing::warn!("this program's memory is not cleared before the kexec: {error}");
        reboot(RebootMode::RB_KEXEC).map_err(|errno| Error::Kexec {
            kernel: self.kernel,
            reason: format!("reboot(RB_KEXEC): {}", explain(errno)),
        })
    }
}

/// The errors of `kexec_file_load(2)` in words.
pub(super) fn explain(errno: Errno) -> String {
    let text = match errno {
        Errno::EPERM => {
            "not permitted: kernel lockdown (Secure Boot) or kernel.kexec_load_disabled is in \
             force, or the agent is not root"
        }
        Errno::EKEYREJECTED | Errno::ENOKEY | Errno::EBADMSG | Errno::ENODATA => {
            "its signature is missing or not trusted (lockdown or Secure Boot)"
        }
        Errno::ENOEXEC => "not a kernel image that this machine can start",
        Errno::EINVAL => "the kernel found it invalid (damaged, or an over-long command line)",
        Errno::ENOMEM => "not enough contiguous memory for kernel and initrd",
        Errno::EADDRNOTAVAIL => "no free range of memory to put it in",
        Errno::EBUSY => "another kernel is being loaded",
        Errno::ENOSYS => "the agent's kernel was built without CONFIG_KEXEC_FILE",
        other => return other.to_string(),
    };
    format!("{text} ({errno})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::root::RootDir;
    use std::path::Path;

    #[test]
    fn errors_are_spelled_out() {
        for (errno, word) in [
            (Errno::EPERM, "lockdown"),
            (Errno::EKEYREJECTED, "signature"),
            (Errno::ENOEXEC, "not a kernel"),
            (Errno::ENOMEM, "memory"),
            (Errno::ENOSYS, "CONFIG_KEXEC_FILE"),
            (Errno::EIO, "EIO"),
        ] {
            let text = explain(errno);
            assert!(
                text.contains(word) && text.contains(&format!("{errno:?}")),
                "{text}"
            );
        }
    }

    #[test]
    fn the_empty_initrd_is_an_archive() {
        let (fields, name) = EMPTY_INITRD.split_at(110);
        assert!(fields.iter().all(u8::is_ascii_hexdigit));
        // c_namesize, the twelfth field of eight digits after the magic, counts the zero byte.
        assert_eq!(&fields[6 + 11 * 8..6 + 12 * 8], b"0000000B");
        assert_eq!(name, b"TRAILER!!!\0\0\0\0");
        assert_eq!(EMPTY_INITRD.len() % 4, 0);
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootDir::open(dir.path()).unwrap();
        root.write(Path::new("/k"), &[0x41; 8192], 0o644).unwrap();
        let yaml = b"kernel: /k\ncmdline: quiet\n";
        root.write(Path::new(crate::install::boot_info::PATH), yaml, 0o600)
            .unwrap();
        let info = crate::install::boot_info(&root).unwrap();
        let error = load(&info, &VerifiedImage::for_tests())
            .unwrap_err()
            .to_string();
        assert!(error.contains("/k"), "{error}");
        // The host may lack kexec altogether; with it, the content is what is wrong.
        let known = [
            "not a kernel",
            "CONFIG_KEXEC_FILE",
            "invalid",
            "not permitted",
        ];
        assert!(known.iter().any(|text| error.contains(text)), "{error}");
    }
}
