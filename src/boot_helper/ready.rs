//! `/readyz`: whether a machine that asks now would get its answer.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use url::Url;

use super::secret_file;
use crate::control::http::Failure;

/// How long an answer counts: load balancers ask often, and from several places.
const FRESH: Duration = Duration::from_secs(5);
/// The apiserver has to answer something in this time.
const DEADLINE: Duration = Duration::from_secs(3);

type Verdict = Result<(), String>;

/// Asks token file and apiserver, rarely.
#[derive(Debug)]
pub struct Readiness {
    client: reqwest::Client,
    apiserver: Url,
    token_file: PathBuf,
    /// Held while asking, so that one asks for all.
    last: Mutex<Option<(Instant, Verdict)>>,
}

impl Readiness {
    /// Nothing is asked yet.
    #[must_use]
    pub fn new(client: reqwest::Client, apiserver: Url, token_file: PathBuf) -> Self {
        Self {
            client,
            apiserver,
            token_file,
            last: Mutex::default(),
        }
    }

    /// Whether this helper can do its work.
    ///
    /// # Errors
    /// What is in its way, without a secret in it.
    pub async fn ask(&self) -> Verdict {
        let mut last = self.last.lock().await;
        if let Some((at, verdict)) = &*last
            && at.elapsed() < FRESH
        {
            return verdict.clone();
        }
        let verdict = self.look().await;
        *last = Some((Instant::now(), verdict.clone()));
        verdict
    }

    async fn look(&self) -> Verdict {
        secret_file::read(&self.token_file)
            .await
            .map_err(|error| format!("the helper's own token: {error}"))?;
        // Any answer will do: what it says is another matter (`metal-boot check`).
        let asking = self.client.get(self.apiserver.clone()).timeout(DEADLINE);
        match asking.send().await {
            Ok(answer) if answer.status().is_server_error() => Err(format!(
                "the apiserver answers HTTP {}",
                answer.status().as_u16()
            )),
            Ok(_) => Ok(()),
            Err(error) => Err(Failure::new(&self.apiserver, &error).to_string()),
        }
    }
}
