//! The remote log, once the settings say where it goes. Never a reason to fail.

use uuid::Uuid;

use crate::config::Settings;
use crate::control::helper_answer::Logging;
use crate::control::http::{self, ClientError, Identity, Route, Trust};
use crate::control::line::Line;
use crate::control::uplink::Make;
use crate::report::remote::{self, Labels, Sink, Target};

/// Starts it; answers its HTTP client and how that is made for another path.
pub(super) fn start(settings: &Settings, machine: Uuid, route: &Route) -> Option<(Line, Make)> {
    let Some(logging) = &settings.logging else {
        remote::forget();
        return None;
    };
    let make = maker(settings, logging);
    let partition = settings.partition.as_ref().map(|it| it.value.clone());
    let labels = Labels {
        machine,
        partition: partition.unwrap_or_default(),
    };
    let begun = Target::new(logging)
        .map_err(|error| error.to_string())
        .and_then(|target| {
            let line = make(route)
                .map(Line::from)
                .map_err(|error| error.to_string())?;
            let sink = Sink::new(target, labels, line.clone());
            sink.start().map_err(|error| error.to_string())?;
            Ok(line)
        });
    match begun {
        Ok(line) => Some((line, make)),
        Err(error) => {
            tracing::warn!("this boot has no remote log: {error}");
            remote::forget();
            None
        }
    }
}

fn maker(settings: &Settings, logging: &Logging) -> Make {
    let ca = settings.ca_cert.as_ref().map(|ca| ca.value.clone());
    let identity = logging.certificate_auth.clone().and_then(|auth| {
        if auth.insecure_skip_verify {
            tracing::warn!(
                "logging.certificate_auth.insecure_skip_verify is not followed: set ca_cert"
            );
        }
        let (certificates, key) = (auth.cert?, auth.key?);
        Some(Identity { certificates, key })
    });
    Box::new(move |route: &Route| -> Result<_, ClientError> {
        // A log server may be public, as images may.
        let trust = ca.as_deref().map_or(Trust::Public, Trust::PublicAnd);
        http::log_client_on(trust, identity.as_ref(), route)
    })
}
