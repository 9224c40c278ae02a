//! Which switch port hangs on which link: what was heard, how long it stays true, and
//! whether it is enough. Pure: the clock is a parameter.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use tokio::time::Instant;

use super::frame::{Frame, Id};
use crate::control::api;
use crate::net::link::Link;
use crate::net::mac::MacAddress;

/// Neighbours kept of each link: one is usual, a hub or an unmanaged switch makes more.
const KEPT: usize = 32;
/// What the control plane takes for a name: 2 to 128 characters (contracts: `is_name`).
const MIN_NAME: usize = 2;
const MAX_NAME: usize = 128;

/// How many switches have to be heard before a machine may register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Requirement {
    /// Links that hear a switch. 0: do not wait.
    pub interfaces: usize,
    /// Distinct switches on them.
    pub chassis: usize,
    pub timeout: Duration,
}

impl Requirement {
    /// For labs: whatever has been heard is enough.
    pub const NONE: Self = Self {
        interfaces: 0,
        chassis: 0,
        timeout: Duration::ZERO,
    };
}

impl Default for Requirement {
    /// Two leaf switches; twice the usual interval of 15 s, and 2 s.
    fn default() -> Self {
        Self {
            interfaces: 2,
            chassis: 2,
            timeout: Duration::from_secs(32),
        }
    }
}

/// A switch port and the link that hears it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortNeighbour {
    /// Interface index of our link.
    pub index: u32,
    /// Name of our link.
    pub interface: String,
    /// Address of our link.
    pub mac: MacAddress,
    /// What the switch said last.
    pub frame: Frame,
}

impl PortNeighbour {
    /// The neighbour as the control plane wants it: identifier = port ID, mac = port ID
    /// too. Where the port ID is none, the chassis ID and then the frame's source fill in
    /// for the MAC, which has to be a valid one.
    #[must_use]
    pub fn to_nic(&self) -> api::Nic {
        let frame = &self.frame;
        let mac = match (&frame.port, &frame.chassis) {
            (Id::Mac(mac), _) | (_, Id::Mac(mac)) => *mac,
            _ => frame.source,
        };
        let identifier = limited(&frame.port.to_string());
        let long_enough = |name: &String| name.chars().count() >= MIN_NAME;
        let name = [limited(&frame.port_description), identifier.clone()]
            .into_iter()
            .find(long_enough)
            .unwrap_or_else(|| format!("port {identifier}"));
        api::Nic {
            mac: mac.to_string(),
            name,
            identifier,
            hostname: limited(&frame.system_name),
            ..api::Nic::default()
        }
    }
}

fn limited(text: &str) -> String {
    text.chars().take(MAX_NAME).collect()
}

/// What a frame changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// A neighbour that was not there.
    New,
    /// It says something else than before.
    Changed,
    /// It says goodbye.
    Gone,
}

/// Everything heard on every link.
#[derive(Debug, Clone, Default)]
pub struct Neighbours {
    /// By interface index and chassis ID.
    heard: BTreeMap<(u32, Id), Heard>,
    /// Why nothing can be heard, or why the last frame was refused.
    problems: BTreeMap<u32, String>,
}

#[derive(Debug, Clone)]
struct Heard {
    frame: Frame,
    until: Instant,
}

impl Neighbours {
    /// Takes in a frame, and says what is new about it.
    pub fn learn(&mut self, index: u32, frame: Frame, now: Instant) -> Option<News> {
        self.expire(now);
        let key = (index, frame.chassis.clone());
        if frame.ttl == 0 {
            return self.heard.remove(&key).map(|_| News::Gone);
        }
        let full = self.heard.keys().filter(|(on, _)| *on == index).count() >= KEPT;
        let until = now + Duration::from_secs(frame.ttl.into());
        match self.heard.get_mut(&key) {
            Some(heard) => {
                heard.until = until;
                let changed = heard.frame != frame;
                heard.frame = frame;
                changed.then_some(News::Changed)
            }
            None if full => None,
            None => {
                self.heard.insert(key, Heard { frame, until });
                Some(News::New)
            }
        }
    }

    /// Forgets the neighbours whose time is over, and returns what they said last.
    pub fn expire(&mut self, now: Instant) -> Vec<Frame> {
        let over = |_: &(u32, Id), heard: &mut Heard| heard.until <= now;
        let gone = self.heard.extract_if(.., over);
        gone.map(|(_, heard)| heard.frame).collect()
    }

    /// When the next neighbour's time is over.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Instant> {
        self.heard.values().map(|heard| heard.until).min()
    }

    /// Notes for the report why a link hears nothing; true when that is news.
    pub fn set_problem(&mut self, index: u32, problem: String) -> bool {
        self.problems.insert(index, problem.clone()) != Some(problem)
    }

    /// The switches that are heard on `links` at `now`.
    #[must_use]
    pub fn switches_of(&self, links: &[Link]) -> Vec<PortNeighbour> {
        self.switches(links, Instant::now())
    }

    /// The same at a given time.
    #[must_use]
    pub fn switches(&self, links: &[Link], now: Instant) -> Vec<PortNeighbour> {
        let mut found = Vec::new();
        for link in links {
            let frames = self.on(link.index, now);
            found.extend(
                frames
                    .filter(|frame| is_switch(frame))
                    .map(|frame| PortNeighbour {
                        index: link.index,
                        interface: link.name.clone(),
                        mac: link.mac,
                        frame: frame.clone(),
                    }),
            );
        }
        found
    }

    fn on(&self, index: u32, now: Instant) -> impl Iterator<Item = &Frame> {
        let entries = self.heard.iter();
        entries
            .filter(move |((on, _), heard)| *on == index && heard.until > now)
            .map(|(_, heard)| &heard.frame)
    }

    /// What each port heard, one line for each neighbour, for whoever has to find out why
    /// a requirement is not met.
    #[must_use]
    pub fn report(&self, links: &[Link], requirement: Requirement, now: Instant) -> String {
        let (interfaces, chassis) = count(&self.switches(links, now));
        let mut text = format!(
            "{interfaces} of {} interfaces hear a switch, {chassis} of {} different switches are \
             heard",
            requirement.interfaces, requirement.chassis
        );
        for link in links {
            let start = format!("\n  {} {}", link.name, link.mac);
            let mut lines = 0;
            for frame in self.on(link.index, now) {
                lines += 1;
                let _ = write!(text, "{start}: {}", describe(frame));
            }
            if lines == 0 {
                let why = match self.problems.get(&link.index) {
                    _ if !link.carrier => "no carrier; check cable, transceiver and switch port",
                    Some(problem) => problem,
                    None => {
                        "nothing heard; check that the switch port sends LLDP and that the NIC's \
                         firmware does not swallow it"
                    }
                };
                let _ = write!(text, "{start}: {why}");
            }
        }
        if links.is_empty() {
            text.push_str("\n  no network device with hardware was found");
        }
        text
    }
}

impl Requirement {
    /// Whether these switches are enough.
    #[must_use]
    pub fn met(&self, switches: &[PortNeighbour]) -> bool {
        let (interfaces, chassis) = count(switches);
        interfaces >= self.interfaces && chassis >= self.chassis
    }
}

/// Distinct links and distinct chassis.
fn count(switches: &[PortNeighbour]) -> (usize, usize) {
    let interfaces: BTreeSet<_> = switches.iter().map(|switch| switch.index).collect();
    let chassis: BTreeSet<_> = switches
        .iter()
        .map(|switch| &switch.frame.chassis)
        .collect();
    (interfaces.len(), chassis.len())
}

/// A neighbour in one line.
#[must_use]
pub fn describe(frame: &Frame) -> String {
    let kind = match frame.capabilities {
        Some(capabilities) if capabilities.switch() => "switch",
        Some(_) => "not a switch (neither bridge nor router is enabled)",
        None => "not a switch (sends no capabilities)",
    };
    let name = limited(&frame.system_name);
    let (chassis, port) = (&frame.chassis, limited(&frame.port.to_string()));
    let mut text = format!("{kind} {name:?}, chassis {chassis}, port {port}");
    if !frame.port_description.is_empty() {
        let _ = write!(text, " {:?}", limited(&frame.port_description));
    }
    for address in &frame.management {
        let _ = write!(text, ", management {address}");
    }
    text
}

/// Whether this neighbour may count as a switch.
#[must_use]
pub fn is_switch(frame: &Frame) -> bool {
    frame
        .capabilities
        .is_some_and(|capabilities| capabilities.switch())
}

#[cfg(test)]
#[path = "neighbours_tests.rs"]
mod tests;
