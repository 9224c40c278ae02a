//! One file for each part of the network; every test's name begins with `network::`.

mod lab;
mod lldp;
mod slaac;
mod time;
mod web;
