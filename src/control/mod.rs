//! The control plane: the boot helper (configuration, token) and metal-apiserver.

pub mod api;
