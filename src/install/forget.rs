//! Nothing that this program knew is left in memory when the next kernel starts.
//!
//! A kexec clears nothing: the next OS can read every page that it has not used yet. So the program
//! becomes another, which only does the kexec; the kernel takes all pages and buffers of the old one
//! back, and zeroes them (`CONFIG_INIT_ON_FREE_DEFAULT_ON`).

use std::ffi::{CStr, CString, OsStr};
use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::path::Path;
use std::thread;

use nix::errno::Errno;
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::execve;

use super::kexec::explain;
use crate::efi::vars::Vars;
use crate::efi::{self, boot};

/// The argument with which this program is started again for the kexec alone.
pub const LEAVE: &CStr = c"--kexec";

/// The program's words for what it becomes: the boot entry is where a reset has to lead, should
/// the kernel refuse the kexec. BootNext cannot be set to it before that: a kexec that works would
/// leave it in the firmware, for the next power-on.
fn words(entry: Option<u16>) -> Vec<CString> {
    let number = entry.and_then(|number| CString::new(format!("{number:04X}")).ok());
    [c"init", LEAVE]
        .map(CStr::to_owned)
        .into_iter()
        .chain(number)
        .collect()
}

/// Becomes the program that only does the kexec. Comes back with the reason if it cannot.
pub fn everything(entry: Option<u16>) -> io::Error {
    if let Err(error) = cut_connections() {
        tracing::debug!("connections are left as they are: {error}");
    }
    // The thread that calls execve(2) survives it in the kernel, with the buffer that its
    // last words to the network were put into: a new one has none.
    let new = thread::Builder::new().spawn(move || -> Errno {
        let environment: [&CStr; 0] = [];
        let Err(errno) = execve(c"/proc/self/exe", &words(entry), &environment);
        errno
    });
    match new.map(thread::JoinHandle::join) {
        Ok(Ok(errno)) => errno.into(),
        Ok(Err(_)) => io::Error::other("the thread for it panicked"),
        Err(error) => error,
    }
}

/// What was not acknowledged would stay in the kernel after the connection is closed, for as long
/// as it is repeated: connections with such a rest are reset instead.
fn cut_connections() -> io::Result<()> {
    for entry in fs::read_dir("/proc/self/fd")?.flatten() {
        let Some(number) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        if unacknowledged(number) {
            // SAFETY: the descriptor was open a moment ago, and nobody closes it for good use: this
            // program is about to end. A wrong one is an error, or a socket that is reset.
            let socket = unsafe { BorrowedFd::borrow_raw(number) };
            let at_once = libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            // What is no socket any more needs nothing.
            let _ = setsockopt(&socket, sockopt::Linger, &at_once);
        }
    }
    Ok(())
}

/// Whether this is a socket with bytes that the other side has not acknowledged.
fn unacknowledged(number: RawFd) -> bool {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int for a socket, and refuses everything else that knows
    // another meaning of this number; TIOCOUTQ is SIOCOUTQ (linux/sockios.h).
    let told = unsafe { libc::ioctl(number, libc::TIOCOUTQ, &raw mut bytes) == 0 };
    told && bytes > 0
}

/// What the program does that [`everything`] becomes: the kexec, and where the kernel refuses it, a
/// reset, by which the firmware starts the disk: `entry`, as [`words`] has it.
pub fn leave(entry: Option<&OsStr>) -> ! {
    let Err(errno) = reboot(RebootMode::RB_KEXEC);
    let where_to = match Vars::open(Path::new(efi::EFIVARS)).and_then(|vars| aim(&vars, entry)) {
        Ok(Some(number)) => format!("boot entry {number:04X}"),
        Ok(None) => "first in BootOrder".to_owned(),
        Err(error) => format!("first in BootOrder; {error}"),
    };
    eprintln!(
        "metal-anvil: no kexec: {}; booting the disk by a reset instead ({where_to})",
        explain(errno)
    );
    let Err(errno) = reboot(RebootMode::RB_AUTOBOOT);
    eprintln!("metal-anvil: the kernel refuses to reboot: {errno}; power-cycle this machine");
    loop {
        thread::park();
    }
}

/// Points BootNext at the entry that was handed over, if one was.
fn aim(vars: &Vars, entry: Option<&OsStr>) -> Result<Option<u16>, efi::Error> {
    let number = entry
        .and_then(OsStr::to_str)
        .and_then(|text| u16::from_str_radix(text, 16).ok());
    if let Some(number) = number {
        boot::set_next(vars, number)?;
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::efi::vars::GLOBAL;
    use crate::efi::vars::tests::fixture;

    #[test]
    fn a_refused_kexec_leads_to_the_disk_although_the_medium_is_first() {
        let handed_over = |entry| {
            let words = words(entry);
            assert_eq!(words[..2], [c"init".to_owned(), LEAVE.to_owned()]);
            words.get(2).map(|word| word.to_str().unwrap().to_owned())
        };
        let (_dir, vars) = fixture();
        let next = || vars.read("BootNext", GLOBAL).unwrap().map(|it| it.data);
        assert_eq!(handed_over(None), None);
        for word in [None, Some("reboot"), Some(""), Some("12345")] {
            assert_eq!(aim(&vars, word.map(OsStr::new)).unwrap(), None);
            assert_eq!(next(), None, "{word:?}");
        }
        let word = handed_over(Some(0x1a)).unwrap();
        assert_eq!(aim(&vars, Some(OsStr::new(&word))).unwrap(), Some(0x1a));
        assert_eq!(next(), Some(vec![0x1a, 0]));
    }

    #[test]
    fn only_what_was_not_acknowledged_is_told() {
        let listener = TcpListener::bind("[::1]:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut receiver, _) = listener.accept().unwrap();
        sender.write_all(b"x").unwrap();
        receiver.read_exact(&mut [0]).unwrap();
        assert!(!unacknowledged(sender.as_raw_fd()));
        // A receiver that does not read stops acknowledging in the end.
        sender.set_nonblocking(true).unwrap();
        while sender.write(&[0; 65536]).is_ok() {}
        assert!(unacknowledged(sender.as_raw_fd()));
        assert!(!unacknowledged(-1));
        let file = tempfile::tempfile().unwrap();
        assert!(!unacknowledged(file.as_raw_fd()));
    }
}
