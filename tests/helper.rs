//! metal-boot as a process, in a network namespace, in front of the stand-in apiserver or of servers
//! that misbehave: each feature, and each kind of request that must be refused.

mod support;

#[path = "helper/bed.rs"]
mod bed;
#[path = "helper/config.rs"]
mod config;
#[path = "helper/files.rs"]
mod files;
#[path = "helper/hostile.rs"]
mod hostile;
#[path = "helper/https.rs"]
mod https;
#[path = "helper/operation.rs"]
mod operation;
#[path = "helper/proxy.rs"]
mod proxy;
