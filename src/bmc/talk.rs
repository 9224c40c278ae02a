//! Questions and answers, with patience: BMCs are small computers that are often busy.

use std::thread;
use std::time::{Duration, Instant};

use super::Error;
use super::message::{Completion, Request, split};

/// A BMC that needs longer for one answer is taken to have lost it. The driver itself gives
/// up after five seconds and says "timeout".
const PATIENCE: Duration = Duration::from_secs(8);
/// How often one question is asked.
const ATTEMPTS: u32 = 6;
/// Before the second attempt; doubled before each further one: 3 s in all.
const PAUSE: Duration = Duration::from_millis(100);

/// A way to the BMC.
pub trait Transport {
    /// Sends a request and waits for its answer, completion code first, for `patience`.
    ///
    /// # Errors
    /// [`Error::Device`], [`Error::Silent`].
    fn exchange(&mut self, request: &Request, patience: Duration) -> Result<Vec<u8>, Error>;
}

/// A conversation with the BMC, which ends when its time is up.
pub struct Talk<T> {
    transport: T,
    budget: Duration,
    end: Instant,
    pause: Duration,
}

impl<T: Transport> Talk<T> {
    /// All questions together may take `budget`.
    pub fn new(transport: T, budget: Duration) -> Self {
        Self {
            transport,
            budget,
            end: Instant::now() + budget,
            pause: PAUSE,
        }
    }

    /// The same way to the BMC with new time.
    #[must_use]
    pub fn again(self, budget: Duration) -> Self {
        Self {
            budget,
            end: Instant::now() + budget,
            ..self
        }
    }

    /// Asks, and asks again while the BMC is busy or silent; answers the data behind the
    /// completion code.
    ///
    /// # Errors
    /// [`Error::Refused`] with the BMC's code, and what [`Transport::exchange`] says.
    pub fn ask(&mut self, request: &Request) -> Result<Vec<u8>, Error> {
        let what = request.what;
        let mut pause = self.pause;
        let mut attempt = 1;
        loop {
            let left = self.end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let budget = self.budget;
                return Err(Error::OutOfTime { what, budget });
            }
            let error = match self.transport.exchange(request, PATIENCE.min(left)) {
                Ok(answer) => match split(what, &answer)? {
                    (Completion::OK, data) => return Ok(data.to_vec()),
                    (code, _) => Error::Refused { what, code },
                },
                Err(error) => error,
            };
            if attempt == ATTEMPTS || !error.is_transient() {
                return Err(error);
            }
            tracing::debug!("BMC: {error}; asking again");
            thread::sleep(pause.min(left));
            pause *= 2;
            attempt += 1;
        }
    }

    #[cfg(test)]
    pub fn impatient(transport: T) -> Self {
        Self {
            pause: Duration::ZERO,
            ..Self::new(transport, Duration::from_secs(60))
        }
    }

    #[cfg(test)]
    pub fn transport(&self) -> &T {
        &self.transport
    }
}

#[cfg(test)]
mod tests {
    use super::super::command;
    use super::super::testing::Scripted;
    use super::*;

    #[test]
    fn a_busy_bmc_is_asked_again_and_a_clear_no_is_final() {
        let busy = |code: u8| vec![vec![code], vec![code], vec![0, 7]];
        for code in [0xc0, 0xc3, 0xcf, 0xd2] {
            let mut talk = Talk::impatient(Scripted::answers(busy(code)));
            assert_eq!(talk.ask(&command::device_id()).unwrap(), [7]);
            assert_eq!(talk.transport().asked.len(), 3, "{code:#x}");
        }
        for code in [0xc1, 0xcc, 0xd4, 0xff, 0x80] {
            let mut talk = Talk::impatient(Scripted::answers(busy(code)));
            let error = talk.ask(&command::device_id()).unwrap_err();
            assert!(
                matches!(error, Error::Refused { code: Completion(c), .. } if c == code),
                "{error}"
            );
            assert_eq!(talk.transport().asked.len(), 1, "{code:#x}");
        }
    }

    #[test]
    fn patience_has_an_end() {
        let mut talk = Talk::impatient(Scripted::answers(vec![vec![0xc0]; 100]));
        let error = talk.ask(&command::device_id()).unwrap_err().to_string();
        assert_eq!(error, "the BMC answers Get Device ID with 0xc0 (busy)");
        assert_eq!(talk.transport().asked.len(), ATTEMPTS as usize);
        let mut talk = Talk::new(Scripted::answers(vec![vec![0xc0]; 100]), Duration::ZERO);
        let error = talk.ask(&command::device_id()).unwrap_err();
        assert!(matches!(error, Error::OutOfTime { .. }), "{error}");
        assert!(talk.transport().asked.is_empty());
    }

    #[test]
    fn an_empty_answer_is_an_error() {
        let mut talk = Talk::impatient(Scripted::answers(vec![vec![]]));
        let error = talk.ask(&command::device_id()).unwrap_err();
        assert!(matches!(error, Error::Short { got: 0, .. }), "{error}");
    }
}
