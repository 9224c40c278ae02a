//! `metal-boot bmc`: what a BMC controller does to boot an ISO once, by Redfish.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, ValueEnum};
use secrecy::SecretString;
use serde_json::{Value, json};
use thiserror::Error;
use tokio::time::Instant;
use url::Url;

use super::redfish::{BmcTrust, Redfish, RedfishError, Resource, action, allowed, id, is_cd};
use super::secret_file::{self, SecretFileError};
use crate::control::http::{self, ClientError, Trust};

const INSERT: &str = "#VirtualMedia.InsertMedia";
const EJECT: &str = "#VirtualMedia.EjectMedia";
const RESET: &str = "#ComputerSystem.Reset";
/// What vendors called their own actions before there were standard ones.
const VENDORS_INSERT: &str = ".InsertVirtualMedia";
const VENDORS_EJECT: &str = ".EjectVirtualMedia";
/// A BMC may answer before it has done what it was asked for.
const SETTLED: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(500);

/// Boot an ISO by a server's BMC (Redfish).
#[derive(Debug, Parser)]
pub struct BmcOptions {
    /// What is done: "mount" inserts the ISO; "boot-once" inserts it, orders one boot from it
    /// and resets the server; "eject" takes it out; "status" shows power, boot and medium.
    #[arg(value_enum)]
    pub verb: Verb,

    /// The BMC's base URL.
    #[arg(long, env = "METAL_BOOT_BMC", value_name = "URL")]
    pub bmc: Url,

    /// The ISO, as the BMC reaches it.
    #[arg(long, value_name = "URL")]
    pub iso: Option<Url>,

    /// Id of the system, for a BMC that has several.
    #[arg(long, value_name = "ID")]
    pub system: Option<String>,

    #[command(flatten)]
    pub login: Login,
}

/// How the BMC is talked to. A password never stands on the command line, where every user of
/// this host could read it.
#[derive(Debug, Args)]
pub struct Login {
    /// User.
    #[arg(
        long,
        env = "METAL_BOOT_BMC_USER",
        value_name = "NAME",
        default_value = "root"
    )]
    pub user: String,

    /// File with the password; or METAL_BOOT_BMC_PASSWORD in the environment.
    #[arg(long, env = "METAL_BOOT_BMC_PASSWORD_FILE", value_name = "FILE")]
    pub password_file: Option<PathBuf>,

    /// PEM file with the only authorities that may vouch for the BMC.
    #[arg(long, env = "METAL_BOOT_BMC_CA_CERT", value_name = "FILE")]
    pub ca_cert: Option<PathBuf>,

    /// SHA-256 of the BMC's own certificate, hexadecimal, with or without colons: for
    /// certificates that nobody vouches for.
    #[arg(long, env = "METAL_BOOT_BMC_FINGERPRINT", value_name = "HEX",
          conflicts_with = "ca_cert", value_parser = fingerprint)]
    pub fingerprint: Option<[u8; 32]>,
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Verb {
    Mount,
    BootOnce,
    Eject,
    Status,
}

/// Why it was not done.
#[derive(Debug, Error)]
pub enum BmcError {
    #[error(transparent)]
    Redfish(#[from] RedfishError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("password: {0}")]
    Password(#[from] SecretFileError),
    #[error("no password; give --password-file or METAL_BOOT_BMC_PASSWORD")]
    NoPassword,
    #[error("--iso is needed to insert something")]
    NoIso,
    #[error("--ca-cert: cannot read {path}: {error}", path = .path.display())]
    CaCert {
        path: PathBuf,
        error: std::io::Error,
    },
    #[error("this BMC has the systems {0}; name one with --system")]
    WhichSystem(String),
    #[error("the BMC took the order, but {0} did not come within {SETTLED:?}")]
    NotSettled(&'static str),
}

/// Does what is asked for; answers the state afterwards as JSON.
///
/// # Errors
/// Any [`BmcError`].
pub async fn run(options: &BmcOptions, password: Option<SecretString>) -> Result<Value, BmcError> {
    let password = match &options.login.password_file {
        Some(file) => secret_file::read(file).await?,
        None => password.ok_or(BmcError::NoPassword)?,
    };
    let trust = match (&options.login.fingerprint, &options.login.ca_cert) {
        (Some(digest), _) => BmcTrust::Fingerprint(*digest),
        (None, Some(path)) => {
            let pem = std::fs::read_to_string(path).map_err(|error| BmcError::CaCert {
                path: path.clone(),
                error,
            })?;
            BmcTrust::Client(http::control_client(Trust::Only(&pem))?)
        }
        (None, None) => BmcTrust::Client(http::control_client(Trust::Public)?),
    };
    let user = options.login.user.clone();
    let redfish = Redfish::new(trust, options.bmc.clone(), user, password)?;
    let bmc = Bmc::find(redfish, options.system.as_deref()).await?;
    match options.verb {
        Verb::Mount => {
            bmc.mount(options.iso.as_ref().ok_or(BmcError::NoIso)?)
                .await?
        }
        Verb::BootOnce => {
            bmc.mount(options.iso.as_ref().ok_or(BmcError::NoIso)?)
                .await?;
            bmc.boot_cd_once().await?;
            bmc.reset().await?;
        }
        Verb::Eject => bmc.eject().await?,
        Verb::Status => {}
    }
    bmc.status().await
}

/// A BMC, its system, and the virtual CD of that.
struct Bmc {
    redfish: Redfish,
    system: String,
    cd: String,
}

impl Bmc {
    async fn find(redfish: Redfish, wanted: Option<&str>) -> Result<Self, BmcError> {
        let root = redfish.get("/redfish/v1/").await?;
        let systems = id(&root.body["Systems"]).ok_or(RedfishError::Missing {
            what: "systems",
            hint: "is --bmc a BMC with Redfish?",
        })?;
        let systems = redfish.members(systems).await?;
        let is_wanted = |system: &&Resource| {
            wanted.is_none_or(|wanted| system.body["Id"] == wanted || system.body["Name"] == wanted)
        };
        let mut fitting = systems.iter().filter(is_wanted);
        let (Some(system), None) = (fitting.next(), fitting.next()) else {
            let names = systems
                .iter()
                .filter_map(|system| system.body["Id"].as_str());
            return Err(BmcError::WhichSystem(names.collect::<Vec<_>>().join(", ")));
        };
        let cd = Self::find_cd(&redfish, system).await?;
        Ok(Self {
            system: system.path.clone(),
            redfish,
            cd,
        })
    }

    /// The virtual CD: below the system where the schema has it since 2020, else below the
    /// system's manager.
    async fn find_cd(redfish: &Redfish, system: &Resource) -> Result<String, RedfishError> {
        let mut collections: Vec<String> = Vec::new();
        collections.extend(id(&system.body["VirtualMedia"]).map(str::to_owned));
        let managers = system.body["Links"]["ManagedBy"].as_array();
        for manager in managers.into_iter().flatten().filter_map(id).take(4) {
            let manager = redfish.get(manager).await?;
            collections.extend(id(&manager.body["VirtualMedia"]).map(str::to_owned));
        }
        for collection in collections {
            let media = redfish.members(&collection).await?;
            if let Some(cd) = media.iter().find(|media| is_cd(&media.body)) {
                return Ok(cd.path.clone());
            }
        }
        Err(RedfishError::Missing {
            what: "virtual CD",
            hint: "virtual media may need a licence, or to be turned on",
        })
    }

    /// Inserts the ISO; one that is in already is taken out first, unless it is this one.
    async fn mount(&self, iso: &Url) -> Result<(), BmcError> {
        let cd = self.redfish.get(&self.cd).await?;
        if is_inserted(&cd.body) {
            if cd.body["Image"] == iso.as_str() {
                return Ok(());
            }
            self.eject().await?;
        }
        let full = json!({"Image": iso.as_str(), "Inserted": true, "WriteProtected": true});
        let least = json!({"Image": iso.as_str()});
        match action(&cd.body, INSERT, VENDORS_INSERT) {
            Some(target) => match self.redfish.post(target, &full).await {
                // Some take the image and nothing else.
                Err(error) if error.is_dislike() => self.redfish.post(target, &least).await?,
                outcome => outcome?,
            },
            None => {
                let change = json!({"Image": iso.as_str(), "Inserted": true});
                self.redfish.patch(&cd, &change).await?;
            }
        }
        self.settle("the medium", &self.cd, is_inserted).await
    }

    /// Takes out whatever is in.
    async fn eject(&self) -> Result<(), BmcError> {
        let cd = self.redfish.get(&self.cd).await?;
        if !is_inserted(&cd.body) {
            return Ok(());
        }
        match action(&cd.body, EJECT, VENDORS_EJECT) {
            Some(target) => self.redfish.post(target, &json!({})).await?,
            None => {
                let change = json!({"Image": null, "Inserted": false});
                self.redfish.patch(&cd, &change).await?;
            }
        }
        self.settle("an empty drive", &self.cd, |cd| !is_inserted(cd))
            .await
    }

    /// The next boot, and only that, is from the CD.
    async fn boot_cd_once(&self) -> Result<(), BmcError> {
        let system = self.redfish.get(&self.system).await?;
        let target = allowed(
            &system.body["Boot"],
            "BootSourceOverrideTarget",
            &["Cd", "UsbCd"],
        );
        let target = target.ok_or(RedfishError::Missing {
            what: "boot from a virtual CD",
            hint: "its list of boot sources has neither Cd nor UsbCd",
        })?;
        let once = json!({"BootSourceOverrideEnabled": "Once", "BootSourceOverrideTarget": target});
        let mut uefi = once.clone();
        uefi["BootSourceOverrideMode"] = "UEFI".into();
        match self.redfish.patch(&system, &json!({"Boot": uefi})).await {
            // Servers that only know UEFI may not let it be said.
            Err(error) if error.is_dislike() => {
                self.redfish.patch(&system, &json!({"Boot": once})).await?;
            }
            outcome => outcome?,
        }
        Ok(())
    }

    /// A hard reset, or power.
    async fn reset(&self) -> Result<(), BmcError> {
        let system = self.redfish.get(&self.system).await?;
        let missing = RedfishError::Missing {
            what: "way to reset the server",
            hint: "the user may lack the right to it",
        };
        let wanted: &[&str] = if system.body["PowerState"] == "Off" {
            &["On", "ForceOn"]
        } else {
            &["ForceRestart", "PowerCycle", "GracefulRestart"]
        };
        let target = action(&system.body, RESET, ".Reset");
        let kind = allowed(&system.body["Actions"][RESET], "ResetType", wanted);
        let (Some(target), Some(kind)) = (target, kind) else {
            return Err(missing.into());
        };
        let order = json!({"ResetType": kind});
        self.redfish.post(target, &order).await?;
        self.settle("power", &self.system, |system| {
            system["PowerState"].is_null() || system["PowerState"] == "On"
        })
        .await
    }

    async fn status(&self) -> Result<Value, BmcError> {
        let system = self.redfish.get(&self.system).await?.body;
        let cd = self.redfish.get(&self.cd).await?.body;
        Ok(json!({
            "system": system["Id"],
            "power": system["PowerState"],
            "boot": {
                "enabled": system["Boot"]["BootSourceOverrideEnabled"],
                "target": system["Boot"]["BootSourceOverrideTarget"],
            },
            "medium": {"inserted": is_inserted(&cd), "image": cd["Image"]},
        }))
    }

    /// Waits until a resource is as it was ordered.
    async fn settle(
        &self,
        what: &'static str,
        path: &str,
        is_so: impl Fn(&Value) -> bool,
    ) -> Result<(), BmcError> {
        let deadline = Instant::now() + SETTLED;
        while !is_so(&self.redfish.get(path).await?.body) {
            if Instant::now() >= deadline {
                return Err(BmcError::NotSettled(what));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

/// Whether a medium is in: `Inserted` where it is told, else whether there is an image.
fn is_inserted(cd: &Value) -> bool {
    let image = cd["Image"].as_str().is_some_and(|image| !image.is_empty());
    cd["Inserted"].as_bool().unwrap_or(image)
}

/// 64 hexadecimal digits, with colons or without.
fn fingerprint(text: &str) -> Result<[u8; 32], String> {
    let wrong = || "expected the 64 hexadecimal digits of a SHA-256".to_owned();
    let digits: String = text.chars().filter(|c| *c != ':').collect();
    if digits.len() != 64 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    let mut digest = [0; 32];
    for (at, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).map_err(|_| wrong())?;
    }
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_takes_no_password() {
        let command = BmcOptions::command();
        command.clone().debug_assert();
        let names: Vec<&str> = command
            .get_arguments()
            .map(|arg| arg.get_id().as_str())
            .collect();
        assert!(
            names.contains(&"password_file") && !names.contains(&"password"),
            "{names:?}"
        );
    }

    #[test]
    fn fingerprints_as_tools_print_them() {
        let plain = "ab".repeat(32);
        let colons = vec!["AB"; 32].join(":");
        assert_eq!(fingerprint(&plain), Ok([0xab; 32]));
        assert_eq!(fingerprint(&colons), Ok([0xab; 32]));
        for wrong in ["", "ab", &plain[1..], &format!("{}zz", &plain[2..]), "ä"] {
            assert!(fingerprint(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_drive_says_in_its_own_way_whether_it_is_empty() {
        for (cd, inserted) in [
            (json!({"Inserted": true, "Image": "http://h/a.iso"}), true),
            (json!({"Inserted": false, "Image": "http://h/a.iso"}), false),
            (json!({"Image": "http://h/a.iso"}), true),
            (json!({"Image": ""}), false),
            (json!({"Inserted": null, "Image": null}), false),
            (json!({}), false),
        ] {
            assert_eq!(is_inserted(&cd), inserted, "{cd}");
        }
    }
}
