//! Extended attributes, which nix does not wrap (xattr(7)).

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;

/// `fsetxattr(2)`.
///
/// # Errors
/// The kernel's errno; `EINVAL` for a name with a zero byte.
pub fn set<F: AsFd>(fd: F, name: &[u8], value: &[u8]) -> Result<(), Errno> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the descriptor is open, the name ends in a zero byte, and value and length belong together.
    let result = unsafe {
        libc::fsetxattr(
            fd.as_fd().as_raw_fd(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    Errno::result(result).map(drop)
}

/// `lsetxattr(2)`: the last component is not followed.
///
/// # Errors
/// The kernel's errno; `EINVAL` for a name with a zero byte.
pub fn set_link(path: &Path, name: &[u8], value: &[u8]) -> Result<(), Errno> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: both strings end in a zero byte, and value and length belong together.
    let result = unsafe {
        libc::lsetxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    Errno::result(result).map(drop)
}

/// `setxattr(2)`: the path is followed to its end, so that a descriptor's name in procfs
/// leads to what the descriptor stands for.
///
/// # Errors
/// The kernel's errno; `EINVAL` for a name with a zero byte.
pub fn set_followed(path: &Path, name: &[u8], value: &[u8]) -> Result<(), Errno> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: both strings end in a zero byte, and value and length belong together.
    let result = unsafe {
        libc::setxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    Errno::result(result).map(drop)
}
