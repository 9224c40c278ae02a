//! Netlink: keeps the [`Table`] of links true and brings up every physical link, those
//! that appear late included.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::{Stream, StreamExt, TryStreamExt};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::{Handle, LinkUnspec, MulticastGroup, RouteMessageBuilder};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinHandle};
use tracing::{debug, info, warn};

use super::link::{Event, Link, Table};
use super::{Error, Options, sysctl};

/// Index of `lo` in every network namespace (`LOOPBACK_IFINDEX`, net/flow.h).
const LOOPBACK: u32 = 1;

/// Sends requests and applies answers and events.
#[derive(Clone)]
pub(super) struct Monitor {
    requests: Handle,
    table: Arc<watch::Sender<Table>>,
    sys_root: PathBuf,
    proc_root: PathBuf,
    mtu: Option<u32>,
    retransmit_ms: u32,
    /// Asks the task for a [`Self::refresh`]. Only one task reads and applies, so that no
    /// answer is applied after an event that is newer.
    looks: mpsc::Sender<oneshot::Sender<()>>,
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
        let (looks, asked) = mpsc::channel(1);
        let monitor = Self {
            looks,
            requests,
            table: Arc::new(watch::Sender::new(Table::default())),
            sys_root: options.sys_root.clone(),
            proc_root: options.proc_root.clone(),
            mtu: options.mtu,
            retransmit_ms: options.retransmit_ms,
        };
        match sysctl::apply(&monitor.proc_root, "default", monitor.retransmit_ms) {
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
            keeper.run(events.map(|(message, _)| message), asked).await;
        })));
        Ok((monitor, tasks))
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Table> {
        self.table.subscribe()
    }

    /// Has everything read anew, for what the kernel sends no events about.
    pub(super) async fn look(&self) {
        let (done, answer) = oneshot::channel();
        if self.looks.send(done).await.is_ok() {
            let _ = answer.await;
        }
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
                events.extend(table.apply(message, |name| self.physical(name)));
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
        mut asked: mpsc::Receiver<oneshot::Sender<()>>,
    ) {
        loop {
            tokio::select! {
                message = messages.next() => match message.map(|message| message.payload) {
                    Some(NetlinkPayload::InnerMessage(message)) => self.apply(&message).await,
                    Some(NetlinkPayload::Overrun(_)) => {
                        warn!("netlink events were lost: reading links, addresses and routes anew");
                        self.refresh_or_warn().await;
                    }
                    Some(_) => {}
                    None => break,
                },
                Some(done) = asked.recv() => {
                    self.refresh_or_warn().await;
                    let _ = done.send(());
                }
            }
        }
        warn!("the kernel's netlink events have ended: changes of links go unnoticed");
    }

    async fn refresh_or_warn(&self) {
        if let Err(error) = self.refresh().await {
            warn!("{error}");
        }
    }

    async fn apply(&self, message: &RouteNetlinkMessage) {
        let mut events = Vec::new();
        self.table.send_if_modified(|table| {
            let before = table.clone();
            events = table.apply(message, |name| self.physical(name));
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
                Event::Duplicate { link, address } => warn!(
                    "{link}: {address} is a duplicate: another host on this link uses it; \
                     look for a second device with the same MAC address"
                ),
                Event::Router { link, router } => info!("{link}: router {router}"),
            }
        }
    }

    /// Settings, MTU, then up. A link that does not come up is a line in the log and in
    /// the report; the others may do.
    async fn bring_up(&self, link: &Link) {
        info!("{}: {} appeared, bringing it up", link.name, link.mac);
        if let Err(error) = sysctl::apply(&self.proc_root, &link.name, self.retransmit_ms) {
            warn!("{}: {error}", link.name);
            self.note(link, error.to_string());
        }
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

    fn note(&self, link: &Link, problem: String) {
        self.table
            .send_modify(|table| table.set_problem(link.index, problem));
    }

    /// Hardware has a bus device; bridges, tunnels and VLANs have none.
    fn physical(&self, name: &str) -> bool {
        let class = self.sys_root.join("class/net");
        // `exists` follows the link: a dangling one is no device either.
        class.join(name).join("device").exists()
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
