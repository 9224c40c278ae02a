//! What PID 1 owes the kernel: file systems, consoles, orphans, panics, and a way out.

pub mod mounts;
pub mod panic;
pub mod power;
pub mod reaper;
