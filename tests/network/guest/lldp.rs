//! LLDP until enough switches are heard, or too few in time.

use metal_anvil::net;
use metal_anvil::net::lldp::{Identity, Listener, PortNeighbour, Requirement};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{Failed, Words, say};

/// Says `quiet` after `guest.quiet` seconds, and `switches` or `unmet`; then it goes on, so that
/// it is heard itself.
pub async fn listen(words: &Words) -> Result<(), Failed> {
    let network = net::bring_up(&net::Options::default()).await?;
    let identity = Identity {
        system_name: words.get("name").unwrap_or("guest").to_owned(),
        program: "metal-anvil test".to_owned(),
    };
    let listener = Listener::start(network.watch(), identity);
    listener.set_status("listening");
    let count = |key| {
        let set = words.get(key);
        set.map_or(2, |text| text.parse().expect("a number"))
    };
    let requirement = Requirement {
        interfaces: count("interfaces"),
        chassis: count("chassis"),
        timeout: words.seconds("timeout", 32),
    };
    let begun = Instant::now();
    let quiet = words.seconds("quiet", 0);
    let (result, ()) = tokio::join!(listener.wait_for(requirement), async {
        sleep(quiet).await;
        say("quiet", json!({}));
    });
    let seconds = begun.elapsed().as_secs();
    match result {
        Ok(switches) => {
            let switches: Vec<_> = switches.iter().map(heard).collect();
            say("switches", json!({"heard": switches, "seconds": seconds}));
        }
        Err(error) => say(
            "unmet",
            json!({"error": error.to_string(), "seconds": seconds}),
        ),
    }
    std::future::pending().await
}

fn heard(switch: &PortNeighbour) -> Value {
    let nic = switch.to_nic();
    json!({
        "interface": switch.interface,
        "hostname": nic.hostname,
        "mac": nic.mac,
        "identifier": nic.identifier,
        "name": nic.name,
        "management": switch.frame.management,
    })
}
