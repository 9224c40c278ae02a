//! metal-boot: the boot helper. It tells a machine where its apiserver is and gives it a
//! token that is good for this machine only (contracts.md §3); and whatever else a machine
//! needs of its partition while it boots.
//!
//! Stateless: every answer is made from the options and calls to the apiserver, so any
//! number of instances may stand behind one anycast address. What instances remember (rates,
//! who asked for which UUID) only ever makes them refuse.

pub mod answer;
pub mod binding;
pub mod bmc;
pub mod cache;
pub mod check;
pub mod config_file;
pub mod files;
pub mod infra;
pub mod ipxe;
pub mod listener;
pub mod metrics;
pub mod mint;
pub mod ntp;
pub mod options;
pub mod proxy;
pub mod ready;
pub mod redfish;
mod refusal;
pub mod route;
pub mod secret_file;
pub mod server;
pub mod source;

#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddrV6;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use thiserror::Error;
use tokio::net::UdpSocket;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::control::Error as ApiserverError;
use crate::control::HelperAnswer;
use crate::control::connect::Connect;
use crate::control::http::{self, ClientError, Trust};
use crate::image::root::RootDir;
use answer::OptionsError;
use binding::Bindings;
use cache::Cache;
use infra::Infra;
use listener::Door;
use metrics::Metrics;
use mint::Minter;
use options::Options;
use proxy::Proxy;
use ready::Readiness;
use server::Helper;
use source::{Open, Quota, RateLimit};

/// Port of NTP.
const NTP: u16 = 123;
/// NTP questions that one address may ask a minute: a booting machine asks a few times.
const NTP_RATE: Quota = Quota {
    address: 60,
    network: 60_000,
};

/// Why metal-boot does not run.
#[derive(Debug, Error)]
pub enum Error {
    #[error(transparent)]
    Options(#[from] OptionsError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("--apiserver-url: {0}")]
    Apiserver(#[from] ApiserverError),
    #[error("cannot listen on {address} ({what}): {error}")]
    Listen {
        what: &'static str,
        address: SocketAddrV6,
        error: io::Error,
    },
    #[error("{option}: cannot use {path}: {error}", path = .path.display())]
    Directory {
        option: &'static str,
        path: PathBuf,
        error: io::Error,
    },
    #[error("cannot catch signals: {0}")]
    Signal(io::Error),
}

/// What is made of the options before anything listens.
pub struct Parts {
    template: HelperAnswer,
    client: reqwest::Client,
    connect: Connect,
    infra: Infra,
}

impl Parts {
    /// # Errors
    /// Options that make no sense.
    pub fn new(options: &Options) -> Result<Self, Error> {
        let template = options.answer()?;
        let trust = template
            .ca_cert
            .as_deref()
            .map_or(Trust::Public, Trust::Only);
        let client = http::control_client(trust)?;
        let connect = Connect::new(client.clone(), &options.apiserver_url)?;
        let infra = Infra::new(connect.clone(), options.token_file.clone());
        Ok(Self {
            template,
            client,
            connect,
            infra,
        })
    }

    /// Everything that answers requests.
    ///
    /// # Errors
    /// Directories that cannot be used.
    pub fn helper(
        self,
        options: &Options,
        metrics: Arc<Metrics>,
        stop: watch::Receiver<bool>,
    ) -> Result<Helper, Error> {
        let Self {
            template,
            client,
            infra,
            ..
        } = self;
        let url = &options.apiserver_url;
        let proxy = if options.proxy_apiserver {
            let trust = template
                .ca_cert
                .as_deref()
                .map_or(Trust::Public, Trust::Only);
            let client = http::proxy_client(trust)?;
            Some(Proxy::new(client, url, metrics.clone(), stop.clone()))
        } else {
            None
        };
        let directory = |option, path: &PathBuf| {
            let path = path.clone();
            move |error| Error::Directory {
                option,
                path,
                error,
            }
        };
        let statics = options
            .static_dir
            .as_ref()
            .map(|path| RootDir::open(path).map_err(directory("--static-dir", path)))
            .transpose()?;
        let cache = match &options.cache_dir {
            Some(path) => {
                let trust = template
                    .ca_cert
                    .as_deref()
                    .map_or(Trust::Public, Trust::PublicAnd);
                let client = http::download_client(trust)?;
                let size = options.cache_size;
                let origin = options.cache_origin.clone();
                let cache = Cache::open(path.clone(), size, origin, client, metrics.clone());
                Some(cache.map_err(directory("--cache-dir", path))?)
            }
            None => None,
        };
        let quota = |address, network| RateLimit::new(Quota { address, network });
        Ok(Helper {
            minter: Minter::new(
                infra.clone(),
                options.machine_token_user.clone(),
                options.token_expiry,
            ),
            infra,
            template,
            partition: options.partition.clone(),
            public_url: options.public_url.clone(),
            allowed: options.allow.clone().into(),
            tickets: options.ticket_file.clone(),
            bindings: Bindings::new(
                options.bind,
                options.bind_prefix_length,
                options.token_expiry,
            ),
            rate: quota(options.rate_per_address, options.rate_per_network),
            proxy_rate: quota(
                options.proxy_rate_per_address,
                options.proxy_rate_per_network,
            ),
            proxy,
            statics: statics.map(Arc::new),
            cache: cache.map(Arc::new),
            image_cache: options.image_cache.clone(),
            installer: options.installer(),
            readiness: Readiness::new(client, url.clone(), options.token_file.clone()),
            metrics,
            stop,
        })
    }
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// Options that make no sense, or an address that cannot be listened on.
pub async fn run(options: &Options) -> Result<(), Error> {
    let metrics = Arc::new(Metrics::default());
    let (stop, stopped) = watch::channel(false);
    let parts = Parts::new(options)?;
    secret_file::check(&options.token_file);
    options
        .ticket_file
        .iter()
        .for_each(|file| secret_file::check(file));
    let helper = parts.helper(options, metrics.clone(), stopped.clone())?;
    let (alive, gone) = mpsc::channel(1);
    let door = Door {
        router: server::router(helper),
        open: Arc::new(Open::new(
            options.connections as usize,
            Quota {
                address: options.connections_per_address,
                network: options.connections_per_network,
            },
        )),
        metrics: metrics.clone(),
        stop: stopped,
        alive,
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signal)?;
    open_files(options.connections);
    listen(options, &door).await?;
    if options.ntp || !options.ntp_listen.is_empty() {
        answer_ntp(options, metrics).await?;
    }
    drop(door);
    info!(
        apiserver = http::shown(&options.apiserver_url),
        partition = options.partition,
        "serving"
    );
    tokio::select! {
        _ = terminate.recv() => info!("SIGTERM: finishing what is under way"),
        _ = interrupt.recv() => info!("SIGINT: finishing what is under way"),
    }
    stop.send_replace(true);
    let limit = Duration::from_secs(options.drain_seconds);
    if !listener::drained(gone, limit).await {
        warn!("requests still under way after {limit:?} are dropped");
    }
    Ok(())
}

/// Binds every address before the first is served: all or nothing.
async fn listen(options: &Options, door: &Door) -> Result<(), Error> {
    let mut listeners = Vec::new();
    for address in &options.listen {
        let listener = listener::bind(*address).map_err(|error| Error::Listen {
            what: "--listen",
            address: *address,
            error,
        })?;
        listeners.push(listener);
    }
    for listener in listeners {
        if let Ok(address) = listener.local_addr() {
            info!(%address, "listening");
        }
        tokio::spawn(listener::serve(listener, door.clone()));
    }
    Ok(())
}

async fn answer_ntp(options: &Options, metrics: Arc<Metrics>) -> Result<(), Error> {
    let addresses = if options.ntp_listen.is_empty() {
        let on_port =
            |address: &SocketAddrV6| SocketAddrV6::new(*address.ip(), NTP, 0, address.scope_id());
        let mut addresses: Vec<SocketAddrV6> = options.listen.iter().map(on_port).collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    } else {
        options.ntp_listen.clone()
    };
    if !ntp::Clock::read().synchronized {
        warn!("this host's clock is not set by anything; NTP answers say so");
    }
    let responder = ntp::Responder {
        allowed: options.allow.clone().into(),
        limit: Arc::new(RateLimit::new(NTP_RATE)),
        metrics,
    };
    for address in addresses {
        let socket = UdpSocket::bind(address)
            .await
            .map_err(|error| Error::Listen {
                what: "NTP",
                address,
                error,
            })?;
        info!(%address, "answering NTP");
        tokio::spawn(responder.clone().serve(socket));
    }
    Ok(())
}

/// Two descriptors for each connection, which may be a proxied one.
fn open_files(connections: u32) {
    let wanted = 2 * u64::from(connections) + 64;
    let outcome = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft >= wanted {
            return Ok(soft);
        }
        let more = wanted.min(hard);
        setrlimit(Resource::RLIMIT_NOFILE, more, hard).map(|()| more)
    });
    match outcome {
        Ok(there) if there < wanted => warn!(
            "{there} open files are allowed, {wanted} are needed for --connections {connections}; \
             raise LimitNOFILE"
        ),
        Ok(_) => {}
        Err(error) => warn!("the limit of open files is unknown: {error}"),
    }
}
