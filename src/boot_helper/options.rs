//! The options of metal-boot, and the answer they make.

use std::io::Read;
use std::net::SocketAddrV6;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use thiserror::Error;
use url::Url;

use crate::control::HelperAnswer;
use crate::control::helper_answer::{OsInstaller, Policy};
use crate::control::http::{self, Trust};

/// Largest option file, bytes.
const FILE_LIMIT: u64 = 1 << 20;
/// The bounds of a machine token's life: `BootServiceMachineTokenRequest.expires`, seconds.
const EXPIRY: std::ops::Range<u64> = 600..604_800;

/// The boot helper of metal-anvil: gives a machine that boots its apiserver's address and a
/// token of its own, at GET /config/{machine-uuid}.
///
/// RUST_LOG sets what is logged (default: info).
#[derive(Debug, Parser)]
#[command(name = "metal-boot", version)]
pub struct Options {
    /// IPv6 address and port to listen on.
    #[arg(long, env = "METAL_BOOT_LISTEN", default_value = "[::]:4242")]
    pub listen: SocketAddrV6,

    /// metal-apiserver, as this helper reaches it.
    #[arg(long, env = "METAL_BOOT_APISERVER_URL", value_name = "URL")]
    pub apiserver_url: Url,

    /// File with this helper's own token: infra role editor, machine roles "*" editor. It is
    /// read again for every machine, so it can be replaced at any time, and never given out.
    #[arg(long, env = "METAL_BOOT_TOKEN_FILE", value_name = "FILE")]
    pub token_file: PathBuf,

    /// metal-apiserver, as machines reach it [default: --apiserver-url].
    #[arg(long, env = "METAL_BOOT_MACHINE_APISERVER_URL", value_name = "URL")]
    pub machine_apiserver_url: Option<Url>,

    /// Partition of the machines, 2 to 128 characters.
    #[arg(long, env = "METAL_BOOT_PARTITION")]
    pub partition: String,

    /// Life of a machine's token: a number and s, m, h or d; from 600s to less than 7d. The
    /// longest wait for an allocation is 48h.
    #[arg(long, env = "METAL_BOOT_TOKEN_EXPIRY", value_name = "TIME",
          default_value = "72h", value_parser = expiry)]
    pub token_expiry: Duration,

    /// User (tenant) that machine tokens belong to; it needs the label
    /// tenant.metal-stack.io/machine-bootstrapper in the apiserver.
    #[arg(
        long,
        env = "METAL_BOOT_MACHINE_TOKEN_USER",
        value_name = "NAME",
        default_value = "metal-hammer"
    )]
    pub machine_token_user: String,

    /// NTP server for machines; may be given more than once (comma-separated in the
    /// environment).
    #[arg(
        long = "ntp-server",
        env = "METAL_BOOT_NTP_SERVERS",
        value_name = "HOST",
        value_delimiter = ','
    )]
    pub ntp_servers: Vec<String>,

    /// PEM file with the only authorities that may vouch for the apiserver, for this helper
    /// and for machines. Without it: the public ones.
    #[arg(long, env = "METAL_BOOT_CA_CERT", value_name = "FILE")]
    pub ca_cert: Option<PathBuf>,

    /// Machines log in detail.
    #[arg(long, env = "METAL_BOOT_DEBUG")]
    pub debug: bool,

    /// This helper's own base URL, as machines reach it.
    #[arg(long, env = "METAL_BOOT_PUBLIC_URL", value_name = "URL")]
    pub public_url: Option<Url>,

    /// Installer for images that ship none: a static binary at this URL.
    #[arg(
        long,
        env = "METAL_BOOT_OS_INSTALLER_URL",
        value_name = "URL",
        requires = "os_installer_sha256"
    )]
    pub os_installer_url: Option<Url>,

    /// SHA-256 of that installer, hexadecimal.
    #[arg(
        long,
        env = "METAL_BOOT_OS_INSTALLER_SHA256",
        value_name = "HEX",
        requires = "os_installer_url"
    )]
    pub os_installer_sha256: Option<String>,

    /// Top-level field of the allocation that this installer does not know; may be given
    /// more than once (comma-separated in the environment).
    #[arg(
        long = "os-installer-drop-field",
        env = "METAL_BOOT_OS_INSTALLER_DROP_FIELDS",
        value_name = "NAME",
        value_delimiter = ',',
        requires = "os_installer_url"
    )]
    pub os_installer_drop_fields: Vec<String>,

    /// Base URL of an image cache: it replaces scheme and host of image URLs.
    #[arg(long, env = "METAL_BOOT_IMAGE_CACHE", value_name = "URL")]
    pub image_cache: Option<Url>,

    /// JSON file with the partition's policy: adopt ("hold", "boot-disk" or "wipe"),
    /// lldp {interfaces, chassis, timeout_seconds}, slaac_timeout_seconds,
    /// boot_helper_timeout_seconds, reboot_delay_seconds, wait_hours, exclude_disks[], inventory_tags[].
    #[arg(long, env = "METAL_BOOT_POLICY", value_name = "FILE")]
    pub policy: Option<PathBuf>,
}

/// Options that make no sense together or name unusable files.
#[derive(Debug, Error)]
pub enum OptionsError {
    #[error("{option}: cannot read {path}: {reason}", path = .path.display())]
    File {
        option: &'static str,
        path: PathBuf,
        reason: String,
    },
    #[error("{option} is {value:?}; expected {expected}")]
    Value {
        option: &'static str,
        value: String,
        expected: &'static str,
    },
}

impl Options {
    /// The answer for every machine, without a token.
    ///
    /// # Errors
    /// A value that machines could not use, and files that cannot be read or understood.
    pub fn answer(&self) -> Result<HelperAnswer, OptionsError> {
        for (option, value) in [
            ("--partition", &self.partition),
            ("--machine-token-user", &self.machine_token_user),
        ] {
            check(option, value, "2 to 128 characters", |value| {
                (2..=128).contains(&value.chars().count())
            })?;
        }
        let urls = [
            ("--apiserver-url", Some(&self.apiserver_url)),
            (
                "--machine-apiserver-url",
                self.machine_apiserver_url.as_ref(),
            ),
            ("--public-url", self.public_url.as_ref()),
            ("--os-installer-url", self.os_installer_url.as_ref()),
            ("--image-cache", self.image_cache.as_ref()),
        ];
        for (option, url) in urls {
            if let Some(url) = url {
                check(option, &http::shown(url), "an http or https URL", |_| {
                    matches!(url.scheme(), "http" | "https") && url.has_host()
                })?;
            }
        }
        if let Some(sum) = &self.os_installer_sha256 {
            check(
                "--os-installer-sha256",
                sum,
                "64 hexadecimal digits",
                |sum| sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_hexdigit()),
            )?;
        }
        let machine_url = self.machine_apiserver_url.as_ref();
        let text = |url: &Url| url.as_str().trim_end_matches('/').to_owned();
        Ok(HelperAnswer {
            debug: self.debug,
            metal_apiserver_url: Some(text(machine_url.unwrap_or(&self.apiserver_url))),
            pixie_api_url: self.public_url.as_ref().map(text),
            ntp_servers: self.ntp_servers.clone(),
            partition: Some(self.partition.clone()),
            ca_cert: self.ca_cert.as_deref().map(ca_cert).transpose()?,
            os_installer: self.os_installer_url.as_ref().map(|url| OsInstaller {
                url: Some(url.as_str().to_owned()),
                sha256: self.os_installer_sha256.clone(),
                drop_fields: self.os_installer_drop_fields.clone(),
            }),
            image_cache: self.image_cache.as_ref().map(text),
            policy: self.policy.as_deref().map(policy).transpose()?,
            ..HelperAnswer::default()
        })
    }
}

fn check(
    option: &'static str,
    value: &str,
    expected: &'static str,
    good: impl Fn(&str) -> bool,
) -> Result<(), OptionsError> {
    if good(value) {
        return Ok(());
    }
    Err(OptionsError::Value {
        option,
        value: value.to_owned(),
        expected,
    })
}

/// `72h` and the like.
fn expiry(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => return Err("expected a number and s, m, h or d, for example 72h".into()),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(scale))
        .filter(|seconds| EXPIRY.contains(seconds))
        .map(Duration::from_secs)
        .ok_or_else(|| "the apiserver accepts 600s to less than 7d".into())
}

fn read(option: &'static str, path: &Path) -> Result<String, OptionsError> {
    let wrong = |reason: String| OptionsError::File {
        option,
        path: path.into(),
        reason,
    };
    let file = std::fs::File::open(path).map_err(|error| wrong(error.to_string()))?;
    let mut text = String::new();
    file.take(FILE_LIMIT + 1)
        .read_to_string(&mut text)
        .map_err(|error| wrong(error.to_string()))?;
    if text.len() as u64 > FILE_LIMIT {
        return Err(wrong(format!("it has more than {FILE_LIMIT} bytes")));
    }
    Ok(text)
}

/// A PEM file that a machine would accept.
fn ca_cert(path: &Path) -> Result<String, OptionsError> {
    const OPTION: &str = "--ca-cert";
    let text = read(OPTION, path)?;
    match http::control_client(Trust::Only(&text)) {
        Ok(_) => Ok(text),
        Err(error) => Err(OptionsError::File {
            option: OPTION,
            path: path.into(),
            reason: error.to_string(),
        }),
    }
}

/// A policy file of which every word was understood: machines ignore what they do not know,
/// so a misspelt key would go unnoticed until it matters.
fn policy(path: &Path) -> Result<Policy, OptionsError> {
    const OPTION: &str = "--policy";
    let wrong = |reason: String| OptionsError::File {
        option: OPTION,
        path: path.into(),
        reason,
    };
    let text = read(OPTION, path)?;
    let (given, policy) = serde_json::from_str::<serde_json::Value>(&text)
        .and_then(|given| Ok((given.clone(), serde_json::from_value::<Policy>(given)?)))
        .map_err(|error| wrong(error.to_string()))?;
    let understood = serde_json::to_value(&policy).map_err(|error| wrong(error.to_string()))?;
    match first_difference(&given, &understood) {
        None => Ok(policy),
        Some(place) => Err(wrong(format!("{place} is not understood"))),
    }
}

/// The path of the first value in `given` that is not the same in `understood`.
fn first_difference(given: &serde_json::Value, understood: &serde_json::Value) -> Option<String> {
    let Some(keys) = given.as_object() else {
        return (given != understood).then(|| "the value".into());
    };
    keys.iter().find_map(|(key, value)| {
        let found = understood.get(key).unwrap_or(&serde_json::Value::Null);
        if value.is_object() && found.is_object() {
            first_difference(value, found).map(|below| format!("{key}.{below}"))
        } else {
            (value != found || found.is_null()).then(|| key.clone())
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use clap::CommandFactory;

    use super::*;
    use crate::decide::Adopt;

    fn options(more: &[&str]) -> Result<Options, clap::Error> {
        let base = [
            "metal-boot",
            "--apiserver-url=https://api.example.org/",
            "--token-file=/run/token",
            "--partition=fra-equ01",
        ];
        Options::try_parse_from(base.iter().chain(more))
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn every_option_stands_in_the_answer() {
        let policy = file(r#"{"adopt":"wipe","lldp":{"interfaces":1},"exclude_disks":["S1"]}"#);
        let sum = "ab".repeat(32);
        let options = options(&[
            "--machine-apiserver-url=https://[2001:db8::2]:8443/v2/",
            "--public-url=http://[2001:db8::1]:4242",
            "--ntp-server=2001:db8::1",
            "--ntp-server=2001:db8::2",
            "--debug",
            "--os-installer-url=http://h/os-installer",
            &format!("--os-installer-sha256={sum}"),
            "--os-installer-drop-field=placementLabels",
            "--image-cache=http://cache:8080/",
            &format!("--policy={}", policy.path().display()),
        ])
        .unwrap();
        let answer = options.answer().unwrap();
        assert_eq!(answer.policy.as_ref().unwrap().adopt, Some(Adopt::Wipe));
        let answer = serde_json::to_value(&answer).unwrap();
        let expected = serde_json::json!({
            "debug": true,
            "metal_apiserver_url": "https://[2001:db8::2]:8443/v2",
            "pixie_api_url": "http://[2001:db8::1]:4242",
            "ntp_servers": ["2001:db8::1", "2001:db8::2"],
            "partition": "fra-equ01",
            "os_installer": {"url": "http://h/os-installer", "sha256": sum,
                             "drop_fields": ["placementLabels"]},
            "image_cache": "http://cache:8080",
            "policy": {"adopt": "wipe", "lldp": {"interfaces": 1},
                       "exclude_disks": ["S1"]},
        });
        assert_eq!(answer, expected);
        assert_eq!(options.listen.to_string(), "[::]:4242");
        assert_eq!(options.token_expiry, Duration::from_secs(72 * 3600));
    }

    #[test]
    fn the_life_of_a_token_has_bounds() {
        let cases = [
            ("72h", Some(259_200)),
            ("600s", Some(600)),
            ("10m", Some(600)),
            ("6d", Some(518_400)),
            ("604799s", Some(604_799)),
            ("7d", None),
            ("599s", None),
            ("99999999999999999999d", None),
            ("213503982334601d", None),
            ("72", None),
            ("h", None),
            ("-72h", None),
            ("7Ω", None),
        ];
        for (text, seconds) in cases {
            let expected = seconds.map(Duration::from_secs);
            assert_eq!(expiry(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn wrong_values_are_named() {
        for (option, text) in [
            ("--listen=0.0.0.0:4242", "--listen"),
            ("--apiserver-url=api.example.org", "--apiserver-url"),
            ("--token-expiry=8d", "less than 7d"),
            ("--os-installer-url=http://h/x", "--os-installer-sha256"),
        ] {
            let error = options(&[option]).unwrap_err().to_string();
            assert!(error.contains(text), "{option}: {error}");
        }
        for (option, text) in [
            ("--public-url=ftp://h", "--public-url is"),
            ("--partition=x", "--partition is \"x\""),
            (
                "--ca-cert=/nonexistent/ca.pem",
                "cannot read /nonexistent/ca.pem",
            ),
            ("--ca-cert=Cargo.toml", "is not a PEM list"),
            ("--policy=Cargo.toml", "line 1"),
        ] {
            let given = Options::try_parse_from(
                [
                    "metal-boot",
                    "--apiserver-url=https://a.example",
                    "--token-file=/t",
                ]
                .into_iter()
                .chain((!option.starts_with("--partition")).then_some("--partition=fra"))
                .chain([option]),
            )
            .unwrap();
            let error = given.answer().unwrap_err().to_string();
            assert!(error.contains(text), "{option}: {error}");
        }
    }

    #[test]
    fn a_policy_is_understood_whole_or_not_at_all() {
        for (text, place) in [
            (r#"{"adpot":"wipe"}"#, "adpot is not understood"),
            (r#"{"adopt":"burn"}"#, "adopt is not understood"),
            (r#"{"lldp":{"timeout":3}}"#, "lldp.timeout is not"),
            (r#"{"wait_hours":null}"#, "wait_hours is not"),
            (r#"{"wait_hours":"24"}"#, "invalid type"),
            ("[]", "the value is not understood"),
        ] {
            let error = policy(file(text).path()).unwrap_err().to_string();
            assert!(error.contains(place), "{text}: {error}");
        }
        assert_eq!(policy(file("{}").path()).unwrap(), Policy::default());
    }
}
