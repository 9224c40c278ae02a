//! The BMC's users: which number is whose, and how one becomes administrator.

use secrecy::{ExposeSecret, SecretString};

use super::Error;
use super::command::{self, NAME_BYTES, PasswordSize, UserAccess, UserId};
use super::message::Completion;
use super::talk::{Talk, Transport};

/// Numbers 1 (anonymous) and 2 (the maker's administrator on most BMCs) are never given to
/// a new user.
const FIRST_FREE: u8 = 3;
/// `privilege` of an administrator (table 22-32).
const ADMINISTRATOR: u8 = 4;

/// The users as the BMC lists them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Users {
    /// Numbers up to this one have names that cannot be changed.
    pub fixed_names: u8,
    /// Number and name, from number 2 on; a free number has an empty name.
    pub names: Vec<(UserId, String)>,
}

/// Whose number a user gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// The one that has the name already.
    Own(UserId),
    /// A free one.
    Free(UserId),
}

impl Users {
    /// The number for a user of this name: its own, else the first free one. If a name
    /// stands twice the first counts, as it does for who logs in.
    #[must_use]
    pub fn slot(&self, name: &str) -> Option<Slot> {
        let own = self.names.iter().find(|(_, taken)| taken == name);
        if let Some((id, _)) = own {
            return Some(Slot::Own(*id));
        }
        let first = FIRST_FREE.max(self.fixed_names.saturating_add(1));
        self.names
            .iter()
            .find(|(id, taken)| id.0 >= first && taken.is_empty())
            .map(|(id, _)| Slot::Free(*id))
    }

    /// Remembers whose a number is.
    fn take(&mut self, id: UserId, name: &str) {
        if let Some((_, taken)) = self.names.iter_mut().find(|(number, _)| *number == id) {
            name.clone_into(taken);
        }
    }
}

/// A user's name that every BMC takes: 1 to 16 letters, digits, `-`, `_` and `.`.
///
/// # Errors
/// [`Error::Name`].
pub fn check_name(name: &str) -> Result<(), Error> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if (1..=NAME_BYTES).contains(&name.len()) && name.bytes().all(good) {
        return Ok(());
    }
    Err(Error::Name {
        name: name.chars().take(40).collect(),
    })
}

/// Lists the users. `channel` is where their rights are asked for.
///
/// # Errors
/// The BMC does not answer, or knows nothing of users.
pub fn list<T: Transport>(talk: &mut Talk<T>, channel: u8) -> Result<Users, Error> {
    let access = UserAccess::parse(&talk.ask(&command::user_access(channel, UserId(1)))?)?;
    let mut names = Vec::new();
    for id in (2..=access.users).map(UserId) {
        match talk.ask(&command::user_name(id)) {
            Ok(data) => names.push((id, command::parse_user_name(&data))),
            // Some BMCs have no answer for a number without a name.
            Err(Error::Refused { code, .. }) if is_unset(code) => {
                names.push((id, String::new()));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Users {
        fixed_names: access.fixed_names,
        names,
    })
}

/// How BMCs say that a number has no name.
fn is_unset(code: Completion) -> bool {
    [Completion::NOT_PRESENT, Completion::INVALID_FIELD].contains(&code)
}

/// Whether the BMC vouched for a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verified {
    Yes,
    /// It has no test for passwords.
    CannotSay,
}

/// Makes `name` an enabled administrator on `channel` with this password. Other users are
/// left as they are.
///
/// # Errors
/// No free number, a password that no BMC can store, or what the BMC refused or did not keep.
pub fn ensure<T: Transport>(
    talk: &mut Talk<T>,
    users: &mut Users,
    channel: u8,
    name: &str,
    password: &SecretString,
) -> Result<Verified, Error> {
    let id = match users.slot(name) {
        Some(Slot::Own(id)) => id,
        Some(Slot::Free(id)) => {
            talk.ask(&command::set_user_name(id, name))?;
            // Now, whatever fails after it: another attempt sets no second name, and no other
            // user gets this number.
            users.take(id, name);
            id
        }
        None => {
            return Err(Error::NoSlot {
                name: name.to_owned(),
                users: users.names.len() + 1,
            });
        }
    };
    let verified = store(talk, id, password)?;
    talk.ask(&command::make_administrator(channel, id))?;
    talk.ask(&command::enable_user(id))?;
    confirm(talk, channel, id, name)?;
    Ok(verified)
}

/// Some BMCs say yes and do nothing.
fn confirm<T: Transport>(
    talk: &mut Talk<T>,
    channel: u8,
    id: UserId,
    name: &str,
) -> Result<(), Error> {
    let kept = command::parse_user_name(&talk.ask(&command::user_name(id))?);
    if kept != name {
        return Err(Error::NotKept {
            id,
            what: "the user's name",
        });
    }
    let access = UserAccess::parse(&talk.ask(&command::user_access(channel, id))?)?;
    let is_administrator = access.privilege == ADMINISTRATOR && access.ipmi_messaging;
    if !is_administrator {
        return Err(Error::NotKept {
            id,
            what: "the user's rights on the LAN channel",
        });
    }
    Ok(())
}

/// Stores a password in the smallest size that holds it and that the BMC takes, and has the
/// BMC test it.
fn store<T: Transport>(
    talk: &mut Talk<T>,
    id: UserId,
    password: &SecretString,
) -> Result<Verified, Error> {
    let text = password.expose_secret();
    let sizes: &[PasswordSize] = match text.len() {
        1..=16 => &[PasswordSize::Sixteen, PasswordSize::Twenty],
        17..=20 => &[PasswordSize::Twenty],
        length => return Err(Error::PasswordLength { length }),
    };
    // A zero byte ends a stored password.
    if text.contains('\0') {
        return Err(Error::PasswordZero);
    }
    let mut last = None;
    for size in sizes {
        match talk.ask(&command::set_password(id, *size, text)) {
            Ok(_) => return test(talk, id, *size, text),
            Err(error @ Error::Refused { code, .. }) if is_wrong_size(code) => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or(Error::PasswordLength { length: text.len() }))
}

/// How BMCs refuse a size that they do not know.
fn is_wrong_size(code: Completion) -> bool {
    [
        Completion::INVALID_LENGTH,
        Completion::FIELD_LENGTH_EXCEEDED,
        Completion::INVALID_FIELD,
        Completion::WRONG_PASSWORD_SIZE,
    ]
    .contains(&code)
}

fn test<T: Transport>(
    talk: &mut Talk<T>,
    id: UserId,
    size: PasswordSize,
    text: &str,
) -> Result<Verified, Error> {
    let mut ask = |size| talk.ask(&command::test_password(id, size, text));
    let mut answer = ask(size);
    // Some store every password in their own size, whatever they were told.
    let wrong_size = |code| code == Completion::WRONG_PASSWORD_SIZE && text.len() <= 16;
    if matches!(answer, Err(Error::Refused { code, .. }) if wrong_size(code)) {
        answer = ask(size.other());
    }
    match answer {
        Ok(_) => Ok(Verified::Yes),
        Err(Error::Refused { code, .. })
            if [Completion::WRONG_PASSWORD, Completion::WRONG_PASSWORD_SIZE].contains(&code) =>
        {
            Err(Error::NotKept {
                id,
                what: "the password",
            })
        }
        Err(Error::Refused { .. }) => Ok(Verified::CannotSay),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
#[path = "users_tests.rs"]
mod tests;
