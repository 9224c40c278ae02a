//! A shell instead of an install: whoever asked for it on the medium or the command line gets a
//! machine with its network up and its hardware listed, and nothing is written to any disk.

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use tokio::task::block_in_place;
use uuid::Uuid;

use super::booted::{Told, identify};
use super::connect::Links;
use super::failure::Step;
use crate::hardware::{self, Roots};
use crate::report::steps;
use crate::rescue::shell::{self, Place};
use crate::rescue::ssh::{self, Homes};
use crate::rescue::{Decision, Part, decide};
use crate::watchdog::Progress;

/// How long an address is waited for before its absence is told.
const ADDRESS: Duration = Duration::from_secs(60);

/// Comes back when the boot is to go on; with a rescue it never does.
pub(super) async fn unless_asked_for(told: Told, progress: &Progress) -> Told {
    let part = Part::find(Path::new("/"));
    let asked = told.settings.rescue.as_ref();
    let rescue = asked.is_some_and(|rescue| rescue.value);
    let decision = decide(rescue, told.settings.debug, part.is_some());
    let text = match (decision, &part) {
        (Decision::Shell, Some(part)) => {
            let open = block_in_place(|| open(part, &told, true));
            format!(
                "{}. Nothing is written to any disk; `reboot` ends this",
                open.join(", ")
            )
        }
        (Decision::ShellBeside, Some(part)) => {
            let open = block_in_place(|| open(part, &told, false));
            tracing::warn!(
                "debug, and this medium has the rescue part: {}",
                open.join(", ")
            );
            return told;
        }
        (Decision::Boot, _) => return told,
        _ => "this medium has no rescue part: scripts/build-iso --rescue makes one that has. \
              Nothing is written to any disk; to install, take the word away and reset this machine"
            .to_owned(),
    };
    let source = asked.map_or(String::new(), |rescue| format!(" ({})", rescue.source));
    match progress
        .endless(hold(&told, &format!("rescue{source}: {text}")))
        .await {}
}

/// Opens what the part has; answers what is open, in words.
fn open(part: &Part, told: &Told, to_front: bool) -> Vec<String> {
    let (sys, dev) = (Path::new("/sys"), Path::new("/dev"));
    let places = shell::start(&part.busybox, sys, dev, to_front);
    let mut open = vec![where_shells_are(&places)];
    let homes = Homes {
        run: "/run".into(),
        root: "/root".into(),
    };
    match ssh::start(part.ssh.as_ref(), &told.settings.rescue_ssh_keys, &homes) {
        Ok(fingerprint) => open.push(format!("ssh as root, host key {fingerprint}")),
        // Nobody asked for one.
        Err(ssh::Error::NoKeys) if part.ssh.is_none() => {}
        Err(error) => open.push(format!("no ssh: {error}")),
    }
    open
}

fn where_shells_are(places: &[Place]) -> String {
    let shown: Vec<&str> = places.iter().map(|place| place.shown.as_str()).collect();
    match shown.as_slice() {
        [] => "no console for a shell".to_owned(),
        shown => format!("a shell on {}", shown.join(" and on ")),
    }
}

/// Says what is there, and stays. Nothing that fails here is a reason to leave.
async fn hold(told: &Told, why: &str) -> Infallible {
    steps::begin(Step::Rescue);
    steps::hold(why);
    if let Err(error) = &told.efi {
        tracing::warn!("{error}; a reboot may not come back to this medium");
    }
    let machine = identify().unwrap_or_else(|error| {
        tracing::warn!("{error}");
        Uuid::nil()
    });
    list_hardware(told.medium.first().cloned()).await;
    match Links::bring_up(machine, &told.settings.policy).await {
        Ok(links) => {
            match links.network.wait_for_address(ADDRESS).await {
                Ok(usable) => tracing::info!("address {} on {}", usable.address, usable.link),
                Err(error) => tracing::warn!("{error}"),
            }
            // The links are followed for as long as this is alive.
            std::future::pending::<Infallible>().await
        }
        Err(error) => {
            tracing::warn!("no network: {error}");
            std::future::pending().await
        }
    }
}

/// A drive that does not answer keeps its thread, not this one.
async fn list_hardware(medium: Option<String>) {
    let inspected =
        tokio::task::spawn_blocking(move || hardware::inspect(&Roots::live(), medium.as_deref()));
    match tokio::time::timeout(super::register::INSPECTION, inspected).await {
        Ok(Ok(Ok(inventory))) => {
            for line in inventory.table(true) {
                tracing::info!("{line}");
            }
        }
        Ok(Ok(Err(error))) => tracing::warn!("{error}"),
        Ok(Err(error)) => tracing::warn!("the hardware was not read: {error}"),
        Err(_) => tracing::warn!("the hardware was not read in time: a drive does not answer"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shells_are_named() {
        assert_eq!(where_shells_are(&[]), "no console for a shell");
        let places = shell::places("ttyS0 ttyS1", false, Path::new("/dev"));
        assert_eq!(
            where_shells_are(&places),
            "a shell on ttyS0 (press Enter) and on ttyS1 (press Enter)"
        );
    }
}
