//! Settings: defaults < boot helper's answer < `metal.config` < kernel command line.
//!
//! Every source is read into a [`Layer`], and one function, [`Settings::from_layers`],
//! holds the precedence rule. Each value remembers where it came from.

pub mod base_url;
pub mod cmdline;
pub mod digest;
pub mod file;
pub mod layer;
pub mod medium;
pub mod policy;
mod settings;

pub use base_url::BaseUrl;
pub use layer::{Layer, OsInstaller};
pub use policy::Policy;
pub use settings::{Settings, Source, Sourced};
