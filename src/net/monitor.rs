//! Netlink: keeps the [`Table`] of links true and brings up every physical link, those
//! that appear late included.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt, TryStreamExt};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::{Handle, LinkUnspec, MulticastGroup, RouteMessageBuilder};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::device::Device;
use super::icmp::Icmp;
use super::link::{Event, Link, Table};
use super::sysctl::{self, Addressing, Settings};
use super::{Error, Options, advert};

/// Index of `lo` in every network namespace (`LOOPBACK_IFINDEX`, net/flow.h).
const LOOPBACK: u32 = 1;

/// Solicitations after a duplicate, and the time between them.
const SOLICITATIONS: u32 = 10;
const SOLICIT_AGAIN: Duration = Duration::from_secs(2);

/// Sends requests and applies answers and events.
#[derive(Clone)]
pub(super) struct Monitor {
    requests: Handle,
    table: Arc<watch::Sender<Table>>,
    sys_root: PathBuf,
    proc_root: PathBuf,
    mtu: Option<u32>,
    settings: Settings,
    /// Addressing for links on which EUI-64 met a duplicate.
    fallback: Addressing,
    icmp: Arc<Icmp>,
}

/// Aborts a task when dropped.
pub(super) struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<T> From<JoinHandle<T>> for Task {
    fn from(handle: JoinHandle<T>) -> Self {
        Self(handle.abort_handle())
    }
}

impl Monitor {
    /// Subscribes, reads what is there, brings it up, and goes on with that in a task.
    pub(super) async fn start(options: &Options) -> Result<(Self, Vec<Task>), Error> {
        let socket = |source| Error::Socket {
            what: "rtnetlink",
            source,
        };
        // Two sockets: a flood of events must not push out the answer to a request.
        let (connection, requests, _) = rtnetlink::new_connection().map_err(socket)?;
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv6Route,
        ];
        let (listener, listening, events) =
            rtnetlink::new_multicast_connection(&groups).map_err(socket)?;
        let mut tasks = vec![
            Task::from(tokio::spawn(connection)),
            Task::from(tokio::spawn(listener)),
        ];
        let icmp = Icmp::open().map_err(|source| Error::Socket {
            what: "ICMPv6",
            source,
        })?;
        let monitor = Self {
            requests,
            table: Arc::new(watch::Sender::new(Table::default())),
            sys_root: options.sys_root.clone(),
            proc_root: options.proc_root.clone(),
            mtu: options.mtu,
            settings: Settings {
                addressing: options.addressing,
                retransmit_ms: options.retransmit_ms,
            },
            fallback: Addressing::StablePrivacy(options.secret),
            icmp: Arc::new(icmp),
        };
        match sysctl::apply(&monitor.proc_root, "default", monitor.settings) {
            Err(error @ sysctl::Error::NoIpv6 { .. }) => return Err(error.into()),
            // Each link gets all settings once more when it appears. A namespace other
            // than the first has no neigh/default.
            Err(error) => debug!("{error}"),
            Ok(()) => {}
        }
        let loopback = LinkUnspec::new_with_index(LOOPBACK).up().build();
        if let Err(error) = monitor.requests.link().change(loopback).execute().await {
            warn!("cannot bring up lo: {error}");
        }
        monitor.refresh().await?;
        let keeper = monitor.clone();
        tasks.push(Task::from(tokio::spawn(async move {
            // The events end when their handle is dropped.
            let _listening = listening;
            keeper.run(events.map(|(message, _)| message)).await;
        })));
        let hearer = monitor.clone();
        tasks.push(Task::from(tokio::spawn(async move { hearer.hear().await })));
        Ok((monitor, tasks))
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Table> {
        self.table.subscribe()
    }

    /// Reads links, addresses and routes anew, and brings up links that are new.
    async fn refresh(&self) -> Result<(), Error> {
        let mut messages = Vec::new();
        let request = |what| move |source| Error::Request { what, source };
        let links: Vec<_> = self
            .requests
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(request("links"))?;
        let present: BTreeSet<u32> = links.iter().map(|link| link.header.index).collect();
        messages.extend(links.into_iter().map(RouteNetlinkMessage::NewLink));
        let addresses: Vec<_> = self
            .requests
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(request("addresses"))?;
        messages.extend(addresses.into_iter().map(RouteNetlinkMessage::NewAddress));
        let every_route = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
        let routes: Vec<_> = self
            .requests
            .route()
            .get(every_route)
            .execute()
            .try_collect()
            .await
            .map_err(request("routes"))?;
        messages.extend(routes.into_iter().map(RouteNetlinkMessage::NewRoute));

        let mut events = Vec::new();
        self.table.send_if_modified(|table| {
            let before = table.clone();
            table.forget_state();
            table.retain_links(&present);
            for message in &messages {
                events.extend(table.apply(message, |name| self.device(name)));
            }
            if before != Table::default() {
                // The rest is no news.
                events.retain(|event| matches!(event, Event::Appeared { .. }));
            }
            *table != before
        });
        self.act(events).await;
        Ok(())
    }

    async fn run(
        &self,
        mut messages: impl Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Unpin,
    ) {
        while let Some(message) = messages.next().await {
            match message.payload {
                NetlinkPayload::InnerMessage(message) => self.apply(&message).await,
                NetlinkPayload::Overrun(_) => {
                    warn!("netlink events were lost: reading links, addresses and routes anew");
                    if let Err(error) = self.refresh().await {
                        warn!("{error}");
                    }
                }
                _ => {}
            }
        }
        warn!("the kernel's netlink events have ended: changes of links go unnoticed");
    }

    /// Notes what routers say, for the report.
    async fn hear(&self) {
        let mut refused = None;
        loop {
            let (index, router, message) = match self.icmp.receive().await {
                Ok(received) => received,
                Err(error) => {
                    warn!("router advertisements go unnoticed from now on: {error}");
                    return;
                }
            };
            match advert::parse(&message) {
                Ok(advertisement) => {
                    let mut events = Vec::new();
                    self.table.send_if_modified(|table| {
                        events = table.advertised(index, router, advertisement);
                        !events.is_empty()
                    });
                    self.act(events).await;
                }
                // The same router says it again every few seconds: once is enough.
                Err(error) if refused != Some(error) => {
                    warn!("advertisement of {router} ignored: {error}");
                    refused = Some(error);
                }
                Err(_) => {}
            }
        }
    }

    async fn apply(&self, message: &RouteNetlinkMessage) {
        let mut events = Vec::new();
        self.table.send_if_modified(|table| {
            let before = table.clone();
            events = table.apply(message, |name| self.device(name));
            *table != before
        });
        self.act(events).await;
    }

    /// Logs the events and brings up the links that have appeared.
    async fn act(&self, events: Vec<Event>) {
        for event in events {
            match event {
                Event::Appeared { index } => {
                    let link = self.table.borrow().get(index).cloned();
                    if let Some(link) = link {
                        self.bring_up(&link).await;
                    }
                }
                Event::Disappeared { link } => warn!("{link}: the device has gone"),
                Event::Carrier {
                    link,
                    present: true,
                } => info!("{link}: carrier"),
                Event::Carrier {
                    link,
                    present: false,
                } => info!("{link}: no carrier"),
                Event::Usable(address) => info!("{address}: usable"),
                Event::Duplicate {
                    index,
                    link,
                    address,
                } => {
                    warn!(
                        "{link}: {address} is a duplicate: another host on this link uses it; \
                         look for a second device with the same MAC address"
                    );
                    self.readdress(index);
                }
                Event::Renamed { index, before } => {
                    let link = self.table.borrow().get(index).cloned();
                    if let Some(link) = link {
                        info!("{before} is called {} now", link.name);
                        // The first settings may have gone to a name that was gone by then.
                        self.configure(&link);
                    }
                }
                Event::Advertised { link, router } => {
                    debug!("{link}: advertisement of {router}");
                }
                Event::Router { link, router } => info!("{link}: router {router}"),
            }
        }
    }

    /// Settings, MTU, then up. A link that does not come up is a line in the log and in
    /// the report; the others may do.
    async fn bring_up(&self, link: &Link) {
        info!(
            "{}: {} at {} ({}) appeared, bringing it up",
            link.name, link.mac, link.device.bus_path, link.device.driver
        );
        self.configure(link);
        if let Some(mtu) = self.mtu.filter(|mtu| *mtu != link.mtu) {
            let message = LinkUnspec::new_with_index(link.index).mtu(mtu).build();
            if let Err(error) = self.requests.link().change(message).execute().await {
                debug!("{}: MTU stays {}, not {mtu}: {error}", link.name, link.mtu);
            }
        }
        if link.up {
            return;
        }
        let message = LinkUnspec::new_with_index(link.index).up().build();
        if let Err(error) = self.requests.link().change(message).execute().await {
            warn!("{}: cannot be brought up: {error}", link.name);
            self.note(link, format!("cannot be brought up: {error}"));
        }
    }

    fn configure(&self, link: &Link) {
        if let Err(error) = sysctl::apply(&self.proc_root, &link.name, self.settings) {
            warn!("{}: {error}", link.name);
            self.note(link, error.to_string());
        }
    }

    /// Gives a link without any other address a second chance: by EUI-64 the kernel would make
    /// the same duplicate again and again.
    fn readdress(&self, index: u32) {
        if self.settings.addressing != Addressing::Eui64 {
            return;
        }
        let link = self.table.borrow().get(index).cloned();
        let Some(link) = link.filter(|link| !link.usable()) else {
            return;
        };
        match sysctl::reapply(&self.proc_root, &link.name, self.fallback) {
            Ok(()) => info!("{}: trying a stable-privacy address instead", link.name),
            Err(error) => {
                warn!("{}: cannot have another address: {error}", link.name);
                return;
            }
        }
        // The routers have answered the kernel's solicitations already; it sends no more.
        let (icmp, mut table) = (Arc::clone(&self.icmp), self.subscribe());
        tokio::spawn(async move {
            for _ in 0..SOLICITATIONS {
                if let Err(error) = icmp.solicit(index) {
                    debug!("{}: cannot solicit: {error}", link.name);
                }
                let done = |table: &Table| table.get(index).is_none_or(Link::usable);
                if timeout(SOLICIT_AGAIN, table.wait_for(done)).await.is_ok() {
                    return;
                }
            }
        });
    }

    fn note(&self, link: &Link, problem: String) {
        self.table
            .send_modify(|table| table.set_problem(link.index, problem));
    }

    fn device(&self, name: &str) -> Option<Device> {
        Device::read(&self.sys_root, name)
    }
}

/// The socket that [`super::nd_option`]s come in on. Open it before links go up: an
/// advertisement that comes before the subscription is lost.
pub(super) fn open_user_options() -> io::Result<rtnetlink::sys::TokioSocket> {
    use rtnetlink::sys::{AsyncSocket, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
    socket
        .socket_mut()
        .add_membership(MulticastGroup::NdUseropt as u32)?;
    Ok(socket)
}
