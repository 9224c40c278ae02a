//! NVMe administration: what a controller can erase with, and the commands for it.
//!
//! Numbers: NVM Express Base Specification 2.0c; `include/uapi/linux/nvme_ioctl.h`.

use std::io;

/// Bytes of an Identify structure, of any kind.
pub const IDENTIFY_SIZE: usize = 4096;
/// Bytes of the Sanitize Status log page.
pub const SANITIZE_LOG_SIZE: usize = 512;
/// Milliseconds that a short command may take.
const SHORT_MS: u32 = 30_000;
/// Milliseconds that a Format may take: drives that overwrite need hours.
const FORMAT_MS: u32 = 12 * 3600 * 1000;
/// Every namespace.
const BROADCAST: u32 = 0xffff_ffff;

/// `struct nvme_passthru_cmd`. The executor sets `addr`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Command {
    pub opcode: u8,
    pub flags: u8,
    pub reserved: u16,
    pub nsid: u32,
    pub cdw2: u32,
    pub cdw3: u32,
    pub metadata: u64,
    pub addr: u64,
    pub metadata_len: u32,
    pub data_len: u32,
    pub cdw10: u32,
    pub cdw11: u32,
    pub cdw12: u32,
    pub cdw13: u32,
    pub cdw14: u32,
    pub cdw15: u32,
    pub timeout_ms: u32,
    pub result: u32,
}

const _: () = assert!(size_of::<Command>() == 72);

/// What Identify is asked about (CNS, figure 273).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    Namespace(u32),
    Controller,
    ActiveNamespaces,
}

/// Identify (5.17).
#[must_use]
pub fn identify(about: About) -> Command {
    let (nsid, cns) = match about {
        About::Namespace(nsid) => (nsid, 0),
        About::Controller => (0, 1),
        About::ActiveNamespaces => (0, 2),
    };
    Command {
        opcode: 0x06,
        nsid,
        data_len: IDENTIFY_SIZE as u32,
        cdw10: cns,
        timeout_ms: SHORT_MS,
        ..Command::default()
    }
}

/// Get Log Page (5.16) for Sanitize Status, 81h.
#[must_use]
pub fn sanitize_log() -> Command {
    Command {
        opcode: 0x02,
        nsid: BROADCAST,
        data_len: SANITIZE_LOG_SIZE as u32,
        cdw10: 0x81 | (SANITIZE_LOG_SIZE as u32 / 4 - 1) << 16,
        timeout_ms: SHORT_MS,
        ..Command::default()
    }
}

/// How data becomes unreadable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Erase {
    /// The media key is changed.
    Crypto,
    /// The blocks are erased.
    Data,
}

/// Format NVM (5.14) with a secure erase setting, everything else as it is.
#[must_use]
pub fn format(nvme: &Nvme, erase: Erase) -> Command {
    let setting = match erase {
        Erase::Data => 1,
        Erase::Crypto => 2,
    };
    Command {
        opcode: 0x80,
        nsid: nvme.nsid,
        cdw10: nvme.format | setting << 9,
        timeout_ms: FORMAT_MS,
        ..Command::default()
    }
}

/// Sanitize (5.24); it ends in the background. AUSE (dword 10, bit 3): only what failed in
/// unrestricted mode can be left again with [`exit_failure_mode`]; the log page tells of a
/// failure in either.
#[must_use]
pub fn sanitize(erase: Erase) -> Command {
    let action = match erase {
        Erase::Data => 2,
        Erase::Crypto => 4,
    };
    Command {
        opcode: 0x84,
        cdw10: action | 1 << 3,
        timeout_ms: SHORT_MS,
        ..Command::default()
    }
}

/// Sanitize with "exit failure mode": lets a subsystem be used again after a failed one.
#[must_use]
pub fn exit_failure_mode() -> Command {
    Command {
        cdw10: 1,
        ..sanitize(Erase::Data)
    }
}

/// What the last Sanitize came to (figure 288).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sanitized {
    Never,
    Done,
    /// Share done, of 65536.
    InProgress(u16),
    Failed,
}

/// Reads the Sanitize Status log page.
#[must_use]
pub fn parse_sanitize_log(page: &[u8; SANITIZE_LOG_SIZE]) -> Sanitized {
    match page[2] & 7 {
        1 | 4 => Sanitized::Done,
        2 => Sanitized::InProgress(u16::from_le_bytes([page[0], page[1]])),
        3 => Sanitized::Failed,
        _ => Sanitized::Never,
    }
}

/// Asks what the last Sanitize came to. `admin` sends one command.
///
/// # Errors
/// As `admin` says; a controller without the log page has no Sanitize.
pub fn sanitized(
    mut admin: impl FnMut(Command, &mut [u8]) -> io::Result<u32>,
) -> io::Result<Sanitized> {
    let mut page = [0; SANITIZE_LOG_SIZE];
    admin(sanitize_log(), &mut page)?;
    Ok(parse_sanitize_log(&page))
}

/// Brings a subsystem back whose Sanitize was cut: it goes on by itself, which `wait` waits
/// for, or it failed, then or now.
///
/// # Errors
/// When it does not end, or when failure mode cannot be left.
pub fn make_ready(
    mut admin: impl FnMut(Command, &mut [u8]) -> io::Result<u32>,
    wait: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    match sanitized(&mut admin) {
        Ok(Sanitized::InProgress(_)) => {
            wait().or_else(|failure| match leave_failure_mode(&mut admin)? {
                true => Ok(()),
                false => Err(failure),
            })
        }
        Ok(Sanitized::Failed) => admin(exit_failure_mode(), &mut []).map(drop),
        // A controller without the log page has no Sanitize.
        Ok(Sanitized::Done | Sanitized::Never) | Err(_) => Ok(()),
    }
}

/// Has a subsystem sanitize itself; `wait` comes back when that has ended. A failed one leaves
/// a subsystem that refuses writes and Format, in this boot and the next: it is led out of that,
/// so that the rungs below have a chance.
///
/// # Errors
/// When the Sanitize is refused, fails or does not end.
pub fn run_sanitize(
    erase: Erase,
    mut admin: impl FnMut(Command, &mut [u8]) -> io::Result<u32>,
    wait: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    admin(sanitize(erase), &mut [])
        .and_then(|_| wait())
        .map_err(|failure| match leave_failure_mode(admin) {
            Ok(_) => failure,
            Err(error) => io::Error::new(
                failure.kind(),
                format!("{failure}; failure mode cannot be left: {error}"),
            ),
        })
}

/// Leaves failure mode where the last Sanitize failed; answers whether it did. Asked for even
/// where somebody else's Sanitize was in restricted mode: the controller refuses, and no more.
fn leave_failure_mode(
    mut admin: impl FnMut(Command, &mut [u8]) -> io::Result<u32>,
) -> io::Result<bool> {
    let has_failed = sanitized(&mut admin)? == Sanitized::Failed;
    if has_failed {
        admin(exit_failure_mode(), &mut [])?;
    }
    Ok(has_failed)
}

/// What decides how a namespace can be erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nvme {
    pub nsid: u32,
    /// The only active namespace, of a subsystem with one controller.
    pub is_alone: bool,
    pub sanitize_crypto: bool,
    pub sanitize_block: bool,
    pub can_format: bool,
    pub format_crypto: bool,
    /// A Format, or its secure erase, reaches every namespace of the controller.
    pub format_is_for_all: bool,
    /// Format's command dword 10 that changes nothing.
    pub format: u32,
}

impl Nvme {
    /// From the controller's, the namespace's and the list of active namespaces' Identify
    /// data (figures 275, 276 and NVM Command Set 1.0c figure 97).
    #[must_use]
    pub fn parse(
        nsid: u32,
        controller: &[u8; IDENTIFY_SIZE],
        namespace: &[u8; IDENTIFY_SIZE],
        active: &[u8; IDENTIFY_SIZE],
    ) -> Self {
        let word = |at: usize| {
            u32::from_le_bytes([
                controller[at],
                controller[at + 1],
                controller[at + 2],
                controller[at + 3],
            ])
        };
        let oacs = word(256) & 0xffff;
        let sanicap = word(328);
        let fna = controller[524];
        let others = active
            .chunks_exact(4)
            .map(|id| u32::from_le_bytes([id[0], id[1], id[2], id[3]]))
            .take_while(|id| *id != 0)
            .filter(|id| *id != nsid)
            .count();
        let has_more_controllers = controller[76] & 0b10 != 0;
        let (flbas, dps) = (u32::from(namespace[26]), u32::from(namespace[29]));
        let format = (flbas & 0xf)
            | (flbas >> 4 & 1) << 4
            | (dps & 7) << 5
            | (dps >> 3 & 1) << 8
            | (flbas >> 5 & 3) << 12;
        Self {
            nsid,
            is_alone: others == 0 && !has_more_controllers,
            sanitize_crypto: sanicap & 1 != 0,
            sanitize_block: sanicap & 2 != 0,
            can_format: oacs & 2 != 0,
            format_crypto: fna & 4 != 0,
            format_is_for_all: fna & 3 != 0,
            format,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Identify data with these fields set.
    pub fn identified(
        sanicap: u8,
        oacs: u8,
        fna: u8,
        cmic: u8,
        flbas: u8,
        dps: u8,
        active: &[u32],
    ) -> Nvme {
        let mut controller = [0; IDENTIFY_SIZE];
        controller[256] = oacs;
        controller[328] = sanicap;
        controller[524] = fna;
        controller[76] = cmic;
        let mut namespace = [0; IDENTIFY_SIZE];
        namespace[26] = flbas;
        namespace[29] = dps;
        let mut list = [0; IDENTIFY_SIZE];
        for (at, id) in active.iter().enumerate() {
            list[at * 4..at * 4 + 4].copy_from_slice(&id.to_le_bytes());
        }
        Nvme::parse(1, &controller, &namespace, &list)
    }

    #[test]
    fn identify_data() {
        // QEMU 7.2: Format and more in OACS, nothing in FNA, no Sanitize.
        let qemu = identified(0, 0x0a, 0, 0, 0, 0, &[1]);
        assert_eq!(
            qemu,
            Nvme {
                nsid: 1,
                is_alone: true,
                sanitize_crypto: false,
                sanitize_block: false,
                can_format: true,
                format_crypto: false,
                format_is_for_all: false,
                format: 0,
            }
        );
        let data_centre = identified(3, 0x1e, 4, 0, 1, 0, &[1]);
        assert!(
            data_centre.sanitize_crypto && data_centre.sanitize_block && data_centre.format_crypto
        );
        assert!(!identified(0, 2, 0, 0, 0, 0, &[1, 2]).is_alone);
        assert!(!identified(0, 2, 0, 2, 0, 0, &[1]).is_alone);
        assert!(identified(0, 2, 1, 0, 0, 0, &[1]).format_is_for_all);
        assert!(identified(0, 2, 2, 0, 0, 0, &[1]).format_is_for_all);
        assert!(!identified(0, 0, 0, 0, 0, 0, &[1]).can_format);
    }

    #[test]
    fn a_format_keeps_block_size_metadata_and_protection() {
        // LBAF 0x21 (upper bits in 6:5), metadata at the end of the block, PI type 1, first 8 bytes.
        let nvme = identified(0, 2, 4, 0, 0b0011_0001, 0b1001, &[1]);
        assert_eq!(
            format(&nvme, Erase::Data).cdw10,
            1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 12
        );
        assert_eq!(format(&nvme, Erase::Crypto).cdw10 >> 9 & 7, 2);
    }

    #[test]
    fn commands_byte_for_byte() {
        let bytes = |command: Command| -> Vec<u32> {
            let c = command;
            vec![c.opcode.into(), c.nsid, c.data_len, c.cdw10, c.cdw11]
        };
        let nvme = identified(3, 2, 4, 0, 1, 0, &[1]);
        assert_eq!(bytes(identify(About::Controller)), [0x06, 0, 4096, 1, 0]);
        assert_eq!(bytes(identify(About::Namespace(7))), [0x06, 7, 4096, 0, 0]);
        assert_eq!(
            bytes(identify(About::ActiveNamespaces)),
            [0x06, 0, 4096, 2, 0]
        );
        assert_eq!(
            bytes(sanitize_log()),
            [0x02, 0xffff_ffff, 512, 0x007f_0081, 0]
        );
        assert_eq!(bytes(format(&nvme, Erase::Data)), [0x80, 1, 0, 0x201, 0]);
        assert_eq!(bytes(format(&nvme, Erase::Crypto)), [0x80, 1, 0, 0x401, 0]);
        assert_eq!(bytes(sanitize(Erase::Data)), [0x84, 0, 0, 0b1010, 0]);
        assert_eq!(bytes(sanitize(Erase::Crypto)), [0x84, 0, 0, 0b1100, 0]);
        assert_eq!(bytes(exit_failure_mode()), [0x84, 0, 0, 1, 0]);
    }

    #[test]
    fn sanitize_states() {
        let page = |progress: u16, status: u8| {
            let mut page = [0; SANITIZE_LOG_SIZE];
            page[..2].copy_from_slice(&progress.to_le_bytes());
            page[2] = status;
            parse_sanitize_log(&page)
        };
        assert_eq!(page(0, 0), Sanitized::Never);
        assert_eq!(page(0xffff, 1), Sanitized::Done);
        assert_eq!(page(0x8000, 2), Sanitized::InProgress(0x8000));
        assert_eq!(page(0, 3), Sanitized::Failed);
        assert_eq!(page(0xffff, 0b1111_1100), Sanitized::Done);
    }

    const LOG: (u8, u32) = (0x02, 0x007f_0081);
    const CRYPTO: (u8, u32) = (0x84, 0b1100);
    const EXIT: (u8, u32) = (0x84, 1);

    /// A controller whose log page has these states (SOS) one after the other, and that refuses
    /// the commands `refused`. Keeps opcode and dword 10 of what it was sent.
    struct Controller<'c> {
        states: &'c [u8],
        refused: &'c [(u8, u32)],
        sent: Vec<(u8, u32)>,
    }

    impl Controller<'_> {
        fn admin(&mut self, command: Command, data: &mut [u8]) -> io::Result<u32> {
            let sent = (command.opcode, command.cdw10);
            self.sent.push(sent);
            if self.refused.contains(&sent) {
                return Err(io::Error::other("status 0x01c"));
            }
            if sent == LOG {
                let (state, rest) = self.states.split_first().unwrap();
                (data[2], self.states) = (*state, rest);
            }
            Ok(0)
        }
    }

    type Sent = [(u8, u32)];

    /// What [`run_sanitize`] answers and sends, after a wait that ended so.
    fn sanitize_with(
        states: &[u8],
        refused: &Sent,
        waited: Result<(), &str>,
        sent: &Sent,
    ) -> String {
        let mut controller = Controller {
            states,
            refused,
            sent: vec![],
        };
        let done = run_sanitize(
            Erase::Crypto,
            |command, data| controller.admin(command, data),
            || waited.map_err(|text| io::Error::other(text.to_owned())),
        );
        assert_eq!(controller.sent, sent);
        done.map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn failure_mode_is_left_after_a_failed_sanitize() {
        let failed = Err("Sanitize failed");
        assert_eq!(sanitize_with(&[], &[], Ok(()), &[CRYPTO]), "");
        assert_eq!(
            sanitize_with(&[3], &[], failed, &[CRYPTO, LOG, EXIT]),
            "Sanitize failed"
        );
        assert_eq!(
            sanitize_with(&[3], &[EXIT], failed, &[CRYPTO, LOG, EXIT]),
            "Sanitize failed; failure mode cannot be left: status 0x01c"
        );
        // Refused at once, for it was in failure mode, or for any other reason.
        assert_eq!(
            sanitize_with(&[3], &[CRYPTO], Ok(()), &[CRYPTO, LOG, EXIT]),
            "status 0x01c"
        );
        assert_eq!(
            sanitize_with(&[0], &[CRYPTO], Ok(()), &[CRYPTO, LOG]),
            "status 0x01c"
        );
        assert_eq!(
            sanitize_with(&[2], &[], Err("Sanitize does not end"), &[CRYPTO, LOG]),
            "Sanitize does not end"
        );
    }

    #[test]
    fn a_cut_sanitize_is_waited_for_and_a_failed_one_left() {
        type Case<'c> = (&'c [u8], &'c Sent, bool, bool, &'c Sent);
        // States, refused, whether the wait ends well, whether the drive is ready, sent
        let table: [Case; 8] = [
            (&[0], &[], true, true, &[LOG]),
            (&[1], &[], true, true, &[LOG]),
            (&[], &[LOG], true, true, &[LOG]),
            (&[3], &[], true, true, &[LOG, EXIT]),
            (&[3], &[EXIT], true, false, &[LOG, EXIT]),
            (&[2], &[], true, true, &[LOG]),
            (&[2, 3], &[], false, true, &[LOG, LOG, EXIT]),
            (&[2, 2], &[], false, false, &[LOG, LOG]),
        ];
        for (index, (states, refused, ends, is_ready, sent)) in table.into_iter().enumerate() {
            let mut controller = Controller {
                states,
                refused,
                sent: vec![],
            };
            let wait = || ends.then_some(()).ok_or_else(|| io::Error::other("no end"));
            let ready = make_ready(|command, data| controller.admin(command, data), wait);
            assert_eq!(
                (ready.is_ok(), &controller.sent[..]),
                (is_ready, sent),
                "{index}"
            );
        }
    }
}
