//! Names to addresses, by the DNS servers of router advertisements as they are at that moment.
//! Nothing else is ever asked: no resolv.conf, no hosts file, no public resolver.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_resolver::Resolver;
use hickory_resolver::config::{
    LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_resolver::net::runtime::{RuntimeProvider, TokioHandle, TokioTime};
use hickory_resolver::proto::rr::Name;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::timeout;

use super::dns::Servers;
use super::nd_option::DomainName;

/// One question to one server.
const QUESTION: Duration = Duration::from_secs(2);
/// Further questions to the same server; links lose packets when they have just come up.
const REPETITIONS: usize = 2;
/// A connection to a server, for answers too long for a datagram.
const CONNECT: Duration = Duration::from_secs(5);

/// A name that could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "cannot resolve {name}: no DNS server is known on {link}; the router has to announce one \
         (RDNSS), or use an address instead of the name"
    )]
    NoServer { name: String, link: String },
    #[error("cannot resolve {name} on {link} by {servers}: {why}")]
    Failed {
        name: String,
        link: String,
        servers: String,
        why: String,
    },
}

/// Resolves names through one link.
#[derive(Debug)]
pub struct Names {
    index: u32,
    link: String,
    servers: watch::Receiver<Servers>,
    current: Mutex<Option<Current>>,
}

/// A resolver and what it was made of. It caches, so it stays until that changes.
#[derive(Debug, Clone)]
struct Current {
    servers: Vec<Ipv6Addr>,
    domains: Vec<DomainName>,
    resolver: Arc<Resolver<Bound>>,
}

impl Names {
    /// Resolves through the link with this index and name.
    pub(super) fn new(index: u32, link: &str, servers: watch::Receiver<Servers>) -> Self {
        Self {
            index,
            link: link.to_owned(),
            servers,
            current: Mutex::new(None),
        }
    }

    /// The IPv6 addresses of `name`; a name without a dot is looked for in the search list.
    ///
    /// # Errors
    /// No server is known, none answers, or the name has no IPv6 address.
    pub async fn resolve(&self, name: &str) -> Result<Vec<Ipv6Addr>, Error> {
        let current = self.current(name)?;
        let failed = |why: String| Error::Failed {
            name: name.to_owned(),
            link: self.link.clone(),
            servers: texts(&current.servers),
            why,
        };
        let answer = current.resolver.lookup_ip(name).await;
        let answer = answer.map_err(|error| failed(error.to_string()))?;
        let addresses = answer.iter().filter_map(|address| match address {
            IpAddr::V6(address) => Some(address),
            IpAddr::V4(_) => None,
        });
        let addresses: Vec<_> = addresses.collect();
        if addresses.is_empty() {
            return Err(failed("it has no IPv6 address".into()));
        }
        Ok(addresses)
    }

    fn current(&self, name: &str) -> Result<Current, Error> {
        let (servers, domains) = {
            let learned = self.servers.borrow();
            (
                learned.servers_for(self.index),
                learned.domains_for(self.index),
            )
        };
        if servers.is_empty() {
            return Err(Error::NoServer {
                name: name.to_owned(),
                link: self.link.clone(),
            });
        }
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(current) = &*current
            && current.servers == servers
            && current.domains == domains
        {
            return Ok(current.clone());
        }
        let made = self.make(&servers, &domains).map_err(|why| Error::Failed {
            name: name.to_owned(),
            link: self.link.clone(),
            servers: texts(&servers),
            why,
        })?;
        let made = Current {
            servers,
            domains,
            resolver: Arc::new(made),
        };
        *current = Some(made.clone());
        Ok(made)
    }

    fn make(
        &self,
        servers: &[Ipv6Addr],
        domains: &[DomainName],
    ) -> Result<Resolver<Bound>, String> {
        let mut config = ResolverConfig::default();
        // Names of the search list were checked when they were learned.
        config.search = domains
            .iter()
            .filter_map(|domain| Name::from_ascii(domain.to_string()).ok())
            .collect();
        config.name_servers = servers
            .iter()
            .map(|server| NameServerConfig::udp_and_tcp(IpAddr::V6(*server)))
            .collect();
        let mut options = ResolverOpts::default();
        options.ip_strategy = LookupIpStrategy::Ipv6Only;
        options.use_hosts_file = ResolveHosts::Never;
        options.timeout = QUESTION;
        options.attempts = REPETITIONS;
        let bound = Bound {
            index: self.index,
            link: self.link.clone(),
            handle: TokioHandle::default(),
        };
        Resolver::builder_with_config(config, bound)
            .with_options(options)
            .build()
            .map_err(|error| error.to_string())
    }
}

fn texts(servers: &[Ipv6Addr]) -> String {
    let texts: Vec<_> = servers.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

/// Sockets that leave through one link: servers are asked where they were announced, and
/// link-local ones can be asked at all.
#[derive(Clone)]
struct Bound {
    index: u32,
    link: String,
    handle: TokioHandle,
}

type Pending<T> = Pin<Box<dyn Send + Future<Output = io::Result<T>>>>;

impl RuntimeProvider for Bound {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = UdpSocket;
    type Tcp = AsyncIoTokioAsStd<TcpStream>;

    fn create_handle(&self) -> Self::Handle {
        self.handle.clone()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        local: Option<SocketAddr>,
        limit: Option<Duration>,
    ) -> Pending<Self::Tcp> {
        let (link, server) = (self.link.clone(), scoped(server, self.index));
        Box::pin(async move {
            let socket = TcpSocket::new_v6()?;
            socket.bind_device(Some(link.as_bytes()))?;
            if let Some(local) = local {
                socket.bind(local)?;
            }
            let connected = timeout(limit.unwrap_or(CONNECT), socket.connect(server)).await;
            connected
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
                .map(AsyncIoTokioAsStd)
        })
    }

    fn bind_udp(&self, local: SocketAddr, _server: SocketAddr) -> Pending<Self::Udp> {
        let link = self.link.clone();
        Box::pin(async move {
            let socket = UdpSocket::bind(local).await?;
            socket.bind_device(Some(link.as_bytes()))?;
            Ok(socket)
        })
    }
}

/// A link-local address needs its link; every other must have none.
fn scoped(address: SocketAddr, index: u32) -> SocketAddr {
    match address {
        SocketAddr::V6(mut v6) if v6.ip().is_unicast_link_local() => {
            v6.set_scope_id(index);
            SocketAddr::V6(v6)
        }
        other => other,
    }
}
