//! What a machine says to metal-apiserver: `metalstack.infra.v2.BootService` with a machine's
//! token. `Wait` has a file of its own (`waiting`).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::warn;
use url::Url;
use uuid::Uuid;

use super::api::{EventType, Register};
use super::connect::{Answer, Call, Connect};
use super::error::Error;
use super::helper_answer::secret_text;
use super::line::Line;
use super::retry::{self, Backoff, Policy, Verdict};
use super::text::printable;

/// The longest event message, characters. `MachineProvisioningEvent.message` of metal-stack-api
/// 0.8.4 has no rule of its own (tests/apiserver checks that); a line of a console has an end.
const EVENT_MESSAGE_CHARS: usize = 1000;

/// The times that rule the conversation; tests shorten them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// A call and its repetitions.
    pub call: Policy,
    /// A Wait that lasted this long ended because responses have to end (contracts.md §4).
    pub normal_wait: Duration,
    /// The agent ends a Wait itself after this: servers do after 60 s, so a longer one is
    /// held by something that has forgotten it.
    pub longest_wait: Duration,
    /// The longest random pause before a Wait that ended normally is opened again.
    pub reopen: Duration,
    /// Pauses after Waits that ended early.
    pub wait_base: Duration,
    pub wait_cap: Duration,
    /// How long trouble may keep a probe from its proof, on top of the silence itself.
    pub probe_patience: Duration,
    /// No answer to `InstallationSucceeded` for this long after it was sent is a success.
    pub unanswered: Duration,
}

const TIMES: Times = Times {
    call: Policy {
        base: Duration::from_millis(500),
        cap: Duration::from_secs(10),
        attempt: Duration::from_secs(20),
        budget: Duration::from_secs(120),
    },
    normal_wait: Duration::from_secs(5),
    longest_wait: Duration::from_secs(600),
    reopen: Duration::from_millis(250),
    wait_base: Duration::from_millis(500),
    wait_cap: Duration::from_secs(30),
    probe_patience: Duration::from_secs(600),
    unanswered: Duration::from_secs(60),
};

/// The apiserver as one machine sees it. Clones share the token.
#[derive(Clone)]
pub struct Apiserver {
    pub(super) connect: Connect,
    token: Arc<RwLock<SecretString>>,
    pub(super) machine: Uuid,
    pub(super) times: Times,
}

impl std::fmt::Debug for Apiserver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Apiserver")
            .field("url", &self.connect.shown_url(""))
            .field("machine", &self.machine)
            .finish_non_exhaustive()
    }
}

/// What `Register` answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// The size the server found for this hardware; may be empty.
    pub size: String,
    pub partition: String,
    /// The server's clock when it answered: what `Age::of` compares allocations with. This
    /// machine's own clock never stands in for it: a flat battery would make every
    /// allocation look new.
    pub server_date: Option<Timestamp>,
}

/// How `InstallationSucceeded` went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completion {
    /// The server said so.
    Answered,
    /// The network went away with the switch port's move into the tenant's VRF, as it may.
    Unanswered,
}

#[derive(Serialize)]
pub(super) struct MachineRequest {
    pub uuid: Uuid,
}

/// An answer without fields, or one whose fields nobody needs.
#[derive(Deserialize)]
struct Empty {}

impl Apiserver {
    /// The apiserver at `base`, spoken to as `machine` with its `token`.
    ///
    /// # Errors
    /// [`Error::BadBase`].
    pub fn new(
        base: &Url,
        token: SecretString,
        machine: Uuid,
        line: impl Into<Line>,
    ) -> Result<Self, Error> {
        Ok(Self {
            connect: Connect::new(line, base)?,
            token: Arc::new(RwLock::new(token)),
            machine,
            times: TIMES,
        })
    }

    #[cfg(test)]
    pub(super) fn with_times(mut self, change: impl FnOnce(&mut Times)) -> Self {
        change(&mut self.times);
        self
    }

    /// Uses another token from now on, in every clone.
    pub fn set_token(&self, token: SecretString) {
        *self.token.write().unwrap_or_else(PoisonError::into_inner) = token;
    }

    /// The token in use.
    #[must_use]
    pub fn token(&self) -> SecretString {
        self.token
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// `SendEvent`, repeated for up to two minutes.
    ///
    /// # Errors
    /// Any [`Error`] that outlasts the repetitions.
    pub async fn send_event(&self, event: EventType, message: &str) -> Result<(), Error> {
        self.send_event_within(event, message, self.times.call.budget)
            .await
    }

    /// `SendEvent`, repeated within `budget`.
    ///
    /// # Errors
    /// Any [`Error`] that outlasts the budget.
    pub async fn send_event_within(
        &self,
        event: EventType,
        message: &str,
        budget: Duration,
    ) -> Result<(), Error> {
        let policy = Policy {
            budget,
            ..self.times.call
        };
        let request = self.event(event, message);
        self.call::<_, Empty>("SendEvent", &request, policy)
            .await
            .map(drop)
    }

    /// `SendEvent(ALIVE)`, once: for those who need to know whether the server is there.
    pub(super) async fn alive(&self, message: &str) -> Result<(), Error> {
        let request = self.event(EventType::Alive, message);
        self.attempt::<_, Empty>("SendEvent", &request, self.times.call.attempt)
            .await
            .map(drop)
    }

    fn event(&self, event: EventType, message: &str) -> impl Serialize + Sync {
        #[derive(Serialize)]
        struct Request {
            uuid: Uuid,
            event: Event,
        }
        #[derive(Serialize)]
        struct Event {
            time: String,
            event: EventType,
            message: String,
        }
        Request {
            uuid: self.machine,
            event: Event {
                // Milliseconds: protobuf JSON writes 0, 3, 6 or 9 digits.
                time: format!("{:.3}", Timestamp::now()),
                event,
                message: printable(message, EVENT_MESSAGE_CHARS),
            },
        }
    }

    /// `SuperUserPassword`; `None` when the partition does not use one.
    ///
    /// # Errors
    /// Any [`Error`] that outlasts the repetitions.
    pub async fn super_user_password(&self) -> Result<Option<SecretString>, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Reply {
            #[serde(default, alias = "feature_disabled")]
            feature_disabled: Option<bool>,
            #[serde(default, alias = "super_user_password", with = "secret_text")]
            super_user_password: Option<SecretString>,
        }
        let request = MachineRequest { uuid: self.machine };
        let reply: Answer<Reply> = self
            .call("SuperUserPassword", &request, self.times.call)
            .await?;
        let reply = reply.message;
        Ok(match reply.feature_disabled {
            Some(true) => None,
            _ => reply.super_user_password,
        })
    }

    /// `Register`.
    ///
    /// # Errors
    /// Any [`Error`] that outlasts the repetitions; `invalid_argument` and
    /// `failed_precondition` at once, with the server's message.
    pub async fn register(&self, request: &Register) -> Result<Registered, Error> {
        #[derive(Deserialize)]
        struct Reply {
            #[serde(default)]
            size: Option<String>,
            #[serde(default)]
            partition: Option<String>,
        }
        let reply: Answer<Reply> = self.call("Register", request, self.times.call).await?;
        if reply.date.is_none() {
            warn!("Register was answered without a Date: every allocation counts as standing");
        }
        Ok(Registered {
            size: reply.message.size.unwrap_or_default(),
            partition: reply.message.partition.unwrap_or_default(),
            server_date: reply.date,
        })
    }

    /// `InstallationSucceeded`. It moves the switch port into the tenant's VRF, so the
    /// answer may never arrive: none within 60 s after the request was sent is a success.
    /// Errors that may pass are tried again for two minutes. `is_out` says, also to whoever ends
    /// this early, whether a request was sent that no error has answered.
    ///
    /// # Errors
    /// A request that could not be sent, and an error that the server answered.
    pub async fn installation_succeeded(
        &self,
        console_password: &SecretString,
        is_out: &AtomicBool,
    ) -> Result<Completion, Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Request<'a> {
            uuid: Uuid,
            console_password: &'a str,
        }
        let request = Request {
            uuid: self.machine,
            console_password: console_password.expose_secret(),
        };
        let times = self.times;
        let give_up = Instant::now() + times.call.budget;
        let mut first_sent = None;
        let mut backoff = Backoff::new(times.call.base, times.call.cap);
        loop {
            let (sent, mut was_sent) = oneshot::channel();
            let token = self.token();
            let call = Call {
                method: &method("InstallationSucceeded"),
                token: &token,
                sent: Some(sent),
            };
            // The deadline covers the connecting too; the pause after `sent` is watched below.
            let longest = times.unanswered + times.call.attempt;
            let attempt = self.connect.unary::<_, Empty>(call, &request, longest);
            tokio::pin!(attempt);
            let silence_ends = first_sent.map(|at: Instant| at + times.unanswered);
            let outcome = tokio::select! {
                biased;
                outcome = &mut attempt => {
                    if let Ok(at) = was_sent.try_recv() {
                        first_sent.get_or_insert(at);
                        is_out.store(true, Ordering::SeqCst);
                    }
                    Some(outcome)
                }
                Ok(at) = &mut was_sent => {
                    is_out.store(true, Ordering::SeqCst);
                    let end = *first_sent.get_or_insert(at) + times.unanswered;
                    tokio::time::timeout_at(end, &mut attempt).await.ok()
                }
                // An earlier request's silence is complete before this one got through.
                () = tokio::time::sleep_until(silence_ends.unwrap_or(give_up)),
                    if silence_ends.is_some() => None,
            };
            let error = match outcome {
                Some(Ok(_)) => return Ok(Completion::Answered),
                None => return Ok(Completion::Unanswered),
                Some(Err(error)) => error,
            };
            // Whoever answers with an error has not moved the port yet: from now on, only the
            // silence after another request counts.
            if !matches!(error, Error::Failed(_)) {
                first_sent = None;
                is_out.store(false, Ordering::SeqCst);
            }
            let Verdict::Retry(wish) = error.verdict() else {
                return Err(error);
            };
            let pause = backoff.next(wish);
            let deadline = first_sent.map_or(give_up, |at: Instant| at + times.unanswered);
            if Instant::now() + pause >= deadline {
                return if first_sent.is_some() {
                    tokio::time::sleep_until(deadline).await;
                    Ok(Completion::Unanswered)
                } else {
                    Err(error)
                };
            }
            warn!("InstallationSucceeded: {error}; trying again in {pause:.1?}");
            tokio::time::sleep(pause).await;
        }
    }

    /// A call with repetitions.
    async fn call<Q: Serialize + Sync, A: DeserializeOwned>(
        &self,
        name: &str,
        request: &Q,
        policy: Policy,
    ) -> Result<Answer<A>, Error> {
        retry::run(policy, name, Error::verdict, |deadline| {
            self.attempt(name, request, deadline)
        })
        .await
    }

    async fn attempt<Q: Serialize + Sync, A: DeserializeOwned>(
        &self,
        name: &str,
        request: &Q,
        deadline: Duration,
    ) -> Result<Answer<A>, Error> {
        let token = self.token();
        let call = Call {
            method: &method(name),
            token: &token,
            sent: None,
        };
        self.connect.unary(call, request, deadline).await
    }
}

/// The full name of a method of BootService.
pub(super) fn method(name: &str) -> String {
    format!("metalstack.infra.v2.BootService/{name}")
}
