//! Setting up the BMC on the way to Register.
//!
//! It is read while the machine listens for its switches, which takes longer, and written
//! as late as can be: between a new password and the Register that tells it the control
//! plane cannot reach the BMC.

use std::path::Path;

use secrecy::SecretString;
use tokio::task::{JoinHandle, spawn_blocking};

use super::failure::{Failure, Step};
use crate::bmc::device::Device;
use crate::bmc::{self, Error, Report, Survey, Wanted};
use crate::config::policy::{BmcUse, Policy};

/// A look at the BMC that has begun, unless nobody wants it.
pub(super) type Look = Option<JoinHandle<Result<Survey<Device>, Error>>>;

/// Begins to read the BMC.
pub(super) fn look(policy: &Policy) -> Look {
    match policy.bmc.unwrap_or_default() {
        BmcUse::Off => {
            tracing::info!("policy.bmc is off: the BMC is left alone");
            None
        }
        BmcUse::Optional | BmcUse::Required => Some(spawn_blocking(|| {
            bmc::survey(Path::new(bmc::DEVICE), Path::new("/sys"))
        })),
    }
}

/// Ends the look, and sets up the users.
///
/// # Errors
/// Only where the policy requires a BMC: the first thing that is wrong with it.
pub(super) async fn secure(
    look: Look,
    policy: &Policy,
    super_user_password: Option<SecretString>,
) -> Result<Report, Failure> {
    let Some(look) = look else {
        return Ok(Report::default());
    };
    let user = policy.bmc_user().to_owned();
    let super_user = policy.bmc_super_user().to_owned();
    let surveyed = look.await.map_err(ended)?;
    let report = match surveyed {
        Ok(survey) => {
            tracing::info!("BMC firmware {}", survey.device.firmware);
            for lan in &survey.channels {
                tracing::info!("BMC {lan}");
            }
            let secured = spawn_blocking(move || {
                survey.secure(&Wanted {
                    user: &user,
                    super_user: &super_user,
                    super_user_password: super_user_password.as_ref(),
                })
            });
            secured.await.map_err(ended)?
        }
        Err(error) => Report::without(error),
    };
    for warning in report.faults.iter().chain(&report.notes) {
        match warning {
            Error::Absent { announced: false } => tracing::info!("{warning}"),
            _ => tracing::warn!("BMC: {warning}"),
        }
    }
    match (policy.bmc, report.faults.first()) {
        (Some(BmcUse::Required), Some(fault)) => {
            let why = format!("policy.bmc is required, but {fault}");
            Err(Failure::new(Step::Registration, why))
        }
        _ => Ok(report),
    }
}

/// The blocking thread ends early only by a panic, which has its own way to failure.
fn ended(error: tokio::task::JoinError) -> Failure {
    Failure::new(
        Step::Registration,
        format!("setting up the BMC ended early: {error}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(word: &str) -> Policy {
        serde_json::from_value(serde_json::json!({"bmc": word})).unwrap()
    }

    fn found(error: Error) -> Look {
        Some(spawn_blocking(|| Err(error)))
    }

    #[tokio::test]
    async fn only_a_required_bmc_ends_the_boot() {
        let absent = || found(Error::Absent { announced: false });
        for word in ["optional", ""] {
            let report = secure(absent(), &policy(word), None).await.unwrap();
            assert!(report.bmc.is_none() && report.warning().is_empty());
        }
        let announced = found(Error::Absent { announced: true });
        let report = secure(announced, &policy("optional"), None).await.unwrap();
        assert!(report.warning().contains("the firmware announces a BMC"));
        let failure = secure(absent(), &policy("required"), None).await;
        assert_eq!(
            failure.unwrap_err().cause,
            "policy.bmc is required, but this machine has no BMC (no /dev/ipmi0)"
        );
    }

    #[tokio::test]
    async fn a_bmc_that_is_off_is_not_opened() {
        let look = look(&policy("off"));
        assert!(look.is_none());
        let report = secure(look, &policy("off"), None).await.unwrap();
        assert!(report.bmc.is_none() && report.faults.is_empty());
    }
}
