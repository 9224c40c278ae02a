//! Machine tokens: a bearer token for one machine and no other.

use std::collections::BTreeMap;
use std::time::Duration;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use tracing::debug;
use uuid::Uuid;

use super::infra::{Infra, InfraError};
use crate::control::helper_answer::secret_text;

/// `BootService/MachineToken` of servers that have it.
const MACHINE_TOKEN: &str = "metalstack.infra.v2.BootService/MachineToken";
/// Its predecessor.
const TOKEN_CREATE: &str = "metalstack.api.v2.TokenService/Create";

/// Gets tokens for machines.
#[derive(Debug, Clone)]
pub struct Minter {
    infra: Infra,
    user: String,
    expiry: Duration,
}

/// A token as the server answers with it.
#[derive(Debug)]
pub struct Minted {
    pub secret: SecretString,
    /// The token's own id, which is no secret.
    pub id: Option<Uuid>,
    /// The method that gave it.
    pub method: &'static str,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default, with = "secret_text")]
    secret: Option<SecretString>,
    #[serde(default)]
    token: Option<Token>,
}

#[derive(Deserialize)]
struct Token {
    /// Only `metal-boot check` needs it, and nobody is refused a token for its form.
    #[serde(default)]
    uuid: serde_json::Value,
}

impl Minter {
    /// Asks for tokens of `user` that live for `expiry`.
    #[must_use]
    pub fn new(infra: Infra, user: String, expiry: Duration) -> Self {
        Self {
            infra,
            user,
            expiry,
        }
    }

    /// A bearer token for this machine.
    ///
    /// # Errors
    /// Any [`InfraError`].
    pub async fn mint(&self, machine: Uuid) -> Result<Minted, InfraError> {
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
        let error = match self.infra.call(MACHINE_TOKEN, &request).await {
            Ok(answer) => return self.minted(MACHINE_TOKEN, answer),
            Err(error) => error,
        };
        if !error.is_missing_method() {
            return Err(error);
        }
        debug!("no {MACHINE_TOKEN} here ({error}); using {TOKEN_CREATE}");
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
        let answer = self.infra.call(TOKEN_CREATE, &request).await?;
        self.minted(TOKEN_CREATE, answer)
    }

    fn minted(&self, method: &'static str, answer: Answer) -> Result<Minted, InfraError> {
        let secret = answer
            .secret
            .ok_or_else(|| InfraError::NoSecret(self.infra.shown_url(method)))?;
        let id = answer
            .token
            .and_then(|token| token.uuid.as_str().and_then(|text| text.parse().ok()));
        Ok(Minted { secret, id, method })
    }
}
