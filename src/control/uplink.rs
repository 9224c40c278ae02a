//! Keeps a conversation on a path that works: when the one in use breaks, all paths race again
//! for the same host.

use std::time::Duration;

use reqwest::Client;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::http::{ClientError, Route};
use super::line::Line;
use crate::net::{Network, Path, Preference, Target};

/// A link may flap and an address may be renewed within this: no reason to move.
const GRACE: Duration = Duration::from_secs(2);
/// One race; when nobody wins, the next begins.
const RACE: Duration = Duration::from_secs(60);
/// Trouble on a path that still connects is the other end's; it is not looked into more often.
const PAUSE: Duration = Duration::from_secs(10);
/// Trouble again within this is trouble in a row.
const ROW: Duration = Duration::from_secs(300);

/// How a client leaves over `path`: bound to its link, names resolved there.
#[must_use]
pub fn route(network: &Network, path: &Path) -> Route {
    let candidate = &path.candidate;
    Route {
        interface: Some(candidate.link.clone()),
        source: candidate.source.map(Into::into),
        names: Some(network.names(candidate.index, &candidate.link).into()),
    }
}

/// Makes a client for a route.
pub type Make = Box<dyn Fn(&Route) -> Result<Client, ClientError> + Send + Sync>;

/// Runs for as long as the conversation. `lines` are the conversation's clients and how each is
/// made for another route.
pub async fn keep(network: &Network, target: &Target, mut path: Path, lines: &[(Line, Make)]) {
    // When there was trouble on this path that still connected.
    let mut stayed: Option<Instant> = None;
    loop {
        let gone = broken(network, &path, lines).await;
        let again = stayed.is_some_and(|at| at.elapsed() < ROW);
        let preference = preference(path.candidate.index, again);
        let next = match network.race(target, preference, RACE).await {
            Ok(next) => next,
            Err(error) => {
                warn!("{path}: the path is broken, and there is no other; {error}");
                continue;
            }
        };
        if next == path && !gone {
            stayed = Some(Instant::now());
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        stayed = None;
        info!("{target} is reached over {next} now; the path before was {path}");
        path = next;
        let route = route(network, &path);
        for (line, make) in lines {
            match make(&route) {
                Ok(client) => line.replace(client),
                Err(error) => warn!("{error}"),
            }
        }
    }
}

/// A path that connects may carry nothing more (an MTU, a half-dead switch): the link in use is
/// tried first after one trouble, and last after the next.
fn preference(link: u32, again: bool) -> Preference {
    Preference {
        first: (!again).then_some(link),
        last: again.then_some(link),
    }
}

/// Waits until link or address of the path have gone (true), or a conversation over it has
/// broken.
async fn broken(network: &Network, path: &Path, lines: &[(Line, Make)]) -> bool {
    let mut links = network.watch();
    let gone = async {
        loop {
            let unsound = links.wait_for(|table| !path.is_sound(table)).await.is_ok();
            if !unsound {
                // Nobody is left who could tell of a change.
                std::future::pending::<()>().await;
            }
            let back = links.wait_for(|table| path.is_sound(table));
            if timeout(GRACE, back).await.is_err() {
                return;
            }
        }
    };
    let troubles = lines.iter().map(|(line, _)| Box::pin(line.trouble()));
    let trouble = futures_util::future::select_all(troubles);
    tokio::select! {
        () = gone => true,
        _ = trouble => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_in_a_row_gives_the_others_the_first_word() {
        let once = preference(7, false);
        assert_eq!((once.first, once.last), (Some(7), None));
        let again = preference(7, true);
        assert_eq!((again.first, again.last), (None, Some(7)));
    }
}
