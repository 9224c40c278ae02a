//! BMCs for tests: one that answers by a list, and one with users, addresses and an FRU
//! inventory, whose quirks are those of real ones.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::time::Duration;

use super::Error;
use super::message::Request;
use super::talk::Transport;

/// Answers one after the other, whatever is asked.
pub struct Scripted {
    answers: VecDeque<Vec<u8>>,
    pub asked: Vec<Vec<u8>>,
}

impl Scripted {
    pub fn answers(answers: Vec<Vec<u8>>) -> Self {
        Self {
            answers: answers.into(),
            asked: Vec::new(),
        }
    }
}

impl Transport for Scripted {
    fn exchange(&mut self, request: &Request, patience: Duration) -> Result<Vec<u8>, Error> {
        self.asked.push(request.data.to_vec());
        let what = request.what;
        self.answers
            .pop_front()
            .ok_or(Error::Silent { what, patience })
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    /// With its zeroes, in the size that it was stored in.
    pub password: Vec<u8>,
    pub enabled: bool,
    /// The low seven bits of Set User Access's first byte, without the channel, and the privilege.
    pub access: u8,
}

/// What makes a BMC different from the standard's.
#[derive(Debug, Clone, Default)]
pub struct Quirks {
    /// Answers passwords of this size with 0xc7.
    pub refuses_size: Option<usize>,
    /// Stores every password in this size.
    pub stores_as: Option<usize>,
    /// Has no test for passwords.
    pub cannot_test: bool,
    /// Says yes to new passwords, and forgets them.
    pub forgets_password: bool,
    /// Refuses so many passwords by its rules.
    pub refuses_passwords: usize,
    /// Says yes to new rights, and forgets them.
    pub forgets_rights: bool,
    /// Answers Get User Name of a free number with this code.
    pub free_name_code: Option<u8>,
    /// Bytes of FRU data that it sends at once; 0: any number.
    pub fru_chunk: u8,
    /// Counts the FRU inventory in words.
    pub fru_words: bool,
    /// Every second answer is this code.
    pub every_second: Option<u8>,
    /// Knows no command about users.
    pub no_users: bool,
}

/// A whole BMC.
#[derive(Debug, Clone, Default)]
pub struct FakeBmc {
    /// Number 1 first.
    pub users: Vec<User>,
    pub fixed_names: u8,
    /// Medium of each channel.
    pub media: BTreeMap<u8, u8>,
    /// Bytes of LAN parameters by channel, parameter and set.
    pub lan: BTreeMap<(u8, u8, u8), Vec<u8>>,
    pub fru: Vec<u8>,
    /// Access mode of every channel.
    pub channel_access: u8,
    pub quirks: Quirks,
    pub answered: usize,
}

impl FakeBmc {
    /// A BMC in good health: LAN on channel 1, administrator number 2, 10 users.
    pub fn good() -> Self {
        let mut users = vec![User::default(); 10];
        users[1] = User {
            name: "ADMIN".into(),
            password: b"factory".to_vec(),
            enabled: true,
            access: 0x34,
        };
        let mut bmc = Self {
            users,
            fixed_names: 1,
            channel_access: 2,
            ..Self::default()
        };
        bmc.media.insert(1, 0x04);
        bmc.lan.insert((1, 3, 0), vec![192, 0, 2, 7]);
        bmc.lan.insert((1, 5, 0), vec![0x3c, 0xec, 0xef, 1, 2, 3]);
        bmc
    }

    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.iter().find(|user| user.name == name)
    }

    fn users(&mut self, command: u8, data: &[u8]) -> Vec<u8> {
        if self.quirks.no_users {
            return vec![0xc1];
        }
        let id = match command {
            0x43 | 0x44 => data[1],
            _ => data[0],
        } & 0x3f;
        let count = self.users.len() as u8;
        let fixed = self.fixed_names;
        let quirks = self.quirks.clone();
        let Some(user) = self.users.get_mut(usize::from(id).wrapping_sub(1)) else {
            return vec![0xcc];
        };
        match command {
            0x43 => {
                if !quirks.forgets_rights {
                    user.access = data[0] & 0x70 | data[2] & 0x0f;
                }
                vec![0]
            }
            0x44 => vec![0, count, 0x40 | 1, fixed, user.access],
            0x45 if id <= fixed => vec![0xcc],
            0x45 => {
                user.name = super::command::parse_user_name(&data[1..]);
                vec![0]
            }
            0x46 if user.name.is_empty() && quirks.free_name_code.is_some() => {
                vec![quirks.free_name_code.unwrap()]
            }
            0x46 => {
                let mut answer = vec![0; 17];
                answer[1..=user.name.len()].copy_from_slice(user.name.as_bytes());
                answer
            }
            _ => self.password(id, data),
        }
    }

    fn password(&mut self, id: u8, data: &[u8]) -> Vec<u8> {
        let quirks = &mut self.quirks;
        let user = &mut self.users[usize::from(id) - 1];
        let size = if data[0] & 0x80 == 0 { 16 } else { 20 };
        match data[1] {
            1 => {
                user.enabled = true;
                return vec![0];
            }
            2 | 3 if data.len() != 2 + size || quirks.refuses_size == Some(size) => {
                return vec![0xc7];
            }
            2 if quirks.refuses_passwords > 0 => {
                quirks.refuses_passwords -= 1;
                return vec![0xcc];
            }
            2 => {
                let mut password = data[2..].to_vec();
                password.resize(quirks.stores_as.unwrap_or(size), 0);
                if !quirks.forgets_password {
                    user.password = password;
                }
                return vec![0];
            }
            3 if quirks.cannot_test => return vec![0xcc],
            3 if user.password.len() != size => return vec![0x81],
            3 if user.password != data[2..] => return vec![0x80],
            _ => {}
        }
        vec![0]
    }

    fn fru(&self, command: u8, data: &[u8]) -> Vec<u8> {
        let unit = if self.quirks.fru_words { 2 } else { 1 };
        let [low, high] = (self.fru.len() as u16).to_le_bytes();
        if command == 0x10 {
            return vec![0, low, high, u8::from(self.quirks.fru_words)];
        }
        let count = usize::from(data[3]) * unit;
        if self.quirks.fru_chunk > 0 && count > usize::from(self.quirks.fru_chunk) {
            return vec![0xca];
        }
        let start = usize::from(u16::from_le_bytes([data[1], data[2]])) * unit;
        let bytes = &self.fru[start..(start + count).min(self.fru.len())];
        [&[0, (bytes.len() / unit) as u8], bytes].concat()
    }
}

impl Transport for FakeBmc {
    fn exchange(&mut self, request: &Request, _patience: Duration) -> Result<Vec<u8>, Error> {
        self.answered += 1;
        if let (Some(code), 1) = (self.quirks.every_second, self.answered % 2) {
            return Ok(vec![code]);
        }
        let data = request.data.as_slice();
        Ok(match (request.netfn, request.command) {
            // Device ID: 0x20, firmware 2.45, IPMI 2.0, manufacturer 10876.
            (0x06, 0x01) => vec![0, 0x20, 1, 2, 0x45, 2, 0xbf, 0x7c, 0x2a, 0, 0, 8],
            (0x06, 0x41) => vec![0, self.channel_access, 4],
            (0x06, 0x42) => match self.media.get(&data[0]) {
                Some(medium) => vec![0, data[0], *medium, 1, 0x80, 0xf2, 0x1b, 0, 0, 0],
                None => vec![0xcc],
            },
            (0x06, command @ 0x43..=0x47) => self.users(command, data),
            (0x0a, command) => self.fru(command, data),
            (0x0c, 0x02) => match self.lan.get(&(data[0], data[1], data[2])) {
                Some(bytes) => [&[0, 0x11], bytes.as_slice()].concat(),
                None => vec![0x80],
            },
            _ => vec![0xc1],
        })
    }
}
