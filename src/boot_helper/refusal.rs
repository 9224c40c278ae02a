//! What is not served: why, and how machines and the apiserver's clients are told.

use std::time::Duration;

use axum::Json;
use axum::http::header::{ALLOW, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use uuid::Uuid;

use super::infra::InfraError;
use super::proxy;
use super::route::Route;
use crate::control::retry;

/// What a machine is told to wait when the apiserver does not answer, seconds.
pub const RETRY_AFTER_SECONDS: &str = "5";

/// A request that is not served.
#[derive(Debug)]
pub struct Refusal {
    pub status: StatusCode,
    pub reason: String,
    /// For [`Metrics::refused`], where nothing was done for it.
    pub kind: Option<&'static str>,
    pub retry_after: Option<Duration>,
}

impl Refusal {
    pub fn new(status: StatusCode, reason: impl Into<String>) -> Self {
        Self {
            status,
            reason: reason.into(),
            kind: None,
            retry_after: None,
        }
    }

    pub fn early(status: StatusCode, kind: &'static str, reason: impl Into<String>) -> Self {
        Self {
            kind: Some(kind),
            ..Self::new(status, reason)
        }
    }

    /// As machines read it: the agent's boot helper client, or its Connect client.
    pub fn answer(self, route: Route) -> Response {
        let Self { status, reason, .. } = self;
        let mut response = if route == Route::Proxy {
            let code = match status {
                StatusCode::FORBIDDEN => "permission_denied",
                StatusCode::TOO_MANY_REQUESTS => "resource_exhausted",
                _ => "unimplemented",
            };
            proxy::error(status, code, &reason)
        } else {
            (status, Json(serde_json::json!({ "error": reason }))).into_response()
        };
        let headers = response.headers_mut();
        if let Some(pause) = self.retry_after {
            headers.insert(RETRY_AFTER, (pause.as_secs() + 1).into());
        } else if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS));
        }
        match status {
            StatusCode::METHOD_NOT_ALLOWED => {
                let allowed = if route == Route::Proxy { "POST" } else { "GET" };
                headers.insert(ALLOW, HeaderValue::from_static(allowed));
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response
    }
}

pub fn only(method: &Method, allowed: &Method) -> Result<(), Refusal> {
    if method == allowed {
        return Ok(());
    }
    let reason = format!("only {allowed} is served here");
    Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, reason))
}

/// A machine's UUID exactly as contracts.md §3 writes it, and one that can be a machine's:
/// boards without an identity report all zeros or all ones.
pub fn machine_of(text: &str) -> Result<Uuid, Refusal> {
    let wrong = |reason: &str| Refusal::early(StatusCode::BAD_REQUEST, "uuid", reason);
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

/// The status for what the apiserver did not do.
#[must_use]
pub fn status_of(error: &InfraError) -> StatusCode {
    match error {
        InfraError::TokenFile(_) => StatusCode::INTERNAL_SERVER_ERROR,
        InfraError::Apiserver(inner) if matches!(inner.verdict(), retry::Verdict::Retry(_)) => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        InfraError::Apiserver(_) | InfraError::NoSecret(_) => StatusCode::BAD_GATEWAY,
    }
}

/// What a machine is told when the apiserver did nothing for it.
pub fn infra_refusal(error: &InfraError) -> Refusal {
    let reason = match error {
        InfraError::Apiserver(inner) if inner.is_unauthenticated() => {
            format!("the apiserver refuses the boot helper's own token; replace it: {inner}")
        }
        _ => error.to_string(),
    };
    Refusal::new(status_of(error), reason)
}

pub fn too_slow() -> Refusal {
    let reason = "the apiserver did not answer in time";
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_machines_uuid_is_a_uuid() {
        let good = "7b0b6ad5-6a4f-4f7e-a0e7-0c2a8a8f8f10";
        assert_eq!(machine_of(good).unwrap().to_string(), good);
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
            let refusal = machine_of(wrong).unwrap_err();
            assert_eq!(refusal.status, StatusCode::BAD_REQUEST, "{wrong:?}");
        }
    }
}
