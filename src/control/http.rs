//! The one place where an HTTP client is made, and what every HTTP conversation shares.
//!
//! A client talks directly (no proxy, whatever the environment says), verifies servers with
//! rustls and ring, notices dead connections within about 30 s and never keeps an idle
//! connection longer than the server does.

use std::error::Error as StdError;
use std::fmt;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use reqwest::Client;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{DATE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::redirect;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use secrecy::{ExposeSecret, SecretString};
use thiserror::Error;
use url::Url;

use super::text::printable;
use crate::net::names::Names;

/// What is sent as `User-Agent`.
pub const USER_AGENT: &str = concat!("metal-anvil/", env!("CARGO_PKG_VERSION"));
/// Largest answer of a boot helper, bytes.
pub const BOOT_HELPER_LIMIT: usize = 1 << 20;
/// Largest answer, and largest message of a stream, of metal-apiserver, bytes.
pub const APISERVER_LIMIT: usize = 4 << 20;
/// Largest error body that is read, bytes.
pub const ERROR_LIMIT: usize = 64 << 10;

/// TCP and TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// metal-apiserver closes idle connections after 10 s (contracts.md §4).
const POOL_IDLE: Duration = Duration::from_secs(5);
/// Idle connections kept to a server: Wait, the events beside it, a download. A fleet times
/// reqwest's own limit, which is none, is what a helper on a switch CPU cannot hold.
const MAX_IDLE: usize = 3;
/// Sent data that stays unacknowledged this long ends the connection (tcp(7) TCP_USER_TIMEOUT).
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);
/// A silent connection is probed after this long and then as often: with the user timeout
/// a peer that vanished while nothing was sent is noticed within 30 s too.
const TCP_KEEPALIVE: Duration = Duration::from_secs(10);
/// What is offered to a server over TLS (RFC 7301): HTTP/2, else HTTP/1.1.
const BOTH: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// Redirects that a download follows.
const DOWNLOAD_REDIRECTS: usize = 5;

/// Whose certificates a client accepts.
#[derive(Debug, Clone, Copy)]
pub enum Trust<'a> {
    /// The public authorities of Mozilla's list, as compiled in.
    Public,
    /// The authorities of this PEM text **instead of** the public ones: what `ca_cert` means
    /// for the control plane, so that no public authority can vouch for a site's apiserver.
    Only(&'a str),
    /// The authorities of this PEM text and the public ones: for images, which may come from
    /// a public host as well as from the site's own.
    PublicAnd(&'a str),
}

/// How a client leaves this machine. The default leaves that to the kernel's routes and the
/// host's own resolver, for programs on an ordinary host.
#[derive(Debug, Clone, Default)]
pub struct Route {
    /// The link that every connection is bound to.
    pub interface: Option<String>,
    pub source: Option<IpAddr>,
    /// Who resolves names.
    pub names: Option<Arc<Names>>,
}

/// Gives reqwest the addresses of a name.
struct Resolver(Arc<Names>);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let names = Arc::clone(&self.0);
        Box::pin(async move {
            let found = names.resolve(name.as_str()).await?;
            // reqwest puts the URL's port in the place of 0.
            let found = found
                .into_iter()
                .map(|ip| SocketAddr::V6(SocketAddrV6::new(ip, 0, 0, 0)));
            Ok(Box::new(found) as Addrs)
        })
    }
}

/// A client's certificate and its key, PEM both.
#[derive(Debug, Clone)]
pub struct Identity {
    pub certificates: String,
    pub key: SecretString,
}

/// A client that cannot be made.
#[derive(Debug, Error)]
pub enum ClientError {
    #[error(
        "ca_cert is not a PEM list of certificates ({0}); expected -----BEGIN CERTIFICATE----- blocks"
    )]
    CaCert(String),
    #[error("the client's certificate or key is not PEM ({0})")]
    Identity(String),
    #[error("the TLS set-up failed: {0}")]
    Tls(#[from] rustls::Error),
    #[error("the HTTP client cannot be made: {0}")]
    Client(String),
}

/// A client for the boot helper and the apiserver: follows no redirect, so that a token
/// goes nowhere but to the host that was named.
///
/// # Errors
/// An unreadable `ca_cert`.
pub fn control_client(trust: Trust<'_>) -> Result<Client, ClientError> {
    control_client_on(trust, &Route::default())
}

/// The same over `route`.
///
/// # Errors
/// An unreadable `ca_cert`.
pub fn control_client_on(trust: Trust<'_>, route: &Route) -> Result<Client, ClientError> {
    client(trust, None, redirect::Policy::none(), &BOTH, route)
}

/// A client for calls of others that may stay open for hours: over HTTP/1.1 alone, where each
/// has a connection of its own. Over HTTP/2 all share one, and beyond the server's limit of
/// streams a call waits for one that is silent.
///
/// # Errors
/// An unreadable `ca_cert`.
pub fn proxy_client(trust: Trust<'_>) -> Result<Client, ClientError> {
    let none = redirect::Policy::none();
    client(trust, None, none, &BOTH[1..], &Route::default())
}

/// A client for images and other bulk data: follows a few redirects.
///
/// # Errors
/// An unreadable `ca_cert`.
pub fn download_client(trust: Trust<'_>) -> Result<Client, ClientError> {
    download_client_on(trust, &Route::default())
}

/// The same over `route`.
///
/// # Errors
/// An unreadable `ca_cert`.
pub fn download_client_on(trust: Trust<'_>, route: &Route) -> Result<Client, ClientError> {
    let redirects = redirect::Policy::limited(DOWNLOAD_REDIRECTS);
    client(trust, None, redirects, &BOTH, route)
}

/// A client for a log server, which may want to see a certificate. It follows no redirect.
///
/// # Errors
/// An unreadable `ca_cert`, certificate or key.
pub fn log_client_on(
    trust: Trust<'_>,
    identity: Option<&Identity>,
    route: &Route,
) -> Result<Client, ClientError> {
    client(trust, identity, redirect::Policy::none(), &BOTH, route)
}

fn client(
    trust: Trust<'_>,
    identity: Option<&Identity>,
    redirects: redirect::Policy,
    protocols: &[&[u8]],
    route: &Route,
) -> Result<Client, ClientError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(trust)?);
    let mut tls = match identity {
        None => tls.with_no_client_auth(),
        Some(identity) => {
            let wrong = |error: rustls::pki_types::pem::Error| {
                ClientError::Identity(printable(&error.to_string(), 200))
            };
            let certificates = CertificateDer::pem_slice_iter(identity.certificates.as_bytes());
            let certificates: Result<_, _> = certificates.collect();
            let key = PrivateKeyDer::from_pem_slice(identity.key.expose_secret().as_bytes());
            tls.with_client_auth_cert(certificates.map_err(wrong)?, key.map_err(wrong)?)?
        }
    };
    tls.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    let mut builder = Client::builder();
    if let Some(interface) = &route.interface {
        builder = builder.interface(interface);
    }
    if let Some(names) = &route.names {
        builder = builder.dns_resolver(Resolver(Arc::clone(names)));
    }
    builder
        .local_address(route.source)
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .user_agent(USER_AGENT)
        .redirect(redirects)
        .referer(false)
        // Repetitions are `retry`'s, where they are counted and logged.
        .retry(reqwest::retry::never())
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(POOL_IDLE)
        .pool_max_idle_per_host(MAX_IDLE)
        .tcp_nodelay(true)
        .tcp_keepalive(TCP_KEEPALIVE)
        .tcp_keepalive_interval(TCP_KEEPALIVE)
        .tcp_keepalive_retries(2)
        .tcp_user_timeout(TCP_USER_TIMEOUT)
        .http2_keep_alive_interval(TCP_KEEPALIVE)
        .http2_keep_alive_timeout(2 * TCP_KEEPALIVE)
        .build()
        .map_err(|error| ClientError::Client(chain(&error)))
}

fn roots(trust: Trust<'_>) -> Result<RootCertStore, ClientError> {
    let mut roots = RootCertStore::empty();
    if matches!(trust, Trust::Public | Trust::PublicAnd(_)) {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    if let Trust::Only(pem) | Trust::PublicAnd(pem) = trust {
        let wrong = |error: &dyn StdError| ClientError::CaCert(printable(&error.to_string(), 200));
        let mut count = 0_usize;
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.map_err(|error| wrong(&error))?;
            roots.add(certificate).map_err(|error| wrong(&error))?;
            count += 1;
        }
        if count == 0 {
            return Err(ClientError::CaCert("no certificate in it".into()));
        }
    }
    Ok(roots)
}

/// `Authorization: Bearer <token>`, marked so that no debug output shows it.
///
/// `None` when the token is empty or holds what cannot stand in a header.
#[must_use]
pub fn bearer(token: &SecretString) -> Option<HeaderValue> {
    let token = token.expose_secret().trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// A URL as it may be shown: without user, password, query and fragment.
#[must_use]
pub fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // Both fail only for URLs that cannot have a host, and those hold neither.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    printable(url.as_str(), 300)
}

/// `Retry-After` in seconds; the other form, a date, is nobody's here.
#[must_use]
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}

/// The `Date` header (RFC 9110 §6.6.1; its preferred form is one of RFC 2822's): the server's
/// clock.
#[must_use]
pub fn server_date(headers: &HeaderMap) -> Option<Timestamp> {
    let text = headers.get(DATE)?.to_str().ok()?;
    DateTimeParser::new().parse_timestamp(text.trim()).ok()
}

/// Why a conversation broke, as far as the next step depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The server was not reached: refused, no route, no such name.
    Connect,
    /// The server's certificate, or the TLS handshake, was refused.
    Tls,
    /// The server's certificate is not valid at this machine's time.
    Clock,
    /// No answer within the deadline.
    Timeout,
    /// The network told, or the kernel found out, that the peer is gone.
    Dead,
    /// The peer closed or reset the connection, or did not speak HTTP.
    Cut,
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "cannot be reached",
            Self::Tls => "failed the TLS check (see ca_cert)",
            Self::Clock => {
                "has a certificate that is not valid at this machine's time; set ntp_servers, or the \
                 firmware's clock"
            }
            Self::Timeout => "did not answer in time",
            Self::Dead => "is gone",
            Self::Cut => "broke off the conversation",
        })
    }
}

/// A conversation that brought no answer.
#[derive(Debug, Clone, Error)]
#[error("{url} {kind}: {detail}")]
pub struct Failure {
    /// As [`shown`].
    pub url: String,
    pub kind: FailureKind,
    pub detail: String,
}

impl Failure {
    /// Classifies what reqwest reports.
    #[must_use]
    pub fn new(url: &Url, error: &reqwest::Error) -> Self {
        let io = causes(error).find_map(|cause| {
            cause
                .downcast_ref::<std::io::Error>()
                .map(std::io::Error::kind)
                .filter(|kind| *kind != std::io::ErrorKind::Other)
        });
        let tls = causes(error).find_map(|cause| cause.downcast_ref::<rustls::Error>());
        let kind = if let Some(error) = tls {
            tls_kind(error)
        } else if error.is_connect() {
            FailureKind::Connect
        } else if matches!(
            io,
            Some(
                std::io::ErrorKind::TimedOut
                    | std::io::ErrorKind::HostUnreachable
                    | std::io::ErrorKind::NetworkUnreachable
                    | std::io::ErrorKind::NetworkDown
            )
        ) && !error.is_timeout()
        {
            FailureKind::Dead
        } else if error.is_timeout() {
            FailureKind::Timeout
        } else {
            FailureKind::Cut
        };
        let detail = match kind {
            FailureKind::Clock => format!("here it is {:.0}: {}", Timestamp::now(), chain(error)),
            _ => chain(error),
        };
        Self {
            url: shown(url),
            kind,
            detail,
        }
    }

    /// The same without the URL, for errors that name it themselves.
    #[must_use]
    pub fn reason(&self) -> String {
        format!("it {}: {}", self.kind, self.detail)
    }

    /// Whether another attempt may go better. A certificate does not become valid by itself.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        !matches!(self.kind, FailureKind::Tls | FailureKind::Clock)
    }
}

fn tls_kind(error: &rustls::Error) -> FailureKind {
    use rustls::CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    match error {
        rustls::Error::InvalidCertificate(
            Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. },
        ) => FailureKind::Clock,
        _ => FailureKind::Tls,
    }
}

/// An error and what caused it. `io::Error` hides the error it wraps from `source`.
fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(
        Some(error),
        |&error: &&'a (dyn StdError + 'static)| match error.downcast_ref::<std::io::Error>() {
            Some(io) => io.get_ref().map(|inner| inner as &(dyn StdError + 'static)),
            None => error.source(),
        },
    )
    // Nothing honest nests deeper.
    .take(16)
}

/// The causes of an error as one line. reqwest's own texts are left out: they name URLs.
fn chain(error: &reqwest::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in causes(error).filter(|cause| !cause.is::<reqwest::Error>()) {
        let text = cause.to_string();
        if !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
    }
    if parts.is_empty() {
        parts.push(if error.is_timeout() {
            "deadline".into()
        } else {
            "no detail".into()
        });
    }
    printable(&parts.join(": "), 300)
}

/// A body that was not read to its end.
#[derive(Debug, Error)]
pub enum BodyError {
    #[error("the body is larger than {0} bytes")]
    TooLarge(usize),
    #[error(transparent)]
    Http(reqwest::Error),
}

/// Reads a body of at most `limit` bytes.
///
/// # Errors
/// A larger body, as soon as that is known; a broken connection.
pub async fn read_body_capped(
    mut response: reqwest::Response,
    limit: usize,
) -> Result<Vec<u8>, BodyError> {
    if response
        .content_length()
        .is_some_and(|length| length > limit as u64)
    {
        return Err(BodyError::TooLarge(limit));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(BodyError::Http)? {
        if body.len() + chunk.len() > limit {
            return Err(BodyError::TooLarge(limit));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_url_holds_no_credentials() {
        let cases = [
            ("http://[2001:db8::1]:4242", "http://[2001:db8::1]:4242/"),
            ("https://user:s3cret@h/p?token=s3cret#f", "https://h/p"),
        ];
        for (url, expected) in cases {
            assert_eq!(shown(&Url::parse(url).unwrap()), expected);
        }
    }

    #[test]
    fn a_bearer_header_is_never_shown() {
        let header = bearer(&SecretString::from(" tok-s3cret\n")).unwrap();
        assert_eq!(header.as_bytes(), b"Bearer tok-s3cret");
        assert!(!format!("{header:?}").contains("s3cret"));
        for wrong in ["", "  ", "two words", "line\nbreak", "ümlaut"] {
            assert!(bearer(&SecretString::from(wrong)).is_none(), "{wrong:?}");
        }
    }

    #[test]
    fn a_ca_cert_is_checked_when_it_is_read() {
        for wrong in [
            "",
            "not PEM",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "-----BEGIN CERTIFICATE-----\n%%%%\n-----END CERTIFICATE-----\n",
        ] {
            let error = control_client(Trust::Only(wrong)).unwrap_err().to_string();
            assert!(error.starts_with("ca_cert is not"), "{wrong:?}: {error}");
        }
        assert!(control_client(Trust::Public).is_ok());
        assert!(download_client(Trust::Public).is_ok());
    }

    /// The names of RFC 7301 that a client's first bytes to a TLS server offer.
    async fn offers(client: Client) -> (bool, bool) {
        use tokio::io::AsyncReadExt as _;
        let listener = tokio::net::TcpListener::bind("[::1]:0").await.unwrap();
        let url = format!("https://{}/", listener.local_addr().unwrap());
        let asking = tokio::spawn(client.get(url).send());
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = [0; 5];
        stream.read_exact(&mut head).await.unwrap();
        let mut hello = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
        stream.read_exact(&mut hello).await.unwrap();
        drop(stream);
        assert!(asking.await.unwrap().is_err());
        let has = |name: &[u8]| hello.windows(name.len()).any(|bytes| bytes == name);
        (has(b"\x02h2"), has(b"\x08http/1.1"))
    }

    #[tokio::test]
    async fn a_proxys_calls_share_no_connection() {
        let control = control_client(Trust::Public).unwrap();
        assert_eq!(offers(control).await, (true, true));
        let proxy = proxy_client(Trust::Public).unwrap();
        assert_eq!(offers(proxy).await, (false, true));
    }

    #[test]
    fn only_means_only() {
        assert!(roots(Trust::Public).unwrap().len() > 50);
        let public = roots(Trust::Public).unwrap().len();
        assert!(roots(Trust::PublicAnd("")).is_err());
        assert_eq!(webpki_roots::TLS_SERVER_ROOTS.len(), public);
    }

    #[test]
    fn retry_after_is_seconds() {
        let header = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_static(text));
            retry_after(&headers)
        };
        assert_eq!(header("7"), Some(Duration::from_secs(7)));
        assert_eq!(header("Wed, 21 Oct 2026 07:28:00 GMT"), None);
        assert_eq!(header("-1"), None);
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }

    #[test]
    fn the_date_header_is_the_servers_clock() {
        let date_of = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(DATE, HeaderValue::from_static(text));
            server_date(&headers).map(|date| date.to_string())
        };
        assert_eq!(
            date_of("Sun, 22 Nov 2026 08:00:01 GMT").as_deref(),
            Some("2026-11-22T08:00:01Z")
        );
        assert_eq!(date_of("yesterday"), None);
        assert_eq!(server_date(&HeaderMap::new()), None);
    }
}
