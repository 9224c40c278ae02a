//! A token that is renewed before it expires, and not for ever.

use std::convert::Infallible;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

/// A token that does not say when it expires is renewed after this. Helpers give 72 h.
const UNTOLD: Duration = Duration::from_secs(12 * 3600);
/// No token is renewed sooner: clocks lie.
const SOONEST: Duration = Duration::from_secs(60);
/// Longest token that is looked into, in bytes.
const MAX_TOKEN: usize = 16 << 10;
/// Tokens in a row that are refused soon after they came: another one would be, too.
const REFUSALS: u32 = 3;
/// A token that was good for so long was good.
const SOON: Duration = Duration::from_secs(300);

/// How long to use a token: half of the life it has left.
pub(super) fn renew_in(token: &SecretString, now: Timestamp) -> Duration {
    let left = expiry(token.expose_secret())
        .map(|expiry| u64::try_from(expiry.saturating_sub(now.as_second())).unwrap_or(0));
    left.map_or(UNTOLD, |left| {
        Duration::from_secs(left / 2).clamp(SOONEST, UNTOLD)
    })
}

/// When a JSON Web Token (RFC 7519) expires, in seconds of the Unix epoch. It is not judged
/// here: whoever made it up harms itself.
fn expiry(token: &str) -> Option<i64> {
    #[derive(serde::Deserialize)]
    struct Claims {
        exp: i64,
    }
    if token.len() > MAX_TOKEN {
        return None;
    }
    let claims = token.split('.').nth(1)?;
    let claims = BASE64_URL_SAFE_NO_PAD.decode(claims).ok()?;
    serde_json::from_slice::<Claims>(&claims)
        .ok()
        .map(|it| it.exp)
}

/// Does `work`, and beside it renews the token each time that `due` is over. A renewal that
/// fails is no harm yet: the token still counts, and is refused when it does not.
pub(super) async fn kept_fresh<T, F: Future<Output = ()>>(
    work: impl Future<Output = T>,
    due: impl Fn() -> Duration,
    renew: impl Fn() -> F,
) -> T {
    let mut work = std::pin::pin!(work);
    let mut renewing = std::pin::pin!(renewals(due, renew));
    tokio::select! {
        biased;
        done = &mut work => done,
        never = &mut renewing => match never {},
    }
}

async fn renewals<F: Future<Output = ()>>(
    due: impl Fn() -> Duration,
    renew: impl Fn() -> F,
) -> Infallible {
    loop {
        tokio::time::sleep(due()).await;
        renew().await;
    }
}

/// Counts refused tokens.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    in_a_row: u32,
    last: Option<Instant>,
}

impl Refusals {
    /// One more token was refused; whether another is worth asking for.
    pub(super) fn go_on(&mut self) -> bool {
        let now = Instant::now();
        if self.last.is_some_and(|last| now - last > SOON) {
            self.in_a_row = 0;
        }
        self.last = Some(now);
        self.in_a_row += 1;
        self.in_a_row <= REFUSALS
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn jwt(claims: &str) -> SecretString {
        format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims)).into()
    }

    #[test]
    fn a_token_is_used_for_half_of_its_life() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let lives = |seconds: i64| {
            let expiry = now.as_second() + seconds;
            renew_in(&jwt(&format!("{{\"exp\":{expiry}}}")), now)
        };
        assert_eq!(lives(7200), HOUR);
        assert_eq!(lives(10), SOONEST);
        assert_eq!(lives(-10), SOONEST);
        assert_eq!(lives(1_000_000), UNTOLD);
        for untold in ["opaque", "a.b.c", "", "..", "e30.e30.e30"] {
            assert_eq!(
                renew_in(&SecretString::from(untold), now),
                UNTOLD,
                "{untold}"
            );
        }
        assert_eq!(renew_in(&jwt(&"x".repeat(MAX_TOKEN)), now), UNTOLD);
        assert_eq!(renew_in(&jwt("{\"exp\":\"soon\"}"), now), UNTOLD);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_of_two_days_is_not_ended_by_renewals() {
        let begin = Instant::now();
        let renewed = RefCell::new(Vec::new());
        let work = tokio::time::sleep(48 * HOUR);
        kept_fresh(
            work,
            || 10 * HOUR,
            || async {
                // The renewal itself takes time, during which the work goes on.
                tokio::time::sleep(HOUR).await;
                renewed.borrow_mut().push(begin.elapsed().as_secs() / 3600);
            },
        )
        .await;
        assert_eq!(begin.elapsed(), 48 * HOUR);
        assert_eq!(*renewed.borrow(), [11, 22, 33, 44]);
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_that_are_refused_at_once_are_not_asked_for_without_end() {
        let mut refusals = Refusals::default();
        assert_eq!(
            [(); 4].map(|()| refusals.go_on()),
            [true, true, true, false]
        );
        // One that was good for a while starts the count again.
        tokio::time::advance(SOON + Duration::from_secs(1)).await;
        assert!(refusals.go_on());
        let mut refusals = Refusals::default();
        for _ in 0..100 {
            tokio::time::advance(HOUR).await;
            assert!(refusals.go_on(), "a token that lives for an hour");
        }
    }
}
