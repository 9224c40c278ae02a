//! Calls to metal-apiserver with the helper's own token, which never leaves this file.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::secret_file::{self, SecretFileError};
use crate::control::Error as ApiserverError;
use crate::control::code::Code;
use crate::control::connect::{Call, Connect};
use crate::control::retry::{self, Policy};

/// Shorter than a request's own deadline: a machine is better told to come again.
const POLICY: Policy = Policy {
    base: Duration::from_millis(200),
    cap: Duration::from_secs(1),
    attempt: Duration::from_secs(8),
    budget: Duration::from_secs(15),
};

/// Why the apiserver did nothing for this helper.
#[derive(Debug, Error)]
pub enum InfraError {
    #[error("the helper's own token: {0}")]
    TokenFile(#[from] SecretFileError),
    #[error(transparent)]
    Apiserver(#[from] ApiserverError),
    #[error("{0} answered without a secret")]
    NoSecret(String),
}

impl InfraError {
    /// Whether the server does not know the method: Connect servers say `unimplemented`, their
    /// HTTP routers 404, a proxy 501.
    #[must_use]
    pub fn is_missing_method(&self) -> bool {
        match self {
            Self::Apiserver(ApiserverError::Refused { code, .. }) => *code == Code::Unimplemented,
            Self::Apiserver(ApiserverError::NotConnect { status, .. }) => {
                matches!(status, 404 | 501)
            }
            _ => false,
        }
    }
}

/// The apiserver as this helper sees it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Infra {
    connect: Connect,
    token_file: PathBuf,
    policy: Policy,
}

impl Infra {
    /// Shows the token in `token_file` to the apiserver behind `connect`.
    #[must_use]
    pub fn new(connect: Connect, token_file: PathBuf) -> Self {
        Self {
            connect,
            token_file,
            policy: POLICY,
        }
    }

    #[cfg(test)]
    pub(super) fn with_budget(mut self, budget: Duration) -> Self {
        self.policy.budget = budget;
        self
    }

    /// The URL of a method, as it may be shown.
    #[must_use]
    pub fn shown_url(&self, method: &str) -> String {
        self.connect.shown_url(method)
    }

    /// Calls a method, again and again while that may help, for 15 s at most.
    ///
    /// # Errors
    /// Any [`InfraError`].
    pub async fn call<Q: Serialize + Sync, A: DeserializeOwned>(
        &self,
        method: &str,
        request: &Q,
    ) -> Result<A, InfraError> {
        let token = secret_file::read(&self.token_file).await?;
        let answer = retry::run(
            self.policy,
            method,
            ApiserverError::verdict,
            async |deadline| {
                let call = Call {
                    method,
                    token: &token,
                    sent: None,
                };
                self.connect.unary(call, request, deadline).await
            },
        );
        Ok(answer.await?.message)
    }
}
