//! One source's worth of settings: everything optional, nothing merged yet.

use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use url::Url;
use uuid::Uuid;

use super::file::Problem;
use crate::decide::Adopt;

/// Keys whose values are secrets.
pub const SECRET_KEYS: &[&str] = &[
    "metal_ticket",
    "metal_apiserver_token_for_hammer",
    "logging",
];

/// What one source of settings says.
#[derive(Debug, Default)]
pub struct Layer {
    pub debug: Option<bool>,
    /// Base URL of the boot helper.
    pub boot_helper_url: Option<Url>,
    /// Base URL of metal-apiserver.
    pub apiserver_url: Option<Url>,
    /// Bearer token for metal-apiserver.
    pub token: Option<SecretString>,
    /// Bearer token for the boot helper.
    pub ticket: Option<SecretString>,
    /// The agent's own host name during the boot.
    pub hostname: Option<String>,
    pub console: Option<String>,
    /// IPv6 is all there is; `false` is refused.
    pub ipv6: Option<bool>,
    /// The allocation that is to be installed (again), by explicit order.
    pub order: Option<Uuid>,
    pub ntp_servers: Option<Vec<String>>,
    pub partition: Option<String>,
    /// PEM.
    pub ca_cert: Option<String>,
    pub os_installer: Option<OsInstaller>,
    pub image_cache: Option<Url>,
    /// Talk to metal-apiserver through the boot helper's base URL.
    pub proxy_apiserver: Option<bool>,
    pub policy: Policy,
}

/// The installer that the agent brings for images that ship none.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct OsInstaller {
    pub url: Url,
    /// Hexadecimal SHA-256 of the binary.
    pub sha256: String,
    /// Top-level allocation fields that this installer does not understand.
    #[serde(default)]
    pub drop_fields: Vec<String>,
}

/// What a partition's operator may tune. Everything is optional.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Policy {
    #[serde(deserialize_with = "adopt")]
    pub adopt: Option<Adopt>,
    pub lldp: LldpPolicy,
    /// How long to wait for a usable address.
    pub slaac_timeout_seconds: Option<u64>,
    /// How long a failure stays on the console before the machine reboots.
    pub reboot_delay_seconds: Option<u64>,
    /// Disks never to be written, by serial number, WWN or device path.
    pub keep_disks: Vec<String>,
}

/// How many switch ports must be seen before the machine registers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LldpPolicy {
    pub interfaces: Option<usize>,
    pub chassis: Option<usize>,
    pub timeout_seconds: Option<u64>,
}

impl Policy {
    /// `self` where it says something, `below` where it does not.
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        Self {
            adopt: self.adopt.or(below.adopt),
            lldp: LldpPolicy {
                interfaces: self.lldp.interfaces.or(below.lldp.interfaces),
                chassis: self.lldp.chassis.or(below.lldp.chassis),
                timeout_seconds: self.lldp.timeout_seconds.or(below.lldp.timeout_seconds),
            },
            slaac_timeout_seconds: self.slaac_timeout_seconds.or(below.slaac_timeout_seconds),
            reboot_delay_seconds: self.reboot_delay_seconds.or(below.reboot_delay_seconds),
            // Both count: a disk that anybody wants kept is kept.
            keep_disks: [self.keep_disks, below.keep_disks].concat(),
        }
    }

    /// Time for a usable address; 120 s unless set.
    #[must_use]
    pub fn slaac_timeout(&self) -> Duration {
        Duration::from_secs(self.slaac_timeout_seconds.unwrap_or(120))
    }

    /// Time between a failure and the reboot; 30 s unless set, so that a broken rack
    /// does not hammer its control plane and a technician can read the screen.
    #[must_use]
    pub fn reboot_delay(&self) -> Duration {
        Duration::from_secs(self.reboot_delay_seconds.unwrap_or(30).min(3600))
    }
}

fn adopt<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Adopt>, D::Error> {
    match Option::<String>::deserialize(deserializer)?.as_deref() {
        None | Some("") => Ok(None),
        Some("hold") => Ok(Some(Adopt::Hold)),
        Some("boot-disk") => Ok(Some(Adopt::BootDisk)),
        Some("wipe") => Ok(Some(Adopt::Wipe)),
        Some(other) => Err(serde::de::Error::custom(format!(
            "adopt is {other:?}; expected hold, boot-disk or wipe"
        ))),
    }
}

/// Takes the keys of `metal.config` out of a JSON object. A key that cannot be used is
/// reported and does not count; the others do.
#[must_use]
pub fn from_map(mut map: Map<String, Value>) -> (Layer, Vec<Problem>) {
    // `machine.allocation` may be written flat or as an object.
    if let Some(Value::Object(machine)) = map.get_mut("machine") {
        let allocation = machine.remove("allocation");
        if machine.is_empty() {
            map.remove("machine");
        }
        if let Some(allocation) = allocation {
            map.insert("machine.allocation".into(), allocation);
        }
    }
    let mut taker = Taker {
        map,
        problems: Vec::new(),
    };
    let boot_helper_url = taker.url("boot_helper_url");
    let pixie_api_url = taker.url("pixie_api_url");
    let apiserver_url = taker.url("metal_apiserver_url");
    let metal_api_url = taker.url("metal_api_url");
    let layer = Layer {
        debug: taker.take("debug", "true or false"),
        boot_helper_url: boot_helper_url.or(pixie_api_url),
        apiserver_url: apiserver_url.or(metal_api_url),
        token: taker.secret("metal_apiserver_token_for_hammer"),
        ticket: taker.secret("metal_ticket"),
        hostname: taker.text("hostname"),
        console: taker.text("console"),
        ipv6: taker.take("ipv6", "true or false"),
        order: taker.allocation(),
        ntp_servers: taker.take("ntp_servers", "a list of addresses or names"),
        partition: taker.text("partition"),
        ca_cert: taker.text("ca_cert"),
        os_installer: taker.take("os_installer", "an object with url and sha256"),
        image_cache: taker.url("image_cache"),
        proxy_apiserver: taker.take("proxy_apiserver", "true or false"),
        policy: taker.take("policy", "an object").unwrap_or_default(),
    };
    // Remote logs come with a later version; the key is known all the same.
    taker.map.remove("logging");
    let unknown = taker
        .map
        .keys()
        .map(|key| Problem::new(key, "unknown key, ignored"));
    taker.problems.extend(unknown.collect::<Vec<_>>());
    (layer, taker.problems)
}

/// Takes typed values out of a JSON object and collects what is wrong with them.
struct Taker {
    map: Map<String, Value>,
    problems: Vec<Problem>,
}

impl Taker {
    /// `null` and empty text mean "not set".
    fn value(&mut self, key: &str) -> Option<Value> {
        self.map
            .remove(key)
            .filter(|value| !value.is_null() && value.as_str() != Some(""))
    }

    fn take<T: DeserializeOwned>(&mut self, key: &str, expected: &str) -> Option<T> {
        let value = self.value(key)?;
        match serde_json::from_value(value) {
            Ok(value) => Some(value),
            Err(error) => {
                // serde's text may quote the value: for a secret, say only what was expected.
                let why = if SECRET_KEYS.contains(&key) {
                    format!("expected {expected}")
                } else {
                    format!("expected {expected}: {error}")
                };
                self.problems.push(Problem::new(key, why));
                None
            }
        }
    }

    fn text(&mut self, key: &str) -> Option<String> {
        self.take(key, "text")
    }

    fn secret(&mut self, key: &str) -> Option<SecretString> {
        self.text(key).map(SecretString::from)
    }

    fn url(&mut self, key: &str) -> Option<Url> {
        let url: Url = self.take(key, "a URL")?;
        if matches!(url.scheme(), "http" | "https") && url.has_host() {
            return Some(url);
        }
        self.problems.push(Problem::new(
            key,
            "expected an http:// or https:// URL with a host",
        ));
        None
    }

    fn allocation(&mut self) -> Option<Uuid> {
        let key = "machine.allocation";
        let text = self.text(key)?;
        let uuid = text.strip_prefix("urn:uuid:").unwrap_or(&text);
        match Uuid::try_parse(uuid) {
            Ok(uuid) => Some(uuid),
            Err(_) => {
                self.problems.push(Problem::new(
                    key,
                    format!("{text:?} is not urn:uuid:<uuid>"),
                ));
                None
            }
        }
    }
}
