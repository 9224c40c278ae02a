//! The HTTP client of a conversation that outlives paths: when another path takes over, every
//! clone speaks over that one from its next request on, and what hangs on the old one ends.

use std::sync::Arc;

use reqwest::Client;
use tokio::sync::{Notify, watch};

use super::http::FailureKind;

/// A replaceable client. Cheap to clone; clones share the client.
#[derive(Debug, Clone)]
pub struct Line {
    client: Arc<watch::Sender<Client>>,
    trouble: Arc<Notify>,
}

impl From<Client> for Line {
    fn from(client: Client) -> Self {
        Self {
            client: Arc::new(watch::Sender::new(client)),
            trouble: Arc::default(),
        }
    }
}

impl Line {
    /// The client to use now.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.borrow().clone()
    }

    /// Uses another client from now on, and ends what the old one is waiting for.
    pub fn replace(&self, client: Client) {
        self.client.send_replace(client);
    }

    /// The client to use now, and a handle that tells when it is no longer.
    pub(super) fn hold(&self) -> (Client, Held) {
        let mut held = self.client.subscribe();
        let client = held.borrow_and_update().clone();
        (client, Held(held))
    }

    /// Says that a conversation broke in a way that the path may be to blame for.
    pub(super) fn blame(&self, kind: FailureKind) {
        if matches!(
            kind,
            FailureKind::Connect | FailureKind::Timeout | FailureKind::Dead
        ) {
            self.trouble.notify_one();
        }
    }

    /// Waits until a conversation has broken so.
    pub async fn trouble(&self) {
        self.trouble.notified().await;
    }
}

/// Tells when a client is replaced.
#[derive(Debug)]
pub(super) struct Held(watch::Receiver<Client>);

impl Held {
    pub(super) async fn replaced(&mut self) {
        if self.0.changed().await.is_err() {
            // Nobody is left who could replace it.
            std::future::pending::<()>().await;
        }
    }
}

/// Where each attempt of a download takes its client from.
pub trait Clients: Sync {
    /// The client for the attempt after so many failed ones.
    fn client(&self, failed: u32) -> Client;
}

/// On an ordinary host there is one way out.
impl Clients for Client {
    fn client(&self, _failed: u32) -> Client {
        self.clone()
    }
}

/// How downloads leave this machine.
#[derive(Debug, Clone)]
pub struct Ways {
    /// Over the link that reaches the control plane, as it is now.
    pub bound: Line,
    /// As the kernel's routes say: the host may be reached over another link only.
    pub free: Line,
}

impl Clients for Ways {
    fn client(&self, failed: u32) -> Client {
        if is_free(failed) {
            self.free.client()
        } else {
            self.bound.client()
        }
    }
}

/// Every third attempt. Two bound ones come first: after a break the second one is likely to
/// find the new path.
fn is_free(failed: u32) -> bool {
    failed % 3 == 2
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::control::http::{Trust, control_client};

    fn client() -> Client {
        control_client(Trust::Public).unwrap()
    }

    const SOON: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn whoever_holds_the_old_client_is_told() {
        let line = Line::from(client());
        let (_, mut old) = line.clone().hold();
        assert!(timeout(SOON, old.replaced()).await.is_err(), "not yet");
        line.replace(client());
        assert!(timeout(SOON, old.replaced()).await.is_ok());
        let (_, mut new) = line.hold();
        assert!(timeout(SOON, new.replaced()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_a_path_may_be_to_blame_for_is_trouble() {
        let line = Line::from(client());
        for (kind, trouble) in [
            (FailureKind::Cut, false),
            (FailureKind::Tls, false),
            (FailureKind::Connect, true),
            (FailureKind::Timeout, true),
            (FailureKind::Dead, true),
        ] {
            line.blame(kind);
            let said = timeout(SOON, line.trouble()).await.is_ok();
            assert_eq!(said, trouble, "{kind:?}");
        }
    }

    #[test]
    fn every_third_attempt_of_a_download_is_free() {
        let free: Vec<_> = (0..6).map(is_free).collect();
        assert_eq!(free, [false, false, true, false, false, true]);
    }
}
