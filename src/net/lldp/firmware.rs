//! NICs whose firmware speaks LLDP itself, and keeps the switch's frames from the host.
//!
//! Where the driver has a private flag for that (`ethtool --set-priv-flags`), the agent in the
//! firmware is turned off by it: the ioctls of linux/ethtool.h.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// linux/ethtool.h.
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GPFLAGS: u32 = 0x27;
const ETHTOOL_SPFLAGS: u32 = 0x28;
/// `ETH_SS_PRIV_FLAGS`.
const PRIV_FLAGS: u32 = 2;
/// `ETH_GSTRING_LEN`.
const NAME: usize = 32;
/// `struct ethtool_drvinfo`: its length, and where `driver` and `n_priv_flags` stand.
const DRVINFO: usize = 196;
const DRVINFO_DRIVER: usize = 4;
const DRVINFO_FLAGS: usize = 176;
/// Flags are the bits of a u32.
const MAX_FLAGS: usize = 32;

/// A known agent: driver, private flag, and the flag's value without the agent. Names as in
/// Linux 6.12, i40e_ethtool.c and ice_ethtool.c.
const AGENTS: [(&str, &str, bool); 2] = [
    ("i40e", "disable-fw-lldp", true),
    ("ice", "fw-lldp-agent", false),
];
/// Broadcom's agent is an option in the card's NVM (`niccli`, nearest bridge); bnxt_en has no
/// private flags.
const NVM_ONLY: &str = "bnxt_en";

/// What was found, or done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Agent {
    /// A driver whose firmware is not known to speak LLDP.
    Unknown,
    /// It was off already.
    Off { driver: &'static str },
    /// It was turned off.
    Stopped {
        driver: &'static str,
        flag: &'static str,
    },
    /// It may be on, and this driver does not let it be turned off.
    OutOfReach { driver: &'static str, why: String },
}

/// Turns the agent of the interface's firmware off. Blocks: a card may have to be reset for
/// it. Needs `CAP_NET_ADMIN`.
///
/// # Errors
/// The kernel does not say what driver it is.
pub fn stop_agent(interface: &str) -> io::Result<Agent> {
    let device = Device::open(interface)?;
    let info = match device.driver() {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(Agent::Unknown),
        info => info?,
    };
    if info.driver == NVM_ONLY {
        return Ok(Agent::OutOfReach {
            driver: NVM_ONLY,
            why: "if it has an LLDP agent, that is an option in the card's NVM (see Broadcom's niccli)"
                .to_owned(),
        });
    }
    let known = AGENTS.into_iter().find(|(name, ..)| *name == info.driver);
    let Some((driver, flag, value)) = known else {
        return Ok(Agent::Unknown);
    };
    let out_of_reach = |why: String| Ok(Agent::OutOfReach { driver, why });
    let (names, flags) = match device.flags(info.flags) {
        Ok(found) => found,
        Err(error) => return out_of_reach(format!("its private flags cannot be read: {error}")),
    };
    match changed(&names, flags, flag, value) {
        None => out_of_reach(format!("it has no private flag {flag}")),
        Some(new) if new == flags => Ok(Agent::Off { driver }),
        Some(new) => match device.set_flags(new) {
            Ok(()) => Ok(Agent::Stopped { driver, flag }),
            Err(error) => out_of_reach(format!("private flag {flag} refused: {error}")),
        },
    }
}

/// The flags with the one called `name` set to `value`; nothing when there is no such flag.
fn changed(names: &[String], flags: u32, name: &str, value: bool) -> Option<u32> {
    let position = names.iter().take(MAX_FLAGS).position(|n| n == name)?;
    let bit = 1 << position;
    Some(if value { flags | bit } else { flags & !bit })
}

struct Info {
    driver: String,
    /// Number of private flags.
    flags: usize,
}

/// One interface, to be asked by ioctl.
struct Device {
    socket: OwnedFd,
    name: CString,
}

impl Device {
    fn open(interface: &str) -> io::Result<Self> {
        let name = CString::new(interface)?;
        if name.as_bytes_with_nul().len() > libc::IFNAMSIZ {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Inet6, SockType::Datagram, flags, None)?;
        Ok(Self { socket, name })
    }

    fn driver(&self) -> io::Result<Info> {
        let mut info = request(ETHTOOL_GDRVINFO, DRVINFO);
        self.call(&mut info)?;
        Ok(Info {
            driver: text(info.get(DRVINFO_DRIVER..DRVINFO_DRIVER + NAME)),
            flags: word(&info, DRVINFO_FLAGS) as usize,
        })
    }

    /// Names and values of the private flags.
    fn flags(&self, count: usize) -> io::Result<(Vec<String>, u32)> {
        // Driver and kernel agree on the count, which is fixed; room for more in any case.
        let head = 12;
        let mut strings = request(ETHTOOL_GSTRINGS, head + 2 * NAME * count.max(MAX_FLAGS));
        put(&mut strings, 4, PRIV_FLAGS);
        put(&mut strings, 8, count as u32);
        self.call(&mut strings)?;
        let names = strings.get(head..).unwrap_or_default().chunks(NAME);
        let names = names.take(count).map(|name| text(Some(name))).collect();
        let mut value = request(ETHTOOL_GPFLAGS, 8);
        self.call(&mut value)?;
        Ok((names, word(&value, 4)))
    }

    fn set_flags(&self, flags: u32) -> io::Result<()> {
        let mut value = request(ETHTOOL_SPFLAGS, 8);
        put(&mut value, 4, flags);
        self.call(&mut value)
    }

    /// `buffer` is one of ethtool.h's structures, with room for all that its command brings.
    fn call(&self, buffer: &mut [u8]) -> io::Result<()> {
        // SAFETY: an ifreq is plain old data; all zeros is a valid one.
        let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
        let bytes = self.name.as_bytes_with_nul();
        for (to, from) in ifreq.ifr_name.iter_mut().zip(bytes) {
            *to = *from as libc::c_char;
        }
        ifreq.ifr_ifru.ifru_data = buffer.as_mut_ptr().cast();
        // SAFETY: SIOCETHTOOL reads the name and reads and writes the buffer behind
        // `ifru_data`; both live until the call returns, and the callers give the buffer the
        // size that their command needs.
        let result =
            unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut ifreq) };
        match result {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn request(command: u32, length: usize) -> Vec<u8> {
    let mut buffer = vec![0; length];
    put(&mut buffer, 0, command);
    buffer
}

fn put(buffer: &mut [u8], at: usize, value: u32) {
    if let Some(bytes) = buffer.get_mut(at..at + 4) {
        bytes.copy_from_slice(&value.to_ne_bytes());
    }
}

fn word(buffer: &[u8], at: usize) -> u32 {
    let bytes = buffer.get(at..).and_then(<[u8]>::first_chunk);
    bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

/// Up to the first NUL.
fn text(bytes: Option<&[u8]>) -> String {
    let bytes = bytes.unwrap_or_default();
    let end = bytes.iter().position(|byte| *byte == 0);
    let text = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_flag_that_is_meant_changes() {
        let names = ["NPAR", "total-port-shutdown", "disable-fw-lldp", "rs-fec"].map(String::from);
        let set = |flags, name, value| changed(&names, flags, name, value);
        assert_eq!(set(0b1001, "disable-fw-lldp", true), Some(0b1101));
        assert_eq!(set(0b1101, "disable-fw-lldp", true), Some(0b1101));
        assert_eq!(set(0b1111, "disable-fw-lldp", false), Some(0b1011));
        assert_eq!(set(0b1111, "fw-lldp-agent", false), None);
        let many: Vec<String> = (0..40).map(|n| format!("f{n}")).collect();
        assert_eq!(changed(&many, 0, "f31", true), Some(1 << 31));
        assert_eq!(changed(&many, 0, "f32", true), None);
    }

    #[test]
    fn what_the_kernel_writes_is_read() {
        let mut info = request(ETHTOOL_GDRVINFO, DRVINFO);
        info[4..8].copy_from_slice(b"i40e");
        put(&mut info, DRVINFO_FLAGS, 9);
        assert_eq!(text(info.get(4..36)), "i40e");
        assert_eq!(word(&info, DRVINFO_FLAGS), 9);
        assert_eq!(text(Some(&[b'x'; 32])), "x".repeat(32));
        assert_eq!(text(None), "");
    }

    #[test]
    fn the_kernel_is_asked() {
        // Loopback has no driver, and no agent.
        assert_eq!(stop_agent("lo").unwrap(), Agent::Unknown);
        let missing = stop_agent("nosuchlink0").unwrap_err();
        assert_eq!(missing.raw_os_error(), Some(libc::ENODEV));
        let long = stop_agent("a-name-that-is-too-long").unwrap_err();
        assert_eq!(long.kind(), io::ErrorKind::InvalidInput);
    }
}
