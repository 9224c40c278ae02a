//! `/dev/ipmi0` by ioctl (`include/uapi/linux/ipmi.h`, Documentation/driver-api/ipmi.rst).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use libc::{c_int, c_long, c_short, c_uchar, c_uint, c_ushort};
use nix::errno::Errno;

use super::Error;
use super::message::Request;
use super::talk::Transport;

/// `IPMI_SYSTEM_INTERFACE_ADDR_TYPE`: the BMC itself, not something behind it.
const SYSTEM_INTERFACE: c_int = 0x0c;
/// `IPMI_BMC_CHANNEL`.
const BMC_CHANNEL: c_short = 0xf;
/// `IPMI_RESPONSE_RECV_TYPE`: events of the BMC come through the same door.
const RESPONSE: c_int = 1;
/// Longer than any message that the driver passes on (`IPMI_MAX_MSG_LENGTH` is 272).
const MAX_ANSWER: u16 = 512;

/// `struct ipmi_system_interface_addr`.
#[repr(C)]
struct Address {
    addr_type: c_int,
    channel: c_short,
    lun: c_uchar,
}

/// `struct ipmi_msg`.
#[repr(C)]
struct Message {
    netfn: c_uchar,
    cmd: c_uchar,
    data_len: c_ushort,
    data: *mut c_uchar,
}

/// `struct ipmi_req`.
#[repr(C)]
pub struct Send {
    addr: *mut Address,
    addr_len: c_uint,
    msgid: c_long,
    msg: Message,
}

/// `struct ipmi_recv`.
#[repr(C)]
pub struct Receive {
    recv_type: c_int,
    addr: *mut Address,
    addr_len: c_uint,
    msgid: c_long,
    msg: Message,
}

// IPMICTL_SEND_COMMAND, IPMICTL_RECEIVE_MSG_TRUNC. The header says "read" of a command that
// only writes; the number counts.
nix::ioctl_read!(send_command, b'i', 13, Send);
nix::ioctl_readwrite!(receive_msg_trunc, b'i', 11, Receive);

/// The open device.
pub struct Device {
    file: File,
    /// Of the last request: an answer that comes too late must not be taken for the next one's.
    sequence: c_long,
}

impl Device {
    /// Opens the device node.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|source| Error::Open {
                path: path.to_owned(),
                source,
            })?;
        Ok(Self { file, sequence: 0 })
    }

    fn send(&self, request: &Request) -> Result<(), Errno> {
        let mut address = Address {
            addr_type: SYSTEM_INTERFACE,
            channel: BMC_CHANNEL,
            lun: 0,
        };
        let send = Send {
            addr: &raw mut address,
            addr_len: size_of::<Address>() as c_uint,
            msgid: self.sequence,
            msg: Message {
                netfn: request.netfn,
                cmd: request.command,
                data_len: c_ushort::try_from(request.data.len()).map_err(|_| Errno::EMSGSIZE)?,
                // The kernel only reads it.
                data: request.data.as_ptr().cast_mut(),
            },
        };
        // SAFETY: `send` and what it points to live until the call returns; the kernel copies
        // from them and writes nothing.
        unsafe { send_command(self.file.as_raw_fd(), (&raw const send).cast_mut()) }.map(drop)
    }

    /// One message that has come: its kind, its number and its bytes.
    fn receive(&self) -> Result<(c_int, c_long, Vec<u8>), Errno> {
        let mut bytes = vec![0; usize::from(MAX_ANSWER)];
        // struct ipmi_addr: the longest form of an address.
        let mut address = [0_u64; 5];
        let mut receive = Receive {
            recv_type: 0,
            addr: address.as_mut_ptr().cast(),
            addr_len: size_of_val(&address) as c_uint,
            msgid: 0,
            msg: Message {
                netfn: 0,
                cmd: 0,
                data_len: MAX_ANSWER,
                data: bytes.as_mut_ptr(),
            },
        };
        // SAFETY: the pointers lead to buffers of the lengths given, which outlive the call.
        unsafe { receive_msg_trunc(self.file.as_raw_fd(), &raw mut receive) }?;
        bytes.truncate(usize::from(receive.msg.data_len));
        Ok((receive.recv_type, receive.msgid, bytes))
    }

    /// Waits until a message can be received; false when the time is up.
    fn wait(&self, deadline: Instant) -> Result<bool, Errno> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut poll = libc::pollfd {
                fd: self.file.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            let milliseconds = c_int::try_from(left.as_millis()).unwrap_or(c_int::MAX);
            // SAFETY: one pollfd, on the stack.
            let ready = unsafe { libc::poll(&raw mut poll, 1, milliseconds) };
            match Errno::result(ready) {
                Ok(count) => return Ok(count > 0),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

impl Transport for Device {
    fn exchange(&mut self, request: &Request, patience: Duration) -> Result<Vec<u8>, Error> {
        let what = request.what;
        let failed = |errno: Errno| Error::Device {
            what,
            source: io::Error::from(errno),
        };
        let deadline = Instant::now() + patience;
        self.sequence += 1;
        self.send(request).map_err(failed)?;
        while self.wait(deadline).map_err(failed)? {
            match self.receive() {
                Ok((RESPONSE, sequence, answer)) if sequence == self.sequence => return Ok(answer),
                // An event, or the answer to a request that was given up.
                Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        Err(Error::Silent { what, patience })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structs_are_those_of_the_kernels_header() {
        // As gcc lays out linux/ipmi.h on x86_64.
        assert_eq!(size_of::<Address>(), 8);
        assert_eq!(size_of::<Message>(), 16);
        assert_eq!(size_of::<Send>(), 40);
        assert_eq!(size_of::<Receive>(), 48);
    }

    #[test]
    fn a_device_that_is_missing_or_something_else_is_an_error() {
        let missing = Device::open(Path::new("/nonexistent/ipmi0")).err().unwrap();
        assert!(
            missing.to_string().contains("/nonexistent/ipmi0"),
            "{missing}"
        );
        let mut null = Device::open(Path::new("/dev/null")).unwrap();
        let request = Request::new("Get Device ID", super::super::message::APP, 1, &[]);
        let error = null
            .exchange(&request, Duration::from_millis(1))
            .unwrap_err();
        assert!(matches!(error, Error::Device { .. }), "{error}");
    }
}
