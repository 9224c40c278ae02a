//! metal-apiserver through this helper, for machines that cannot reach it or have no CA.
//!
//! Only what a machine says (`METHODS`), with the machine's own token. Bodies are passed on
//! as they come, within bounds; nothing is kept.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, DATE,
    RETRY_AFTER, USER_AGENT,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::Limited;
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::Sleep;
use url::Url;

use super::listener::{Cut, until_stop};
use super::metrics::Metrics;
use crate::control::http::{APISERVER_LIMIT, Failure, FailureKind};

/// The service that machines speak to.
pub const SERVICE: &str = "metalstack.infra.v2.BootService";
/// Its methods that a machine needs; all others are for infrastructure tokens.
const METHODS: [&str; 5] = [
    "SuperUserPassword",
    "Register",
    WAIT,
    "InstallationSucceeded",
    "SendEvent",
];
/// The one that streams.
const WAIT: &str = "Wait";
/// Largest request, bytes. A Register with hundreds of disks and NICs has some 200 kB.
const REQUEST_LIMIT: usize = 1 << 20;
/// Largest answer to one Wait, bytes: a few allocations.
const WAIT_LIMIT: usize = 4 * APISERVER_LIMIT;
/// From a request's head to its last byte, and from there to an answer's last byte. A Wait's
/// answer has no deadline: the server may be silent until it has an allocation to give.
const DEADLINE: Duration = Duration::from_secs(30);
/// Headers that say something to the apiserver. All others, above all those that belong to
/// one connection (RFC 9110 §7.6.1), end here.
const REQUEST_HEADERS: [HeaderName; 6] = [
    ACCEPT,
    ACCEPT_ENCODING,
    AUTHORIZATION,
    CONTENT_ENCODING,
    CONTENT_TYPE,
    USER_AGENT,
];
/// Headers that say something to the machine. The date is the server's clock, by which it
/// judges its allocation.
const ANSWER_HEADERS: [HeaderName; 4] = [CONTENT_ENCODING, CONTENT_TYPE, DATE, RETRY_AFTER];
/// Beginnings of the Connect protocol's own headers.
const CONNECT: [&str; 2] = ["connect-", "trailer-"];

/// The way to the apiserver.
#[derive(Debug, Clone)]
pub struct Proxy {
    client: reqwest::Client,
    base: String,
    metrics: Arc<Metrics>,
    stop: watch::Receiver<bool>,
}

/// A machine's call.
pub struct Call {
    pub method: &'static str,
    pub headers: HeaderMap,
    pub body: Body,
}

impl Call {
    #[must_use]
    pub fn new(method: &'static str, headers: HeaderMap, body: Body) -> Self {
        Self {
            method,
            headers,
            body,
        }
    }
}

/// The method of this name, if machines may call it.
#[must_use]
pub fn method(name: &str) -> Option<&'static str> {
    METHODS.into_iter().find(|method| *method == name)
}

impl Proxy {
    /// Passes calls on to the apiserver at `base`.
    #[must_use]
    pub fn new(
        client: reqwest::Client,
        base: &Url,
        metrics: Arc<Metrics>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        Self {
            client,
            base: base.as_str().trim_end_matches('/').to_owned(),
            metrics,
            stop,
        }
    }

    /// Passes one call on. The answer is the apiserver's, or an error as Connect has it.
    ///
    /// The future, and the body of its answer, may be dropped at any time: the call to the
    /// apiserver ends with them.
    pub async fn pass(&self, call: Call) -> Response {
        let Call {
            method,
            headers,
            body,
        } = call;
        if !headers.contains_key(AUTHORIZATION) {
            let status = StatusCode::UNAUTHORIZED;
            return error(status, "unauthenticated", "no machine token was sent");
        }
        let text = format!("{}/{SERVICE}/{method}", self.base);
        let Ok(url) = Url::parse(&text) else {
            return error(StatusCode::BAD_GATEWAY, "internal", "no such URL");
        };
        let is_wait = method == WAIT;
        // A Wait is open for days; what came with it is not kept for as long.
        let headers = {
            let received = headers;
            let mut headers = kept(&received, &REQUEST_HEADERS);
            // A stream has no length of its own.
            if let Some(length) = body.size_hint().exact() {
                headers.insert(CONTENT_LENGTH, length.into());
            }
            headers
        };
        let body = Limited::new(Timed::new(body, Some(DEADLINE)), REQUEST_LIMIT);
        let body = Body::new(body).into_data_stream();
        let sending = self
            .client
            .post(url.clone())
            .headers(headers)
            .body(reqwest::Body::wrap_stream(body))
            .send();
        if !is_wait {
            return match tokio::time::timeout(2 * DEADLINE, sending).await {
                Ok(Ok(answer)) => passed_on(answer, APISERVER_LIMIT, Some(DEADLINE)),
                Ok(Err(error)) => unreached(&Failure::new(&url, &error), is_wait),
                Err(_) => error(
                    StatusCode::GATEWAY_TIMEOUT,
                    "deadline_exceeded",
                    "the apiserver did not answer in time",
                ),
            };
        }
        let _open = Counted::new(&self.metrics);
        let answer = match until_stop(&self.stop, sending).await {
            // The machine opens its next Wait at another instance.
            None => return cut(),
            Some(Ok(answer)) => answer,
            Some(Err(error)) => return unreached(&Failure::new(&url, &error), is_wait),
        };
        let mut answer = passed_on(answer, WAIT_LIMIT, None);
        let body = std::mem::take(answer.body_mut());
        *answer.body_mut() = Body::new(Guarded {
            inner: body,
            stop: Box::pin({
                let mut stop = self.stop.clone();
                async move {
                    // A sender that is gone stops it as well.
                    let _ = stop.wait_for(|stop| *stop).await;
                }
            }),
            _open: Counted::new(&self.metrics),
        });
        answer
    }
}

/// A Wait in the metrics for as long as it is open.
struct Counted(Arc<Metrics>);

impl Counted {
    fn new(metrics: &Arc<Metrics>) -> Self {
        metrics.waits.add(1);
        Self(metrics.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.waits.subtract(1);
    }
}

/// Copies: a value as it was received keeps the whole buffer alive that it was read into.
fn kept(headers: &HeaderMap, names: &[HeaderName]) -> HeaderMap {
    let wanted = |name: &HeaderName| {
        let text = name.as_str();
        names.contains(name) || CONNECT.iter().any(|start| text.starts_with(start))
    };
    headers
        .iter()
        .filter(|(name, _)| wanted(name))
        .filter_map(|(name, value)| {
            let mut value = HeaderValue::from_bytes(value.as_bytes()).ok()?;
            value.set_sensitive(*name == AUTHORIZATION);
            let name = HeaderName::from_bytes(name.as_str().as_bytes()).ok()?;
            Some((name, value))
        })
        .collect()
}

fn passed_on(answer: reqwest::Response, limit: usize, deadline: Option<Duration>) -> Response {
    let answer: axum::http::Response<reqwest::Body> = answer.into();
    let (parts, body) = answer.into_parts();
    // Statuses below 200 are the connection's, and redirects lead where a machine cannot go.
    if parts.status.is_informational() || parts.status.is_redirection() {
        let text = format!("the apiserver answered HTTP {}", parts.status.as_u16());
        return error(StatusCode::BAD_GATEWAY, "unavailable", &text);
    }
    let mut response = Response::new(Body::new(Limited::new(Timed::new(body, deadline), limit)));
    *response.status_mut() = parts.status;
    *response.headers_mut() = kept(&parts.headers, &ANSWER_HEADERS);
    response
}

/// What a machine sees when there is no answer.
fn unreached(failure: &Failure, is_wait: bool) -> Response {
    match failure.kind {
        // How a Wait usually ends (contracts.md §4): the machine sees what the server did.
        FailureKind::Cut | FailureKind::Dead if is_wait => cut(),
        _ => {
            tracing::warn!("{failure}");
            let text = format!("the apiserver {}", failure.kind);
            error(StatusCode::SERVICE_UNAVAILABLE, "unavailable", &text)
        }
    }
}

fn cut() -> Response {
    let mut response = StatusCode::BAD_GATEWAY.into_response();
    response.extensions_mut().insert(Cut);
    response
}

/// An error as Connect servers send it for unary calls; before a stream has begun it is one
/// for streams too.
#[must_use]
pub fn error(status: StatusCode, code: &str, message: &str) -> Response {
    let body = axum::Json(serde_json::json!({ "code": code, "message": message }));
    let mut response = (status, body).into_response();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        let wait = HeaderValue::from_static(super::refusal::RETRY_AFTER_SECONDS);
        response.headers_mut().insert(RETRY_AFTER, wait);
    }
    response
}

/// A body that took too long.
#[derive(Debug, Error)]
#[error("the body did not arrive in time")]
struct TooSlow;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body that has to be complete after some time.
struct Timed<B> {
    inner: Pin<Box<B>>,
    end: Option<Pin<Box<Sleep>>>,
}

impl<B> Timed<B> {
    fn new(inner: B, limit: Option<Duration>) -> Self {
        Self {
            inner: Box::pin(inner),
            end: limit.map(|limit| Box::pin(tokio::time::sleep(limit))),
        }
    }
}

impl<B: HttpBody<Data = Bytes, Error: Into<BoxError>>> HttpBody for Timed<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(end) = &mut self.end
            && end.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Some(Err(TooSlow.into())));
        }
        let frame = self.inner.as_mut().poll_frame(context);
        frame.map(|frame| frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A Wait's answer: it ends with the helper, and is counted until then.
struct Guarded {
    inner: Body,
    stop: Pin<Box<dyn Future<Output = ()> + Send>>,
    _open: Counted,
}

impl HttpBody for Guarded {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(context);
        if frame.is_pending() && self.stop.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Err("the boot helper ends".into())));
        }
        frame.map(|frame| frame.map(|frame| frame.map_err(Into::into)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_methods_and_no_other() {
        for name in METHODS {
            assert_eq!(method(name), Some(name));
        }
        for name in [
            "MachineToken",
            "Boot",
            "Dhcp",
            "wait",
            "Wait/",
            "",
            "Create",
        ] {
            assert_eq!(method(name), None, "{name}");
        }
    }

    #[tokio::test]
    async fn a_call_without_a_token_goes_nowhere() {
        let client = crate::control::http::proxy_client(crate::control::http::Trust::Public);
        let (_stop, stopped) = watch::channel(false);
        // Nobody listens there: a call that went on would be answered with 503.
        let base = "http://[::1]:9".parse().unwrap();
        let proxy = Proxy::new(client.unwrap(), &base, Arc::default(), stopped);
        let call = Call::new("Register", HeaderMap::new(), Body::empty());
        assert_eq!(proxy.pass(call).await.status(), StatusCode::UNAUTHORIZED);
        let token = HeaderValue::from_static("Bearer x");
        let headers = HeaderMap::from_iter([(AUTHORIZATION, token)]);
        let call = Call::new("Register", headers, Body::empty());
        let status = proxy.pass(call).await.status();
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    }

    #[tokio::test]
    async fn redirects_and_endless_answers_end_here() {
        let answer = |status: u16, body: &'static str| {
            let answer = axum::http::Response::builder().status(status).body(body);
            passed_on(reqwest::Response::from(answer.unwrap()), 4, None)
        };
        for (status, expected) in [(200, 200), (404, 404), (301, 502), (307, 502)] {
            assert_eq!(answer(status, "").status().as_u16(), expected, "{status}");
        }
        let read = async |body| axum::body::to_bytes(answer(200, body).into_body(), 100).await;
        assert_eq!(read("1234").await.unwrap(), "1234");
        assert!(read("12345").await.is_err());
    }

    #[test]
    fn headers_that_belong_to_a_connection_end_here() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer machine-s3cret"),
            ("content-type", "application/json"),
            ("connect-protocol-version", "1"),
            ("connection", "keep-alive, x-own"),
            ("keep-alive", "timeout=5"),
            ("x-own", "1"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("proxy-authorization", "Basic eA=="),
            ("host", "h"),
            ("cookie", "a=b"),
            ("x-forwarded-for", "::1"),
            ("content-length", "3"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let kept = kept(&headers, &REQUEST_HEADERS);
        let mut names: Vec<&str> = kept.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        let expected = ["authorization", "connect-protocol-version", "content-type"];
        assert_eq!(names, expected);
        assert!(!format!("{kept:?}").contains("s3cret"));
    }
}
