//! Follows the DNS options of router advertisements and keeps resolv.conf true to them.

use std::path::PathBuf;

use rtnetlink::sys::{AsyncSocketExt, TokioSocket};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::dns::{self, Servers};
use super::link::Table;
use super::nd_option;

/// `SO_RCVBUF` ran over and messages were lost.
const ENOBUFS: i32 = 105;

/// What the resolver task needs.
pub(super) struct Resolver {
    pub(super) socket: TokioSocket,
    pub(super) links: watch::Receiver<Table>,
    pub(super) resolv_conf: PathBuf,
    /// Told of every change, for those who resolve names here.
    pub(super) published: watch::Sender<Servers>,
}

impl Resolver {
    /// Runs until the socket fails; it is meant to be a task.
    pub(super) async fn run(self) {
        let mut servers = Servers::default();
        // As long as nothing is learned, a file that is there stays.
        let mut written = servers.render(|_| None);
        let mut refused = None;
        loop {
            let expiry = servers.next_expiry();
            let expired = async {
                match expiry {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let mut changed = false;
            tokio::select! {
                received = self.socket.recv_from_full() => match received {
                    // Port 0 is the kernel.
                    Ok((datagram, sender)) if sender.port_number() == 0 => {
                        for result in nd_option::parse_datagram(&datagram) {
                            match result {
                                Ok(options) => changed |= self.learn(&mut servers, options),
                                // The same advertisement comes every few seconds: say it once.
                                Err(error) if refused.as_ref() != Some(&error) => {
                                    warn!("DNS option of a router advertisement ignored: {error}");
                                    refused = Some(error);
                                }
                                Err(_) => {}
                            }
                        }
                    }
                    Ok(_) => {}
                    // The next advertisement says it again.
                    Err(error) if error.raw_os_error() == Some(ENOBUFS) => {}
                    Err(error) => {
                        warn!("DNS options of router advertisements are lost from now on: {error}");
                        return;
                    }
                },
                () = expired => {
                    changed |= servers.expire(Instant::now());
                }
            }
            if changed {
                self.published.send_replace(servers.clone());
            }
            self.publish(&servers, &mut written);
        }
    }

    fn learn(&self, servers: &mut Servers, options: nd_option::Options) -> bool {
        // Links without hardware are not ours to listen to.
        if self.links.borrow().get(options.index).is_none() {
            return false;
        }
        let mut changed = false;
        for option in options.options {
            changed |= servers.learn(options.index, option, Instant::now());
        }
        changed
    }

    fn publish(&self, servers: &Servers, written: &mut String) {
        let text = {
            let links = self.links.borrow();
            servers.render(|index| links.get(index).map(|link| link.name.clone()))
        };
        if text == *written {
            return;
        }
        let path = self.resolv_conf.display();
        match dns::write(&self.resolv_conf, &text) {
            Ok(()) => {
                let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
                info!("{path}: {}", lines.join(", "));
                *written = text;
            }
            Err(error) => warn!("cannot write {path}: {error}"),
        }
    }
}
