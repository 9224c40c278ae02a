//! Machine tokens: asked for with the helper's own token, which never leaves this file.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::io::AsyncReadExt;
use tracing::{debug, warn};
use uuid::Uuid;
use zeroize::Zeroize;

use crate::control::Error as ApiserverError;
use crate::control::code::Code;
use crate::control::connect::{Call, Connect};
use crate::control::helper_answer::secret_text;
use crate::control::retry::{self, Policy};

/// `BootService/MachineToken` of servers that have it.
const MACHINE_TOKEN: &str = "metalstack.infra.v2.BootService/MachineToken";
/// Its predecessor.
const TOKEN_CREATE: &str = "metalstack.api.v2.TokenService/Create";
/// Largest token file that is read, bytes. Tokens have a few kB.
const TOKEN_FILE_LIMIT: u64 = 64 << 10;
/// Shorter than a request's own deadline: a machine is better told to come again.
const POLICY: Policy = Policy {
    base: Duration::from_millis(200),
    cap: Duration::from_secs(1),
    attempt: Duration::from_secs(8),
    budget: Duration::from_secs(15),
};

/// Why there is no token for a machine.
#[derive(Debug, Error)]
pub enum MintError {
    #[error("the helper's own token cannot be read from {path}: {reason}", path = .path.display())]
    TokenFile { path: PathBuf, reason: String },
    #[error(transparent)]
    Apiserver(#[from] ApiserverError),
    #[error("{0} answered without a secret")]
    NoSecret(String),
}

/// Gets tokens for machines.
#[derive(Debug, Clone)]
pub struct Minter {
    connect: Connect,
    token_file: PathBuf,
    user: String,
    expiry: Duration,
    policy: Policy,
}

#[derive(Deserialize)]
struct Minted {
    #[serde(default, with = "secret_text")]
    secret: Option<SecretString>,
}

impl Minter {
    /// A minter that shows the token in `token_file` to the apiserver and asks for tokens of
    /// `user` that live for `expiry`.
    #[must_use]
    pub fn new(connect: Connect, token_file: PathBuf, user: String, expiry: Duration) -> Self {
        Self {
            connect,
            token_file,
            user,
            expiry,
            policy: POLICY,
        }
    }

    #[cfg(test)]
    pub(super) fn with_budget(mut self, budget: Duration) -> Self {
        self.policy.budget = budget;
        self
    }

    /// Says at the start what would only be noticed at the first request.
    pub fn check(&self) {
        match std::fs::metadata(&self.token_file) {
            Ok(metadata) if metadata.permissions().mode() & 0o007 != 0 => warn!(
                "{} is open to every user of this host; its mode should be 0600 or 0640",
                self.token_file.display()
            ),
            Ok(_) => {}
            Err(error) => warn!(
                "{} cannot be read yet ({error}); machines get no token until it can",
                self.token_file.display()
            ),
        }
    }

    /// A bearer token for this machine and no other.
    ///
    /// The helper's own token is read anew each time, so that it can be replaced while the
    /// helper runs.
    ///
    /// # Errors
    /// Any [`MintError`].
    pub async fn mint(&self, machine: Uuid) -> Result<SecretString, MintError> {
        let token = read_token(&self.token_file).await?;
        #[derive(Serialize)]
        struct MachineToken<'a> {
            uuid: Uuid,
            user: &'a str,
            expires: String,
        }
        let expires = format!("{}s", self.expiry.as_secs());
        let request = MachineToken {
            uuid: machine,
            user: &self.user,
            expires: expires.clone(),
        };
        let method = MACHINE_TOKEN;
        let error = match self.call::<_, Minted>(method, &token, &request).await {
            Ok(minted) => return self.secret(method, minted),
            Err(error) => error,
        };
        if !is_missing(&error) {
            return Err(error.into());
        }
        debug!("no {method} here ({error}); using {TOKEN_CREATE}");
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Create {
            description: String,
            expires: String,
            machine_roles: BTreeMap<Uuid, &'static str>,
        }
        let request = Create {
            description: format!("machine token for {machine}"),
            expires,
            machine_roles: BTreeMap::from([(machine, "MACHINE_ROLE_EDITOR")]),
        };
        let minted = self.call(TOKEN_CREATE, &token, &request).await?;
        self.secret(TOKEN_CREATE, minted)
    }

    fn secret(&self, method: &str, minted: Minted) -> Result<SecretString, MintError> {
        minted
            .secret
            .ok_or_else(|| MintError::NoSecret(self.connect.shown_url(method)))
    }

    async fn call<Q: Serialize + Sync, A: DeserializeOwned>(
        &self,
        method: &str,
        token: &SecretString,
        request: &Q,
    ) -> Result<A, ApiserverError> {
        retry::run(
            self.policy,
            method,
            ApiserverError::verdict,
            async |deadline| {
                let call = Call {
                    method,
                    token,
                    sent: None,
                };
                let answer = self.connect.unary(call, request, deadline).await?;
                Ok(answer.message)
            },
        )
        .await
    }
}

/// Whether the server does not know the method: Connect servers say `unimplemented`, their
/// HTTP routers 404, a proxy 501.
fn is_missing(error: &ApiserverError) -> bool {
    match error {
        ApiserverError::Refused { code, .. } => *code == Code::Unimplemented,
        ApiserverError::NotConnect { status, .. } => matches!(status, 404 | 501),
        _ => false,
    }
}

async fn read_token(path: &Path) -> Result<SecretString, MintError> {
    let wrong = |reason: String| MintError::TokenFile {
        path: path.into(),
        reason,
    };
    let file = tokio::fs::File::open(path).await;
    let file = file.map_err(|error| wrong(error.to_string()))?;
    let mut text = String::new();
    let read = file
        .take(TOKEN_FILE_LIMIT + 1)
        .read_to_string(&mut text)
        .await;
    let token = SecretString::from(text.trim());
    let length = text.len() as u64;
    let is_empty = text.trim().is_empty();
    text.zeroize();
    read.map_err(|error| wrong(error.to_string()))?;
    if is_empty {
        return Err(wrong("it is empty".into()));
    }
    if length > TOKEN_FILE_LIMIT {
        return Err(wrong(format!("it has more than {TOKEN_FILE_LIMIT} bytes")));
    }
    Ok(token)
}
