//! The BMC: what it is, where it is reached, and the administrator that the control plane
//! manages the machine with.
//!
//! [`survey`] only reads. [`Survey::secure`] writes to the BMC: two users at most, by name,
//! and nothing else. A BMC may be absent, half broken or slow: everything here has an end,
//! and what could be learned is kept when something else failed.

mod command;
pub mod device;
mod error;
mod fru;
mod fru_reader;
mod lan;
mod message;
mod talk;
mod users;

use std::path::Path;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

pub use command::DeviceId;
use device::Device;
pub use error::Error;
pub use fru::FruError;
pub use lan::Lan;
use talk::{Talk, Transport};
pub use users::check_name;
use users::{Users, Verified};

use crate::control::api::{Bmc, Fru};
use crate::password;

/// The first BMC's device node.
pub const DEVICE: &str = "/dev/ipmi0";
/// The firmware's word that there is a BMC: an SMBIOS entry of type 38.
const ANNOUNCED: &str = "firmware/dmi/entries/38-0";

/// metal-hammer's names.
pub const USER: &str = "metal";
pub const SUPER_USER: &str = "root";

/// Reading takes a second or two on a BMC in good health.
const SURVEY_BUDGET: Duration = Duration::from_secs(40);
const SECURE_BUDGET: Duration = Duration::from_secs(40);

/// Sixteen characters (95 bits) fit every BMC, IPMI 1.5 and 2.0.
const PASSWORD_LENGTH: usize = 16;
/// A BMC's rules for passwords may refuse one and take the next.
const PASSWORDS: usize = 3;

/// What is to be set up.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// The administrator that is reported.
    pub user: &'a str,
    pub super_user: &'a str,
    /// `None`: the super-user is left alone.
    pub super_user_password: Option<&'a SecretString>,
}

/// A BMC that answers, and what it says.
pub struct Survey<T> {
    talk: Talk<T>,
    pub device: DeviceId,
    /// Every LAN channel.
    pub channels: Vec<Lan>,
    /// Why there may be more of them.
    silent: Option<Error>,
    /// As the maker wrote it.
    pub fru: Fru,
    /// What it did not say.
    pub problems: Vec<Error>,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    /// For Register; `None` when it would not be enough to reach the BMC with.
    pub bmc: Option<Bmc>,
    pub fru: Fru,
    /// What keeps the control plane from managing the machine as it should.
    pub faults: Vec<Error>,
    /// What is worth a line in the log.
    pub notes: Vec<Error>,
}

/// Asks the BMC what it is.
///
/// # Errors
/// There is none, or it does not say what it is. All else becomes a problem of the survey.
pub fn survey(device: &Path, sys: &Path) -> Result<Survey<Device>, Error> {
    if !device.exists() {
        let announced = sys.join(ANNOUNCED).exists();
        return Err(Error::Absent { announced });
    }
    let device = Device::open(device)?;
    Survey::of(Talk::new(device, SURVEY_BUDGET))
}

impl<T: Transport> Survey<T> {
    fn of(mut talk: Talk<T>) -> Result<Self, Error> {
        let device = DeviceId::parse(&talk.ask(&command::device_id())?)?;
        let (fru, problems) = fru_reader::read(&mut talk);
        let (channels, silent) = lan::channels(&mut talk);
        Ok(Self {
            talk,
            device,
            channels,
            silent,
            fru,
            problems,
        })
    }

    /// Makes sure of the users and answers what Register says of the BMC.
    #[must_use]
    pub fn secure(self, wanted: &Wanted<'_>) -> Report {
        let mut report = Report {
            fru: self.fru,
            notes: self.problems,
            ..Report::default()
        };
        let Some((lan, mac, address)) = lan::choose(&self.channels) else {
            let channels = self.channels;
            let fault = self.silent.unwrap_or(Error::NoLan { channels });
            report.faults.push(fault);
            return report;
        };
        report.notes.extend(self.silent);
        let mut talk = self.talk.again(SECURE_BUDGET);
        let mut users = match users::list(&mut talk, lan.channel) {
            Ok(users) => users,
            Err(error) => {
                report.faults.push(error);
                return report;
            }
        };
        // First the one that the control plane cannot do without: there may be one number left,
        // and little time.
        let made = machine_user(&mut talk, &mut users, lan.channel, wanted.user);
        let password = match made {
            Ok((password, verified)) => {
                report.keep(Ok(verified), wanted.user);
                Some(password)
            }
            Err(error) => {
                report.faults.push(error);
                None
            }
        };
        if let Some(password) = wanted.super_user_password {
            let made = super_user(&mut talk, &mut users, lan.channel, wanted, password);
            report.keep(made, wanted.super_user);
        }
        let Some(password) = password else {
            return report;
        };
        let open = talk
            .ask(&command::channel_access(lan.channel))
            .and_then(|data| command::is_open(&data));
        match open {
            Ok(true) => {}
            Ok(false) => report.faults.push(Error::ChannelClosed {
                channel: lan.channel,
            }),
            Err(error) => report.notes.push(error),
        }
        report.bmc = Some(Bmc {
            address: address.to_string(),
            mac: mac.to_string(),
            user: wanted.user.to_owned(),
            password,
            interface: "lanplus".to_owned(),
            version: self.device.firmware,
            // It runs this program.
            power_state: "ON".to_owned(),
        });
        report
    }
}

impl Report {
    /// The report of a BMC that cannot be talked to.
    #[must_use]
    pub fn without(fault: Error) -> Self {
        Self {
            faults: vec![fault],
            ..Self::default()
        }
    }

    /// The faults as the control plane should hear of them, in one line; empty when all is
    /// well or there is no BMC at all.
    #[must_use]
    pub fn warning(&self) -> String {
        match self.faults.as_slice() {
            [] | [Error::Absent { announced: false }] => String::new(),
            [first] => format!("BMC: {first}"),
            [first, more @ ..] => format!("BMC: {first} (and {} more)", more.len()),
        }
    }

    fn keep(&mut self, made: Result<Verified, Error>, name: &str) {
        match made {
            Ok(Verified::Yes) => tracing::info!("BMC user {name} is administrator"),
            Ok(Verified::CannotSay) => self.notes.push(Error::Unverified {
                name: name.to_owned(),
            }),
            Err(error) => self.faults.push(error),
        }
    }
}

fn super_user<T: Transport>(
    talk: &mut Talk<T>,
    users: &mut Users,
    channel: u8,
    wanted: &Wanted<'_>,
    password: &SecretString,
) -> Result<Verified, Error> {
    if wanted.super_user == wanted.user {
        return Err(Error::OneName {
            name: wanted.user.to_owned(),
        });
    }
    check_name(wanted.super_user)?;
    users::ensure(talk, users, channel, wanted.super_user, password)
}

/// The machine's own user with a new password.
fn machine_user<T: Transport>(
    talk: &mut Talk<T>,
    users: &mut Users,
    channel: u8,
    name: &str,
) -> Result<(SecretString, Verified), Error> {
    check_name(name)?;
    let mut attempt = 1;
    loop {
        let password = strong_password()?;
        match users::ensure(talk, users, channel, name, &password) {
            Ok(verified) => return Ok((password, verified)),
            Err(error) if attempt < PASSWORDS && error.may_be_the_passwords_fault() => {
                tracing::debug!("BMC: {error}; trying another password");
                attempt += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

/// A random password that keeps the rules of all BMCs we know of: capital and small letters
/// and digits, no character twice in a row.
fn strong_password() -> Result<SecretString, Error> {
    // Two in three are good; after a hundred the source of randomness is broken.
    for _ in 0..100 {
        let password = password::random(PASSWORD_LENGTH)?;
        if is_strong(password.expose_secret().as_bytes()) {
            return Ok(password);
        }
    }
    Err(Error::NoPassword)
}

fn is_strong(password: &[u8]) -> bool {
    let has = |kind: fn(&u8) -> bool| password.iter().any(kind);
    has(u8::is_ascii_uppercase)
        && has(u8::is_ascii_lowercase)
        && has(u8::is_ascii_digit)
        && password.windows(2).all(|pair| pair[0] != pair[1])
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
