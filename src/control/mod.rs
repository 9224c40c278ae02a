//! The control plane: the boot helper (configuration, token) and metal-apiserver.
//!
//! `http` makes the clients, `retry` decides how often to try, `connect` and `envelope`
//! speak the protocol, `uplink` keeps a `line` on a path that works, `apiserver` and `waiting` are the calls of a machine, and
//! `boot_helper_client` with `helper_answer` is the first conversation of every boot.

pub mod api;
pub mod apiserver;
pub mod boot_helper_client;
pub mod code;
pub mod connect;
pub mod envelope;
pub mod error;
pub mod helper_answer;
pub mod http;
pub mod line;
pub mod retry;
mod silence;
pub mod text;
pub mod uplink;
mod waiting;

#[cfg(test)]
mod apiserver_tests;
#[cfg(test)]
mod boot_helper_client_tests;
#[cfg(test)]
pub(crate) mod stand_in;
#[cfg(test)]
mod waiting_tests;

pub use apiserver::{Apiserver, Completion, Registered};
pub use error::Error;
pub use helper_answer::HelperAnswer;
pub use waiting::WaitOutcome;
