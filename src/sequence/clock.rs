//! The machine's clock, set before TLS needs it. Never a reason to fail: whether the time
//! is right enough is for TLS to say.

use std::error::Error;
use std::fs;
use std::net::SocketAddrV6;

use jiff::SignedDuration;
use nix::net::if_::if_nametoindex;

use crate::clock::query::{self, Patience};
use crate::clock::{self, Host, Server};
use crate::net::Network;

/// Where the DNS servers of router advertisements stand.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Sets the clock by the servers of `named`; where they give no time, by whoever answers DNS
/// on this network. True when one of them knew the time.
pub(super) async fn set_by_ntp(network: &Network, named: &[String]) -> bool {
    let mut servers = Vec::new();
    for text in named {
        match text.parse() {
            Ok(server) => servers.push(server),
            Err(error) => tracing::warn!("ntp_servers: {error}"),
        }
    }
    if !servers.is_empty() && set_by(network, &servers, Patience::NAMED).await {
        return true;
    }
    let dns = fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    set_by(network, &clock::nameservers(&dns), Patience::GUESSED).await
}

/// Sets the clock by the `Date` of the boot helper's answer, `offset` away from it, when it
/// is days off.
pub(super) fn set_by_date(offset: SignedDuration) {
    if clock::off_by_days(offset) {
        correct(offset, "Date of the boot helper's answer");
    }
}

async fn set_by(network: &Network, servers: &[Server], patience: Patience) -> bool {
    let mut addresses = Vec::new();
    for server in servers {
        match resolve(network, server).await {
            Ok(found) => addresses.extend(found),
            Err(error) => tracing::warn!("NTP server {server}: {error}"),
        }
    }
    if addresses.is_empty() {
        return false;
    }
    match query::ask(&addresses, patience).await {
        Ok((server, answer)) => {
            let source = format!("NTP server {server}, stratum {}", answer.stratum);
            correct(answer.offset, &source)
        }
        Err(error) => {
            tracing::warn!("{error}");
            false
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

async fn resolve(network: &Network, server: &Server) -> Result<Vec<SocketAddrV6>, Box<dyn Error>> {
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
