//! Redfish, as far as "boot this ISO once" needs it (DMTF DSP0266; schemas ComputerSystem and
//! VirtualMedia).
//!
//! Vendors differ in where the virtual CD hangs, which properties an insertion may name, and
//! whether there is an action for it at all. What a BMC offers is read from its own answers;
//! nothing is told by its name.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ETAG, IF_MATCH};
use reqwest::{Client, Method, StatusCode};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use thiserror::Error;
use url::Url;

use crate::control::http::{BodyError, Failure, read_body_capped, shown};
use crate::control::text::printable;

/// Largest answer that is read, bytes.
const LIMIT: usize = 1 << 20;
/// For one answer. BMCs are slow: an insertion may look at the image first.
const DEADLINE: Duration = Duration::from_secs(60);
/// Members of a collection that are looked at.
const MEMBERS: usize = 32;

/// What went wrong with a BMC.
#[derive(Debug, Error)]
pub enum RedfishError {
    #[error("BMC {0}; check --bmc, and the route to it")]
    Unreachable(#[from] Failure),
    #[error("BMC {url} refuses user or password (HTTP {status})")]
    Refused { url: String, status: u16 },
    #[error("BMC {url} answered HTTP {status}: {message}")]
    Status {
        url: String,
        status: u16,
        message: String,
    },
    #[error("BMC {url} answered what is no Redfish: {reason}")]
    Answer { url: String, reason: String },
    #[error("this BMC has no {what}; {hint}")]
    Missing {
        what: &'static str,
        hint: &'static str,
    },
    #[error("{0}")]
    Client(String),
}

impl RedfishError {
    /// Whether the BMC understood the request and did not like its properties: with fewer
    /// of them it may.
    #[must_use]
    pub fn is_dislike(&self) -> bool {
        matches!(
            self,
            Self::Status {
                status: 400 | 405 | 422 | 501,
                ..
            }
        )
    }
}

/// How a BMC's certificate is judged.
#[derive(Debug)]
pub enum BmcTrust {
    /// By a client made elsewhere: public authorities, or a `--ca-cert`.
    Client(Client),
    /// It has this SHA-256, whatever else it says: BMCs sign their own.
    Fingerprint([u8; 32]),
}

/// A BMC.
#[derive(Debug)]
pub struct Redfish {
    client: Client,
    base: Url,
    user: String,
    password: SecretString,
}

/// A resource and what is needed to change it.
#[derive(Debug, Clone)]
pub struct Resource {
    pub path: String,
    pub body: Value,
    etag: Option<reqwest::header::HeaderValue>,
}

impl Redfish {
    /// A BMC at `base`.
    ///
    /// # Errors
    /// TLS that cannot be set up.
    pub fn new(
        trust: BmcTrust,
        base: Url,
        user: String,
        password: SecretString,
    ) -> Result<Self, RedfishError> {
        let client = match trust {
            BmcTrust::Client(client) => client,
            BmcTrust::Fingerprint(digest) => pinned_client(digest)?,
        };
        Ok(Self {
            client,
            base,
            user,
            password,
        })
    }

    /// Reads a resource of this BMC.
    ///
    /// # Errors
    /// Any [`RedfishError`].
    pub async fn get(&self, path: &str) -> Result<Resource, RedfishError> {
        self.send(Method::GET, path, None, None).await
    }

    /// Calls an action.
    ///
    /// # Errors
    /// Any [`RedfishError`].
    pub async fn post(&self, path: &str, body: &Value) -> Result<(), RedfishError> {
        self.send(Method::POST, path, Some(body), None)
            .await
            .map(drop)
    }

    /// Changes properties of a resource as it was read.
    ///
    /// # Errors
    /// Any [`RedfishError`].
    pub async fn patch(&self, resource: &Resource, body: &Value) -> Result<(), RedfishError> {
        let etag = resource.etag.clone();
        self.send(Method::PATCH, &resource.path, Some(body), etag)
            .await
            .map(drop)
    }

    /// The members of a collection.
    ///
    /// # Errors
    /// Any [`RedfishError`].
    pub async fn members(&self, path: &str) -> Result<Vec<Resource>, RedfishError> {
        let collection = self.get(path).await?;
        let mut members = Vec::new();
        let links = collection.body["Members"].as_array();
        for link in links.into_iter().flatten().take(MEMBERS) {
            if let Some(path) = id(link) {
                members.push(self.get(path).await?);
            }
        }
        Ok(members)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        etag: Option<reqwest::header::HeaderValue>,
    ) -> Result<Resource, RedfishError> {
        let url = self.url(path)?;
        let mut request = self
            .client
            .request(method, url.clone())
            .basic_auth(&self.user, Some(self.password.expose_secret()))
            .header("odata-version", "4.0")
            .timeout(DEADLINE);
        if let Some(body) = body {
            request = request.json(body);
        }
        if let Some(etag) = etag {
            request = request.header(IF_MATCH, etag);
        }
        let answer = request.send().await;
        let answer = answer.map_err(|error| Failure::new(&url, &error))?;
        let status = answer.status();
        let etag = answer.headers().get(ETAG).cloned();
        let bytes = read_body_capped(answer, LIMIT)
            .await
            .map_err(|error| match error {
                BodyError::TooLarge(limit) => RedfishError::Answer {
                    url: shown(&url),
                    reason: format!("more than {limit} bytes"),
                },
                BodyError::Http(error) => Failure::new(&url, &error).into(),
            })?;
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Err(RedfishError::Refused {
                url: shown(&url),
                status: status.as_u16(),
            });
        }
        if !status.is_success() {
            return Err(RedfishError::Status {
                url: shown(&url),
                status: status.as_u16(),
                message: message_of(&bytes),
            });
        }
        // An action may answer with nothing.
        let body = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes).map_err(|error| RedfishError::Answer {
                url: shown(&url),
                reason: printable(&error.to_string(), 200),
            })?
        };
        Ok(Resource {
            path: path.to_owned(),
            body,
            etag,
        })
    }

    /// A path of this very BMC: its answers must not send the password elsewhere.
    fn url(&self, path: &str) -> Result<Url, RedfishError> {
        let wrong = || RedfishError::Answer {
            url: shown(&self.base),
            reason: format!("a link to {:?}", printable(path, 100)),
        };
        if !path.starts_with('/') || path.starts_with("//") {
            return Err(wrong());
        }
        let url = self.base.join(path).map_err(|_| wrong())?;
        (url.origin() == self.base.origin())
            .then_some(url)
            .ok_or_else(wrong)
    }
}

/// The path that a link leads to.
#[must_use]
pub fn id(link: &Value) -> Option<&str> {
    link["@odata.id"].as_str()
}

/// The words of an error: Redfish's own, or the beginning of whatever came.
fn message_of(body: &[u8]) -> String {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let error = &value["error"];
    let extended = error["@Message.ExtendedInfo"][0]["Message"].as_str();
    match extended.or(error["message"].as_str()) {
        Some(text) => printable(text, 300),
        None => printable(&String::from_utf8_lossy(&body[..body.len().min(300)]), 300),
    }
}

/// Whether a virtual medium can be a CD.
#[must_use]
pub fn is_cd(media: &Value) -> bool {
    let types = media["MediaTypes"].as_array();
    types
        .into_iter()
        .flatten()
        .any(|kind| matches!(kind.as_str(), Some("CD" | "DVD")))
}

/// Where an action is called: the standard one, or a vendor's of the same meaning.
#[must_use]
pub fn action<'a>(resource: &'a Value, standard: &str, vendors: &str) -> Option<&'a str> {
    let actions = &resource["Actions"];
    if let Some(target) = actions[standard]["target"].as_str() {
        return Some(target);
    }
    let oem = [&actions["Oem"], &resource["Oem"]];
    let mut found = oem.into_iter().flat_map(|value| every_object(value, 0));
    found.find_map(|(name, value)| {
        name.ends_with(vendors)
            .then(|| value["target"].as_str())
            .flatten()
    })
}

/// The named objects below a value, three levels deep: `Oem` has one for the vendor, and that
/// may have `Actions`.
fn every_object(value: &Value, depth: u8) -> Vec<(&str, &Value)> {
    let mut found = Vec::new();
    for (name, value) in value.as_object().into_iter().flatten() {
        if value.is_object() {
            found.push((name.as_str(), value));
            if depth < 3 {
                found.extend(every_object(value, depth + 1));
            }
        }
    }
    found
}

/// The first of `wanted` that the BMC lists as allowed, or the first when it lists none.
#[must_use]
pub fn allowed<'a>(holder: &Value, property: &str, wanted: &[&'a str]) -> Option<&'a str> {
    let key = format!("{property}@Redfish.AllowableValues");
    let Some(list) = holder[&key].as_array() else {
        return wanted.first().copied();
    };
    let is_listed = |word: &&&str| list.iter().any(|value| value == **word);
    wanted.iter().find(is_listed).copied()
}

/// A client that believes one certificate.
fn pinned_client(digest: [u8; 32]) -> Result<Client, RedfishError> {
    let wrong = |error: &dyn std::error::Error| RedfishError::Client(error.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pin { digest, provider }))
        .with_no_client_auth();
    Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| wrong(&error))
}

/// Believes the certificate with this SHA-256, and that its owner is who talks.
#[derive(Debug)]
struct Pin {
    digest: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let digest = Sha256::digest(certificate);
        if bool::from(digest.as_slice().ct_eq(&self.digest)) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::control::http;

    #[test]
    fn actions_are_found_where_vendors_put_them() {
        const STANDARD: &str = "#VirtualMedia.InsertMedia";
        let standard = json!({"Actions": {STANDARD: {"target": "/std"}}});
        let hpe = json!({"Oem": {"Hpe": {"Actions": {
            "#HpeiLOVirtualMedia.InsertVirtualMedia": {"target": "/hpe"}}}}});
        let oem = json!({"Actions": {"Oem": {"#X.InsertVirtualMedia": {"target": "/oem"}}}});
        let find =
            |value: &Value| action(value, STANDARD, ".InsertVirtualMedia").map(str::to_owned);
        assert_eq!(find(&standard).as_deref(), Some("/std"));
        assert_eq!(find(&hpe).as_deref(), Some("/hpe"));
        assert_eq!(find(&oem).as_deref(), Some("/oem"));
        for none in [
            json!({}),
            json!([]),
            json!({"Actions": {STANDARD: {"target": 7}}}),
        ] {
            assert_eq!(find(&none), None, "{none}");
        }
    }

    #[test]
    fn words_that_a_bmc_does_not_allow_are_not_sent() {
        let holder = json!({"T@Redfish.AllowableValues": ["None", "UsbCd", "Pxe"]});
        assert_eq!(allowed(&holder, "T", &["Cd", "UsbCd"]), Some("UsbCd"));
        assert_eq!(allowed(&holder, "T", &["Cd"]), None);
        assert_eq!(allowed(&holder, "U", &["Cd", "UsbCd"]), Some("Cd"));
        assert!(is_cd(&json!({"MediaTypes": ["Floppy", "DVD"]})));
        assert!(!is_cd(&json!({"MediaTypes": ["Floppy", 7]})));
        assert!(!is_cd(&json!({})));
    }

    #[test]
    fn a_bmc_cannot_send_the_password_elsewhere() {
        let base = Url::parse("https://bmc.example/").unwrap();
        let client = BmcTrust::Client(http::control_client(http::Trust::Public).unwrap());
        let bmc = Redfish::new(client, base, "u".into(), "p".into()).unwrap();
        let good = bmc.url("/redfish/v1/Systems/1").unwrap();
        assert_eq!(good.as_str(), "https://bmc.example/redfish/v1/Systems/1");
        for wrong in ["https://evil/", "//evil/x", "redfish/v1", "", "/\\evil"] {
            assert!(bmc.url(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn errors_say_the_bmcs_own_words() {
        let redfish = br#"{"error":{"code":"x","message":"general",
            "@Message.ExtendedInfo":[{"Message":"the image is\nnot there"}]}}"#;
        assert_eq!(message_of(redfish), "the image is not there");
        assert_eq!(message_of(br#"{"error":{"message":"general"}}"#), "general");
        assert_eq!(message_of(b"<html>"), "<html>");
        assert_eq!(message_of(b""), "");
    }
}
