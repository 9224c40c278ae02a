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
use super::frame::{self, Frame};
use super::neighbours::{Neighbours, PortNeighbour, Requirement};
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
        let Err(error) = self.exchange(link.index).await;
        warn!("{}: no LLDP: {error}", link.name);
        self.note(link.index, format!("no LLDP socket: {error}"));
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
        let line = describe(&link.name, &frame);
        let news = self
            .neighbours
            .send_if_modified(|neighbours| neighbours.learn(index, frame, Instant::now()));
        if news {
            info!("{line}");
        }
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

fn describe(link: &str, frame: &Frame) -> String {
    let Frame {
        chassis,
        port,
        system_name,
        ..
    } = frame;
    format!("{link}: LLDP from {system_name:?}, chassis {chassis}, port {port}")
}

fn is_down(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NetworkDown
}
