//! Which way out reaches a host: all of them are tried, a moment apart, and the first that
//! connects wins (RFC 8305, "happy eyeballs", with links in the place of families).

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use tokio::net::TcpSocket;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::path::{self, Candidate, Path, Preference, Target, TargetHost};
use super::report::{self, Tried};
use super::{Error, Network};

/// Between the beginnings of two attempts, RFC 8305 section 5.
const APART: Duration = Duration::from_millis(250);
/// One connection.
const ATTEMPT: Duration = Duration::from_secs(5);
/// A candidate that failed is tried again after this.
const AGAIN: Duration = Duration::from_secs(2);

impl Network {
    /// Finds a path to `target`: every link that is usable or becomes so within `limit` is
    /// tried.
    ///
    /// # Errors
    /// Nothing connected in time: the text has one line for each link that says what was
    /// tried and what to check.
    pub async fn race(
        &self,
        target: &Target,
        preference: Preference,
        limit: Duration,
    ) -> Result<Path, Error> {
        let begin = Instant::now();
        let deadline = begin + limit;
        let mut links = self.watch();
        let mut attempts = JoinSet::new();
        // When a candidate may be tried (again); none: it is being tried.
        let mut due: BTreeMap<Candidate, Option<Instant>> = BTreeMap::new();
        let mut tried = Tried::new();
        let mut next_start = begin;
        loop {
            let now = Instant::now();
            let ready = {
                let table = links.borrow_and_update();
                path::candidates(&table, target.zone.as_deref(), preference, now - begin)
            };
            let next = ready.into_iter().find(|candidate| {
                let at = due.get(candidate).copied().unwrap_or(Some(now));
                at.is_some_and(|at| at <= now)
            });
            if let Some(candidate) = next.filter(|_| next_start <= now) {
                due.insert(candidate.clone(), None);
                next_start = now + APART;
                let names = self.names(candidate.index, &candidate.link);
                let target = target.clone();
                attempts.spawn(async move {
                    let result = attempt(&candidate, &target, &names).await;
                    (candidate, result)
                });
            }
            // A BMC's card becomes a candidate by time alone, hence the beat.
            let wake = if next_start > now {
                next_start
            } else {
                now + APART
            };
            tokio::select! {
                Some(Ok((candidate, result))) = attempts.join_next() => match result {
                    Ok(address) => return Ok(Path { candidate, address }),
                    Err(why) => {
                        tracing::debug!("{target} over {}: {why}", candidate.link);
                        tried.insert(candidate.index, format!("{target}: {why}"));
                        due.insert(candidate, Some(Instant::now() + AGAIN));
                        // Nobody waits behind a failure.
                        next_start = Instant::now();
                    }
                },
                _ = links.changed() => {}
                () = sleep_until(wake.min(deadline)) => {}
            }
            if Instant::now() >= deadline {
                let report = report::describe(links.borrow().links(), &tried);
                return Err(Error::NoPath {
                    target: target.to_string(),
                    waited: limit,
                    report,
                });
            }
        }
    }
}

/// Connects, and answers from which address.
async fn attempt(
    candidate: &Candidate,
    target: &Target,
    names: &super::names::Names,
) -> Result<Ipv6Addr, String> {
    let addresses = match &target.host {
        TargetHost::Address(address) => vec![*address],
        TargetHost::Name(name) => names
            .resolve(name)
            .await
            .map_err(|error| error.to_string())?,
    };
    let mut last = String::new();
    for address in addresses {
        match timeout(ATTEMPT, connect(candidate, address, target.port)).await {
            Ok(Ok(local)) => return Ok(local),
            Ok(Err(error)) => last = format!("{address}: {error}"),
            Err(_) => last = format!("{address}: no answer within {} s", ATTEMPT.as_secs()),
        }
    }
    Err(last)
}

async fn connect(candidate: &Candidate, address: Ipv6Addr, port: u16) -> io::Result<Ipv6Addr> {
    let socket = TcpSocket::new_v6()?;
    socket.bind_device(Some(candidate.link.as_bytes()))?;
    if let Some(source) = candidate.source {
        socket.bind(SocketAddrV6::new(source, 0, 0, 0).into())?;
    }
    let scope = if address.is_unicast_link_local() {
        candidate.index
    } else {
        0
    };
    let peer = SocketAddrV6::new(address, port, 0, scope);
    let stream = socket.connect(peer.into()).await?;
    match stream.local_addr()? {
        SocketAddr::V6(local) => Ok(*local.ip()),
        SocketAddr::V4(_) => Err(io::ErrorKind::AddrNotAvailable.into()),
    }
}
