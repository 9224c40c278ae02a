//! Starting the installed kernel: `kexec_file_load(2)`, then `reboot(RB_KEXEC)`.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::reboot::{RebootMode, reboot};

use super::boot_info::BootInfo;
use super::error::Error;
use crate::image::VerifiedImage;

/// `KEXEC_FILE_NO_INITRAMFS` of `linux/kexec.h`.
const NO_INITRAMFS: libc::c_ulong = 0x4;

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
    let (initrd, flags) = match &info.initrd {
        Some(file) => (file.as_raw_fd(), 0),
        None => (-1, NO_INITRAMFS),
    };
    let bytes = command_line.as_bytes_with_nul();
    // SAFETY: both descriptors are open, and the command line's length includes its zero byte.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            info.kernel.as_raw_fd(),
            initrd,
            bytes.len(),
            bytes.as_ptr(),
            flags,
        )
    };
    Errno::result(result).map_err(|errno| refused(explain(errno)))?;
    tracing::info!(
        kernel = info.kernel_path,
        command_line = info.command_line,
        image = image.digest(),
        "the installed kernel is loaded"
    );
    Ok(Loaded {
        kernel: info.kernel_path.clone(),
    })
}

impl Loaded {
    /// Leaves for the loaded kernel. What has to be flushed or unmounted must be by now;
    /// a last `sync(2)` is done here.
    ///
    /// # Errors
    /// The reboot call came back.
    pub fn execute(self) -> Result<Infallible, Error> {
        nix::unistd::sync();
        reboot(RebootMode::RB_KEXEC).map_err(|errno| Error::Kexec {
            kernel: self.kernel,
            reason: format!("reboot(RB_KEXEC): {}", explain(errno)),
        })
    }
}

/// The errors of `kexec_file_load(2)` in words.
fn explain(errno: Errno) -> String {
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
