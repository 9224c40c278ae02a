//! The one precedence rule.

use std::fmt;

use secrecy::SecretString;
use url::Url;
use uuid::Uuid;

use crate::control::helper_answer::Logging;
use crate::control::http::shown;
use crate::rescue::PublicKey;

use super::base_url::BaseUrl;
use super::layer::{Layer, OsInstaller};
use super::policy::Policy;

/// Where a value came from, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    BootHelper,
    File,
    CommandLine,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BootHelper => "boot helper",
            Self::File => "metal.config",
            Self::CommandLine => "kernel command line",
        })
    }
}

/// A value and its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sourced<T> {
    pub value: T,
    pub source: Source,
}

/// Everything the boot may be told.
#[derive(Debug, Default)]
pub struct Settings {
    pub debug: bool,
    pub boot_helper_url: Option<Sourced<BaseUrl>>,
    pub apiserver_url: Option<Sourced<Url>>,
    pub token: Option<Sourced<SecretString>>,
    pub ticket: Option<SecretString>,
    pub hostname: Option<String>,
    pub console: Option<String>,
    pub ipv6: bool,
    pub order: Option<Sourced<Uuid>>,
    pub ntp_servers: Vec<String>,
    pub partition: Option<Sourced<String>>,
    pub ca_cert: Option<Sourced<String>>,
    pub os_installer: Option<OsInstaller>,
    pub image_cache: Option<Url>,
    pub proxy_apiserver: bool,
    pub logging: Option<Logging>,
    /// A shell instead of an install, when true.
    pub rescue: Option<Sourced<bool>>,
    pub rescue_ssh_keys: Vec<PublicKey>,
    pub policy: Policy,
}

impl Settings {
    /// Merges layers given in any order: the stronger [`Source`] wins, key by key.
    #[must_use]
    pub fn from_layers(layers: impl IntoIterator<Item = (Source, Layer)>) -> Self {
        let mut layers: Vec<_> = layers.into_iter().collect();
        layers.sort_by_key(|(source, _)| *source);
        let start = Self {
            ipv6: true,
            ..Self::default()
        };
        layers.into_iter().fold(start, Self::overlaid)
    }

    /// These settings with a stronger layer on top.
    fn overlaid(self, (source, layer): (Source, Layer)) -> Self {
        fn on<T>(
            source: Source,
            upper: Option<T>,
            lower: Option<Sourced<T>>,
        ) -> Option<Sourced<T>> {
            upper.map(|value| Sourced { value, source }).or(lower)
        }
        // A helper cannot order an install: the order stands on the medium or the command line.
        let local = source != Source::BootHelper;
        let order = layer.order.filter(|_| local);
        // Nor can it open a machine to somebody.
        let rescue = layer.rescue.filter(|_| local);
        let rescue_ssh_keys = layer.rescue_ssh_keys.filter(|_| local);
        Self {
            debug: layer.debug.unwrap_or(self.debug),
            boot_helper_url: on(source, layer.boot_helper_url, self.boot_helper_url),
            apiserver_url: on(source, layer.apiserver_url, self.apiserver_url),
            token: on(source, layer.token, self.token),
            ticket: layer.ticket.or(self.ticket),
            hostname: layer.hostname.or(self.hostname),
            console: layer.console.or(self.console),
            ipv6: layer.ipv6.unwrap_or(self.ipv6),
            order: on(source, order, self.order),
            ntp_servers: layer.ntp_servers.unwrap_or(self.ntp_servers),
            partition: on(source, layer.partition, self.partition),
            ca_cert: on(source, layer.ca_cert, self.ca_cert),
            os_installer: layer.os_installer.or(self.os_installer),
            image_cache: layer.image_cache.or(self.image_cache),
            proxy_apiserver: layer.proxy_apiserver.unwrap_or(self.proxy_apiserver),
            logging: layer.logging.or(self.logging),
            rescue: on(source, rescue, self.rescue),
            rescue_ssh_keys: rescue_ssh_keys.unwrap_or(self.rescue_ssh_keys),
            policy: layer.policy.over(self.policy),
        }
    }

    /// One line per setting that an operator may want to trace; no secrets.
    #[must_use]
    pub fn summary(&self) -> Vec<String> {
        fn line<T: fmt::Display>(name: &str, value: Option<&Sourced<T>>) -> Option<String> {
            value.map(|v| format!("{name} {} ({})", v.value, v.source))
        }
        // Without user info and query: both may hold credentials.
        fn url(name: &str, value: Option<&Sourced<Url>>) -> Option<String> {
            value.map(|v| format!("{name} {} ({})", shown(&v.value), v.source))
        }
        [
            line("boot helper", self.boot_helper_url.as_ref()),
            url("apiserver", self.apiserver_url.as_ref()),
            line("partition", self.partition.as_ref()),
            line("ordered allocation", self.order.as_ref()),
            line("rescue", self.rescue.as_ref()),
            self.token
                .as_ref()
                .map(|t| format!("token given ({})", t.source)),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rescue::keys::tests::ED25519;

    fn layer(partition: &str) -> Layer {
        Layer {
            partition: Some(partition.into()),
            ..Layer::default()
        }
    }

    #[test]
    fn the_stronger_source_wins_in_any_order() {
        let settings = Settings::from_layers([
            (Source::CommandLine, Layer::default()),
            (Source::File, layer("file")),
            (Source::BootHelper, layer("helper")),
        ]);
        let partition = settings.partition.unwrap();
        assert_eq!(
            (partition.value.as_str(), partition.source),
            ("file", Source::File)
        );
    }

    #[test]
    fn a_boot_helper_cannot_change_what_the_medium_pins_nor_order_an_install() {
        let pinned = Layer {
            apiserver_url: Some("https://api.example.org".parse().unwrap()),
            ca_cert: Some("PINNED".into()),
            ..Layer::default()
        };
        let helper = Layer {
            apiserver_url: Some("http://evil.example.org".parse().unwrap()),
            ca_cert: Some("EVIL".into()),
            order: Some(Uuid::from_u128(1)),
            ..Layer::default()
        };
        let settings =
            Settings::from_layers([(Source::BootHelper, helper), (Source::File, pinned)]);
        assert_eq!(
            settings.apiserver_url.unwrap().value.as_str(),
            "https://api.example.org/"
        );
        assert_eq!(settings.ca_cert.unwrap().value, "PINNED");
        assert_eq!(settings.order, None);
    }

    #[test]
    fn a_boot_helper_cannot_open_a_machine() {
        let asked = || Layer {
            rescue: Some(true),
            rescue_ssh_keys: Some(vec![ED25519.parse().unwrap()]),
            ..Layer::default()
        };
        let settings = Settings::from_layers([(Source::BootHelper, asked())]);
        assert!(settings.rescue.is_none() && settings.rescue_ssh_keys.is_empty());
        for source in [Source::File, Source::CommandLine] {
            let settings = Settings::from_layers([(source, asked())]);
            let rescue = settings.rescue.unwrap();
            assert_eq!((rescue.value, rescue.source), (true, source));
            assert_eq!(settings.rescue_ssh_keys.len(), 1);
        }
    }

    #[test]
    fn no_secret_is_in_the_summary_or_in_debug_output() {
        let secret = Layer {
            token: Some("hunter2".to_owned().into()),
            ticket: Some("hunter3".to_owned().into()),
            ..Layer::default()
        };
        let settings = Settings::from_layers([(Source::BootHelper, secret)]);
        let text = format!("{settings:?} {:?}", settings.summary());
        assert!(!text.contains("hunter"), "{text}");
        assert!(text.contains("token given (boot helper)"), "{text}");
    }

    #[test]
    fn a_disk_that_anybody_wants_kept_is_kept() {
        let keep = |disk: &str| Layer {
            policy: Policy {
                exclude_disks: vec![disk.into()],
                ..Policy::default()
            },
            ..Layer::default()
        };
        let settings =
            Settings::from_layers([(Source::File, keep("S1")), (Source::BootHelper, keep("S2"))]);
        assert_eq!(settings.policy.exclude_disks, ["S1", "S2"]);
    }
}
