//! The network in a guest: the agent's own network code against real routers and servers.
//!
//! Each test is a namespace with radvd and what else it needs, and a QEMU guest that runs
//! `tests/network/guest` on our kernel without firmware: booted in two seconds, it prints what it
//! finds as one JSON line an event. `scripts/test network` runs them all.

mod support;

#[path = "network/mod.rs"]
mod network;
