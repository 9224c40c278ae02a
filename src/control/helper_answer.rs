//! The boot helper's answer (contracts.md §3): read by the agent, written by metal-boot.
//!
//! A real pixiecore sends the first keys only. Unknown keys are ignored, so that helper and
//! agent can be updated in any order, and empty strings mean "not set".

use secrecy::SecretString;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::decide::Adopt;
use crate::storage::wipe_policy::{OnFailure, Thoroughness, word};

/// `GET /config/{uuid}`.
///
/// Serialising it writes its secrets: only for the helper's own response.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HelperAnswer {
    #[serde(deserialize_with = "null_is_default")]
    pub debug: bool,
    #[serde(with = "text", skip_serializing_if = "Option::is_none")]
    pub metal_apiserver_url: Option<String>,
    #[serde(with = "secret_text", skip_serializing_if = "Option::is_none")]
    pub metal_apiserver_token_for_hammer: Option<SecretString>,
    /// The helper's own base URL.
    #[serde(with = "text", skip_serializing_if = "Option::is_none")]
    pub pixie_api_url: Option<String>,
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub ntp_servers: Vec<String>,
    #[serde(with = "text", skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logging: Option<Logging>,
    /// PEM: the only authorities that may vouch for the apiserver.
    #[serde(with = "text", skip_serializing_if = "Option::is_none")]
    pub ca_cert: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os_installer: Option<OsInstaller>,
    /// Base URL that replaces scheme and authority of image URLs.
    #[serde(with = "text", skip_serializing_if = "Option::is_none")]
    pub image_cache: Option<String>,
    /// The apiserver is reached through the helper's own base URL.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "is_false")]
    pub proxy_apiserver: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
}

/// Where logs are sent.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Logging {
    #[serde(with = "text", skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// `loki`.
    #[serde(with = "text", skip_serializing_if = "Option::is_none")]
    pub log_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub basic_auth: Option<BasicAuth>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_auth: Option<CertificateAuth>,
}

/// HTTP basic authentication at the log endpoint.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BasicAuth {
    #[serde(with = "text", skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(with = "secret_text", skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretString>,
}

/// A client certificate for the log endpoint.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CertificateAuth {
    /// PEM.
    #[serde(with = "text", skip_serializing_if = "Option::is_none")]
    pub cert: Option<String>,
    /// PEM.
    #[serde(with = "secret_text", skip_serializing_if = "Option::is_none")]
    pub key: Option<SecretString>,
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "is_false")]
    pub insecure_skip_verify: bool,
}

/// The installer that the agent brings to images which ship none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OsInstaller {
    #[serde(with = "text", skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Hexadecimal.
    #[serde(with = "text", skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Top-level fields left out of `machine-allocation.yaml` for it.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub drop_fields: Vec<String>,
}

/// `policy.addr_gen_mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AddrGenMode {
    Eui64,
    StablePrivacy,
}

/// The partition's settings. What is not set keeps the agent's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// What happens to a machine without a journal whose allocation stands (contracts.md §9).
    #[serde(with = "adopt", skip_serializing_if = "Option::is_none")]
    pub adopt: Option<Adopt>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lldp: Option<LldpPolicy>,
    /// How long to wait for a usable address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slaac_timeout_seconds: Option<u64>,
    /// How a link makes its addresses; counts from the medium and the command line, for an
    /// answer comes over such an address.
    #[serde(
        deserialize_with = "addr_gen_mode",
        skip_serializing_if = "Option::is_none"
    )]
    pub addr_gen_mode: Option<AddrGenMode>,
    /// How long the boot helper may take to give a usable answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_helper_timeout_seconds: Option<u64>,
    /// How long a failure stays on the console before the machine reboots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reboot_delay_seconds: Option<u64>,
    /// How long to wait for an allocation before a planned reboot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_hours: Option<u64>,
    /// Whether the BMC is set up, and whether the boot goes on without.
    #[serde(deserialize_with = "bmc_use", skip_serializing_if = "Option::is_none")]
    pub bmc: Option<BmcUse>,
    /// The BMC user that the control plane manages the machine with.
    #[serde(with = "text", skip_serializing_if = "Option::is_none")]
    pub bmc_user: Option<String>,
    /// The BMC user that gets the control plane's super-user password.
    #[serde(with = "text", skip_serializing_if = "Option::is_none")]
    pub bmc_super_user: Option<String>,
    /// An image with no checksum beside it is installed all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_without_checksum: Option<bool>,
    /// How much an image may unpack to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_max_gib: Option<u64>,
    /// Serials, WWNs or paths of disks that are never written.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub exclude_disks: Vec<String>,
    /// Machines that are started by a reset instead of kexec: DMI texts or PCI IDs.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub kexec_denylist: Vec<String>,
    /// Parts of the inventory that become tags of the machine, by name.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub inventory_tags: Vec<String>,
    /// The watchdog of the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<WatchdogPolicy>,
    /// How thorough wipes are.
    #[serde(with = "word", skip_serializing_if = "Option::is_none")]
    pub wipe: Option<Thoroughness>,
    /// What a disk means that could not be wiped.
    #[serde(with = "word", skip_serializing_if = "Option::is_none")]
    pub wipe_failures: Option<OnFailure>,
}

/// When a hang ends in a reset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WatchdogPolicy {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// From the last sign of life to the reset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
    /// No step may be without a sign of life for longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub silence_seconds: Option<u64>,
    /// The timer stays armed over a kexec, with this timeout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub over_kexec_seconds: Option<u32>,
}

/// What is done about the BMC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BmcUse {
    /// It is not spoken to.
    Off,
    /// Set up and reported; what does not work is a warning.
    #[default]
    Optional,
    /// As `Optional`, but what does not work ends the boot.
    Required,
}

/// What has to be heard over LLDP before Register (contracts.md §7).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LldpPolicy {
    /// Interfaces with a neighbour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interfaces: Option<u32>,
    /// Distinct chassis among the neighbours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chassis: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
}

/// serde's `skip_serializing_if` passes a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_false(value: &bool) -> bool {
    !value
}

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// An optional text; an empty one is none.
mod text {
    use super::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(text: &Option<String>, to: S) -> Result<S::Ok, S::Error> {
        text.serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
        Ok(Option::<String>::deserialize(from)?.filter(|text| !text.is_empty()))
    }
}

/// An optional secret; an empty one is none. Its value stands in no error.
pub(crate) mod secret_text {
    use secrecy::{ExposeSecret, SecretString};

    use super::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(
        secret: &Option<SecretString>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        secret
            .as_ref()
            .map(ExposeSecret::expose_secret)
            .serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<SecretString>, D::Error> {
        // Read as any value first: serde's own error would quote a value of another type.
        match serde_json::Value::deserialize(from)? {
            serde_json::Value::Null => Ok(None),
            serde_json::Value::String(text) if text.is_empty() => Ok(None),
            serde_json::Value::String(text) => Ok(Some(text.into())),
            _ => Err(serde::de::Error::custom(
                "expected text where a secret stands",
            )),
        }
    }
}

/// A word of a newer helper is no order: as if not set.
fn bmc_use<'de, D: Deserializer<'de>>(from: D) -> Result<Option<BmcUse>, D::Error> {
    let text = Option::<String>::deserialize(from)?.unwrap_or_default();
    let value = serde_json::from_value(text.clone().into()).ok();
    if value.is_none() && !text.is_empty() {
        tracing::warn!("policy.bmc {text:?} is not off, optional or required: ignored");
    }
    Ok(value)
}

/// As [`bmc_use`].
fn addr_gen_mode<'de, D: Deserializer<'de>>(from: D) -> Result<Option<AddrGenMode>, D::Error> {
    let text = Option::<String>::deserialize(from)?.unwrap_or_default();
    let value = serde_json::from_value(text.clone().into()).ok();
    if value.is_none() && !text.is_empty() {
        tracing::warn!("policy.addr_gen_mode {text:?} is not eui64 or stable-privacy: ignored");
    }
    Ok(value)
}

/// `hold`, `boot-disk` or `wipe`. A word of a newer helper is no order: as if not set.
mod adopt {
    use super::{Adopt, Deserialize, Deserializer, Serialize, Serializer};

    const WORDS: [(Adopt, &str); 3] = [
        (Adopt::Hold, "hold"),
        (Adopt::BootDisk, "boot-disk"),
        (Adopt::Wipe, "wipe"),
    ];

    pub fn serialize<S: Serializer>(adopt: &Option<Adopt>, to: S) -> Result<S::Ok, S::Error> {
        let word = WORDS
            .iter()
            .find_map(|(value, word)| (Some(*value) == *adopt).then_some(*word));
        word.serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Adopt>, D::Error> {
        let text = Option::<String>::deserialize(from)?.unwrap_or_default();
        let value = WORDS
            .iter()
            .find_map(|(value, word)| (*word == text).then_some(*value));
        if value.is_none() && !text.is_empty() {
            tracing::warn!("policy.adopt {text:?} is not hold, boot-disk or wipe: ignored");
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    const FULL: &str = r#"{"debug":true,"metal_apiserver_url":"https://api.example.org",
        "metal_apiserver_token_for_hammer":"tok-s3cret","pixie_api_url":"http://[2001:db8::1]:4242",
        "ntp_servers":["2001:db8::1"],"partition":"fra-equ01",
        "logging":{"endpoint":"https://loki/push","log_type":"loki",
          "basic_auth":{"user":"u","password":"p-s3cret"},
          "certificate_auth":{"cert":"PEM","key":"k-s3cret","insecure_skip_verify":true}},
        "ca_cert":"CERT","os_installer":{"url":"http://h/i","sha256":"00","drop_fields":["placementLabels"]},
        "image_cache":"http://cache","proxy_apiserver":true,
        "policy":{"adopt":"boot-disk","lldp":{"interfaces":1,"chassis":1,"timeout_seconds":9},
          "slaac_timeout_seconds":60,"wait_hours":24,
          "bmc":"required","bmc_user":"ops","bmc_super_user":"ADMIN","exclude_disks":["SER1"]}}"#;

    #[test]
    fn an_answer_survives_being_written_and_read() {
        let answer: HelperAnswer = serde_json::from_str(FULL).unwrap();
        let before: serde_json::Value = serde_json::from_str(FULL).unwrap();
        assert_eq!(serde_json::to_value(&answer).unwrap(), before);
        assert_eq!(answer.policy.unwrap().adopt, Some(Adopt::BootDisk));
        let token = answer.metal_apiserver_token_for_hammer.unwrap();
        assert_eq!(token.expose_secret(), "tok-s3cret");
    }

    #[test]
    fn debug_output_shows_no_secret() {
        let answer: HelperAnswer = serde_json::from_str(FULL).unwrap();
        let shown = format!("{answer:?}");
        assert!(shown.contains("fra-equ01"));
        assert!(!shown.contains("s3cret"), "{shown}");
    }

    #[test]
    fn empty_null_and_unknown_are_not_set() {
        let answer: HelperAnswer = serde_json::from_str(
            r#"{"metal_apiserver_url":"","metal_apiserver_token_for_hammer":"","partition":null,
                "debug":null,"ntp_servers":null,"logging":null,"future":{"a":[1]},
                "policy":{"adopt":"burn","bmc":"maybe","bmc_user":"","lldp":{"future":1},"exclude_disks":null}}"#,
        )
        .unwrap();
        assert!(answer.metal_apiserver_url.is_none());
        assert!(answer.metal_apiserver_token_for_hammer.is_none());
        assert!(answer.partition.is_none());
        assert!(answer.ntp_servers.is_empty());
        let policy = answer.policy.unwrap();
        assert_eq!(policy.adopt, None);
        assert_eq!((policy.bmc, policy.bmc_user), (None, None));
        assert_eq!(policy.lldp, Some(LldpPolicy::default()));
    }

    #[test]
    fn how_addresses_are_made_is_no_reason_to_refuse_an_answer() {
        for (word, expected) in [
            (r#""eui64""#, Some(AddrGenMode::Eui64)),
            (r#""stable-privacy""#, Some(AddrGenMode::StablePrivacy)),
            (r#""random""#, None),
            (r#""""#, None),
            ("null", None),
        ] {
            let text = format!(r#"{{"policy":{{"addr_gen_mode":{word},"wait_hours":1}}}}"#);
            let answer: HelperAnswer = serde_json::from_str(&text).unwrap();
            let policy = answer.policy.unwrap();
            assert_eq!(policy.addr_gen_mode, expected, "{word}");
            assert_eq!(policy.wait_hours, Some(1), "{word}");
        }
    }

    #[test]
    fn a_secret_of_the_wrong_type_is_not_quoted() {
        let text = r#"{"metal_apiserver_token_for_hammer":{"t":"tok-s3cret"}}"#;
        let error = serde_json::from_str::<HelperAnswer>(text).unwrap_err();
        assert!(error.to_string().contains("expected text"), "{error}");
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }
}
