//! What can be wrong with a BMC.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use super::command::UserId;
use super::fru::FruError;
use super::lan::Lan;
use super::message::Completion;
use crate::password::NoRandom;

/// Why something was not learned from the BMC, or not set. No variant holds a password.
#[derive(Debug, Error)]
pub enum Error {
    #[error("{}", absent(*announced))]
    Absent { announced: bool },
    #[error("cannot open {}: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot ask the BMC {what}: {source}")]
    Device {
        what: &'static str,
        source: io::Error,
    },
    #[error("the BMC did not answer {what} within {} s", patience.as_secs())]
    Silent {
        what: &'static str,
        patience: Duration,
    },
    #[error(
        "the BMC took more than {} s, given up at {what}; reset it if it stays so slow",
        budget.as_secs()
    )]
    OutOfTime {
        what: &'static str,
        budget: Duration,
    },
    #[error("the BMC answers {what} with {code}")]
    Refused {
        what: &'static str,
        code: Completion,
    },
    #[error("the BMC's answer to {what} has {got} bytes, expected at least {wanted}")]
    Short {
        what: &'static str,
        wanted: usize,
        got: usize,
    },
    #[error(transparent)]
    Fru(#[from] FruError),
    #[error("an FRU area ends at byte {end} of an inventory of {size} bytes")]
    FruSize { end: usize, size: usize },
    #[error("{}", no_lan(channels))]
    NoLan { channels: Vec<Lan> },
    #[error(
        "IPMI over LAN is off on the BMC's channel {channel}: the control plane cannot manage this machine; turn it on in the BMC"
    )]
    ChannelClosed { channel: u8 },
    #[error(
        "{name:?} is no name for a BMC user: 1 to 16 letters, digits, '-', '_' and '.' are expected; correct policy.bmc_user or policy.bmc_super_user"
    )]
    Name { name: String },
    #[error(
        "policy.bmc_user and policy.bmc_super_user are both {name:?}; the super-user was left alone"
    )]
    OneName { name: String },
    #[error(
        "none of the BMC's {users} users is called {name} and none after the second is free; delete one in the BMC"
    )]
    NoSlot { name: String, users: usize },
    #[error(
        "a BMC stores passwords of 1 to 20 bytes, this one has {length}: change it in the control plane"
    )]
    PasswordLength { length: usize },
    #[error("the password holds a zero byte: change it in the control plane")]
    PasswordZero,
    #[error("the BMC accepted {what} of user {id} and did not keep it")]
    NotKept { id: UserId, what: &'static str },
    #[error("the BMC cannot test passwords: that of user {name} is set, but not verified")]
    Unverified { name: String },
    #[error(transparent)]
    Random(#[from] NoRandom),
    #[error("the kernel's random numbers make no password; is its random number generator broken?")]
    NoPassword,
}

impl Error {
    /// Whether the same request may be answered better a moment later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Refused { code, .. } => code.is_transient(),
            Self::Silent { .. } => true,
            _ => false,
        }
    }

    /// Whether another password might do.
    pub(super) fn may_be_the_passwords_fault(&self) -> bool {
        match self {
            Self::NotKept { what, .. } => *what == "the password",
            Self::Refused { what, code } => {
                *what == "Set User Password" && *code != Completion::INVALID_COMMAND
            }
            _ => false,
        }
    }
}

fn absent(announced: bool) -> &'static str {
    if announced {
        "the firmware announces a BMC, but the kernel found none that answers (no /dev/ipmi0); see the kernel's lines with \"ipmi\", and reset the BMC"
    } else {
        "this machine has no BMC (no /dev/ipmi0)"
    }
}

fn no_lan(channels: &[Lan]) -> String {
    let found = match channels {
        [] => "it has no LAN channel".to_owned(),
        channels => {
            let all: Vec<String> = channels.iter().map(ToString::to_string).collect();
            all.join("; ")
        }
    };
    format!(
        "no LAN channel of the BMC has both a MAC and a usable address ({found}); give it an address, then boot again"
    )
}
