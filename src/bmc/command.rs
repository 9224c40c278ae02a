//! The commands that the agent uses: requests out of values, values out of answers.
//!
//! Numbers and layouts are those of IPMI 2.0 rev. 1.1: chapter 20 (device), 22 (channels
//! and users), 23 (LAN), 34 (FRU); the IPv6 parameters came with errata 4 to 7.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use zeroize::Zeroizing;

use super::Error;
use super::message::{APP, Request, STORAGE, TRANSPORT, head};
use crate::net::MacAddress;

/// Get Device ID (20.1).
#[must_use]
pub fn device_id() -> Request {
    Request::new("Get Device ID", APP, 0x01, &[])
}

/// What a BMC says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceId {
    /// Firmware version, major and minor, as `ipmitool mc info` shows it.
    pub firmware: String,
    /// IANA enterprise number; 0 when the BMC does not say.
    pub manufacturer: u32,
}

impl DeviceId {
    /// # Errors
    /// [`Error::Short`].
    pub fn parse(data: &[u8]) -> Result<Self, Error> {
        let [_, _, major, minor] = head("Get Device ID", data)?;
        let manufacturer = match data.get(6..9) {
            Some(&[low, middle, high]) => u32::from_le_bytes([low, middle, high & 0x0f, 0]),
            _ => 0,
        };
        Ok(Self {
            // The minor part is two BCD digits, the major one a number.
            firmware: format!("{}.{minor:02x}", major & 0x7f),
            manufacturer,
        })
    }
}

/// Get Channel Info (22.24).
#[must_use]
pub fn channel_info(channel: u8) -> Request {
    Request::new("Get Channel Info", APP, 0x42, &[channel & 0x0f])
}

/// Whether Get Channel Info tells of an 802.3 LAN (table 6-3).
///
/// # Errors
/// [`Error::Short`].
pub fn is_lan(data: &[u8]) -> Result<bool, Error> {
    let [_, medium] = head("Get Channel Info", data)?;
    Ok(medium & 0x7f == 0x04)
}

/// Get Channel Access (22.23), of the setting that is in force now.
#[must_use]
pub fn channel_access(channel: u8) -> Request {
    let data = [channel & 0x0f, 0b10 << 6];
    Request::new("Get Channel Access", APP, 0x41, &data)
}

/// Whether the channel takes IPMI sessions while an operating system runs.
///
/// # Errors
/// [`Error::Short`].
pub fn is_open(data: &[u8]) -> Result<bool, Error> {
    let [access] = head("Get Channel Access", data)?;
    // 0: disabled, 1: before boot only, 2: always, 3: shared with the host's serial port.
    Ok(matches!(access & 0x07, 2 | 3))
}

/// Parameters of Get LAN Configuration Parameters (table 23-4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LanParameter {
    Ipv4Address = 3,
    MacAddress = 5,
    /// Which of IPv4 and IPv6 are enabled.
    AddressingEnables = 51,
    /// How many static and dynamic IPv6 addresses there may be.
    Ipv6Status = 55,
    Ipv6StaticAddress = 56,
    Ipv6DynamicAddress = 59,
}

/// Get LAN Configuration Parameters (23.2). `set` counts addresses.
#[must_use]
pub fn lan_parameter(channel: u8, parameter: LanParameter, set: u8) -> Request {
    let data = [channel & 0x0f, parameter as u8, set, 0];
    Request::new("Get LAN Configuration Parameters", TRANSPORT, 0x02, &data)
}

/// The parameter's own bytes, behind its revision.
fn parameter<const N: usize>(data: &[u8]) -> Result<[u8; N], Error> {
    let what = "Get LAN Configuration Parameters";
    head(what, data.get(1..).unwrap_or_default())
}

/// # Errors
/// [`Error::Short`].
pub fn ipv4_address(data: &[u8]) -> Result<Ipv4Addr, Error> {
    Ok(Ipv4Addr::from(parameter::<4>(data)?))
}

/// The MAC address; `None` for one that no network card has.
///
/// # Errors
/// [`Error::Short`].
pub fn mac_address(data: &[u8]) -> Result<Option<MacAddress>, Error> {
    let bytes = parameter::<6>(data)?;
    let is_a_cards = bytes[0] & 1 == 0 && bytes != [0; 6];
    Ok(is_a_cards.then_some(MacAddress(bytes)))
}

/// Whether IPv4 and IPv6 are enabled.
///
/// # Errors
/// [`Error::Short`].
pub fn addressing_enables(data: &[u8]) -> Result<(bool, bool), Error> {
    let [enables] = parameter(data)?;
    Ok(match enables {
        0 => (true, false),
        1 => (false, true),
        _ => (true, true),
    })
}

/// How many static and dynamic IPv6 addresses to ask for.
///
/// # Errors
/// [`Error::Short`].
pub fn ipv6_counts(data: &[u8]) -> Result<(u8, u8), Error> {
    let [fixed, dynamic] = parameter(data)?;
    Ok((fixed, dynamic))
}

/// An address out of parameter 56 or 59; `None` unless it is enabled and in use.
///
/// # Errors
/// [`Error::Short`].
pub fn ipv6_address(which: LanParameter, data: &[u8]) -> Result<Option<Ipv6Addr>, Error> {
    let bytes = parameter::<20>(data)?;
    let [_, source, address @ .., _, status] = bytes;
    // Only a static address has an enable bit; status 0 is "active".
    let enabled = which == LanParameter::Ipv6DynamicAddress || source & 0x80 != 0;
    Ok((enabled && status == 0).then(|| Ipv6Addr::from(address)))
}

/// A user's number on the BMC: 1 to 63.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct UserId(pub u8);

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Get User Access (22.27).
#[must_use]
pub fn user_access(channel: u8, user: UserId) -> Request {
    Request::new("Get User Access", APP, 0x44, &[channel & 0x0f, user.0])
}

/// What a user may do on one channel, and what the BMC says about its users on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserAccess {
    /// The highest user number.
    pub users: u8,
    /// Numbers up to this one have names that cannot be changed.
    pub fixed_names: u8,
    pub link_authentication: bool,
    pub ipmi_messaging: bool,
    /// 4 is administrator.
    pub privilege: u8,
}

impl UserAccess {
    /// # Errors
    /// [`Error::Short`].
    pub fn parse(data: &[u8]) -> Result<Self, Error> {
        let [users, _, fixed, access] = head("Get User Access", data)?;
        Ok(Self {
            users: users & 0x3f,
            fixed_names: fixed & 0x3f,
            link_authentication: access & 0x20 != 0,
            ipmi_messaging: access & 0x10 != 0,
            privilege: access & 0x0f,
        })
    }
}

/// Set User Access (22.26): administrator on this channel, by IPMI messages over an
/// authenticated link, not by call-back only.
#[must_use]
pub fn make_administrator(channel: u8, user: UserId) -> Request {
    let data = [0b1011_0000 | (channel & 0x0f), user.0, 0x04];
    Request::new("Set User Access", APP, 0x43, &data)
}

/// Bytes of a user name (22.28).
pub const NAME_BYTES: usize = 16;

/// Get User Name (22.29).
#[must_use]
pub fn user_name(user: UserId) -> Request {
    Request::new("Get User Name", APP, 0x46, &[user.0])
}

/// A user's name up to its first zero byte; empty for a free number. Some BMCs fill with
/// spaces or 0xff, others write a remark.
#[must_use]
pub fn parse_user_name(data: &[u8]) -> String {
    let data = &data[..data.len().min(NAME_BYTES)];
    let end = data.iter().position(|byte| matches!(byte, 0 | 0xff));
    let name = String::from_utf8_lossy(&data[..end.unwrap_or(data.len())]);
    let name = name.trim_end();
    if name.eq_ignore_ascii_case("(empty user)") {
        return String::new();
    }
    name.to_owned()
}

/// Set User Name (22.28). What is beyond 16 bytes is cut off: check names before.
#[must_use]
pub fn set_user_name(user: UserId, name: &str) -> Request {
    let mut data = [0; 1 + NAME_BYTES];
    data[0] = user.0;
    for (to, from) in data[1..].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    Request::new("Set User Name", APP, 0x45, &data)
}

/// The two sizes in which a BMC stores passwords (22.30).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PasswordSize {
    /// IPMI 1.5 and later.
    Sixteen = 16,
    /// IPMI 2.0.
    Twenty = 20,
}

impl PasswordSize {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Sixteen => Self::Twenty,
            Self::Twenty => Self::Sixteen,
        }
    }
}

/// Enables a user: Set User Password (22.30), operation 1.
#[must_use]
pub fn enable_user(user: UserId) -> Request {
    Request::new("Set User Password (enable)", APP, 0x47, &[user.0, 1])
}

/// Stores a password: operation 2.
#[must_use]
pub fn set_password(user: UserId, size: PasswordSize, password: &str) -> Request {
    with_password("Set User Password", user, 2, size, password)
}

/// Asks whether this is the password: operation 3.
#[must_use]
pub fn test_password(user: UserId, size: PasswordSize, password: &str) -> Request {
    with_password("Set User Password (test)", user, 3, size, password)
}

fn with_password(
    what: &'static str,
    user: UserId,
    operation: u8,
    size: PasswordSize,
    password: &str,
) -> Request {
    let mut data = Zeroizing::new([0; 22]);
    data[0] = match size {
        PasswordSize::Sixteen => user.0,
        PasswordSize::Twenty => 0x80 | user.0,
    };
    data[1] = operation;
    let length = 2 + size as usize;
    for (to, from) in data[2..length].iter_mut().zip(password.bytes()) {
        *to = from;
    }
    Request::new(what, APP, 0x47, &data[..length])
}

/// Get FRU Inventory Area Info (34.1) of the board that the BMC is on.
#[must_use]
pub fn fru_info() -> Request {
    Request::new("Get FRU Inventory Area Info", STORAGE, 0x10, &[0])
}

/// Size of the FRU inventory in bytes, and the size of the units it is counted in.
///
/// # Errors
/// [`Error::Short`].
pub fn fru_size(data: &[u8]) -> Result<(u16, u16), Error> {
    let [low, high, access] = head("Get FRU Inventory Area Info", data)?;
    let unit = if access & 1 == 1 { 2 } else { 1 };
    Ok((u16::from_le_bytes([low, high]), unit))
}

/// Read FRU Data (34.2): offset and count are in the units of [`fru_size`].
#[must_use]
pub fn read_fru(offset: u16, count: u8) -> Request {
    let [low, high] = offset.to_le_bytes();
    Request::new("Read FRU Data", STORAGE, 0x11, &[0, low, high, count])
}

/// The bytes that were read: no more than the BMC counts, and no more than it sends.
///
/// # Errors
/// [`Error::Short`] when there is none.
pub fn fru_data(data: &[u8], unit: u16) -> Result<&[u8], Error> {
    let (count, rest) = data.split_first().unwrap_or((&0, &[]));
    let bytes = usize::from(*count) * usize::from(unit);
    match rest.get(..bytes.min(rest.len())) {
        Some(read) if !read.is_empty() => Ok(read),
        _ => Err(Error::Short {
            what: "Read FRU Data",
            wanted: 2,
            got: data.len(),
        }),
    }
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;
