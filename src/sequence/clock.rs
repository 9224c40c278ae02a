//! The machine's clock, set before TLS needs it. Never a reason to fail: whether the time
//! is right enough is for TLS to say.

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
pub(super) async fn set_by_ntp(named: &[String], network: &Network) -> bool {
    let mut servers = Vec::new();
    for text in named {
        match text.parse() {
            Ok(server) => servers.push(server),
            Err(error) => tracing::warn!("ntp_servers: {error}"),
        }
    }
    if !servers.is_empty() && set_by(&servers, Patience::NAMED, network).await {
        return true;
    }
    let dns = fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    set_by(&clock::nameservers(&dns), Patience::GUESSED, network).await
}

/// Sets the clock by the `Date` of the boot helper's answer, `offset` away from it, when it
/// is days off.
pub(super) fn set_by_date(offset: SignedDuration) {
    if clock::off_by_days(offset) {
        correct(offset, "Date of the boot helper's answer");
    }
}

async fn set_by(servers: &[Server], patience: Patience, network: &Network) -> bool {
    let mut addresses = Vec::new();
    for server in servers {
        match resolve(server, network).await {
            Ok(found) => addresses.extend(found),
            Err(why) => tracing::warn!("NTP server {server}: {why}"),
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

async fn resolve(server: &Server, network: &Network) -> Result<Vec<SocketAddrV6>, String> {
    let at = |address, scope| SocketAddrV6::new(address, server.port, 0, scope);
    let name = match &server.host {
        Host::Address { address, zone } => {
            let scope = match zone {
                Some(zone) => if_nametoindex(zone.as_str()).map_err(|e| e.to_string())?,
                None => 0,
            };
            return Ok(vec![at(*address, scope)]);
        }
        Host::Name(name) => name,
    };
    let mut why = "no link has a usable address".to_owned();
    for link in network.links().iter().filter(|link| link.usable()) {
        match network.names(link.index, &link.name).resolve(name).await {
            Ok(found) => return Ok(found.into_iter().map(|found| at(found, 0)).collect()),
            Err(error) => why = error.to_string(),
        }
    }
    Err(why)
}
