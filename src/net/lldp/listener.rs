//! Receives LLDP on every physical link and sends our own.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{debug, info, warn};

use super::Error;
use super::build::{self, Announcement};
use super::firmware::{self, Agent};
use super::frame;
use super::neighbours::{self, Neighbours, News, PortNeighbour, Requirement};
use super::socket::Socket;
use crate::net::link::{Link, Table};
use crate::net::monitor::Task;

/// How often we speak (metal-hammer's interval).
const INTERVAL: Duration = Duration::from_secs(5);
/// Seconds until a switch forgets us: four intervals (802.1AB clause 9.2.5.6 wants
/// several).
const TTL: u16 = 20;

/// Who we are.
#[derive(Debug, Clone)]
pub struct Identity {
    /// System name in our frames: the machine's UUID.
    pub system_name: String,
    /// Program and version, first in the system description.
    pub program: String,
}

/// Listens and speaks on every physical link, later ones included, until it is dropped.
pub struct Listener {
    shared: Shared,
    _task: Task,
}

#[derive(Clone)]
struct Shared {
    identity: Arc<Identity>,
    links: watch::Receiver<Table>,
    neighbours: Arc<watch::Sender<Neighbours>>,
    status: Arc<Mutex<(String, Instant)>>,
}

impl Listener {
    /// Starts on the links of `links` (see [`crate::net::Network::watch`]). Needs a tokio
    /// runtime and `CAP_NET_RAW`; a link that cannot be listened on is logged, and stands in the
    /// report of [`Self::wait_for`].
    #[must_use]
    pub fn start(links: watch::Receiver<Table>, identity: Identity) -> Self {
        let shared = Shared {
            identity: Arc::new(identity),
            links,
            neighbours: Arc::new(watch::Sender::new(Neighbours::default())),
            status: Arc::new(Mutex::new(("starting".to_owned(), Instant::now()))),
        };
        let task = tokio::spawn(shared.clone().follow_links());
        Self {
            shared,
            _task: task.into(),
        }
    }

    /// What the machine does from now on: shown by the switch together with how long.
    pub fn set_status(&self, status: &str) {
        let mut current = self
            .shared
            .status
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *current = (status.to_owned(), Instant::now());
    }

    /// The switches that are heard now.
    #[must_use]
    pub fn switches(&self) -> Vec<PortNeighbour> {
        self.shared.switches()
    }

    /// What is heard, as it changes.
    #[must_use]
    pub fn follow(&self) -> watch::Receiver<Neighbours> {
        self.shared.neighbours.subscribe()
    }

    /// Waits until enough switches are heard and returns all that are.
    ///
    /// # Errors
    /// The time is over: the text says what each port heard.
    pub async fn wait_for(&self, requirement: Requirement) -> Result<Vec<PortNeighbour>, Error> {
        let mut neighbours = self.shared.neighbours.subscribe();
        let enough = neighbours.wait_for(|neighbours| {
            requirement.met(&neighbours.switches(&self.shared.links(), Instant::now()))
        });
        let in_time = timeout(requirement.timeout, enough).await.is_ok();
        let switches = self.shared.switches();
        if in_time || requirement.met(&switches) {
            return Ok(switches);
        }
        let heard = self.shared.neighbours.borrow();
        Err(Error::Unmet {
            waited: requirement.timeout,
            report: heard.report(&self.shared.links(), requirement, Instant::now()),
        })
    }
}

impl Shared {
    fn links(&self) -> Vec<Link> {
        self.links.borrow().links().cloned().collect()
    }

    fn switches(&self) -> Vec<PortNeighbour> {
        self.neighbours
            .borrow()
            .switches(&self.links(), Instant::now())
    }

    /// One task for each link that is there.
    async fn follow_links(mut self) {
        let mut tasks: BTreeMap<u32, Task> = BTreeMap::new();
        loop {
            let links: Vec<_> = self.links.borrow_and_update().links().cloned().collect();
            tasks.retain(|index, _| links.iter().any(|link| link.index == *index));
            for link in links {
                tasks.entry(link.index).or_insert_with(|| {
                    let shared = self.clone();
                    tokio::spawn(async move { shared.serve(link).await }).into()
                });
            }
            if self.links.changed().await.is_err() {
                return;
            }
        }
    }

    async fn serve(&self, link: Link) {
        self.stop_firmware(&link).await;
        let Err(error) = self.exchange(link.index).await;
        warn!("{}: no LLDP: {error}", link.name);
        self.note(link.index, format!("no LLDP socket: {error}"));
    }

    /// Makes the NIC's firmware leave LLDP to us.
    async fn stop_firmware(&self, link: &Link) {
        let name = link.name.clone();
        // A card that is reset for it takes its time.
        let Ok(result) = tokio::task::spawn_blocking(move || firmware::stop_agent(&name)).await
        else {
            return;
        };
        let name = &link.name;
        match result {
            Ok(Agent::Unknown) => {}
            Ok(Agent::Off { driver }) => debug!("{name}: {driver}'s LLDP agent is off already"),
            Ok(Agent::Stopped { driver, flag }) => {
                info!("{name}: {driver}'s LLDP agent turned off ({flag})");
            }
            Ok(Agent::OutOfReach { driver, why }) => {
                info!("{name}: driver {driver}: {why}");
                let problem = format!("nothing heard; driver {driver}: {why}");
                self.note(link.index, problem);
            }
            Err(error) => debug!("{name}: no word about an LLDP agent in the firmware: {error}"),
        }
    }

    /// Receives and sends until that fails for good.
    async fn exchange(&self, index: u32) -> Result<std::convert::Infallible, io::Error> {
        let socket = Socket::open(index)?;
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                received = socket.receive() => match received {
                    Ok(bytes) => self.received(index, &bytes),
                    // Said once when the link goes down; the socket works on when it is up again.
                    Err(error) if is_down(&error) => {}
                    Err(error) => return Err(error),
                },
                _ = ticks.tick() => if let Some(bytes) = self.announcement(index)
                    && let Err(error) = socket.send(&bytes)
                {
                    debug!("link {index}: LLDP frame not sent: {error}");
                },
            }
        }
    }

    fn received(&self, index: u32, bytes: &[u8]) {
        let frame = match frame::parse(bytes) {
            Ok(frame) => frame,
            Err(error) => {
                self.note(index, format!("only broken LLDP heard: {error}"));
                return;
            }
        };
        let link = self.links.borrow().get(index).cloned();
        let Some(link) = link.filter(|link| link.mac != frame.source) else {
            return;
        };
        let line = neighbours::describe(&frame);
        let mut news = None;
        self.neighbours.send_if_modified(|neighbours| {
            news = neighbours.learn(index, frame, Instant::now());
            news.is_some()
        });
        let word = match news {
            Some(News::New) => "hears",
            Some(News::Changed) => "now hears",
            Some(News::Gone) => "was told goodbye by",
            None => return,
        };
        info!("{} {word} {line}", link.name);
    }

    fn note(&self, index: u32, problem: String) {
        self.neighbours
            .send_if_modified(|neighbours| neighbours.set_problem(index, problem));
    }

    fn announcement(&self, index: u32) -> Option<Vec<u8>> {
        let (status, since) = {
            let current = self.status.lock().unwrap_or_else(PoisonError::into_inner);
            current.clone()
        };
        let table = self.links.borrow();
        let link = table.get(index)?;
        let address = match table.usable() {
            Some(usable) => usable.address.to_string(),
            None => "no address".to_owned(),
        };
        let system_description = format!(
            "{}, {address}, {status} for {} s",
            self.identity.program,
            since.elapsed().as_secs()
        );
        Some(build::frame(&Announcement {
            mac: link.mac,
            port_description: &link.name,
            system_name: &self.identity.system_name,
            system_description: &system_description,
            ttl: TTL,
        }))
    }
}

fn is_down(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NetworkDown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::device::Device;
    use crate::net::mac::MacAddress;
    use rtnetlink::packet_route::RouteNetlinkMessage;
    use rtnetlink::packet_route::link::{LinkAttribute, LinkLayerType, LinkMessage};

    /// An index that no device has: the socket cannot be opened, the frames come from the
    /// test.
    const INDEX: u32 = 0x7fff_0000;

    fn table() -> Table {
        let mut message = LinkMessage::default();
        message.header.index = INDEX;
        message.header.link_layer_type = LinkLayerType::Ether;
        message.attributes = vec![
            LinkAttribute::IfName("eth0".to_owned()),
            LinkAttribute::Address(vec![0x52, 0x54, 0, 0, 0, 1]),
        ];
        let hardware = Device {
            bus_path: "pci0000:00/0000:00:03.0".to_owned(),
            driver: "virtio_net".to_owned(),
        };
        let mut table = Table::default();
        table.apply(&RouteNetlinkMessage::NewLink(message), |_| {
            Some(hardware.clone())
        });
        table
    }

    fn listener(links: &watch::Sender<Table>) -> Listener {
        let identity = Identity {
            system_name: "leaf01".to_owned(),
            program: "metal-anvil 0.1.0".to_owned(),
        };
        Listener::start(links.subscribe(), identity)
    }

    fn from_switch(source: MacAddress) -> Vec<u8> {
        let mut bytes = build::frame(&Announcement {
            mac: source,
            port_description: "swp1",
            system_name: "leaf01",
            system_description: "",
            ttl: 120,
        });
        // Our own frames say `station`: make it `bridge`.
        let capabilities = bytes
            .windows(6)
            .position(|w| w == [14, 4, 0, 0x80, 0, 0x80]);
        let at = capabilities.unwrap() + 2;
        bytes[at..at + 4].copy_from_slice(&[0, 4, 0, 4]);
        bytes
    }

    fn requirement(timeout: Duration) -> Requirement {
        Requirement {
            interfaces: 1,
            chassis: 1,
            timeout,
        }
    }

    #[tokio::test]
    async fn a_waiter_wakes_when_the_switch_speaks() {
        let links = watch::Sender::new(table());
        let listener = listener(&links);
        let shared = listener.shared.clone();
        let (waited, ()) = tokio::join!(
            listener.wait_for(requirement(Duration::from_secs(60))),
            async move {
                let own = MacAddress([0x52, 0x54, 0, 0, 0, 1]);
                shared.received(INDEX, &from_switch(own));
                assert_eq!(shared.switches(), [], "our own frame");
                shared.received(INDEX, &from_switch(MacAddress([2, 0, 0, 0, 0, 9])));
            }
        );
        let switches = waited.unwrap();
        assert_eq!(switches.len(), 1);
        assert_eq!(switches[0].interface, "eth0");
        assert_eq!(switches[0].to_nic().hostname, "leaf01");
    }

    #[tokio::test]
    async fn an_unmet_requirement_is_a_report_and_none_is_at_once() {
        let links = watch::Sender::new(table());
        let listener = listener(&links);
        assert_eq!(listener.wait_for(Requirement::NONE).await.unwrap(), []);
        let short = requirement(Duration::from_millis(10));
        let error = listener.wait_for(short).await.unwrap_err().to_string();
        assert!(error.contains("0 of 1 interfaces"), "{error}");
        assert!(error.contains("\n  eth0 52:54:00:00:00:01: "), "{error}");
    }

    #[tokio::test]
    async fn the_announcement_says_who_and_what() {
        let links = watch::Sender::new(table());
        let listener = listener(&links);
        listener.set_status("waiting for an allocation");
        let bytes = listener.shared.announcement(INDEX).unwrap();
        let frame = frame::parse(&bytes).unwrap();
        assert_eq!(frame.system_name, "leaf01");
        assert_eq!(frame.port_description, "eth0");
        assert_eq!(
            frame.system_description,
            "metal-anvil 0.1.0, no address, waiting for an allocation for 0 s"
        );
        assert_eq!(listener.shared.announcement(1), None);
    }
}
