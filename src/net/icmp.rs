//! A raw ICMPv6 socket (RFC 3542): hears router advertisements on every link and solicits them.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, recvfrom, sendto,
    setsockopt, socket, sockopt,
};
use tokio::io::unix::AsyncFd;

/// ICMPv6 types, RFC 4861 sections 4.1 and 4.2.
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
/// `ICMPV6_FILTER`, linux/icmpv6.h.
const FILTER: libc::c_int = 1;
/// Neighbour discovery has this hop limit, or is ignored (RFC 4861 section 6.1.1).
const HOP_LIMIT: libc::c_int = 255;
/// All routers of the link.
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// The largest advertisement that is read whole; more is cut, and then refused as malformed.
const BUFFER: usize = 9000;

/// An open socket.
#[derive(Debug)]
pub(super) struct Icmp {
    fd: AsyncFd<OwnedFd>,
}

impl Icmp {
    /// Opens the socket. Needs `CAP_NET_RAW`.
    pub(super) fn open() -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Inet6,
            SockType::Raw,
            SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
            SockProtocol::IcmpV6,
        )?;
        // A set bit keeps its type out (struct icmp6_filter).
        let mut filter = [u32::MAX; 8];
        filter[usize::from(ROUTER_ADVERTISEMENT >> 5)] &= !(1 << (ROUTER_ADVERTISEMENT & 31));
        // SAFETY: the pointer is to an array that lives until the call returns, and the
        // length is its size.
        let result = unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::IPPROTO_ICMPV6,
                FILTER,
                (&raw const filter).cast(),
                size_of_val(&filter) as libc::socklen_t,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        setsockopt(&fd, sockopt::Ipv6MulticastHops, &HOP_LIMIT)?;
        // SAFETY: an OwnedFd is one and the same open descriptor as long as it lives.
        let fd = unsafe { AsyncFd::register(fd)? };
        Ok(Self { fd })
    }

    /// The next router advertisement: interface index, router, ICMPv6 message. Its hop limit
    /// was not looked at, but its source is link-local, which no router forwards.
    pub(super) async fn receive(&self) -> io::Result<(u32, Ipv6Addr, Vec<u8>)> {
        loop {
            let mut buffer = vec![0; BUFFER];
            let received = self.fd.async_io(tokio::io::Interest::READABLE, |fd| {
                Ok(recvfrom::<SockaddrIn6>(fd.as_raw_fd(), &mut buffer)?)
            });
            let (length, source) = received.await?;
            let Some(source) = source.filter(|source| source.ip().is_unicast_link_local()) else {
                continue;
            };
            buffer.truncate(length);
            return Ok((source.scope_id(), source.ip(), buffer));
        }
    }

    /// Asks the routers of a link to advertise now.
    pub(super) fn solicit(&self, index: u32) -> io::Result<()> {
        // Type, code, checksum (the kernel's work), 4 reserved octets.
        let message = [ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
        let routers = SockaddrIn6::from(SocketAddrV6::new(ALL_ROUTERS, 0, 0, index));
        let fd = self.fd.get_ref().as_raw_fd();
        sendto(fd, &message, &routers, MsgFlags::MSG_DONTWAIT)?;
        Ok(())
    }
}
