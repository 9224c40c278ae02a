//! What the boot tells: the consoles, and figures about the agent itself.

pub mod console;
pub mod memory;
