//! One file for each part of the network; every test's name begins with `network::`.

mod lab;
mod links;
mod lldp;
mod names;
mod reach;
mod screen;
mod slaac;
mod time;
mod wait;
mod web;
