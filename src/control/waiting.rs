//! `Wait`: the stream on which an allocation comes, or nothing.
//!
//! The server sends not even headers before the first message and closes every response
//! after 60 s (contracts.md §4). So "no allocation" is only ever silence, and a Wait that
//! ends after 5 s or more has ended normally.

use std::pin::pin;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::api::Allocation;
use super::apiserver::{Apiserver, MachineRequest, method};
use super::code::Code;
use super::connect::Call;
use super::error::Error;
use super::http::FailureKind;
use super::retry::{Backoff, Verdict};
use super::silence::Silence;

/// How a Wait ended.
#[derive(Debug)]
pub enum WaitOutcome {
    /// The machine has this allocation.
    Allocation(Box<Allocation>),
    /// It was open long enough to have ended for no bad reason: open another one.
    Ended {
        /// Since the request was sent.
        lasted: Duration,
        /// An error that this Wait ended with, unless it was the server's usual cut.
        trouble: Option<Error>,
    },
}

/// One Wait of a probe.
enum Heard {
    Allocation(Box<Allocation>),
    /// Nothing, for so long, while an event was answered.
    Silence(Duration),
}

impl Apiserver {
    /// Opens one Wait and stays until it ends.
    ///
    /// # Errors
    /// A refused token or request at any time; every other error when the Wait ended in
    /// less than 5 s.
    pub async fn wait_once(&self) -> Result<WaitOutcome, Error> {
        let (sent, _) = oneshot::channel();
        self.wait_and_tell(sent).await
    }

    /// Waits for an allocation, however long that takes, opening a Wait after the other.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`]: fetch a new token, [`set_token`](Self::set_token), call
    /// again. Other errors that no repetition will cure.
    pub async fn wait_for_allocation(&self) -> Result<Allocation, Error> {
        let mut backoff = Backoff::new(self.times.wait_base, self.times.wait_cap);
        loop {
            match self.wait_once().await {
                Ok(WaitOutcome::Allocation(allocation)) => return Ok(*allocation),
                Ok(WaitOutcome::Ended { lasted, trouble }) => {
                    backoff.reset();
                    match trouble {
                        Some(error) => warn!("Wait ended after {lasted:.0?}: {error}"),
                        None => debug!("Wait ended after {lasted:.0?}, as it does"),
                    }
                    // A whole fleet's Waits may have been cut in one moment.
                    let pause = self.times.reopen.mul_f64(rand::random_range(0.0..=1.0));
                    tokio::time::sleep(pause).await;
                }
                Err(error) => {
                    let Verdict::Retry(wish) = error.verdict() else {
                        return Err(error);
                    };
                    let pause = backoff.next(wish);
                    warn!("Wait: {error}; opened again in {pause:.1?}");
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// Finds out whether the machine has an allocation: `None` once Waits stayed silent for
    /// `silence` in total, over at least `waits` of them, while events were answered.
    ///
    /// Silence counts only from the moment when an ALIVE sent after the Wait was opened has
    /// been answered, and the last stretch only if another ALIVE is answered at its end. Any
    /// error, and any Wait that ended too soon, starts the count again.
    ///
    /// # Errors
    /// As [`wait_for_allocation`](Self::wait_for_allocation), and the last error when trouble
    /// keeps it from an answer for ten minutes more than the silence takes.
    pub async fn probe(&self, silence: Duration, waits: u32) -> Result<Option<Allocation>, Error> {
        let deadline = Instant::now() + silence * 3 + self.times.probe_patience;
        let mut count = Silence::new(silence, waits);
        let mut backoff = Backoff::new(self.times.wait_base, self.times.wait_cap);
        loop {
            match self.probe_once(count.stretch()).await {
                Ok(Heard::Allocation(allocation)) => return Ok(Some(*allocation)),
                Ok(Heard::Silence(time)) => {
                    backoff.reset();
                    if count.add(time) {
                        return Ok(None);
                    }
                }
                Err(error) => {
                    count.reset();
                    let Verdict::Retry(wish) = error.verdict() else {
                        return Err(error);
                    };
                    let pause = backoff.next(wish);
                    if Instant::now() + pause >= deadline {
                        return Err(error);
                    }
                    warn!("asking for an allocation: {error}; again in {pause:.1?}");
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// One Wait, listened to for `stretch`. The Wait is polled first everywhere: an
    /// allocation that has arrived wins over everything else.
    async fn probe_once(&self, stretch: Duration) -> Result<Heard, Error> {
        let (sent, opened) = oneshot::channel();
        let mut wait = pin!(self.wait_and_tell(sent));
        let begin = tokio::select! {
            biased;
            outcome = &mut wait => return self.too_early(outcome?),
            Ok(begin) = opened => begin,
        };
        tokio::select! {
            biased;
            outcome = &mut wait => return self.too_early(outcome?),
            answer = self.alive("asking for an allocation") => answer?,
        }
        debug!(
            "an event was answered {:.1?} after Wait was opened",
            begin.elapsed()
        );
        let since = Instant::now();
        tokio::select! {
            biased;
            outcome = &mut wait => return heard(outcome?, since),
            () = tokio::time::sleep(stretch) => {}
        }
        tokio::select! {
            biased;
            outcome = &mut wait => return heard(outcome?, since),
            answer = self.alive("no allocation so far") => answer?,
        }
        Ok(Heard::Silence(since.elapsed()))
    }

    /// A Wait that ended before an event was answered proves only an allocation.
    fn too_early(&self, outcome: WaitOutcome) -> Result<Heard, Error> {
        match outcome {
            WaitOutcome::Allocation(allocation) => Ok(Heard::Allocation(allocation)),
            WaitOutcome::Ended { lasted, trouble } => {
                Err(trouble.unwrap_or_else(|| Error::EndedEarly {
                    url: self.connect.shown_url(&method("Wait")),
                    lasted,
                }))
            }
        }
    }

    /// One Wait; `sent` is told when its request leaves.
    async fn wait_and_tell(&self, sent: oneshot::Sender<Instant>) -> Result<WaitOutcome, Error> {
        let (passed_on, left) = oneshot::channel();
        let mut forward = pin!(async move {
            if let Ok(at) = left.await {
                // Whoever no longer listens does not want to know.
                let _ = sent.send(at);
                at
            } else {
                std::future::pending().await
            }
        });
        let mut wait = pin!(self.wait(passed_on));
        // Counted from the sending; a Wait that never got that far lasted no time.
        let mut begin = None;
        let end = loop {
            let limit = begin.map(|at: Instant| at + self.times.longest_wait);
            let cut = async {
                match limit {
                    Some(limit) => tokio::time::sleep_until(limit).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                at = &mut forward, if begin.is_none() => begin = Some(at),
                end = &mut wait => break end,
                () = cut => break Ok(None),
            }
        };
        let lasted = begin.map_or(Duration::ZERO, |at| at.elapsed());
        let normal = lasted >= self.times.normal_wait;
        match end {
            Ok(Some(allocation)) => Ok(WaitOutcome::Allocation(Box::new(allocation))),
            Ok(None) if normal => Ok(WaitOutcome::Ended {
                lasted,
                trouble: None,
            }),
            Ok(None) => Err(Error::EndedEarly {
                url: self.connect.shown_url(&method("Wait")),
                lasted,
            }),
            Err(error) if normal && error.verdict() != Verdict::GiveUp => Ok(WaitOutcome::Ended {
                lasted,
                trouble: (!is_usual_cut(&error)).then_some(error),
            }),
            Err(error) => Err(error),
        }
    }

    /// The stream itself: the first allocation, or its end.
    async fn wait(&self, sent: oneshot::Sender<Instant>) -> Result<Option<Allocation>, Error> {
        #[derive(Deserialize)]
        struct Message {
            #[serde(default)]
            allocation: Option<Allocation>,
        }
        let token = self.token();
        let call = Call {
            method: &method("Wait"),
            token: &token,
            sent: Some(sent),
        };
        let request = MachineRequest { uuid: self.machine };
        let mut stream = self.connect.stream(call, &request).await?;
        loop {
            match stream.next::<Message>().await? {
                None => return Ok(None),
                Some(Message {
                    allocation: Some(allocation),
                }) => return Ok(Some(allocation)),
                Some(Message { allocation: None }) => {
                    debug!("Wait sent a message without an allocation");
                }
            }
        }
    }
}

/// What a Wait that had begun to count was worth.
fn heard(outcome: WaitOutcome, since: Instant) -> Result<Heard, Error> {
    match outcome {
        WaitOutcome::Allocation(allocation) => Ok(Heard::Allocation(allocation)),
        WaitOutcome::Ended { trouble: None, .. } => Ok(Heard::Silence(since.elapsed())),
        WaitOutcome::Ended {
            trouble: Some(error),
            ..
        } => Err(error),
    }
}

/// The ends that the server's WriteTimeout has: the connection or the stream is closed, or
/// the server says that its own deadline passed. Everything else is trouble.
fn is_usual_cut(error: &Error) -> bool {
    match error {
        Error::Failed(failure) => failure.kind == FailureKind::Cut,
        Error::Refused { code, .. } => matches!(code, Code::DeadlineExceeded | Code::Canceled),
        _ => false,
    }
}
