//! What the options say to machines: the answer of `/config`, but for its token.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use url::Url;

use super::ipxe;
use super::options::Options;
use super::route::OS_INSTALLER;
use crate::control::HelperAnswer;
use crate::control::helper_answer::{Logging, OsInstaller, Policy};
use crate::control::http::{self, Trust};
use crate::image::Algorithm;
use crate::image::checksum::Expected;

/// Largest option file, bytes.
const FILE_LIMIT: u64 = 1 << 20;

/// Options that make no sense together or name unusable files.
#[derive(Debug, Error)]
pub enum OptionsError {
    #[error("{option} needs {needed} too")]
    Needs {
        option: &'static str,
        needed: &'static str,
    },
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
        let user = &self.machine_token_user;
        check(
            "--machine-token-user",
            user,
            "2 to 128 characters",
            |user| (2..=128).contains(&user.chars().count()),
        )?;
        check(
            "--partition",
            &self.partition,
            "2 to 128 letters, digits, \"-\", \"_\" or \".\"",
            ipxe::is_partition,
        )?;
        let urls = [
            ("--apiserver-url", Some(&self.apiserver_url)),
            (
                "--machine-apiserver-url",
                self.machine_apiserver_url.as_ref(),
            ),
            ("--public-url", self.public_url.as_ref()),
            ("--os-installer-url", self.os_installer_url.as_ref()),
            ("--image-cache", self.image_cache.as_ref()),
            ("--cache-origin", self.cache_origin.as_ref()),
        ];
        for (option, url) in urls {
            if let Some(url) = url {
                check(option, &http::shown(url), "an http or https URL", |_| {
                    matches!(url.scheme(), "http" | "https") && url.has_host()
                })?;
            }
        }
        // Each machine is told the one; the other is asked for all of them, and logged.
        for (option, url) in [
            ("--image-cache", self.image_cache.as_ref()),
            ("--cache-origin", self.cache_origin.as_ref()),
        ] {
            if let Some(url) = url {
                let bare = "a URL without user and password";
                check(option, &http::shown(url), bare, |_| {
                    url.username().is_empty() && url.password().is_none()
                })?;
            }
        }
        self.check_company()?;
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
        // What this helper keeps is fetched from it.
        let kept = |path: &str| {
            let public = self
                .public_url
                .as_ref()
                .filter(|_| self.cache_dir.is_some());
            public.map(|url| format!("{}{path}", text(url)))
        };
        let own_cache = || self.cache_origin.as_ref().and_then(|_| kept("/image"));
        Ok(HelperAnswer {
            debug: self.debug,
            metal_apiserver_url: Some(text(machine_url.unwrap_or(&self.apiserver_url))),
            pixie_api_url: self.public_url.as_ref().map(text),
            ntp_servers: self.ntp_servers.clone(),
            partition: Some(self.partition.clone()),
            ca_cert: self.ca_cert.as_deref().map(ca_cert).transpose()?,
            os_installer: self.os_installer_url.as_ref().map(|url| OsInstaller {
                url: kept(OS_INSTALLER).or_else(|| Some(url.as_str().to_owned())),
                sha256: self.os_installer_sha256.clone(),
                drop_fields: self.os_installer_drop_fields.clone(),
            }),
            image_cache: self.image_cache.as_ref().map(text).or_else(own_cache),
            proxy_apiserver: self.proxy_apiserver,
            policy: self.policy.as_deref().map(policy).transpose()?,
            logging: self.logging.as_deref().map(logging).transpose()?,
            ..HelperAnswer::default()
        })
    }
}

impl Options {
    /// Where the installer for images that ship none is, and its digest.
    #[must_use]
    pub fn installer(&self) -> Option<(Url, Expected)> {
        let sum = self.os_installer_sha256.as_ref()?;
        let expected = Expected {
            algorithm: Algorithm::Sha256,
            hex: sum.to_ascii_lowercase(),
        };
        Some((self.os_installer_url.clone()?, expected))
    }

    /// Options that mean nothing without each other.
    fn check_company(&self) -> Result<(), OptionsError> {
        let url = ("--os-installer-url", self.os_installer_url.is_some());
        let sum = ("--os-installer-sha256", self.os_installer_sha256.is_some());
        let drops = !self.os_installer_drop_fields.is_empty();
        let dir = ("--cache-dir", self.cache_dir.is_some());
        let origin = ("--cache-origin", self.cache_origin.is_some());
        let content = ("--cache-origin or --os-installer-url", origin.1 || url.1);
        let pairs = [
            (url, sum),
            (sum, url),
            (("--os-installer-drop-field", drops), url),
            (dir, content),
            (origin, dir),
        ];
        for ((option, given), (needed, there)) in pairs {
            if given && !there {
                return Err(OptionsError::Needs { option, needed });
            }
        }
        Ok(())
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

/// A policy of which every word was understood: machines ignore what they do not know, so a
/// misspelt key would go unnoticed until it matters. JSON as it stands, or in a file.
fn policy(text: &str) -> Result<Policy, OptionsError> {
    const OPTION: &str = "--policy";
    if text.trim_start().starts_with('{') {
        return understood(OPTION, Path::new("its text"), text);
    }
    let path = Path::new(text);
    understood(OPTION, path, &read(OPTION, path)?)
}

/// Where logs go; the same holds.
fn logging(path: &Path) -> Result<Logging, OptionsError> {
    const OPTION: &str = "--logging";
    understood(OPTION, path, &read(OPTION, path)?)
}

fn understood<T: DeserializeOwned + Serialize>(
    option: &'static str,
    path: &Path,
    text: &str,
) -> Result<T, OptionsError> {
    let wrong = |reason: String| OptionsError::File {
        option,
        path: path.into(),
        reason,
    };
    let (given, value) = serde_json::from_str::<serde_json::Value>(text)
        .and_then(|given| Ok((given.clone(), serde_json::from_value::<T>(given)?)))
        .map_err(|error| wrong(error.to_string()))?;
    let understood = serde_json::to_value(&value).map_err(|error| wrong(error.to_string()))?;
    match first_difference(&given, &understood) {
        None => Ok(value),
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
            // What is false need not be said.
            let is_said = *value == false || !found.is_null();
            (!is_said || (*value != false && value != found)).then(|| key.clone())
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use clap::Parser;

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
    fn every_option_stands_in_the_answer() {
        let policy = file(r#"{"adopt":"wipe","lldp":{"interfaces":1},"exclude_disks":["S1"]}"#);
        let logging = file(
            r#"{"endpoint":"https://loki/push","log_type":"loki",
            "basic_auth":{"user":"u","password":"p"}}"#,
        );
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
            "--proxy-apiserver",
            &format!("--logging={}", logging.path().display()),
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
            "proxy_apiserver": true,
            "logging": {"endpoint": "https://loki/push", "log_type": "loki",
                        "basic_auth": {"user": "u", "password": "p"}},
            "policy": {"adopt": "wipe", "lldp": {"interfaces": 1},
                       "exclude_disks": ["S1"]},
        });
        assert_eq!(answer, expected);
        assert_eq!(options.listen, ["[::]:4242".parse().unwrap()]);
        assert_eq!(options.token_expiry.as_secs(), 72 * 3600);
    }

    #[test]
    fn wrong_values_are_named() {
        for (option, text) in [
            ("--listen=0.0.0.0:4242", "--listen"),
            ("--apiserver-url=api.example.org", "--apiserver-url"),
            ("--token-expiry=8d", "less than 7d"),
            ("--allow=10.0.0.0/8", "--allow"),
            ("--bind=maybe", "--bind"),
            ("--rate-per-address=0", "--rate-per-address"),
        ] {
            let error = options(&[option]).unwrap_err().to_string();
            assert!(error.contains(text), "{option}: {error}");
        }
        for (option, text) in [
            ("--public-url=ftp://h", "--public-url is"),
            (
                "--image-cache=http://user@h",
                "--image-cache is \"http://h/\"; expected a URL without user",
            ),
            (
                "--cache-origin=http://:s3cret@h",
                "--cache-origin is \"http://h/\"; expected a URL without user",
            ),
            ("--partition=x", "--partition is \"x\""),
            ("--partition=a/b", "--partition is \"a/b\""),
            (
                "--os-installer-url=http://h/x",
                "needs --os-installer-sha256",
            ),
            ("--os-installer-drop-field=x", "needs --os-installer-url"),
            ("--cache-dir=/tmp", "needs --cache-origin"),
            ("--cache-origin=http://h", "needs --cache-dir"),
            ("--logging=/nonexistent", "cannot read /nonexistent"),
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
            assert!(!error.contains("s3cret"), "{error}");
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
            let file = file(text);
            let path = file.path().display().to_string();
            let error = policy(&path).unwrap_err().to_string();
            assert!(error.contains(place), "{text}: {error}");
            assert!(error.contains(&path), "{text}: {error}");
        }
        assert_eq!(policy("{}").unwrap(), Policy::default());
        let error = policy(r#"{"adpot":"wipe"}"#).unwrap_err().to_string();
        assert!(error.contains("adpot is not understood"), "{error}");
        let secret = file(r#"{"basic_auth":{"user":"u","password":7777777}}"#);
        let error = logging(secret.path()).unwrap_err().to_string();
        assert!(!error.contains("7777777"), "{error}");
    }

    #[test]
    fn a_cache_of_its_own_is_announced() {
        let cache = ["--cache-dir=/tmp", "--cache-origin=http://images.example"];
        let announced = |more: &[&str]| {
            let all: Vec<&str> = cache.iter().chain(more).copied().collect();
            options(&all).unwrap().answer().unwrap().image_cache
        };
        let public = "--public-url=http://[2001:db8::1]:4242";
        assert_eq!(announced(&[]), None);
        let own = "http://[2001:db8::1]:4242/image";
        assert_eq!(announced(&[public]).as_deref(), Some(own));
        let other = announced(&[public, "--image-cache=http://other"]);
        assert_eq!(other.as_deref(), Some("http://other"));

        let sum = format!("--os-installer-sha256={}", "ab".repeat(32));
        let installer = ["--os-installer-url=http://far/inst", &sum];
        let told = |more: &[&str]| {
            let all: Vec<&str> = installer.iter().chain(more).copied().collect();
            let answer = options(&all).unwrap().answer().unwrap();
            (
                answer.os_installer.unwrap().url.unwrap(),
                answer.image_cache,
            )
        };
        assert_eq!(told(&[public]), ("http://far/inst".into(), None));
        let far = told(&["--cache-dir=/tmp"]);
        assert_eq!(far, ("http://far/inst".into(), None));
        let near = told(&[public, "--cache-dir=/tmp"]);
        let own = "http://[2001:db8::1]:4242/os-installer";
        assert_eq!(near, (own.into(), None));
    }
}
