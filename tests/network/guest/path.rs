//! From links to a conversation, as `sequence` does it.

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use metal_anvil::config::BaseUrl;
use metal_anvil::control::apiserver::Apiserver;
use metal_anvil::control::boot_helper_client;
use metal_anvil::control::http::{self, Trust};
use metal_anvil::control::line::Line;
use metal_anvil::control::uplink::{self, Make};
use metal_anvil::net::{self, Addressing, Network, Path, Preference, Target};
use serde_json::json;
use uuid::Uuid;

use super::{Failed, Words, say};

/// Links up and the first usable address; and every line of the report when there is none.
pub async fn address(words: &Words) -> Result<Arc<Network>, Failed> {
    let secret = Ipv6Addr::from(0x2001_0db8_0000_0000_0000_0000_0000_0001_u128);
    let addressing = match words.get("addressing") {
        Some("stable-privacy") => Addressing::StablePrivacy(secret),
        _ => Addressing::Eui64,
    };
    let options = net::Options {
        addressing,
        secret,
        ..net::Options::default()
    };
    let network = Arc::new(net::bring_up(&options).await?);
    say("ready", json!({}));
    tokio::spawn(show_links(Arc::clone(&network)));
    let address = network.wait_for_address(words.seconds("slaac", 90)).await?;
    say(
        "address",
        json!({"link": address.link, "address": address.address.to_string()}),
    );
    Ok(network)
}

/// An event for each usable address and each link as they come, and for MTUs that change.
async fn show_links(network: Arc<Network>) {
    let mut table = network.watch();
    let mut shown = std::collections::BTreeSet::new();
    loop {
        for link in table.borrow_and_update().links() {
            let place = json!({"link": link.name, "mac": link.mac.to_string(),
                "place": link.device.bus_path, "driver": link.device.driver,
                "bmc": link.is_bmc(), "mtu": link.mtu});
            let addresses = link
                .addresses
                .iter()
                .filter(|(_, address)| address.usable());
            let news = addresses
                .map(|(address, _)| {
                    let usable = json!({"link": link.name, "address": address.to_string()});
                    ("usable", usable)
                })
                .chain([("link", place)]);
            for (name, data) in news {
                if shown.insert(data.to_string()) {
                    say(name, data);
                }
            }
        }
        if table.changed().await.is_err() {
            return;
        }
    }
}

/// The boot helper `guest.helper`, and the path to it.
pub async fn helper(words: &Words) -> Result<(Arc<Network>, Target, BaseUrl, Path), Failed> {
    let network = address(words).await?;
    let base = BaseUrl::parse(words.get("helper").ok_or("guest.helper is missing")?)?;
    let target = Target::of(&base.url, base.zone.as_deref())?;
    let limit = words.seconds("race", 60);
    let path = network.race(&target, Preference::default(), limit).await?;
    let route = uplink::route(&network, &path);
    let client = http::control_client_on(Trust::Public, &route)?;
    let machine = Uuid::from_u128(1);
    let fetched =
        boot_helper_client::fetch(&client, &base.url, machine, None, Duration::from_secs(60))
            .await?;
    let conf = |name: &str| {
        let file = format!("/proc/sys/net/ipv6/conf/{}/{name}", path.candidate.link);
        std::fs::read_to_string(file)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    if let Some(bytes) = words.get("upload") {
        let url = base.url.join("upload")?;
        let body = vec![b'x'; bytes.parse()?];
        client
            .post(url)
            .body(body)
            .send()
            .await?
            .error_for_status()?;
    }
    say(
        "helper",
        json!({"link": path.candidate.link, "address": path.address.to_string(),
            "partition": fetched.answer.partition, "mtu": conf("mtu")}),
    );
    Ok((network, target, base, path))
}

/// A Wait at the boot helper's own URL, kept on a path that works.
pub async fn wait(words: &Words) -> Result<(), Failed> {
    let (network, target, base, path) = helper(words).await?;
    let make: Make = Box::new(|route| http::control_client_on(Trust::Public, route));
    let line = Line::from(make(&uplink::route(&network, &path))?);
    let machine = Uuid::from_u128(1);
    let apiserver = Apiserver::new(&base.url, "token".into(), machine, line.clone())?;
    let (link, index) = (path.candidate.link.clone(), path.candidate.index);
    tokio::spawn({
        let network = Arc::clone(&network);
        async move { uplink::keep(&network, &target, path, &[(line, make)]).await }
    });
    if let Some(name) = words.get("rename") {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        let renamed = rtnetlink::LinkUnspec::new_with_index(index)
            .name(name.to_owned())
            .build();
        handle.link().change(renamed).execute().await?;
        say("renamed", json!({"from": link, "to": name}));
    }
    let allocation = apiserver.wait_for_allocation().await?;
    say("allocation", json!({"uuid": allocation.uuid.to_string()}));
    Ok(())
}

/// What `guest.name` means, and what resolv.conf says, each time that it changes.
pub async fn names(words: &Words) -> Result<(), Failed> {
    let network = address(words).await?;
    let name = words.get("name").ok_or("guest.name is missing")?;
    let (mut before, mut written) = (String::new(), String::new());
    loop {
        let (event, data) = match network.resolve(name).await {
            Ok(found) => {
                let found: Vec<_> = found.iter().map(ToString::to_string).collect();
                ("resolved", json!({"addresses": found}))
            }
            Err(error) => ("unresolved", json!({"error": error.to_string()})),
        };
        if event != before {
            say(event, data);
            before = event.to_owned();
        }
        let conf = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        if conf != written {
            say("resolv.conf", json!({"text": conf}));
            written = conf;
        }
        // The answer of a server is a fact of its own: there is no event to wait for.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
