//! What a request is about, by its path alone: known before anything is done for it.

use super::proxy;

/// The path of the installer for images that ship none.
pub const OS_INSTALLER: &str = "/os-installer";

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    Config,
    Script,
    Proxy,
    Static,
    /// Images, and the installer.
    Image,
    /// Asked by load balancers, operators and Prometheus, who are no machines.
    Operation,
    Other,
}

impl Route {
    /// The kind of a path, as the router takes it: a fixed first segment comes before
    /// `/{partition}/boot.ipxe`, which comes before everything else. What any host may ask
    /// without limit is named in full.
    #[must_use]
    pub fn of(path: &str) -> Self {
        let first = path.split('/').nth(1).unwrap_or_default();
        match (path, first) {
            ("/healthz" | "/readyz" | "/metrics", _) => Self::Operation,
            (OS_INSTALLER, _) => Self::Image,
            (_, "config") => Self::Config,
            (_, "static") => Self::Static,
            (_, "image") => Self::Image,
            (_, proxy::SERVICE) => Self::Proxy,
            _ if path.ends_with("/boot.ipxe") => Self::Script,
            _ if first.starts_with("metalstack.") => Self::Proxy,
            _ => Self::Other,
        }
    }

    /// As it is called in logs and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Script => "boot.ipxe",
            Self::Proxy => "proxy",
            Self::Static => "static",
            Self::Image => "image",
            Self::Operation => "operation",
            Self::Other => "other",
        }
    }

    /// Whether it is served to machines only.
    #[must_use]
    pub fn is_for_machines(self) -> bool {
        self != Self::Operation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_their_kinds() {
        for (path, route) in [
            (
                "/config/7b0b6ad5-6a4f-4f7e-a0e7-0c2a8a8f8f10",
                Route::Config,
            ),
            ("/config", Route::Config),
            ("/boot.ipxe", Route::Script),
            ("/fra-equ01/boot.ipxe", Route::Script),
            ("/healthz/boot.ipxe", Route::Script),
            ("/readyz/boot.ipxe", Route::Script),
            ("/metrics/boot.ipxe", Route::Script),
            ("/metalstack.x/boot.ipxe", Route::Script),
            ("/static/boot.ipxe", Route::Static),
            ("/image/a/boot.ipxe", Route::Image),
            ("/metalstack.infra.v2.BootService/boot.ipxe", Route::Proxy),
            ("/metalstack.infra.v2.BootService/Wait", Route::Proxy),
            ("/metalstack.admin.v2.TokenService/Create", Route::Proxy),
            ("/static/vmlinuz", Route::Static),
            ("/image/a/img.tar.lz4", Route::Image),
            ("/os-installer", Route::Image),
            ("/os-installer/", Route::Other),
            ("/os-installer/boot.ipxe", Route::Script),
            ("/healthz", Route::Operation),
            ("/readyz", Route::Operation),
            ("/metrics", Route::Operation),
            ("/metrics/", Route::Other),
            ("/healthz/x", Route::Other),
            ("/", Route::Other),
            ("//metrics", Route::Other),
            ("/healthz2", Route::Other),
        ] {
            assert_eq!(Route::of(path), route, "{path}");
        }
    }
}
