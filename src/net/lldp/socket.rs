//! A packet socket that receives and sends LLDP on one link (packet(7)).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::sys::socket::{MsgFlags, recv, send};
use tokio::io::unix::AsyncFd;

use super::frame::{DESTINATIONS, ETHERTYPE, MAX_LLDPDU};

/// Room for the longest frame with two VLAN tags, and some for those that are too long.
const BUFFER: usize = MAX_LLDPDU + 14 + 2 * 4 + 1;

/// An open socket; closing it ends its multicast memberships.
#[derive(Debug)]
pub(super) struct Socket {
    fd: AsyncFd<OwnedFd>,
}

impl Socket {
    /// Opens a socket on the link with this interface index. Needs `CAP_NET_RAW`.
    pub(super) fn open(index: u32) -> io::Result<Self> {
        let index = i32::try_from(index).map_err(io::Error::other)?;
        // SAFETY: no pointers; the result is checked. Protocol 0: nothing is received
        // before the socket is bound to its link.
        let raw = unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                0,
            )
        };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `raw` is a descriptor that was opened above and that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        bind(&fd, index)?;
        let joined = DESTINATIONS
            .iter()
            .try_for_each(|mac| membership(&fd, index, libc::PACKET_MR_MULTICAST, mac.0));
        if joined.is_err() {
            // A device without multicast filters.
            membership(&fd, index, libc::PACKET_MR_PROMISC, [0; 6])?;
        }
        // SAFETY: an OwnedFd is one and the same open descriptor as long as it lives.
        let fd = unsafe { AsyncFd::register(fd)? };
        Ok(Self { fd })
    }

    /// The next frame, Ethernet header included. A frame that is longer than the longest
    /// that is allowed comes cut, but still too long.
    pub(super) async fn receive(&self) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; BUFFER];
        let length = self
            .fd
            .async_io(tokio::io::Interest::READABLE, |fd| {
                Ok(recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?)
            })
            .await?;
        buffer.truncate(length);
        Ok(buffer)
    }

    /// Sends a whole frame. A full queue drops it: the next one comes in seconds.
    pub(super) fn send(&self, frame: &[u8]) -> io::Result<()> {
        send(self.fd.get_ref().as_raw_fd(), frame, MsgFlags::MSG_DONTWAIT)?;
        Ok(())
    }
}

fn bind(fd: &OwnedFd, index: i32) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: ETHERTYPE.to_be(),
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the pointer is to a sockaddr_ll that lives until the call returns, and the
    // length is its size.
    let result = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    check(result)
}

fn membership(fd: &OwnedFd, index: i32, kind: libc::c_int, mac: [u8; 6]) -> io::Result<()> {
    let [a, b, c, d, e, f] = mac;
    let request = libc::packet_mreq {
        mr_ifindex: index,
        mr_type: kind as u16,
        mr_alen: 6,
        mr_address: [a, b, c, d, e, f, 0, 0],
    };
    // SAFETY: the pointer is to a packet_mreq that lives until the call returns, and the
    // length is its size.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_ADD_MEMBERSHIP,
            (&raw const request).cast(),
            size_of_val(&request) as libc::socklen_t,
        )
    };
    check(result)
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
