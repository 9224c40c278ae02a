//! Authorized -> Registered: the control plane knows what this machine is made of.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::timeout;

use super::authorize::Authorized;
use super::bmc;
use super::failure::{During, Failure, Step};
use super::silence;
use crate::control::api::{EventType, Nic};
use crate::control::apiserver::Apiserver;
use crate::hardware::{self, Inventory, Roots};
use crate::net::lldp::PortNeighbour;
use crate::report::steps;
use crate::watchdog::Progress;

/// How often the control plane hears that the machine lives (contracts.md §1).
const ALIVE_EVERY: Duration = Duration::from_secs(60);

/// The inventory of a healthy machine takes seconds; a command that a drive never answers
/// would hold the machine for good.
pub(super) const INSPECTION: Duration = Duration::from_secs(60);

/// A machine that metal-apiserver knows.
pub struct Registered {
    pub(super) authorized: Authorized,
    /// The server's clock when it accepted the registration, if it said so.
    pub(super) at: Option<Timestamp>,
    /// As reported, for the installer.
    pub(super) nics: Vec<Nic>,
    _alive: Ticker,
}

/// A background task that ends with its owner.
struct Ticker(AbortHandle);

impl Drop for Ticker {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Authorized {
    /// Reports the hardware and the switch ports.
    ///
    /// # Errors
    /// Too few switch ports in time, or the server refuses; its message is the cause.
    pub(super) async fn register(self, progress: Progress) -> Result<Registered, Failure> {
        steps::begin(Step::Registration);
        let call = silence::calls(&self.settings.policy);
        progress.begin(call);
        let apiserver = &self.apiserver;
        apiserver
            .send_event(EventType::Preparing, super::PROGRAM)
            .await
            .during(Step::Registration)?;
        if let Some(offset) = self.guessed {
            crate::clock::keep(offset);
        }
        progress.beat();
        #[cfg(debug_assertions)]
        crate::init::fault::panic_if_ordered();
        let super_user_password = apiserver
            .super_user_password()
            .await
            .during(Step::Registration)?;
        let partition = self.partition()?;
        let bmc = bmc::look(&self.settings.policy);
        let requirement = self.settings.policy.switches();
        if requirement.interfaces > 0 {
            steps::begin(Step::SwitchPorts);
            let what = format!("listening for switches on {} ports", requirement.interfaces);
            steps::doing(what, Some(requirement.timeout));
        }
        progress.begin(silence::switches(&self.settings.policy));
        let neighbours = self
            .connected
            .lldp
            .wait_for(requirement)
            .await
            .during(Step::Registration)?;
        steps::begin(Step::Registration);
        let ports = by_link(&neighbours);
        for (link, switches) in &ports {
            for switch in switches {
                tracing::info!(
                    "{link} hears switch {} port {}",
                    switch.hostname,
                    switch.name
                );
            }
        }
        // The BMC has 80 s, a call more.
        progress.begin(call);
        let bmc = bmc::secure(bmc, &self.settings.policy, super_user_password).await?;
        apiserver
            .send_event(EventType::Registering, &bmc.warning())
            .await
            .during(Step::Registration)?;
        progress.begin(INSPECTION + call);
        let inventory = self
            .inspect()
            .await?
            .known(self.connected.booted.machine, &ports);
        tracing::info!("{inventory}");
        for line in inventory.table(self.settings.debug) {
            tracing::info!("{line}");
        }
        let tags = &self.settings.policy.inventory_tags;
        let request = hardware::register(&inventory, &ports, &partition, super::PROGRAM, tags)
            .during(Step::Registration)?;
        let request = hardware::register::with_bmc(request, bmc.bmc, &bmc.fru);
        progress.begin(call);
        let registered = apiserver
            .register(&request)
            .await
            .during(Step::Registration)?;
        tracing::info!("registered as size {}", registered.size);
        self.connected.lldp.set_status("registered");
        let alive = tokio::spawn(keep_alive(apiserver.clone()));
        Ok(Registered {
            at: registered.server_date,
            nics: request.hardware.nics,
            _alive: Ticker(alive.abort_handle()),
            authorized: self,
        })
    }

    /// Disks may take seconds to say how they are: not on a thread that others wait for.
    async fn inspect(&self) -> Result<Inventory, Failure> {
        let medium = self.connected.booted.medium.first().cloned();
        let inspected = tokio::task::spawn_blocking(move || {
            hardware::inspect(&Roots::live(), medium.as_deref()).during(Step::Registration)
        });
        within(INSPECTION, inspected).await
    }

    fn partition(&self) -> Result<String, Failure> {
        let partition = self.settings.partition.as_ref().map(|p| p.value.clone());
        partition.ok_or_else(|| {
            let why = "no partition is set; start the boot helper with --partition, or set partition in metal.config";
            Failure::new(Step::Registration, why)
        })
    }
}

async fn within<T>(
    limit: Duration,
    inspected: JoinHandle<Result<T, Failure>>,
) -> Result<T, Failure> {
    match timeout(limit, inspected).await {
        Ok(Ok(inventory)) => inventory,
        Ok(Err(error)) => Err(Failure::new(Step::Registration, error.to_string())),
        Err(_) => {
            let why = format!(
                "the hardware was not read within {} s: a drive or card does not answer; look for \
                 a broken one in the kernel's messages",
                limit.as_secs()
            );
            Err(Failure::new(Step::Registration, why))
        }
    }
}

/// The neighbours of each link, as `Register` wants them.
fn by_link(neighbours: &[PortNeighbour]) -> Vec<(String, Vec<Nic>)> {
    let mut links: BTreeMap<&str, Vec<Nic>> = BTreeMap::new();
    for neighbour in neighbours {
        links
            .entry(&neighbour.interface)
            .or_default()
            .push(neighbour.to_nic());
    }
    links
        .into_iter()
        .map(|(link, nics)| (link.to_owned(), nics))
        .collect()
}

async fn keep_alive(apiserver: Apiserver) {
    loop {
        tokio::time::sleep(ALIVE_EVERY).await;
        if let Err(error) = apiserver
            .send_event(EventType::Alive, &steps::status())
            .await
        {
            tracing::debug!("cannot say that the machine lives: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn hardware_that_does_not_answer_ends_the_inventory() {
        let silent = tokio::spawn(std::future::pending::<Result<(), Failure>>());
        let failure = within(INSPECTION, silent).await.unwrap_err();
        assert!(failure.cause.contains("within 60 s"), "{}", failure.cause);
        let quick = tokio::spawn(async { Ok(7) });
        assert_eq!(within(INSPECTION, quick).await.ok(), Some(7));
    }
}
