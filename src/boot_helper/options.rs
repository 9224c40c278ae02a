//! The options of metal-boot: command line, environment and file have the same names.

use std::net::SocketAddrV6;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use tracing::Level;
use url::Url;

use super::binding::Mode;
use super::source::Prefix;

/// The bounds of a machine token's life: `BootServiceMachineTokenRequest.expires`, seconds.
const EXPIRY: std::ops::Range<u64> = 600..604_800;

/// The boot helper of metal-anvil: gives a machine that boots its apiserver's address and a
/// token of its own, at GET /config/{machine-uuid}.
///
/// Every option can stand in the environment and, with the name of its variable in lower
/// case and without METAL_BOOT_, in a TOML file (--config). The command line is stronger
/// than the environment, the environment stronger than the file.
#[derive(Debug, Clone, Parser)]
#[command(name = "metal-boot", version)]
pub struct Options {
    /// TOML file with options: `partition = "fra-equ01"`, `listen = ["[2001:db8::1]:4242"]`.
    #[arg(long, env = "METAL_BOOT_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// IPv6 address and port to listen on; may be given more than once (comma-separated in
    /// the environment, as with every such option).
    #[arg(
        long,
        env = "METAL_BOOT_LISTEN",
        value_name = "ADDRESS",
        default_value = "[::]:4242",
        value_delimiter = ','
    )]
    pub listen: Vec<SocketAddrV6>,

    /// metal-apiserver, as this helper reaches it.
    #[arg(long, env = "METAL_BOOT_APISERVER_URL", value_name = "URL")]
    pub apiserver_url: Url,

    /// File with this helper's own token: infra role editor, machine roles "*" editor. It is
    /// read again for every machine, so it can be replaced at any time, and never given out.
    #[arg(long, env = "METAL_BOOT_TOKEN_FILE", value_name = "FILE")]
    pub token_file: PathBuf,

    /// Partition of the machines, 2 to 128 letters, digits, "-", "_" or ".".
    #[arg(long, env = "METAL_BOOT_PARTITION")]
    pub partition: String,

    /// PEM file with the only authorities that may vouch for the apiserver, for this helper
    /// and for machines. Without it: the public ones.
    #[arg(long, env = "METAL_BOOT_CA_CERT", value_name = "FILE")]
    pub ca_cert: Option<PathBuf>,

    /// metal-apiserver, as machines reach it [default: --apiserver-url].
    #[arg(
        long,
        env = "METAL_BOOT_MACHINE_APISERVER_URL",
        value_name = "URL",
        help_heading = MACHINES
    )]
    pub machine_apiserver_url: Option<Url>,

    /// Machines reach the apiserver through this helper: their five methods are passed on,
    /// with their own tokens.
    #[arg(long, env = "METAL_BOOT_PROXY_APISERVER", help_heading = MACHINES)]
    pub proxy_apiserver: bool,

    /// This helper's own base URL, as machines reach it.
    #[arg(long, env = "METAL_BOOT_PUBLIC_URL", value_name = "URL", help_heading = MACHINES)]
    pub public_url: Option<Url>,

    /// NTP server for machines; may be given more than once.
    #[arg(
        long = "ntp-server",
        env = "METAL_BOOT_NTP_SERVERS",
        value_name = "HOST",
        value_delimiter = ',',
        help_heading = MACHINES
    )]
    pub ntp_servers: Vec<String>,

    /// Machines log in detail.
    #[arg(long, env = "METAL_BOOT_DEBUG", help_heading = MACHINES)]
    pub debug: bool,

    /// JSON file with the partition's policy, or the JSON itself (a table in the TOML file):
    /// adopt ("hold", "boot-disk" or "wipe"), lldp {interfaces, chassis, timeout_seconds},
    /// slaac_timeout_seconds, boot_helper_timeout_seconds, reboot_delay_seconds, wait_hours,
    /// exclude_disks[], and the other policy keys of the operator's guide.
    #[arg(
        long,
        env = "METAL_BOOT_POLICY",
        value_name = "FILE|JSON",
        help_heading = MACHINES
    )]
    pub policy: Option<String>,

    /// JSON file that says where machines send their logs: endpoint, log_type, basic_auth
    /// {user, password}, certificate_auth {cert, key}.
    #[arg(long, env = "METAL_BOOT_LOGGING", value_name = "FILE", help_heading = MACHINES)]
    pub logging: Option<PathBuf>,

    /// Installer for images that ship none: a static binary at this URL. With --cache-dir and
    /// --public-url machines are given it by this helper, which fetches it once.
    #[arg(
        long,
        env = "METAL_BOOT_OS_INSTALLER_URL",
        value_name = "URL",
        help_heading = MACHINES
    )]
    pub os_installer_url: Option<Url>,

    /// SHA-256 of that installer, hexadecimal.
    #[arg(
        long,
        env = "METAL_BOOT_OS_INSTALLER_SHA256",
        value_name = "HEX",
        help_heading = MACHINES
    )]
    pub os_installer_sha256: Option<String>,

    /// Top-level field of the allocation that this installer does not know; may be given
    /// more than once.
    #[arg(
        long = "os-installer-drop-field",
        env = "METAL_BOOT_OS_INSTALLER_DROP_FIELDS",
        value_name = "NAME",
        value_delimiter = ',',
        help_heading = MACHINES
    )]
    pub os_installer_drop_fields: Vec<String>,

    /// Base URL of an image cache: it replaces scheme and host of image URLs. /image/ here
    /// leads there [default with --cache-dir: --public-url and /image].
    #[arg(long, env = "METAL_BOOT_IMAGE_CACHE", value_name = "URL", help_heading = MACHINES)]
    pub image_cache: Option<Url>,

    /// Life of a machine's token: a number and s, m, h or d; from 600s to less than 7d. The
    /// longest wait for an allocation is 48h.
    #[arg(long, env = "METAL_BOOT_TOKEN_EXPIRY", value_name = "TIME",
          default_value = "72h", value_parser = expiry, help_heading = TOKENS)]
    pub token_expiry: Duration,

    /// User (tenant) that machine tokens belong to; it needs the label
    /// tenant.metal-stack.io/machine-bootstrapper in the apiserver.
    #[arg(
        long,
        env = "METAL_BOOT_MACHINE_TOKEN_USER",
        value_name = "NAME",
        default_value = "metal-hammer",
        help_heading = TOKENS
    )]
    pub machine_token_user: String,

    /// File with tickets, one a line: a machine has to show one of them (metal_ticket) to
    /// get its configuration. Read again for every machine.
    #[arg(long, env = "METAL_BOOT_TICKET_FILE", value_name = "FILE", help_heading = TOKENS)]
    pub ticket_file: Option<PathBuf>,

    /// What is done when a machine's UUID comes from another source than at first: "log" it,
    /// or refuse it ("enforce", for ports that have a prefix each).
    #[arg(
        long,
        env = "METAL_BOOT_BIND",
        value_enum,
        default_value = "log",
        help_heading = TOKENS
    )]
    pub bind: Mode,

    /// Length of the prefix that counts as one source for --bind.
    #[arg(long, env = "METAL_BOOT_BIND_PREFIX_LENGTH", value_name = "BITS", default_value = "64",
          value_parser = clap::value_parser!(u8).range(1..=128), help_heading = TOKENS)]
    pub bind_prefix_length: u8,

    /// Prefix that machines come from; may be given more than once [default: any]. Others
    /// get /healthz, /readyz and /metrics only.
    #[arg(
        long,
        env = "METAL_BOOT_ALLOW",
        value_name = "PREFIX",
        value_delimiter = ',',
        help_heading = LIMITS
    )]
    pub allow: Vec<Prefix>,

    /// Tokens and scripts that one address may ask for a minute.
    #[arg(long, env = "METAL_BOOT_RATE_PER_ADDRESS", value_name = "N", default_value = "60",
          value_parser = positive(), help_heading = LIMITS)]
    pub rate_per_address: u32,

    /// The same for all addresses of one /64.
    #[arg(long, env = "METAL_BOOT_RATE_PER_NETWORK", value_name = "N", default_value = "12000",
          value_parser = positive(), help_heading = LIMITS)]
    pub rate_per_network: u32,

    /// Proxied calls that one address may make a minute.
    #[arg(long, env = "METAL_BOOT_PROXY_RATE_PER_ADDRESS", value_name = "N",
          default_value = "600", value_parser = positive(), help_heading = LIMITS)]
    pub proxy_rate_per_address: u32,

    /// The same for all addresses of one /64.
    #[arg(long, env = "METAL_BOOT_PROXY_RATE_PER_NETWORK", value_name = "N",
          default_value = "120000", value_parser = positive(), help_heading = LIMITS)]
    pub proxy_rate_per_network: u32,

    /// Connections at once.
    #[arg(long, env = "METAL_BOOT_CONNECTIONS", value_name = "N", default_value = "16384",
          value_parser = positive(), help_heading = LIMITS)]
    pub connections: u32,

    /// Connections of one address at once.
    #[arg(long, env = "METAL_BOOT_CONNECTIONS_PER_ADDRESS", value_name = "N",
          default_value = "32", value_parser = positive(), help_heading = LIMITS)]
    pub connections_per_address: u32,

    /// Connections of all addresses of one /64 at once.
    #[arg(long, env = "METAL_BOOT_CONNECTIONS_PER_NETWORK", value_name = "N",
          default_value = "8192", value_parser = positive(), help_heading = LIMITS)]
    pub connections_per_network: u32,

    /// Directory whose files are served at /static/: kernel, initrd, ISO.
    #[arg(long, env = "METAL_BOOT_STATIC_DIR", value_name = "DIR", help_heading = FILES)]
    pub static_dir: Option<PathBuf>,

    /// Keep images here and serve them at /image/. Without it they never flow through this
    /// helper.
    #[arg(long, env = "METAL_BOOT_CACHE_DIR", value_name = "DIR", help_heading = FILES)]
    pub cache_dir: Option<PathBuf>,

    /// Where the images of --cache-dir come from: what stands before /image/'s paths.
    #[arg(long, env = "METAL_BOOT_CACHE_ORIGIN", value_name = "URL", help_heading = FILES)]
    pub cache_origin: Option<Url>,

    /// How much --cache-dir may hold: a number and M, G or T (powers of 1024).
    #[arg(long, env = "METAL_BOOT_CACHE_SIZE", value_name = "SIZE", default_value = "20G",
          value_parser = size, help_heading = FILES)]
    pub cache_size: u64,

    /// Answer NTP with this host's clock, at the addresses of --listen and port 123.
    #[arg(long, env = "METAL_BOOT_NTP", help_heading = SERVICE)]
    pub ntp: bool,

    /// Answer NTP at this address and port instead; may be given more than once.
    #[arg(
        long,
        env = "METAL_BOOT_NTP_LISTEN",
        value_name = "ADDRESS",
        value_delimiter = ',',
        help_heading = SERVICE
    )]
    pub ntp_listen: Vec<SocketAddrV6>,

    /// How long requests under way may take after SIGTERM, seconds. Waits end at once.
    #[arg(
        long,
        env = "METAL_BOOT_DRAIN_SECONDS",
        value_name = "SECONDS",
        default_value = "10",
        help_heading = SERVICE
    )]
    pub drain_seconds: u64,

    /// How log lines look.
    #[arg(
        long,
        env = "METAL_BOOT_LOG_FORMAT",
        value_enum,
        default_value = "json",
        help_heading = SERVICE
    )]
    pub log_format: LogFormat,

    /// What is logged: error, warn, info, debug or trace.
    #[arg(
        long,
        env = "METAL_BOOT_LOG_LEVEL",
        value_name = "LEVEL",
        default_value = "info",
        help_heading = SERVICE
    )]
    pub log_level: Level,
}

const MACHINES: &str = "What machines are told";
const TOKENS: &str = "Who gets a token";
const LIMITS: &str = "Limits";
const FILES: &str = "Files and images";
const SERVICE: &str = "The service itself";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For eyes.
    Text,
}

fn positive() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..)
}

/// `72h` and the like.
fn expiry(text: &str) -> Result<Duration, String> {
    let units = [("s", 1), ("m", 60), ("h", 3600), ("d", 86400)];
    scaled(text, &units)
        .ok_or("expected a number and s, m, h or d, for example 72h")?
        .filter(|seconds| EXPIRY.contains(seconds))
        .map(Duration::from_secs)
        .ok_or_else(|| "the apiserver accepts 600s to less than 7d".into())
}

/// `20G` and the like, in bytes.
fn size(text: &str) -> Result<u64, String> {
    let units = [("M", 1 << 20), ("G", 1 << 30), ("T", 1 << 40)];
    scaled(text, &units)
        .flatten()
        .filter(|size| *size > 0)
        .ok_or_else(|| "expected a number and M, G or T, for example 20G".into())
}

/// A number and its unit: `None` without one, `Some(None)` when it is too large.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<Option<u64>> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = &text[digits.len()..];
    let (_, scale) = units.iter().find(|(name, _)| *name == unit)?;
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse::<u64>().ok()?.checked_mul(*scale))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn every_option_has_help_and_a_variable_of_its_own_name() {
        for arg in Options::command().get_arguments() {
            let id = arg.get_id().as_str();
            assert!(arg.get_help().is_some(), "{id}");
            let variable = format!("METAL_BOOT_{}", id.to_uppercase());
            let env = arg.get_env().and_then(|env| env.to_str());
            assert_eq!(env, Some(variable.as_str()), "{id}");
        }
    }

    #[test]
    fn the_life_of_a_token_has_bounds() {
        let cases = [
            ("72h", Some(259_200)),
            ("600s", Some(600)),
            ("10m", Some(600)),
            ("6d", Some(518_400)),
            ("604799s", Some(604_799)),
            ("7d", None),
            ("599s", None),
            ("99999999999999999999d", None),
            ("213503982334601d", None),
            ("72", None),
            ("h", None),
            ("-72h", None),
            ("+72h", None),
            ("7Ω", None),
        ];
        for (text, seconds) in cases {
            let expected = seconds.map(Duration::from_secs);
            assert_eq!(expiry(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn sizes_have_units() {
        for (text, expected) in [
            ("20G", Some(20 << 30)),
            ("512M", Some(512 << 20)),
            ("1T", Some(1 << 40)),
            ("0G", None),
            ("20", None),
            ("20GB", None),
            ("99999999999T", None),
            ("", None),
        ] {
            assert_eq!(size(text).ok(), expected, "{text}");
        }
    }
}
