//! The kernel command line as a source of settings.
//!
//! metal-hammer's keys (`PIXIE_API_URL`, `DEBUG`, `console`) and `rescue` are understood, and every
//! key of `metal.config` as `anvil.<key>=<value>`, the policy with dots
//! (`anvil.policy.lldp.chassis=1`). Secrets are refused here: the kernel prints its
//! command line on every console.

use serde_json::{Map, Value};

use super::file::Problem;
use super::layer::{self, Layer, SECRET_KEYS};

/// Prefix of this project's own parameters.
const PREFIX: &str = "anvil.";

/// Name of the parameter by which the boot medium announces itself: the volume id to look for.
const MEDIUM: &str = "METAL_MEDIUM";

/// What the kernel command line says to the agent.
#[derive(Debug, Default)]
pub struct CommandLine {
    pub layer: Layer,
    /// Volume id of the boot medium that holds `boot/metal.config`.
    pub medium: Option<String>,
    pub problems: Vec<Problem>,
}

/// Reads the settings on a kernel command line, as `/proc/cmdline` shows it.
#[must_use]
pub fn parse(text: &str) -> CommandLine {
    let mut keys = Map::new();
    let mut found = CommandLine::default();
    for (key, value) in words(text) {
        // Who asks for a rescue has a disk to save: whatever does not clearly say no is yes.
        let rescue = matches!(key.as_str(), "rescue" | "anvil.rescue");
        let Some(value) = value.or_else(|| rescue.then(String::new)) else {
            continue;
        };
        match key.as_str() {
            _ if rescue => drop(keys.insert("rescue".into(), Value::Bool(!is_no(&value)))),
            "PIXIE_API_URL" => drop(keys.insert("boot_helper_url".into(), Value::String(value))),
            "DEBUG" => drop(keys.insert("debug".into(), Value::Bool(truth(&value)))),
            // The last one wins, as it does for the kernel's own /dev/console.
            "console" => drop(keys.insert("console".into(), Value::String(value))),
            MEDIUM => found.medium = Some(value),
            _ => {
                let Some(key) = key.strip_prefix(PREFIX) else {
                    continue;
                };
                if SECRET_KEYS.contains(&key) {
                    found.problems.push(Problem::new(
                        key,
                        "a secret may not stand on the kernel command line; put it into metal.config",
                    ));
                    continue;
                }
                insert(&mut keys, key, typed(key, value));
            }
        }
    }
    let (layer, problems) = layer::from_map(keys);
    found.layer = layer;
    found.problems.extend(problems);
    found
}

/// Keys whose JSON type is not text are written as text on a command line.
fn typed(key: &str, value: String) -> Value {
    match key {
        "debug"
        | "ipv6"
        | "proxy_apiserver"
        | "policy.image_without_checksum"
        | "policy.watchdog.enabled" => Value::Bool(truth(&value)),
        "ntp_servers"
        | "rescue_ssh_keys"
        | "policy.exclude_disks"
        | "policy.inventory_tags"
        | "policy.kexec_denylist" => value.split(',').map(str::to_owned).collect(),
        key if key.starts_with("policy.") => value.parse().map_or(Value::String(value), u64::into),
        _ => Value::String(value),
    }
}

/// Puts `policy.lldp.chassis` where JSON has it: into objects within objects.
fn insert(keys: &mut Map<String, Value>, key: &str, value: Value) {
    let parts = key.strip_prefix("policy.").map(|rest| ("policy", rest));
    let inside =
        |object: &'static str| Some((object, key.strip_prefix(object)?.strip_prefix('.')?));
    let parts = parts
        .or_else(|| inside("lldp"))
        .or_else(|| inside("watchdog"));
    let Some((object, rest)) = parts else {
        keys.insert(key.to_owned(), value);
        return;
    };
    let inner = keys
        .entry(object)
        .or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(inner) = inner {
        insert(inner, rest, value);
    }
}

fn truth(value: &str) -> bool {
    matches!(value, "1" | "true" | "yes" | "on" | "y")
}

fn is_no(value: &str) -> bool {
    let value = value.to_ascii_lowercase();
    matches!(value.as_str(), "0" | "false" | "no" | "off" | "n")
}

/// Splits a command line as the kernel does (`lib/cmdline.c`, `next_arg`): at white space,
/// except inside double quotes, which are dropped.
fn words(text: &str) -> Vec<(String, Option<String>)> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    for c in text.chars().chain([' ']) {
        match c {
            '"' => quoted = !quoted,
            c if c.is_whitespace() && !quoted => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    words
        .into_iter()
        .map(|word| match word.split_once('=') {
            Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
            None => (word, None),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rescue::keys::tests::ED25519 as KEY;

    #[test]
    fn metal_hammers_keys_and_our_own() {
        let line = parse(
            "BOOT_IMAGE=/boot/vmlinuz console=tty0 PIXIE_API_URL=http://[2001:db8::1]:4242 DEBUG=1 \
             anvil.partition=fra-equ01 anvil.policy.lldp.chassis=0 anvil.policy.adopt=wipe anvil.policy.bmc=required METAL_MEDIUM=METAL-HAMMER console=ttyS0,115200n8",
        );
        assert_eq!(
            line.layer
                .boot_helper_url
                .as_ref()
                .map(|base| base.url.as_str()),
            Some("http://[2001:db8::1]:4242/")
        );
        assert_eq!(line.layer.debug, Some(true));
        assert_eq!(line.layer.console.as_deref(), Some("ttyS0,115200n8"));
        assert_eq!(line.layer.partition.as_deref(), Some("fra-equ01"));
        assert_eq!(line.layer.policy.switches().chassis, 0);
        assert_eq!(line.layer.policy.adopt, Some(crate::decide::Adopt::Wipe));
        assert_eq!(
            line.layer.policy.bmc,
            Some(super::super::policy::BmcUse::Required)
        );
        assert_eq!(line.medium.as_deref(), Some("METAL-HAMMER"));
        assert_eq!(line.problems, []);
    }

    #[test]
    fn rescue_is_asked_for_by_one_word_alone() {
        let asked = |text: &str| parse(text).layer.rescue;
        for text in [
            "rescue=1",
            "anvil.rescue=1",
            "quiet rescue=true",
            "rescue",
            "rescue=",
            "rescue=True",
            "anvil.rescue=2",
            "rescue=0 rescue",
        ] {
            assert_eq!(asked(text), Some(true), "{text}");
        }
        for text in [
            "",
            "DEBUG=1",
            "rescued=1",
            "RESCUE=1",
            "x.rescue=1",
            "a=\"rescue=1\"",
        ] {
            assert_eq!(asked(text), None, "{text}");
        }
        for text in ["rescue=1 rescue=0", "rescue=No", "anvil.rescue=off"] {
            assert_eq!(asked(text), Some(false), "{text}");
        }
        let line = parse(&format!(
            "rescue=1 anvil.rescue_ssh_keys=\"{KEY} who@where\""
        ));
        assert_eq!(line.problems, []);
        let keys = line.layer.rescue_ssh_keys.unwrap();
        assert_eq!(keys[0].to_string(), format!("{KEY} who@where"));
    }

    #[test]
    fn the_watchdogs_rules() {
        let line =
            parse("anvil.policy.watchdog.enabled=0 anvil.policy.watchdog.timeout_seconds=30 quiet");
        assert_eq!(line.problems, []);
        let rules = line.layer.policy.watchdog();
        assert_eq!((rules.enabled, rules.timeout), (false, 30));
    }

    #[test]
    fn a_zone_and_an_addressing_mode() {
        let line = parse(
            "PIXIE_API_URL=http://[fe80::1%25eth0]:4242 anvil.policy.addr_gen_mode=stable-privacy",
        );
        assert_eq!(line.problems, []);
        let base = line.layer.boot_helper_url.unwrap();
        assert_eq!(base.to_string(), "http://[fe80::1]:4242/ on eth0");
        let mode = crate::config::policy::AddrGenMode::StablePrivacy;
        assert_eq!(line.layer.policy.addr_gen_mode, Some(mode));
    }

    #[test]
    fn secrets_are_refused_without_being_repeated() {
        let line = parse("anvil.metal_ticket=hunter2 anvil.partition=fra");
        assert!(line.layer.ticket.is_none());
        let text = format!("{:?}", line.problems);
        assert!(
            text.contains("metal_ticket") && !text.contains("hunter2"),
            "{text}"
        );
    }

    #[test]
    fn a_bad_url_is_a_problem_and_the_rest_counts() {
        let line = parse("PIXIE_API_URL=nonsense anvil.partition=fra quiet");
        assert!(line.layer.boot_helper_url.is_none());
        assert_eq!(line.layer.partition.as_deref(), Some("fra"));
        assert_eq!(line.problems.len(), 1, "{:?}", line.problems);
    }

    #[test]
    fn quotes_hold_words_together() {
        assert_eq!(
            words("a=\"b c\" d  \"e f=g\""),
            [
                ("a".into(), Some("b c".into())),
                ("d".into(), None),
                ("e f".into(), Some("g".into()))
            ]
        );
    }
}
