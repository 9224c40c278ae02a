//! What the boot tells, and to whom.
//!
//! Everything is an [`event::Event`], told once into the `stream`: `steps` tells the boot's steps and
//! `log` the lines of `tracing`, `kmsg` the kernel's. Each listener has a bounded queue and a thread of
//! its own: plain consoles (`console`), the dashboard on the screen (`terminal`, which draws what
//! `dashboard` and `screen` make) and the remote log (`remote`).

pub mod console;
pub mod dashboard;
pub mod event;
mod kmsg;
pub mod log;
mod loki;
pub mod memory;
pub mod remote;
pub mod screen;
pub mod steps;
pub mod stream;
mod syslog;
pub(crate) mod terminal;
pub mod timeline;
