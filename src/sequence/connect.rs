//! Booted -> Connected: links up, an address by SLAAC, neighbours by LLDP.

use super::failure::{During, Failure, Step};
use super::silence;
use super::{Booted, ports};
use std::net::Ipv6Addr;
use std::sync::Arc;

use tokio::task::JoinSet;
use uuid::Uuid;

use crate::config::Policy;
use crate::config::policy::AddrGenMode;
use crate::net::lldp;
use crate::net::{self, Addressing, Network};
use crate::report::steps;
use crate::watchdog::Progress;

/// A machine with a usable address.
pub struct Connected {
    pub(super) booted: Booted,
    /// Keeps links and DNS servers followed.
    pub(super) network: Arc<Network>,
    pub(super) lldp: lldp::Listener,
    /// Tells how the ports are.
    _ports: JoinSet<()>,
}

/// Links that are up, or on their way.
pub(super) struct Links {
    pub(super) network: Network,
    pub(super) lldp: lldp::Listener,
    pub(super) ports: JoinSet<()>,
}

impl Links {
    /// Brings every link up, and tells switches and screen about it.
    pub(super) async fn bring_up(machine: Uuid, policy: &Policy) -> Result<Self, net::Error> {
        // No secret at all, but as stable as the addresses have to be.
        let secret = Ipv6Addr::from(machine.as_u128());
        let addressing = match policy.addr_gen_mode {
            Some(AddrGenMode::StablePrivacy) => Addressing::StablePrivacy(secret),
            Some(AddrGenMode::Eui64) | None => Addressing::Eui64,
        };
        let options = net::Options {
            addressing,
            secret,
            ..net::Options::default()
        };
        let network = net::bring_up(&options).await?;
        // Switches send every 30 s: listening begins before there is an address.
        let identity = lldp::Identity {
            system_name: machine.to_string(),
            program: super::PROGRAM.into(),
        };
        let lldp = lldp::Listener::start(network.watch(), identity);
        let ports = ports::follow(&network, &lldp);
        Ok(Self {
            network,
            lldp,
            ports,
        })
    }
}

impl Booted {
    /// Brings every link up and waits for a usable address.
    ///
    /// # Errors
    /// No address within the policy's time; the cause has a line for each NIC.
    pub(super) async fn connect(self, progress: Progress) -> Result<Connected, Failure> {
        steps::begin(Step::Network);
        let policy = self.settings().policy;
        progress.begin(silence::network(&policy));
        let Links {
            network,
            lldp,
            ports,
        } = Links::bring_up(self.machine, &policy)
            .await
            .during(Step::Network)?;
        let limit = policy.slaac_timeout();
        steps::doing("waiting for an IPv6 address", Some(limit));
        let address = network
            .wait_for_address(limit)
            .await
            .during(Step::Network)?;
        tracing::info!("address {} on {}", address.address, address.link);
        Ok(Connected {
            booted: self,
            network: Arc::new(network),
            lldp,
            _ports: ports,
        })
    }
}
