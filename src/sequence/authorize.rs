//! Connected -> Authorized: the boot helper's answer, and with it a token.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use secrecy::SecretString;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::clock::{self, Ntp};
use super::connect::Connected;
use super::failure::{During, Failure, Step};
use super::logs;
use super::silence;
use super::token::{self, Refusals};
use crate::config::{BaseUrl, Settings, Source, Sourced, layer};
use crate::control::api::{Allocation, EventType};
use crate::control::apiserver::Apiserver;
use crate::control::boot_helper_client;
use crate::control::error::Error;
use crate::control::http::{self, Route, Trust};
use crate::control::line::{Line, Ways};
use crate::control::retry::Verdict;
use crate::control::uplink::{self, Make};
use crate::net::{Link, Path, Preference, Target};
use crate::report::steps;
use crate::watchdog::Progress;

/// A helper whose tokens are refused at once must not be asked in a tight loop.
const RENEWAL_PAUSE: Duration = Duration::from_secs(10);
/// A path that connects, but brings no answer for this long, gives way to the others.
const ONE_PATH: Duration = Duration::from_secs(45);

/// A machine that may talk to metal-apiserver.
pub struct Authorized {
    pub(super) connected: Connected,
    pub(super) settings: Settings,
    pub(super) apiserver: Apiserver,
    pub(super) downloads: Ways,
    /// How far the clock was off by a server that nobody named; for the hardware clock, once
    /// the apiserver has answered over TLS.
    pub(super) guessed: Option<SignedDuration>,
    /// Moves apiserver and downloads to another path when theirs breaks.
    _keeper: JoinSet<()>,
}

/// What the boot helper said.
struct Asked {
    settings: Settings,
    /// How far this machine's clock is off the helper's.
    offset: Option<SignedDuration>,
    /// The path it was said over; none where there is no helper.
    path: Option<Path>,
    /// How far the clock was off by a server that nobody named.
    guessed: Option<SignedDuration>,
}

impl Connected {
    /// Asks the boot helper for configuration and token. A medium that pins apiserver and
    /// token needs no helper.
    ///
    /// # Errors
    /// No helper URL, no usable answer, or an answer that leaves apiserver or token unsaid.
    pub(super) async fn authorize(self, progress: Progress) -> Result<Authorized, Failure> {
        steps::begin(Step::BootHelper);
        progress.begin(silence::boot_helper(&self.booted.settings().policy));
        let Asked {
            settings,
            path,
            guessed,
            ..
        } = self.configure().await?;
        (self.booted.verbosity)(settings.debug);
        self.booted.lifeline.follow(&settings.policy);
        for line in settings.summary() {
            tracing::info!("{line}");
        }
        let (base, token) = endpoint(&settings)?;
        let guessed = guessed.filter(|_| base.url.scheme() == "https");
        let target = Target::of(&base.url, base.zone.as_deref()).during(Step::BootHelper)?;
        let path = match path {
            Some(path) => path,
            None => {
                let limit = settings.policy.boot_helper_timeout();
                let raced = self.network.race(&target, Preference::default(), limit);
                raced.await.during(Step::BootHelper)?
            }
        };
        let route = uplink::route(&self.network, &path);
        let [control, bound, free] =
            clients(&settings).map(|make| make(&route).map(|client| (Line::from(client), make)));
        let lines = [
            control.during(Step::BootHelper)?,
            bound.during(Step::BootHelper)?,
            free.during(Step::BootHelper)?,
        ];
        let [(control, _), (bound, _), (free, _)] = &lines;
        let downloads = Ways {
            bound: bound.clone(),
            free: free.clone(),
        };
        let apiserver = Apiserver::new(&base.url, token, self.booted.machine, control.clone())
            .during(Step::BootHelper)?;
        self.booted.lifeline.report_to(&apiserver);
        let mut lines = Vec::from(lines);
        lines.extend(logs::start(&settings, self.booted.machine, &route));
        let mut keeper = JoinSet::new();
        let network = Arc::clone(&self.network);
        keeper.spawn(async move { uplink::keep(&network, &target, path, &lines).await });
        Ok(Authorized {
            connected: self,
            settings,
            apiserver,
            downloads,
            guessed,
            _keeper: keeper,
        })
    }

    /// Everything the boot is told, and the clock set by it. A helper that is asked in the
    /// clear says who knows the time; before one that is asked over TLS, only the medium and the
    /// network can.
    async fn configure(&self) -> Result<Asked, Failure> {
        let local = self.booted.settings();
        let helper = local.boot_helper_url.as_ref();
        let tls = helper.is_none_or(|base| base.value.url.scheme() == "https");
        let network = &self.network;
        let mut given = Ntp::Nobody;
        if tls {
            given = clock::set_by_ntp(network, &local.ntp_servers).await;
        }
        let mut asked = self.ask_helper().await?;
        let servers = &asked.settings.ntp_servers;
        let asked_all = tls && *servers == local.ntp_servers;
        if given == Ntp::Nobody && !asked_all {
            given = clock::set_by_ntp(network, servers).await;
        }
        match (given, asked.offset) {
            (Ntp::Guessed(offset), _) => asked.guessed = Some(offset),
            (Ntp::Nobody, Some(offset)) => clock::set_by_date(offset),
            _ => {}
        }
        Ok(asked)
    }

    /// The settings with the boot helper's answer merged in.
    async fn ask_helper(&self) -> Result<Asked, Failure> {
        let local = self.booted.settings();
        let Some(helper) = &local.boot_helper_url else {
            if local.apiserver_url.is_some() && local.token.is_some() {
                return Ok(Asked {
                    settings: local,
                    offset: None,
                    path: None,
                    guessed: None,
                });
            }
            let why = "no boot helper URL; set boot_helper_url in boot/metal.config of the medium, \
                       or PIXIE_API_URL=http://[address]:4242 on the kernel command line";
            return Err(Failure::new(Step::BootHelper, why));
        };
        let BaseUrl { url, zone } = &helper.value;
        let target = Target::of(url, zone.as_deref()).during(Step::BootHelper)?;
        let patience = local.policy.boot_helper_timeout();
        let deadline = Instant::now() + patience;
        let what = format!(
            "asking the boot helper {} ({})",
            helper.value, helper.source
        );
        steps::doing(what, Some(patience));
        let mut preference = Preference::default();
        let mut tried = BTreeSet::new();
        let (path, fetched) = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let raced = self.network.race(&target, preference, left).await;
            let path = raced.during(Step::BootHelper)?;
            tracing::info!("boot helper reached over {path}");
            let route = uplink::route(&self.network, &path);
            let client = http::control_client_on(trust(&local), &route).during(Step::BootHelper)?;
            let left = deadline.saturating_duration_since(Instant::now());
            let fetched = boot_helper_client::fetch(
                &client,
                url,
                self.booted.machine,
                local.ticket.as_ref(),
                left.min(ONE_PATH),
            );
            match fetched.await {
                Ok(fetched) => break (path, fetched),
                Err(error) if error.depends_on_source() => {
                    tried.insert(path.candidate.index);
                    let links = self.network.links();
                    let Some(next) = untried(&links, &tried) else {
                        return Err(error).during(Step::BootHelper);
                    };
                    tracing::warn!("{path}: {error}; asking over another link");
                    steps::again();
                    // Once: it need not win.
                    tried.insert(next);
                    preference.first = Some(next);
                    preference.last = Some(path.candidate.index);
                }
                Err(error) if left > ONE_PATH && error.verdict() != Verdict::GiveUp => {
                    tracing::warn!("{path}: {error}; looking for another path");
                    steps::again();
                    preference.last = Some(path.candidate.index);
                }
                Err(error) => return Err(error).during(Step::BootHelper),
            }
        };
        let (layer, problems) = layer::from_answer(&fetched.answer);
        for problem in problems {
            tracing::warn!("boot helper's answer, {problem}");
        }
        let mut layers = self.booted.layers.clone();
        layers.push((Source::BootHelper, layer));
        Ok(Asked {
            settings: Settings::from_layers(layers),
            offset: fetched.clock_offset,
            path: Some(path),
            guessed: None,
        })
    }
}

impl Authorized {
    /// Whether the machine has an allocation; a token that has expired meanwhile is renewed.
    pub(super) async fn probe(
        &self,
        silence: Duration,
        waits: u32,
    ) -> Result<Option<Allocation>, Failure> {
        let mut refusals = Refusals::default();
        loop {
            match self.apiserver.probe(silence, waits).await {
                Err(error) if error.is_unauthenticated() && refusals.go_on() => {
                    self.renew_token(&error).await?;
                }
                result => return result.during(Step::Allocation),
            }
        }
    }

    /// Waits for an allocation, for as long as it takes. The token is renewed before it expires,
    /// and when it is refused.
    pub(super) async fn wait_for_allocation(&self) -> Result<Allocation, Failure> {
        let due = || token::renew_in(&self.apiserver.token(), Timestamp::now());
        let renew = || async {
            if let Err(failure) = self.fetch_token().await {
                tracing::warn!("the token was not renewed before its time: {failure}");
            }
        };
        token::kept_fresh(self.wait_with_any_token(), due, renew).await
    }

    async fn wait_with_any_token(&self) -> Result<Allocation, Failure> {
        let mut refusals = Refusals::default();
        loop {
            match self.apiserver.wait_for_allocation().await {
                Err(error) if error.is_unauthenticated() && refusals.go_on() => {
                    self.renew_token(&error).await?;
                }
                result => return result.during(Step::Allocation),
            }
        }
    }

    /// Sends an event; a token that has expired meanwhile is renewed.
    pub(super) async fn send_event(
        &self,
        event: EventType,
        message: &str,
        step: Step,
    ) -> Result<(), Failure> {
        match self.apiserver.send_event(event, message).await {
            Err(error) if error.is_unauthenticated() => {
                self.renew_token(&error).await?;
                self.apiserver.send_event(event, message).await.during(step)
            }
            result => result.during(step),
        }
    }

    /// Fetches a new token from the boot helper.
    pub(super) async fn renew_token(&self, refused: &Error) -> Result<(), Failure> {
        tracing::warn!("{refused}; asking the boot helper for a new token");
        self.fetch_token().await?;
        tokio::time::sleep(RENEWAL_PAUSE).await;
        Ok(())
    }

    async fn fetch_token(&self) -> Result<(), Failure> {
        let doing = steps::status();
        let asked = self.connected.ask_helper().await;
        // Whoever goes on without a new token is not asking any more, either.
        steps::doing(doing, None);
        let (_, token) = endpoint(&asked?.settings)?;
        self.apiserver.set_token(token);
        Ok(())
    }
}

/// A link over which the boot helper has not been asked.
fn untried(links: &[Link], tried: &BTreeSet<u32>) -> Option<u32> {
    let mut usable = links.iter().filter(|link| link.usable() && !link.is_bmc());
    usable
        .find(|link| !tried.contains(&link.index))
        .map(|link| link.index)
}

/// Whom to believe at boot helper and apiserver.
fn trust(settings: &Settings) -> Trust<'_> {
    let pinned = settings
        .apiserver_url
        .as_ref()
        .is_some_and(|url| url.source != Source::BootHelper);
    match &settings.ca_cert {
        // A helper cannot say who may vouch for an apiserver that it did not name.
        Some(ca) if pinned && ca.source == Source::BootHelper => Trust::Public,
        Some(ca) => Trust::Only(&ca.value),
        None => Trust::Public,
    }
}

/// How the clients for the apiserver, for downloads over the same link, and for downloads over
/// any are made.
fn clients(settings: &Settings) -> [Make; 3] {
    let only = match trust(settings) {
        Trust::Only(ca) => Some(ca.to_owned()),
        Trust::Public | Trust::PublicAnd(_) => None,
    };
    let ca = settings.ca_cert.as_ref().map(|ca| ca.value.clone());
    let download = move |route: &Route| {
        let trust = ca.as_deref().map_or(Trust::Public, Trust::PublicAnd);
        http::download_client_on(trust, route)
    };
    let bound = download.clone();
    [
        Box::new(move |route| {
            let trust = only.as_deref().map_or(Trust::Public, Trust::Only);
            http::control_client_on(trust, route)
        }),
        Box::new(bound),
        Box::new(move |route| {
            let names = route.names.clone();
            download(&Route {
                names,
                ..Route::default()
            })
        }),
    ]
}

/// Where metal-apiserver is, and the token for it.
fn endpoint(settings: &Settings) -> Result<(BaseUrl, SecretString), Failure> {
    let missing = |what| {
        let why = format!(
            "neither the boot helper nor metal.config gives {what}; check the boot helper's configuration"
        );
        Failure::new(Step::BootHelper, why)
    };
    // A helper may offer itself as a proxy, but not in the place of a pinned apiserver.
    let pinned = settings
        .apiserver_url
        .as_ref()
        .is_some_and(|url| url.source != Source::BootHelper);
    let proxy = settings
        .boot_helper_url
        .as_ref()
        .filter(|_| settings.proxy_apiserver && !pinned);
    let direct = settings
        .apiserver_url
        .as_ref()
        .map(|Sourced { value, .. }| {
            let (url, zone) = (value.clone(), None);
            BaseUrl { url, zone }
        });
    let base = proxy
        .map(|base| base.value.clone())
        .or(direct)
        .ok_or_else(|| missing("metal_apiserver_url"))?;
    let token = settings
        .token
        .as_ref()
        .ok_or_else(|| missing("metal_apiserver_token_for_hammer"))?;
    Ok((base, token.value.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Layer;

    fn settings(helper: &str, file: &str) -> Settings {
        let layer = |json: &str| -> Layer {
            let (layer, problems) = layer::from_map(serde_json::from_str(json).unwrap());
            assert_eq!(problems, []);
            layer
        };
        Settings::from_layers([
            (Source::BootHelper, layer(helper)),
            (Source::File, layer(file)),
        ])
    }

    #[test]
    fn what_is_not_said_is_named() {
        let base = r#"{"boot_helper_url":"http://[2001:db8::1]:4242"}"#;
        let missing = |helper| endpoint(&settings(helper, base)).unwrap_err().cause;
        assert!(missing("{}").contains("metal_apiserver_url"));
        let token = missing(r#"{"metal_apiserver_url":"https://api.example.org"}"#);
        assert!(
            token.contains("metal_apiserver_token_for_hammer"),
            "{token}"
        );
    }

    #[test]
    fn a_helper_may_be_a_proxy_but_not_for_a_pinned_apiserver() {
        let answer = r#"{"metal_apiserver_url":"https://api.example.org","proxy_apiserver":true,
            "metal_apiserver_token_for_hammer":"t","ca_cert":"HELPERS"}"#;
        let own = r#"{"boot_helper_url":"http://[2001:db8::1]:4242"}"#;
        let (base, _) = endpoint(&settings(answer, own)).unwrap();
        assert_eq!(base.url.as_str(), "http://[2001:db8::1]:4242/");
        assert!(matches!(
            trust(&settings(answer, own)),
            Trust::Only("HELPERS")
        ));
        let pinned = r#"{"boot_helper_url":"http://[2001:db8::1]:4242",
            "metal_apiserver_url":"https://pinned.example.org"}"#;
        let (base, _) = endpoint(&settings(answer, pinned)).unwrap();
        assert_eq!(base.url.as_str(), "https://pinned.example.org/");
        assert!(matches!(trust(&settings(answer, pinned)), Trust::Public));
    }
}
