//! What is answered: routes, who may use them, and what every answer carries.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Request, State};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, DATE, HOST, LOCATION};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use axum::{Json, Router};
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use tokio::sync::{Semaphore, watch};
use tracing::{debug, error, info, warn};
use url::Url;
use uuid::Uuid;

use super::binding::{Bindings, Mode, Verdict};
use super::cache::Cache;
use super::files::{self, Ask};
use super::infra::Infra;
use super::listener::Peer;
use super::metrics::Metrics;
use super::mint::Minter;
use super::proxy::{self, Proxy};
use super::ready::Readiness;
use super::refusal::{Refusal, infra_refusal, machine_of, only, too_slow};
use super::route::{OS_INSTALLER, Route};
use super::source::{Prefix, RateLimit};
use super::{ipxe, secret_file};
use crate::control::HelperAnswer;
use crate::control::text::printable;
use crate::image::checksum::Expected;
use crate::image::root::RootDir;

/// Calls to the apiserver with the helper's own token at once.
const CALLS: usize = 64;
/// From a complete request to its answer.
const DEADLINE: Duration = Duration::from_secs(25);
/// Who was waited for, and how long (W3C Server Timing).
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// What the answers are made of.
pub struct Helper {
    /// The answer of `/config` without a token.
    pub template: HelperAnswer,
    pub partition: String,
    pub public_url: Option<Url>,
    pub infra: Infra,
    pub minter: Minter,
    /// From which prefixes machines come; empty: from any.
    pub allowed: Arc<[Prefix]>,
    /// File with the tickets, when machines need one.
    pub tickets: Option<PathBuf>,
    pub bindings: Bindings,
    /// For what costs a call with the helper's own token.
    pub rate: RateLimit,
    /// For what costs a call to somebody else.
    pub proxy_rate: RateLimit,
    pub proxy: Option<Proxy>,
    pub statics: Option<Arc<RootDir>>,
    pub cache: Option<Arc<Cache>>,
    /// Where `/image/` leads when there is no cache here.
    pub image_cache: Option<Url>,
    /// Where the installer for images that ship none is, and what it is.
    pub installer: Option<(Url, Expected)>,
    pub readiness: Readiness,
    pub metrics: Arc<Metrics>,
    pub stop: watch::Receiver<bool>,
}

struct Shared {
    helper: Helper,
    /// What costs a call with the helper's own token.
    calls: Semaphore,
}

type State_ = State<Arc<Shared>>;

/// The routes.
pub fn router(helper: Helper) -> Router {
    let shared = Arc::new(Shared {
        helper,
        calls: Semaphore::new(CALLS),
    });
    Router::new()
        .route("/config/{uuid}", any(config))
        .route("/boot.ipxe", any(own_script))
        .route("/{partition}/boot.ipxe", any(script_of))
        .route(&format!("/{}/{{method}}", proxy::SERVICE), any(proxied))
        .route("/static/{*path}", any(static_file))
        .route("/image/{*path}", any(image))
        .route(OS_INSTALLER, any(installer))
        .route("/healthz", any(|| async { "alive\n" }))
        .route("/readyz", any(ready))
        .route("/metrics", any(metrics))
        .fallback(nothing)
        .layer(middleware::from_fn_with_state(shared.clone(), gate))
        .with_state(shared)
}

/// In front of every route: prefixes and rates. Behind it: date, caching, log, metrics.
async fn gate(
    State(shared): State_,
    Extension(Peer(peer)): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let begin = Instant::now();
    let helper = &shared.helper;
    let route = Route::of(request.uri().path());
    let method = request.method().clone();
    let path = printable(request.uri().path(), 128);
    let response = match helper.admit(route, peer) {
        Ok(()) => next.run(request).await,
        Err(refusal) => {
            if let Some(kind) = refusal.kind {
                helper.metrics.refused(kind);
            }
            warn!(%peer, route = route.name(), "refused: {}", refusal.reason);
            refusal.answer(route)
        }
    };
    let status = response.status();
    helper.metrics.answered(route.name(), status.as_u16());
    if route == Route::Config {
        helper.metrics.config.observe(begin.elapsed());
    }
    let millis = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
    let status_number = status.as_u16();
    if route.is_for_machines() {
        info!(%peer, %method, path, status = status_number, millis, "answered");
    } else {
        debug!(%peer, %method, path, status = status_number, "answered");
    }
    finish(route, response)
}

/// What every answer carries.
fn finish(route: Route, mut response: Response) -> Response {
    let headers = response.headers_mut();
    // A proxied answer's date is the apiserver's, by which a machine judges its allocation:
    // this host's clock never stands in for it.
    if route != Route::Proxy
        && let Ok(date) = DateTimePrinter::new().timestamp_to_rfc9110_string(&Timestamp::now())
        && let Ok(date) = HeaderValue::from_str(&date)
    {
        headers.insert(DATE, date);
    }
    if !matches!(route, Route::Static | Route::Image) {
        // No cache may keep a token.
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}

impl Helper {
    /// Whether a source may use a route now.
    fn admit(&self, route: Route, peer: std::net::SocketAddrV6) -> Result<(), Refusal> {
        let address = *peer.ip();
        if !route.is_for_machines() {
            return Ok(());
        }
        let is_allowed =
            self.allowed.is_empty() || self.allowed.iter().any(|prefix| prefix.contains(address));
        if !is_allowed {
            let reason = "this address is in none of the prefixes that machines come from";
            return Err(Refusal::early(StatusCode::FORBIDDEN, "prefix", reason));
        }
        let rate = match route {
            Route::Config | Route::Script => &self.rate,
            Route::Proxy | Route::Image => &self.proxy_rate,
            _ => return Ok(()),
        };
        rate.take(address, Instant::now()).map_err(|pause| Refusal {
            retry_after: Some(pause),
            ..Refusal::early(StatusCode::TOO_MANY_REQUESTS, "rate", "too many requests")
        })
    }

    /// Whether the request shows a ticket, where one is needed.
    async fn check_ticket(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let Some(file) = &self.tickets else {
            return Ok(());
        };
        let tickets = secret_file::read(file).await.map_err(|error| {
            Refusal::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("tickets: {error}"),
            )
        })?;
        if secret_file::shows_ticket(headers.get(AUTHORIZATION), &tickets) {
            return Ok(());
        }
        let reason = "a ticket is needed here; put metal_ticket into the medium's metal.config";
        Err(Refusal::early(StatusCode::UNAUTHORIZED, "ticket", reason))
    }

    /// Whether this source may ask for this machine.
    fn check_binding(&self, machine: Uuid, peer: std::net::SocketAddrV6) -> Result<(), Refusal> {
        let enforced = self.bindings.mode() == Mode::Enforce;
        let reason = match self.bindings.judge(machine, *peer.ip(), Instant::now()) {
            Verdict::Good => return Ok(()),
            Verdict::Elsewhere(first) => format!("this machine's UUID belongs to {first}"),
            Verdict::TooMany => "this source has asked for too many machines".into(),
        };
        if enforced {
            return Err(Refusal::early(StatusCode::FORBIDDEN, "binding", reason));
        }
        warn!(%peer, %machine, "{reason}; answered all the same (--bind log)");
        Ok(())
    }
}

async fn config(
    State(shared): State_,
    Extension(Peer(peer)): Extension<Peer>,
    method: Method,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Response {
    let text = path.map(|Path(text)| text).unwrap_or_default();
    let outcome = async {
        only(&method, &Method::GET)?;
        let machine = machine_of(&text)?;
        shared.helper.check_ticket(&headers).await?;
        shared.helper.check_binding(machine, peer)?;
        shared.token(machine).await
    };
    let machine = printable(&text, 64);
    match outcome.await {
        Ok((answer, waited)) => {
            shared.helper.metrics.tokens.add(1);
            info!(%peer, machine, "token given");
            let millis = waited.as_secs_f64() * 1000.0;
            let timing = HeaderValue::from_str(&format!("apiserver;dur={millis:.1}"));
            let mut response = Json(answer).into_response();
            if let Ok(timing) = timing {
                response.headers_mut().insert(SERVER_TIMING, timing);
            }
            response
        }
        Err(refusal) => shared.refuse(Route::Config, peer, &format!("machine {machine}"), refusal),
    }
}

impl Shared {
    /// What a request is to be passed on as; nothing else of it is kept.
    fn call(&self, name: &str, request: Request) -> Result<(&Proxy, proxy::Call), Refusal> {
        let missing = |reason| Refusal::early(StatusCode::NOT_FOUND, "method", reason);
        let proxy = self.helper.proxy.as_ref();
        let proxy = proxy.ok_or_else(|| missing("this helper is no proxy (--proxy-apiserver)"))?;
        let method =
            proxy::method(name).ok_or_else(|| missing("this is no method for machines"))?;
        only(request.method(), &Method::POST)?;
        let (parts, body) = request.into_parts();
        Ok((proxy, proxy::Call::new(method, parts.headers, body)))
    }

    /// The answer with a token, and how long the apiserver took for it.
    async fn token(&self, machine: Uuid) -> Result<(HelperAnswer, Duration), Refusal> {
        let helper = &self.helper;
        let minted = tokio::time::timeout(DEADLINE, async {
            // Nobody closes the semaphore; if it were closed there would be no bound to keep.
            let _permit = self.calls.acquire().await.ok();
            let begin = Instant::now();
            let minted = helper.minter.mint(machine).await;
            let waited = begin.elapsed();
            helper.metrics.apiserver.observe(waited);
            (minted, waited)
        });
        let (minted, waited) = minted.await.map_err(|_| too_slow())?;
        let minted = minted.map_err(|error| infra_refusal(&error))?;
        let answer = HelperAnswer {
            metal_apiserver_token_for_hammer: Some(minted.secret),
            ..helper.template.clone()
        };
        Ok((answer, waited))
    }

    /// Logs a refusal and answers with it.
    fn refuse(
        &self,
        route: Route,
        peer: std::net::SocketAddrV6,
        what: &str,
        refusal: Refusal,
    ) -> Response {
        if let Some(kind) = refusal.kind {
            self.helper.metrics.refused(kind);
        }
        let (status, reason) = (refusal.status, &refusal.reason);
        if status.is_server_error() {
            error!(%peer, "{what}: {status}: {reason}");
        } else {
            warn!(%peer, "{what}: {status}: {reason}");
        }
        refusal.answer(route)
    }
}

async fn own_script(
    state: State_,
    peer: Extension<Peer>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let partition = state.helper.partition.clone();
    script(state, peer, &partition, &method, &uri, &headers).await
}

async fn script_of(
    state: State_,
    peer: Extension<Peer>,
    partition: Result<Path<String>, PathRejection>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let partition = partition.map(|Path(text)| text).unwrap_or_default();
    script(state, peer, &partition, &method, &uri, &headers).await
}

async fn script(
    State(shared): State_,
    Extension(Peer(peer)): Extension<Peer>,
    partition: &str,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
) -> Response {
    let helper = &shared.helper;
    let outcome = async {
        only(method, &Method::GET)?;
        let wrong = |reason| Refusal::early(StatusCode::BAD_REQUEST, "script", reason);
        if !ipxe::is_partition(partition) {
            return Err(wrong("this is no partition's name"));
        }
        let Some(asker) = ipxe::asker(uri.query()).map_err(wrong)? else {
            return Ok(ipxe::introduction());
        };
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        let base = helper.public_url.clone().or_else(|| ipxe::base_of(host));
        let script = tokio::time::timeout(DEADLINE, async {
            // As in `token`.
            let _permit = shared.calls.acquire().await.ok();
            ipxe::script(&helper.infra, partition, &asker, base.as_ref()).await
        });
        let script = script.await.map_err(|_| too_slow())?;
        script.map_err(|error| match &error {
            ipxe::ScriptError::Infra(inner) => infra_refusal(inner),
            ipxe::ScriptError::Unusable { .. } => {
                Refusal::new(StatusCode::BAD_GATEWAY, error.to_string())
            }
        })
    };
    match outcome.await {
        Ok(text) => ([(CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response(),
        Err(refusal) => shared.refuse(Route::Script, peer, "boot.ipxe", refusal),
    }
}

async fn proxied(
    State(shared): State_,
    Extension(Peer(peer)): Extension<Peer>,
    Path(name): Path<String>,
    request: Request,
) -> Response {
    match shared.call(&name, request) {
        Ok((proxy, call)) => proxy.pass(call).await,
        Err(refusal) => shared.refuse(Route::Proxy, peer, &printable(&name, 64), refusal),
    }
}

async fn static_file(
    State(shared): State_,
    uri: Uri,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let Some(root) = &shared.helper.statics else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let path = uri.path().strip_prefix("/static/").unwrap_or_default();
    let ask = Ask::new(&method, &headers);
    files::serve(root.clone(), path, ask).await
}

async fn image(State(shared): State_, uri: Uri, method: Method, headers: HeaderMap) -> Response {
    let path = uri.path().strip_prefix("/image/").unwrap_or_default();
    let helper = &shared.helper;
    if let Some(cache) = helper.cache.as_ref().filter(|cache| cache.has_images()) {
        let ask = Ask::new(&method, &headers);
        return cache.clone().serve(path, ask).await;
    }
    let Some(cache) = helper
        .image_cache
        .as_ref()
        .filter(|_| files::below(path).is_some())
    else {
        return StatusCode::NOT_FOUND.into_response();
    };
    if method != Method::GET && method != Method::HEAD {
        return files::not_allowed();
    }
    let to = format!("{}/{path}", cache.as_str().trim_end_matches('/'));
    match HeaderValue::from_str(&to) {
        Ok(to) => (StatusCode::TEMPORARY_REDIRECT, [(LOCATION, to)]).into_response(),
        Err(_) => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn installer(State(shared): State_, method: Method, headers: HeaderMap) -> Response {
    let helper = &shared.helper;
    let (Some(cache), Some((url, expected))) = (&helper.cache, &helper.installer) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let ask = Ask::new(&method, &headers);
    cache.clone().serve_known(url, expected.clone(), ask).await
}

async fn ready(State(shared): State_) -> Response {
    let helper = &shared.helper;
    if *helper.stop.borrow() {
        return (StatusCode::SERVICE_UNAVAILABLE, "ending\n").into_response();
    }
    match helper.readiness.ask().await {
        Ok(()) => "ready\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn metrics(State(shared): State_) -> Response {
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(CONTENT_TYPE, kind)], shared.helper.metrics.text()).into_response()
}

async fn nothing(
    State(shared): State_,
    Extension(Peer(peer)): Extension<Peer>,
    uri: Uri,
) -> Response {
    let route = Route::of(uri.path());
    let reason = "nothing here; a machine's configuration is at /config/{uuid}";
    let refusal = Refusal::early(StatusCode::NOT_FOUND, "path", reason);
    shared.refuse(route, peer, "no such path", refusal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxied_answer_has_no_date_of_this_host() {
        for (route, dated) in [
            (Route::Proxy, false),
            (Route::Config, true),
            (Route::Image, true),
        ] {
            let response = finish(route, StatusCode::OK.into_response());
            assert_eq!(response.headers().contains_key(DATE), dated, "{route:?}");
        }
    }
}
