//! DNS servers and search lists of router advertisements, with real unbound.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::netns::SERVICE;
use crate::support::process::{Process, run};

use super::lab::{Lab, prefix, router};

/// The zone of the lab, and the helper in it.
const ZONE: &str = "lab.example";

/// unbound on `address` with the helper's name.
fn unbound(lab: &mut Lab, address: &str) {
    let file = lab
        .dir
        .join(format!("unbound-{}.conf", address.replace(':', "_")));
    let config = format!(
        "server:\n interface: {address}\n access-control: ::/0 allow\n username: \"\"\n chroot: \"\"\n \
         pidfile: \"\"\n use-syslog: no\n do-ip4: no\n do-daemonize: no\n module-config: iterator\n \
         num-threads: 1\n local-zone: \"{ZONE}.\" static\n \
         local-data: \"helper.{ZONE}. 60 IN AAAA {SERVICE}\"\nremote-control:\n control-enable: no\n"
    );
    fs::write(&file, config).expect("write unbound.conf");
    let mut command = lab.ns.command("unbound");
    command.arg("-d").arg("-c").arg(&file);
    let mut process = Process::start("unbound", command, &lab.dir);
    let listening = || {
        let sockets = run(lab
            .ns
            .command("ss")
            .args(["-6", "-H", "-l", "-u", "-n", "sport = :53"]));
        !sockets.trim().is_empty()
    };
    process.wait_until("listening", Duration::from_secs(30), listening);
    lab.keep(process);
}

/// A radvd section for the first leaf with a prefix and these DNS options.
fn naming(options: &str) -> String {
    router(0, &format!("{} {options}", prefix("2001:db8:a::/64", "")))
}

#[test]
fn helper_by_name_with_rdnss_only() {
    let mut lab = Lab::new("rdnss");
    lab.cards.truncate(1);
    unbound(&mut lab, SERVICE);
    lab.routers(&[naming(&format!(
        "RDNSS {SERVICE} {{ AdvRDNSSLifetime 600; }};"
    ))]);
    let web = lab.web("[::]:4242");
    web.config(json!({"partition": "test-part"}));
    let mut node = lab.boot(&format!(
        "guest.run=helper guest.helper=http://helper.{ZONE}:4242"
    ));
    assert_eq!(node.event("helper")["partition"], "test-part");
    let hit = web.wait_hit("GET /config/", 30, |_| true);
    assert_eq!(hit.host, format!("helper.{ZONE}:4242"));
}

#[test]
fn helper_by_short_name_with_dnssl_and_a_link_local_server() {
    let mut lab = Lab::new("dnssl");
    lab.cards.truncate(1);
    lab.ns.ip("address add fe80::53/64 dev tap0 nodad");
    unbound(&mut lab, "fe80::53%tap0");
    lab.routers(&[naming(&format!(
        "RDNSS fe80::53 {{ AdvRDNSSLifetime 600; }}; DNSSL {ZONE} {{ AdvDNSSLLifetime 600; }};"
    ))]);
    let web = lab.web("[::]:4242");
    web.config(json!({"partition": "test-part"}));
    let mut node = lab.boot("guest.run=helper guest.helper=http://helper:4242");
    assert_eq!(node.event("helper")["partition"], "test-part");
    let hit = web.wait_hit("GET /config/", 30, |_| true);
    assert_eq!(hit.host, "helper:4242");
}

#[test]
fn expired_rdnss_is_no_longer_asked() {
    let mut lab = Lab::new("rdnss_expires");
    lab.cards.truncate(1);
    unbound(&mut lab, SERVICE);
    lab.routers(&[naming(&format!(
        "RDNSS {SERVICE} {{ AdvRDNSSLifetime 12; }}; DNSSL {ZONE} {{ AdvDNSSLLifetime 3600; }};"
    ))]);
    let mut node = lab.boot("guest.run=names guest.name=helper");
    let says = |event: &Value, key: &str, text: &str| {
        event[key].as_str().unwrap_or_default().contains(text)
    };
    let conf = format!("nameserver {SERVICE}\nsearch {ZONE}\n");
    node.event_that("names", |names| {
        names["addresses"] == json!([SERVICE]) && says(names, "resolv.conf", &conf)
    });
    // The router stops naming the server, which itself goes on answering.
    lab.routers(&[naming("")]);
    node.event_that("names", |names| {
        says(names, "error", "no DNS server is known")
            && !says(names, "resolv.conf", "nameserver")
            && says(names, "resolv.conf", ZONE)
    });
    // And another one is asked as soon as it is named.
    lab.ns.ip("address add 2001:db8:ff::53/128 dev lo nodad");
    unbound(&mut lab, "2001:db8:ff::53");
    lab.routers(&[naming("RDNSS 2001:db8:ff::53 { AdvRDNSSLifetime 600; };")]);
    node.event_that("names", |names| names["addresses"] == json!([SERVICE]));
}
