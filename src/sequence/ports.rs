//! Tells how the network ports are, whenever one changes.

use tokio::task::JoinSet;

use crate::net::lldp::{Listener, PortNeighbour};
use crate::net::{Link, Network, report};
use crate::report::event::{Event, Port};
use crate::report::stream::tell;

/// Tells until the set is dropped.
pub(super) fn follow(network: &Network, lldp: &Listener) -> JoinSet<()> {
    let (mut links, mut heard) = (network.watch(), lldp.follow());
    let mut task = JoinSet::new();
    task.spawn(async move {
        loop {
            let links_now: Vec<Link> = links.borrow_and_update().links().cloned().collect();
            let switches = heard.borrow_and_update().switches_of(&links_now);
            tell(Event::Ports(ports(&links_now, &switches)));
            let changed = tokio::select! {
                changed = links.changed() => changed,
                changed = heard.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
        }
    });
    task
}

fn ports(links: &[Link], switches: &[PortNeighbour]) -> Vec<Port> {
    let port = |link: &Link| {
        let usable = link.addresses.iter().find(|(_, details)| details.usable());
        let switch = switches.iter().find(|switch| switch.index == link.index);
        Port {
            name: link.name.clone(),
            mac: link.mac.to_string(),
            carrier: link.carrier,
            address: usable
                .filter(|_| link.carrier)
                .map(|(address, _)| address.to_string()),
            switch: switch.map(|switch| {
                let nic = switch.to_nic();
                format!("{} {}", nic.hostname, nic.name)
            }),
            check: report::advice(link),
        }
    };
    links.iter().map(port).collect()
}
