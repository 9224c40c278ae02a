//! The network: every physical link up, an address by SLAAC, DNS servers from router
//! advertisements, the switch ports by LLDP.
//!
//! The kernel does SLAAC; this module sets it up before a link goes up, watches it by
//! netlink events, and says what is missing when no address comes.

pub mod advert;
pub mod device;
pub mod dns;
mod icmp;
pub mod link;
pub mod lldp;
pub mod mac;
mod monitor;
pub mod names;
pub mod nd_option;
pub mod path;
pub mod quiet;
mod race;
pub mod report;
mod resolver;
pub mod sysctl;

use std::io;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

pub use link::{Link, UsableAddress};
pub use mac::MacAddress;
use names::Names;
pub use path::{Path, Preference, Target};
pub use sysctl::Addressing;

/// How the network is brought up. The defaults are what the installer uses.
#[derive(Debug, Clone)]
pub struct Options {
    /// `/proc`.
    pub proc_root: PathBuf,
    /// `/sys`.
    pub sys_root: PathBuf,
    /// Where DNS servers and search list are written.
    pub resolv_conf: PathBuf,
    /// Bytes; set on each link whose device takes it. None: left alone. Router
    /// advertisements lower the MTU that IPv6 uses.
    pub mtu: Option<u32>,
    /// Milliseconds; how long duplicate address detection waits for an answer
    /// (RetransTimer, RFC 4861). A router advertisement that names one overrides it.
    pub retransmit_ms: u32,
    pub addressing: Addressing,
    /// What stable-privacy addresses are made with where EUI-64 met a duplicate: any number,
    /// as long as it is the same in every boot of this machine.
    pub secret: Ipv6Addr,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            proc_root: "/proc".into(),
            sys_root: "/sys".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            mtu: Some(9000),
            retransmit_ms: 200,
            addressing: Addressing::Eui64,
            secret: Ipv6Addr::LOCALHOST,
        }
    }
}

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot open the {what} socket: {source}")]
    Socket {
        what: &'static str,
        source: io::Error,
    },
    #[error(transparent)]
    Sysctl(#[from] sysctl::Error),
    #[error("cannot ask the kernel for its {what}: {source}")]
    Request {
        what: &'static str,
        source: rtnetlink::Error,
    },
    #[error(
        "this machine has no network card that the kernel knows; check the cards and their slots"
    )]
    NoNic,
    #[error("no usable IPv6 address after {} s:{report}", waited.as_secs())]
    NoAddress { waited: Duration, report: String },
    #[error("{target} was not reached over any link within {} s:{report}", waited.as_secs())]
    NoPath {
        target: String,
        waited: Duration,
        report: String,
    },
}

/// The running network. Dropping it stops the watching; links and addresses stay.
pub struct Network {
    links: watch::Receiver<link::Table>,
    servers: watch::Receiver<dns::Servers>,
    /// Holds the sender of `links`, which must not end before they do, whatever its tasks do.
    _monitor: monitor::Monitor,
    _tasks: Vec<monitor::Task>,
}

/// Brings up `lo` and every physical link, and keeps watching. Links that appear later
/// are brought up as they come. Needs a tokio runtime and `CAP_NET_ADMIN`.
///
/// # Errors
/// No netlink socket, no IPv6 in the kernel, or the kernel does not tell its links. A
/// single link that fails is no error: it is logged and stands in the report of
/// [`Network::wait_for_address`].
pub async fn bring_up(options: &Options) -> Result<Network, Error> {
    let socket = monitor::open_user_options().map_err(|source| Error::Socket {
        what: "ND user option",
        source,
    })?;
    let (monitor, mut tasks) = monitor::Monitor::start(options).await?;
    let (published, servers) = watch::channel(dns::Servers::default());
    let resolver = resolver::Resolver {
        published,
        socket,
        links: monitor.subscribe(),
        resolv_conf: options.resolv_conf.clone(),
    };
    tasks.push(tokio::spawn(resolver.run()).into());
    Ok(Network {
        links: monitor.subscribe(),
        servers,
        _monitor: monitor,
        _tasks: tasks,
    })
}

impl Network {
    /// Waits until a link has a usable address: global, and neither tentative nor
    /// duplicate nor deprecated.
    ///
    /// # Errors
    /// None came within `limit`: the text has one line for each link that says what to
    /// check.
    pub async fn wait_for_address(&self, limit: Duration) -> Result<UsableAddress, Error> {
        let mut links = self.links.clone();
        let usable = links.wait_for(|table| table.usable().is_some());
        if let Ok(Ok(table)) = timeout(limit, usable).await
            && let Some(address) = table.usable()
        {
            return Ok(address);
        }
        let table = self.links.borrow();
        match table.usable() {
            Some(address) => Ok(address),
            None if table.links().next().is_none() => Err(Error::NoNic),
            None => Err(Error::NoAddress {
                waited: limit,
                report: report::describe(table.links(), &report::Tried::new()),
            }),
        }
    }

    /// Resolves names through a link.
    #[must_use]
    pub fn names(&self, index: u32, link: &str) -> Names {
        Names::new(index, link, self.servers.clone())
    }

    /// The addresses of `name`, through the first usable link that can tell.
    ///
    /// # Errors
    /// No link can: the last one's reason.
    pub async fn resolve(&self, name: &str) -> Result<Vec<Ipv6Addr>, names::Error> {
        let all = Duration::MAX;
        let ways = path::candidates(&self.links.borrow(), None, Preference::default(), all);
        let mut last = names::Error::NoServer {
            name: name.to_owned(),
            link: "any link".to_owned(),
        };
        for way in ways.iter().filter(|way| way.source.is_none()) {
            match self.names(way.index, &way.link).resolve(name).await {
                Ok(found) => return Ok(found),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The physical links as they are now.
    #[must_use]
    pub fn links(&self) -> Vec<Link> {
        self.links.borrow().links().cloned().collect()
    }

    /// The physical links and every change of them.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<link::Table> {
        self.links.clone()
    }
}
