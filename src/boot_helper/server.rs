//! `GET /config/{uuid}`, and nothing else.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::header::{ALLOW, CACHE_CONTROL, CONNECTION, RETRY_AFTER};
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use axum::{Json, Router};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tracing::{error, info, warn};
use uuid::Uuid;

use super::listener::{Bounded, Peer};
use super::mint::{MintError, Minter};
use crate::control::HelperAnswer;
use crate::control::retry::Verdict;
use crate::control::text::printable;

/// Connections at once; a rack row that powers on together needs a few dozen.
const CONNECTIONS: usize = 512;
/// Calls to the apiserver at once.
const MINTING: usize = 64;
/// A connection carries one request: reading, minting, answering.
const LIFETIME: Duration = Duration::from_secs(40);
/// From a complete request to its answer.
const DEADLINE: Duration = Duration::from_secs(25);
/// What a machine is told to wait when the apiserver does not answer, seconds.
const RETRY_AFTER_SECONDS: &str = "5";

struct Helper {
    /// The answer without a token.
    template: HelperAnswer,
    minter: Minter,
    minting: Semaphore,
}

/// Serves until `stop` becomes true and the requests under way are answered.
///
/// # Errors
/// A listener that fails for good.
pub async fn serve(
    listener: TcpListener,
    template: HelperAnswer,
    minter: Minter,
    mut stop: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let helper = Arc::new(Helper {
        template,
        minter,
        minting: Semaphore::new(MINTING),
    });
    let router = Router::new()
        .route("/config/{uuid}", any(config))
        .fallback(nothing)
        .with_state(helper);
    let service = router.into_make_service_with_connect_info::<Peer>();
    axum::serve(Bounded::new(listener, CONNECTIONS, LIFETIME), service)
        .with_graceful_shutdown(async move {
            // A sender that is gone has nobody left to serve for either.
            let _ = stop.wait_for(|stop| *stop).await;
        })
        .await
}

/// Why a request is not answered with a configuration.
struct Refusal {
    status: StatusCode,
    reason: String,
}

async fn config(
    State(helper): State<Arc<Helper>>,
    ConnectInfo(Peer(peer)): ConnectInfo<Peer>,
    method: Method,
    path: Result<Path<String>, PathRejection>,
) -> Response {
    let text = path.map(|Path(text)| text).unwrap_or_default();
    if method != Method::GET {
        let mut response = refuse(StatusCode::METHOD_NOT_ALLOWED, "only GET is served here");
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET"));
        return response;
    }
    let outcome = match machine_of(&text) {
        Ok(machine) => helper.answer(machine).await,
        Err(refusal) => Err(refusal),
    };
    let shown = printable(&text, 64);
    match outcome {
        Ok(answer) => {
            info!("{peer} machine {shown}: token given");
            finish(Json(answer).into_response())
        }
        Err(refusal) if refusal.status.is_server_error() => {
            error!(
                "{peer} machine {shown}: {}: {}",
                refusal.status, refusal.reason
            );
            refuse(refusal.status, &refusal.reason)
        }
        Err(refusal) => {
            warn!(
                "{peer} machine {shown}: {}: {}",
                refusal.status, refusal.reason
            );
            refuse(refusal.status, &refusal.reason)
        }
    }
}

async fn nothing(ConnectInfo(Peer(peer)): ConnectInfo<Peer>, method: Method, uri: Uri) -> Response {
    let path = printable(uri.path(), 128);
    warn!("{peer} {method} {path}: nothing here");
    refuse(
        StatusCode::NOT_FOUND,
        "nothing here; a machine's configuration is at /config/{uuid}",
    )
}

impl Helper {
    async fn answer(&self, machine: Uuid) -> Result<HelperAnswer, Refusal> {
        let minted = tokio::time::timeout(DEADLINE, async {
            // Nobody closes the semaphore; if it were closed there would be no bound to keep.
            let _permit = self.minting.acquire().await.ok();
            self.minter.mint(machine).await
        })
        .await;
        let token = match minted {
            Ok(Ok(token)) => token,
            Ok(Err(error)) => return Err(refusal(&error)),
            Err(_) => {
                return Err(Refusal {
                    status: StatusCode::SERVICE_UNAVAILABLE,
                    reason: "the apiserver did not answer in time".into(),
                });
            }
        };
        Ok(HelperAnswer {
            metal_apiserver_token_for_hammer: Some(token),
            ..self.template.clone()
        })
    }
}

/// A machine's UUID exactly as contracts.md §3 writes it, and one that can be a machine's:
/// boards without an identity report all zeros or all ones.
fn machine_of(text: &str) -> Result<Uuid, Refusal> {
    let wrong = |reason: &str| Refusal {
        status: StatusCode::BAD_REQUEST,
        reason: reason.into(),
    };
    let uuid = Uuid::parse_str(text)
        .ok()
        .filter(|uuid| uuid.hyphenated().to_string() == text)
        .ok_or_else(|| wrong("expected /config/ and a UUID in lower-case RFC 4122 text"))?;
    if uuid.is_nil() || uuid.is_max() {
        return Err(wrong(
            "this UUID is no machine's: the board has no identity; set its UUID in the firmware",
        ));
    }
    Ok(uuid)
}

/// What a machine is told when there is no token for it.
fn refusal(error: &MintError) -> Refusal {
    let (status, reason) = match error {
        MintError::TokenFile { .. } => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        MintError::Apiserver(inner) if inner.is_unauthenticated() => (
            StatusCode::BAD_GATEWAY,
            format!("the apiserver refuses the boot helper's own token; replace it: {inner}"),
        ),
        MintError::Apiserver(inner) if matches!(inner.verdict(), Verdict::Retry(_)) => {
            (StatusCode::SERVICE_UNAVAILABLE, error.to_string())
        }
        MintError::Apiserver(_) | MintError::NoSecret(_) => {
            (StatusCode::BAD_GATEWAY, error.to_string())
        }
    };
    Refusal { status, reason }
}

fn refuse(status: StatusCode, reason: &str) -> Response {
    let body = Json(serde_json::json!({ "error": reason }));
    let mut response = finish((status, body).into_response());
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS));
    }
    response
}

/// No cache may keep a token; no machine needs a second request.
fn finish(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_machines_uuid_is_a_uuid() {
        let good = "7b0b6ad5-6a4f-4f7e-a0e7-0c2a8a8f8f10";
        assert_eq!(machine_of(good).ok().unwrap().to_string(), good);
        for wrong in [
            "",
            "7B0B6AD5-6A4F-4F7E-A0E7-0C2A8A8F8F10",
            "7b0b6ad56a4f4f7ea0e70c2a8a8f8f10",
            "{7b0b6ad5-6a4f-4f7e-a0e7-0c2a8a8f8f10}",
            "urn:uuid:7b0b6ad5-6a4f-4f7e-a0e7-0c2a8a8f8f10",
            " 7b0b6ad5-6a4f-4f7e-a0e7-0c2a8a8f8f10",
            "../7b0b6ad5-6a4f-4f7e-a0e7-0c2a8a8f8f10",
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
        ] {
            let refusal = machine_of(wrong).err().unwrap();
            assert_eq!(refusal.status, StatusCode::BAD_REQUEST, "{wrong:?}");
        }
    }
}
