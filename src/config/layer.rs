//! One source's worth of settings: everything optional, nothing merged yet.

use secrecy::SecretString;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use url::Url;
use uuid::Uuid;

use super::base_url::BaseUrl;
use super::file::Problem;
use super::policy::Policy;
use crate::control::helper_answer::{HelperAnswer, Logging};
use crate::rescue::PublicKey;

/// Keys whose values are secrets.
pub const SECRET_KEYS: &[&str] = &[
    "metal_ticket",
    "metal_apiserver_token_for_hammer",
    "logging",
];

/// What one source of settings says.
#[derive(Debug, Clone, Default)]
pub struct Layer {
    pub debug: Option<bool>,
    /// Base URL of the boot helper.
    pub boot_helper_url: Option<BaseUrl>,
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
    /// Where the log of the boot is sent.
    pub logging: Option<Logging>,
    /// A shell instead of an install.
    pub rescue: Option<bool>,
    /// Who may log in by ssh then.
    pub rescue_ssh_keys: Option<Vec<PublicKey>>,
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

/// The boot helper's answer as a layer. The same keys are read by the same rules, wherever
/// they come from.
#[must_use]
pub fn from_answer(answer: &HelperAnswer) -> (Layer, Vec<Problem>) {
    match serde_json::to_value(answer) {
        Ok(Value::Object(map)) => from_map(map),
        // A struct of texts, numbers and lists always becomes an object.
        _ => Default::default(),
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
    let boot_helper_url = taker.base_url("boot_helper_url");
    let pixie_api_url = taker.base_url("pixie_api_url");
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
        logging: taker.take("logging", "an object with endpoint"),
        rescue: taker.take("rescue", "true or false"),
        rescue_ssh_keys: taker.take("rescue_ssh_keys", "a list of public keys"),
        policy: taker.take("policy", "an object").unwrap_or_default(),
    };
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
        let url = self.take(key, "a URL")?;
        self.is_web(key, &url).then_some(url)
    }

    fn base_url(&mut self, key: &str) -> Option<BaseUrl> {
        let base: BaseUrl = self.take(key, "a URL")?;
        self.is_web(key, &base.url).then_some(base)
    }

    fn is_web(&mut self, key: &str, url: &Url) -> bool {
        if matches!(url.scheme(), "http" | "https") && url.has_host() {
            return true;
        }
        self.problems.push(Problem::new(
            key,
            "expected an http:// or https:// URL with a host",
        ));
        false
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
