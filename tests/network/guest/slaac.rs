//! How long a link takes from going up to an address that may be used: with the agent's settings
//! and with the kernel's own, in turns.

use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use metal_anvil::net::sysctl::{self, Addressing, Role, Settings};
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressScope};
use rtnetlink::{LinkUnspec, MulticastGroup};
use serde_json::json;

use super::{Failed, Words, say};

const LINK: &str = "eth0";
const SETTINGS: Settings = Settings {
    addressing: Addressing::Eui64,
    retransmit_ms: 200,
};
/// Longer than any of both takes.
const LIMIT: Duration = Duration::from_secs(60);

/// `guest.rounds` rounds of each.
pub async fn bench(words: &Words) -> Result<(), Failed> {
    let rounds: usize = words.get("rounds").unwrap_or("20").parse()?;
    let base = Path::new("/proc/sys/net/ipv6");
    let ours = sysctl::plan(LINK, Role::Host, SETTINGS);
    let kernels: Vec<_> = ours
        .iter()
        .map(|(name, _)| {
            let value = std::fs::read_to_string(base.join(name))?;
            Ok((name.clone(), value.trim().to_owned()))
        })
        .collect::<std::io::Result<_>>()?;
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    let index = nix::net::if_::if_nametoindex(LINK)?;
    let (mut agent, mut kernel) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        for (settings, times) in [(&ours, &mut agent), (&kernels, &mut kernel)] {
            let down = LinkUnspec::new_with_index(index).down().build();
            handle.link().change(down).execute().await?;
            for (name, value) in settings {
                std::fs::write(base.join(name), value)?;
            }
            let (events, listening, mut messages) =
                rtnetlink::new_multicast_connection(&[MulticastGroup::Ipv6Ifaddr])?;
            let events = tokio::spawn(events);
            let begin = Instant::now();
            let up = LinkUnspec::new_with_index(index).up().build();
            handle.link().change(up).execute().await?;
            let usable = async {
                while let Some((message, _)) = messages.next().await {
                    if is_usable(&message.payload) {
                        return;
                    }
                }
            };
            tokio::time::timeout(LIMIT, usable).await?;
            times.push(begin.elapsed().as_secs_f64());
            drop(listening);
            events.abort();
        }
    }
    say("slaac", json!({"agent": agent, "kernel": kernel}));
    Ok(())
}

/// A global address whose duplicate address detection has ended well.
fn is_usable(payload: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(address)) = payload else {
        return false;
    };
    let bad = AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Deprecated;
    let flags = address
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Flags(flags) => Some(*flags),
            _ => None,
        });
    address.header.scope == AddressScope::Universe
        && flags.is_some_and(|flags| !flags.intersects(bad))
}
