//! Network cards taken down: a card that still receives writes into the memory of whichever
//! kernel comes next.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;

/// Takes every link below `sys` down that stands on a device. What does not go down is told.
pub fn take_down(sys: &Path) {
    let links = fs::read_dir(sys.join("class/net"));
    for link in links.into_iter().flatten().flatten() {
        let name = link.file_name();
        if !link.path().join("device").exists() {
            continue;
        }
        if let Err(error) = take_one_down(name.as_encoded_bytes()) {
            tracing::warn!("{}: it stays up: {error}", name.display());
        }
    }
}

/// `SIOCGIFFLAGS` and `SIOCSIFFLAGS`, netdevice(7).
fn take_one_down(name: &[u8]) -> io::Result<()> {
    // SAFETY: no pointers; the descriptor is checked and owned from here.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_INET6, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        OwnedFd::from_raw_fd(Errno::result(fd)?)
    };
    // SAFETY: all zeros are a valid ifreq: a name of no bytes and no flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte is left for the zero that ends the name.
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    // SAFETY: the socket is open, and the kernel reads and writes one ifreq; reading the flags
    // is reading the field of the union that this request fills.
    unsafe {
        Errno::result(libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCGIFFLAGS as _,
            &raw mut request,
        ))?;
        request.ifr_ifru.ifru_flags &= !(libc::IFF_UP as libc::c_short);
        Errno::result(libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS as _,
            &raw mut request,
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_is_not_there_is_an_error_and_nothing_else() {
        let error = take_one_down(b"no-such-link").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
        let long = take_one_down(&[b'x'; 16]).unwrap_err();
        assert_eq!(long.kind(), io::ErrorKind::InvalidInput);
        // Links without a device, as the loopback, are left alone.
        let sys = tempfile::tempdir().unwrap();
        fs::create_dir_all(sys.path().join("class/net/lo")).unwrap();
        take_down(sys.path());
    }
}
