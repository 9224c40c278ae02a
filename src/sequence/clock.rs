//! The machine's clock, set before TLS needs it. Never a reason to fail: whether the time
//! is right enough is for TLS to say.

use std::error::Error;
use std::fs;
use std::net::SocketAddrV6;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::SignedDuration;
use nix::net::if_::if_nametoindex;
use tokio::time::timeout;

use crate::clock::query::{self, Patience};
use crate::clock::{self, Host, Server};
use crate::net::Network;

/// Where the DNS servers of router advertisements stand.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// All that asking for the time may cost a boot: names that no DNS server answers for take long.
const ASKING: Duration = Duration::from_secs(20);
/// Names resolved; as many servers are asked.
const MAX_NAMES: usize = 8;

/// Who gave the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ntp {
    Nobody,
    Named,
    /// A host that nobody named. The clock was this far off; the hardware clock is not set
    /// before a certificate has been valid at the new time.
    Guessed(SignedDuration),
}

/// Sets the clock by the servers of `named`; where they give no time, by whoever answers DNS
/// on this network.
pub(super) async fn set_by_ntp(network: &Network, named: &[String]) -> Ntp {
    let asked = timeout(ASKING, ask_ntp(network, named)).await;
    asked.unwrap_or_else(|_| {
        tracing::warn!("no NTP server gave the time within {} s", ASKING.as_secs());
        Ntp::Nobody
    })
}

async fn ask_ntp(network: &Network, named: &[String]) -> Ntp {
    let mut servers = Vec::new();
    for text in named {
        match text.parse() {
            Ok(server) => servers.push(server),
            Err(error) => tracing::warn!("ntp_servers: {error}"),
        }
    }
    if !servers.is_empty()
        && let Some(offset) = set_by(network, &servers, Patience::NAMED).await
    {
        clock::keep(offset);
        return Ntp::Named;
    }
    let dns = fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    let guessed = set_by(network, &clock::nameservers(&dns), Patience::GUESSED).await;
    guessed.map_or(Ntp::Nobody, Ntp::Guessed)
}

/// Sets the clock by the `Date` of the boot helper's answer, `offset` away from it, when it
/// is days off.
pub(super) fn set_by_date(offset: SignedDuration) {
    if clock::off_by_days(offset) && correct(offset, "Date of the boot helper's answer") {
        clock::keep(offset);
    }
}

/// How far the clock was off, when one of `servers` knew the time.
async fn set_by(
    network: &Network,
    servers: &[Server],
    patience: Patience,
) -> Option<SignedDuration> {
    let servers = servers.get(..MAX_NAMES).unwrap_or(servers);
    let resolved = join_all(servers.iter().map(|server| resolve(network, server))).await;
    let mut addresses = Vec::new();
    for (server, resolved) in servers.iter().zip(resolved) {
        match resolved {
            Ok(found) => addresses.extend(found),
            Err(error) => tracing::warn!("NTP server {server}: {error}"),
        }
    }
    if addresses.is_empty() {
        return None;
    }
    match query::ask(&addresses, patience).await {
        Ok((server, answer)) => {
            let source = format!("NTP server {server}, stratum {}", answer.stratum);
            correct(answer.offset, &source).then_some(answer.offset)
        }
        Err(error) => {
            tracing::warn!("{error}");
            None
        }
    }
}

/// True when the clock is right now.
fn correct(offset: SignedDuration, source: &str) -> bool {
    match clock::correct(offset) {
        Ok(outcome) => tracing::info!("{outcome} ({source})"),
        Err(error) => {
            tracing::warn!("{source}: {error}");
            return false;
        }
    }
    true
}

async fn resolve(
    network: &Network,
    server: &Server,
) -> Result<Vec<SocketAddrV6>, Box<dyn Error + Send + Sync>> {
    match &server.host {
        Host::Address { address, zone } => {
            let scope = match zone {
                Some(zone) => if_nametoindex(zone.as_str())?,
                None => 0,
            };
            Ok(vec![SocketAddrV6::new(*address, server.port, 0, scope)])
        }
        Host::Name(name) => {
            let found = network.resolve(name).await?;
            let found = found.into_iter();
            Ok(found
                .map(|ip| SocketAddrV6::new(ip, server.port, 0, 0))
                .collect())
        }
    }
}
