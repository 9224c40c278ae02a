//! Connections: who may have how many, how long a request may take to arrive, and how they
//! end when the helper does.

use std::future::Future;
use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::sys::socket::{setsockopt, sockopt};
use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

use super::metrics::Metrics;
use super::source::Open;

/// Connections that wait to be accepted: a row of racks that powers on.
const BACKLOG: u32 = 4096;
/// A request's head has to be there after this time; an idle connection is kept as long.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest head of a request, bytes. Tokens have a few kB.
const HEAD_LIMIT: usize = 16 << 10;
/// Most header lines of a request.
const HEADERS: usize = 64;
/// Sent data that stays unacknowledged, or a window that stays closed, for this long ends the
/// connection (tcp(7) TCP_USER_TIMEOUT).
const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// A silent connection is probed after this many seconds and then as often: a machine that
/// was switched off while its Wait was open is noticed within 30 s.
const KEEPALIVE: u32 = 10;
/// Pause after a failed accept: out of file descriptors or memory, which others may free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddrV6);

/// Put into an answer's extensions: the connection is closed without an answer, as the server
/// behind a proxy did.
#[derive(Debug, Clone, Copy)]
pub struct Cut;

/// Why a connection ends without an answer.
#[derive(Debug, Error)]
#[error("the server behind closed the connection")]
struct CutShort;

/// Listens on an IPv6 address, and on no IPv4 one behind it.
///
/// # Errors
/// The address is taken, or not this host's.
pub fn bind(address: SocketAddrV6) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v6()?;
    socket.set_reuseaddr(true)?;
    setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    socket.bind(address.into())?;
    socket.listen(BACKLOG)
}

/// What every connection shares.
#[derive(Clone)]
pub struct Door {
    pub router: Router,
    pub open: Arc<Open>,
    pub metrics: Arc<Metrics>,
    /// Becomes true when the helper ends.
    pub stop: watch::Receiver<bool>,
    /// A clone lives as long as a connection: the other end sees when the last one is gone.
    pub alive: mpsc::Sender<()>,
}

/// Serves what `listener` accepts until `door.stop` says so. Connections that are open then
/// finish the request they are at.
pub async fn serve(listener: TcpListener, door: Door) {
    while let Some(accepted) = until_stop(&door.stop, listener.accept()).await {
        let (stream, peer) = match accepted {
            Ok((stream, std::net::SocketAddr::V6(peer))) => (stream, peer),
            // The socket is IPv6 only.
            Ok(_) => continue,
            Err(error) => {
                if !is_peers_fault(&error) {
                    warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                continue;
            }
        };
        match Seat::take(&door, *peer.ip()) {
            Some(seat) => drop(tokio::spawn(converse(stream, peer, door.clone(), seat))),
            None => drop(stream),
        }
    }
}

/// A connection's place among the counted ones.
struct Seat {
    open: Arc<Open>,
    metrics: Arc<Metrics>,
    address: Ipv6Addr,
}

impl Seat {
    fn take(door: &Door, address: Ipv6Addr) -> Option<Self> {
        match door.open.enter(address) {
            Ok(()) => {
                door.metrics.connections.add(1);
                Some(Self {
                    open: door.open.clone(),
                    metrics: door.metrics.clone(),
                    address,
                })
            }
            Err(bound) => {
                debug!(%address, "too many connections ({})", bound.name());
                door.metrics.refused(bound.name());
                None
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.open.leave(self.address);
        self.metrics.connections.subtract(1);
    }
}

async fn converse(stream: TcpStream, peer: SocketAddrV6, door: Door, _seat: Seat) {
    if let Err(error) = tune(&stream) {
        debug!(%peer, "socket options: {error}");
    }
    let router = TowerToHyperService::new(door.router);
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        let answer = router.call(request);
        async move {
            let answer = answer.await.map_err(|never| match never {})?;
            if answer.extensions().get::<Cut>().is_some() {
                return Err(CutShort);
            }
            Ok(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_header_size(HEAD_LIMIT)
        .max_headers(HEADERS)
        // A proxied answer carries the apiserver's date or none (`server::finish`).
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = match until_stop(&door.stop, connection.as_mut()).await {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%peer, "connection: {error}");
    }
}

/// Makes a peer that is gone be noticed.
fn tune(stream: &TcpStream) -> nix::Result<()> {
    setsockopt(stream, sockopt::TcpNoDelay, &true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &KEEPALIVE)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &KEEPALIVE)?;
    setsockopt(stream, sockopt::TcpKeepCount, &2)?;
    let millis = u32::try_from(USER_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
    setsockopt(stream, sockopt::TcpUserTimeout, &millis)
}

/// Failures of accept(2) that say nothing about this host.
fn is_peers_fault(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}

/// Waits until every connection is gone, for `limit` at most; whether that was so.
pub async fn drained(mut alive: mpsc::Receiver<()>, limit: Duration) -> bool {
    // Nothing is ever sent: this ends when the last sender is dropped.
    tokio::time::timeout(limit, alive.recv()).await.is_ok()
}

/// Runs `work` unless the helper ends first.
pub async fn until_stop<T>(
    stop: &watch::Receiver<bool>,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut stop = stop.clone();
    let stopped = async {
        // A sender that is gone has nobody left to serve for either.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    tokio::select! {
        () = stopped => None,
        done = work => Some(done),
    }
}
