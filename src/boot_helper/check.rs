//! `metal-boot check`: does what a booting machine would need, once, and says what works.

use std::fmt;
use std::io::Write;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use reqwest::header::DATE;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::infra::Infra;
use super::ipxe::{self, Asker};
use super::mint::{Minted, Minter};
use super::options::Options;
use super::{Error, Parts, secret_file};
use crate::control::connect::{Call, Connect};
use crate::control::http::{Failure, shown};
use crate::control::text::printable;

const REVOKE: &str = "metalstack.api.v2.TokenService/Revoke";
/// The machine that the probe's token is for: no board has this UUID.
const PROBE: Uuid = Uuid::from_u128(0x6d65_7461_6c2d_8626_8f6f_742d_6368_6563);
/// A MAC that belongs to no card (locally administered).
const PROBE_MAC: &str = "02:00:00:00:00:01";
/// Shortest life that a token can be given.
const PROBE_LIFE: Duration = Duration::from_secs(600);
const DEADLINE: Duration = Duration::from_secs(10);
/// A clock that is further off breaks certificates and tokens.
const CLOCK: f64 = 60.0;

/// How one part went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Ok,
    /// Machines boot all the same.
    Warn,
    Fail,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        })
    }
}

/// The lines so far.
struct Report<W> {
    to: W,
    failed: bool,
}

impl<W: Write> Report<W> {
    fn line(&mut self, level: Level, part: &str, text: &str) {
        self.failed |= level == Level::Fail;
        // Whoever closed the output does not want to know.
        let _ = writeln!(self.to, "{level:<5} {part:<14} {text}");
    }
}

/// Checks everything and prints a line for each part; whether machines can boot.
///
/// # Errors
/// Options that metal-boot itself would not start with.
pub async fn run(options: &Options, to: impl Write) -> Result<bool, Error> {
    let parts = Parts::new(options)?;
    let mut report = Report { to, failed: false };
    let said = format!(
        "partition {}, machines go to {}",
        options.partition,
        if options.proxy_apiserver {
            "this helper"
        } else {
            "the apiserver"
        }
    );
    report.line(Level::Ok, "options", &said);
    for (part, file) in [
        ("token file", Some(&options.token_file)),
        ("tickets", options.ticket_file.as_ref()),
    ] {
        let Some(file) = file else { continue };
        match secret_file::read(file).await {
            Ok(_) => report.line(Level::Ok, part, &file.display().to_string()),
            Err(error) => report.line(Level::Fail, part, &error.to_string()),
        }
    }
    apiserver(options, &parts, &mut report).await;
    let minter = Minter::new(
        parts.infra.clone(),
        options.machine_token_user.clone(),
        PROBE_LIFE,
    );
    match minter.mint(PROBE).await {
        Ok(minted) => {
            let text = format!("{} gave one for the probe machine {PROBE}", minted.method);
            report.line(Level::Ok, "machine token", &text);
            match revoke(&parts.connect, &parts.infra, &minted).await {
                Ok(()) => report.line(Level::Ok, "revoke", "the probe's token is revoked"),
                Err(reason) => {
                    let life = PROBE_LIFE.as_secs() / 60;
                    let text = format!("{reason}; the probe's token ends by itself in {life} min");
                    report.line(Level::Warn, "revoke", &text);
                }
            }
        }
        Err(error) => report.line(Level::Fail, "machine token", &error.to_string()),
    }
    let asker = Asker {
        uuid: PROBE,
        mac: PROBE_MAC.into(),
    };
    match ipxe::boot(&parts.infra, &options.partition, &asker.mac).await {
        Ok(kernel) => report.line(Level::Ok, "boot.ipxe", &format!("kernel {kernel}")),
        Err(error) => report.line(Level::Warn, "boot.ipxe", &error.to_string()),
    }
    Ok(!report.failed)
}

/// Whether it answers at all, and what its clock says.
async fn apiserver(options: &Options, parts: &Parts, report: &mut Report<impl Write>) {
    const PART: &str = "apiserver";
    let url = &options.apiserver_url;
    let asking = parts.client.get(url.clone()).timeout(DEADLINE).send();
    let answer = match asking.await {
        Ok(answer) => answer,
        Err(error) => {
            let failure = Failure::new(url, &error).to_string();
            return report.line(Level::Fail, PART, &failure);
        }
    };
    let text = format!("{} answers", shown(url));
    report.line(Level::Ok, PART, &text);
    let date = answer
        .headers()
        .get(DATE)
        .and_then(|date| date.to_str().ok());
    let date = date.and_then(|date| DateTimeParser::new().parse_timestamp(date).ok());
    let (Some(date), Ok(now)) = (date, Timestamp::try_from(SystemTime::now())) else {
        return;
    };
    let ahead = date.duration_since(now).as_secs_f64();
    let level = if ahead.abs() > CLOCK {
        Level::Warn
    } else {
        Level::Ok
    };
    report.line(
        level,
        "clock",
        &format!("the apiserver's is {ahead:+.0} s from this host's"),
    );
}

/// Revokes a token with itself, or where that is not its own user's right, with the helper's.
async fn revoke(connect: &Connect, infra: &Infra, minted: &Minted) -> Result<(), String> {
    #[derive(Serialize)]
    struct Request {
        uuid: Uuid,
    }
    #[derive(Deserialize)]
    struct Empty {}
    let Some(uuid) = minted.id else {
        return Err("the apiserver did not tell the token's id".into());
    };
    let request = Request { uuid };
    let token: &SecretString = &minted.secret;
    let call = Call {
        method: REVOKE,
        token,
        sent: None,
    };
    let own = connect.unary::<_, Empty>(call, &request, DEADLINE).await;
    if own.is_ok() {
        return Ok(());
    }
    let with_infra = infra.call::<_, Empty>(REVOKE, &request).await;
    with_infra
        .map(drop)
        .map_err(|error| printable(&error.to_string(), 300))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_is_a_uuid_that_says_what_it_is() {
        assert_eq!(PROBE.as_bytes().len(), 16);
        assert_eq!(&PROBE.as_bytes()[..5], b"metal");
        assert_eq!(PROBE.get_version_num(), 8, "RFC 9562: own meaning");
        assert_eq!(PROBE.get_variant(), uuid::Variant::RFC4122);
    }

    #[test]
    fn one_failure_fails_it_all() {
        let mut report = Report {
            to: Vec::new(),
            failed: false,
        };
        report.line(Level::Ok, "a", "b");
        report.line(Level::Warn, "a", "b");
        assert!(!report.failed);
        report.line(Level::Fail, "machine token", "no");
        report.line(Level::Ok, "a", "b");
        assert!(report.failed);
        let text = String::from_utf8(report.to).unwrap();
        assert!(text.contains("FAIL  machine token  no\n"), "{text}");
    }
}
