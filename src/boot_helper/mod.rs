//! metal-boot: the boot helper. It tells a machine where its apiserver is and gives it a
//! token that is good for this machine only (contracts.md §3).
//!
//! Stateless: every answer is made from the options and one call to the apiserver, so any
//! number of instances may stand behind one anycast address.

pub mod listener;
pub mod mint;
pub mod options;
pub mod server;

#[cfg(test)]
mod tests;

use std::time::Duration;

use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::control::Error as ApiserverError;
use crate::control::connect::Connect;
use crate::control::http::{self, ClientError, Trust};
use options::{Options, OptionsError};

/// What requests in flight get after SIGTERM.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// Why metal-boot does not run.
#[derive(Debug, Error)]
pub enum Error {
    #[error(transparent)]
    Options(#[from] OptionsError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("--apiserver-url: {0}")]
    Apiserver(#[from] ApiserverError),
    #[error("cannot listen on {address}: {error}")]
    Listen {
        address: std::net::SocketAddrV6,
        error: std::io::Error,
    },
    #[error("cannot catch signals: {0}")]
    Signal(std::io::Error),
    #[error("the server stopped: {0}")]
    Serve(std::io::Error),
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// Options that make no sense, or an address that cannot be listened on.
pub async fn run(options: &Options) -> Result<(), Error> {
    let template = options.answer()?;
    let trust = template
        .ca_cert
        .as_deref()
        .map_or(Trust::Public, Trust::Only);
    let client = http::control_client(trust)?;
    let connect = Connect::new(client, &options.apiserver_url)?;
    let minter = mint::Minter::new(
        connect,
        options.token_file.clone(),
        options.machine_token_user.clone(),
        options.token_expiry,
    );
    minter.check();
    let listener = tokio::net::TcpListener::bind(options.listen)
        .await
        .map_err(|error| Error::Listen {
            address: options.listen,
            error,
        })?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signal)?;
    let address = listener.local_addr().map_err(Error::Serve)?;
    info!(
        "listening on {address}, apiserver {}",
        http::shown(&options.apiserver_url)
    );
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut serving = std::pin::pin!(server::serve(listener, template, minter, stopped));
    tokio::select! {
        result = &mut serving => return result.map_err(Error::Serve),
        _ = terminate.recv() => info!("SIGTERM: finishing what is under way"),
        _ = interrupt.recv() => info!("SIGINT: finishing what is under way"),
    }
    stop.send_replace(true);
    match tokio::time::timeout(SHUTDOWN, serving).await {
        Ok(result) => result.map_err(Error::Serve),
        Err(_) => {
            warn!("requests still under way after {SHUTDOWN:?} are dropped");
            Ok(())
        }
    }
}
