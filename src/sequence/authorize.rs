//! Connected -> Authorized: the boot helper's answer, and with it a token.

use std::time::Duration;

use jiff::SignedDuration;
use secrecy::SecretString;
use url::Url;

use super::clock;
use super::connect::Connected;
use super::failure::{During, Failure, Step};
use crate::config::{Settings, Source, Sourced, layer};
use crate::control::api::{Allocation, EventType};
use crate::control::apiserver::Apiserver;
use crate::control::boot_helper_client;
use crate::control::error::Error;
use crate::control::http::{self, Trust};

/// A helper whose tokens are refused at once must not be asked in a tight loop.
const RENEWAL_PAUSE: Duration = Duration::from_secs(10);

/// A machine that may talk to metal-apiserver.
pub struct Authorized {
    pub(super) connected: Connected,
    pub(super) settings: Settings,
    pub(super) apiserver: Apiserver,
    pub(super) downloads: reqwest::Client,
}

impl Connected {
    /// Asks the boot helper for configuration and token. A medium that pins apiserver and
    /// token needs no helper.
    ///
    /// # Errors
    /// No helper URL, no usable answer, or an answer that leaves apiserver or token unsaid.
    pub(super) async fn authorize(self) -> Result<Authorized, Failure> {
        let settings = self.configure().await?;
        (self.booted.verbosity)(settings.debug);
        self.booted.lifeline.follow(&settings.policy);
        for line in settings.summary() {
            tracing::info!("{line}");
        }
        let (base, token) = endpoint(&settings)?;
        let client = http::control_client(trust(&settings)).during(Step::BootHelper)?;
        let downloads = match &settings.ca_cert {
            Some(ca) => Trust::PublicAnd(&ca.value),
            None => Trust::Public,
        };
        let downloads = http::download_client(downloads).during(Step::BootHelper)?;
        let apiserver =
            Apiserver::new(&base, token, self.booted.machine, client).during(Step::BootHelper)?;
        self.booted.lifeline.report_to(&apiserver);
        Ok(Authorized {
            connected: self,
            settings,
            apiserver,
            downloads,
        })
    }

    /// Everything the boot is told, and the clock set by it. A helper that is asked in the
    /// clear says who knows the time; before one that is asked over TLS, only the medium and the
    /// network can.
    async fn configure(&self) -> Result<Settings, Failure> {
        let local = self.booted.settings();
        let helper = local.boot_helper_url.as_ref();
        let tls = helper.is_none_or(|url| url.value.scheme() == "https");
        let known = tls && clock::set_by_ntp(&local.ntp_servers, &self.network).await;
        let (settings, offset) = self.ask_helper().await?;
        let asked_all = tls && settings.ntp_servers == local.ntp_servers;
        if known || !asked_all && clock::set_by_ntp(&settings.ntp_servers, &self.network).await {
            return Ok(settings);
        }
        if let Some(offset) = offset {
            clock::set_by_date(offset);
        }
        Ok(settings)
    }

    /// The settings with the boot helper's answer merged in, and how far this machine's clock
    /// is off the helper's.
    async fn ask_helper(&self) -> Result<(Settings, Option<SignedDuration>), Failure> {
        let local = self.booted.settings();
        let Some(helper) = &local.boot_helper_url else {
            if local.apiserver_url.is_some() && local.token.is_some() {
                return Ok((local, None));
            }
            let why = "no boot helper URL; set boot_helper_url in boot/metal.config of the medium, \
                       or PIXIE_API_URL=http://[address]:4242 on the kernel command line";
            return Err(Failure::new(Step::BootHelper, why));
        };
        let client = http::control_client(trust(&local)).during(Step::BootHelper)?;
        tracing::info!(
            "asking the boot helper {} ({})",
            helper.value,
            helper.source
        );
        let fetched = boot_helper_client::fetch(
            &client,
            &helper.value,
            self.booted.machine,
            local.ticket.as_ref(),
            local.policy.boot_helper_timeout(),
        )
        .await
        .during(Step::BootHelper)?;
        let (layer, problems) = layer::from_answer(&fetched.answer);
        for problem in problems {
            tracing::warn!("boot helper's answer, {problem}");
        }
        let mut layers = self.booted.layers.clone();
        layers.push((Source::BootHelper, layer));
        Ok((Settings::from_layers(layers), fetched.clock_offset))
    }
}

impl Authorized {
    /// Whether the machine has an allocation; a token that has expired meanwhile is renewed.
    pub(super) async fn probe(
        &self,
        silence: Duration,
        waits: u32,
    ) -> Result<Option<Allocation>, Failure> {
        loop {
            match self.apiserver.probe(silence, waits).await {
                Err(error) if error.is_unauthenticated() => self.renew_token(&error).await?,
                result => return result.during(Step::Allocation),
            }
        }
    }

    /// Waits for an allocation, for as long as it takes; a token that expires is renewed.
    pub(super) async fn wait_for_allocation(&self) -> Result<Allocation, Failure> {
        loop {
            match self.apiserver.wait_for_allocation().await {
                Err(error) if error.is_unauthenticated() => self.renew_token(&error).await?,
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
        let (settings, _) = self.connected.ask_helper().await?;
        let (_, token) = endpoint(&settings)?;
        self.apiserver.set_token(token);
        tokio::time::sleep(RENEWAL_PAUSE).await;
        Ok(())
    }
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

/// Where metal-apiserver is, and the token for it.
fn endpoint(settings: &Settings) -> Result<(Url, SecretString), Failure> {
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
    let Sourced { value: base, .. } = proxy
        .or(settings.apiserver_url.as_ref())
        .ok_or_else(|| missing("metal_apiserver_url"))?;
    let token = settings
        .token
        .as_ref()
        .ok_or_else(|| missing("metal_apiserver_token_for_hammer"))?;
    Ok((base.clone(), token.value.clone()))
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
        assert_eq!(base.as_str(), "http://[2001:db8::1]:4242/");
        assert!(matches!(
            trust(&settings(answer, own)),
            Trust::Only("HELPERS")
        ));
        let pinned = r#"{"boot_helper_url":"http://[2001:db8::1]:4242",
            "metal_apiserver_url":"https://pinned.example.org"}"#;
        let (base, _) = endpoint(&settings(answer, pinned)).unwrap();
        assert_eq!(base.as_str(), "https://pinned.example.org/");
        assert!(matches!(trust(&settings(answer, pinned)), Trust::Public));
    }
}
