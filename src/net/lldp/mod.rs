//! LLDP (IEEE 802.1AB): which switch ports this machine hangs on, and telling the
//! switches who hangs there.

pub mod build;
pub mod firmware;
pub mod frame;
mod listener;
pub mod live;
pub mod neighbours;
mod socket;

use std::time::Duration;

pub use frame::{Capabilities, Frame, Id};
pub use listener::{Identity, Listener};
pub use neighbours::{PortNeighbour, Requirement};

/// Why there are no neighbours.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("too few switches after {} s of LLDP: {report}", waited.as_secs())]
    Unmet { waited: Duration, report: String },
}
