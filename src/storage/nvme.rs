//! NVMe administration: what a controller can erase with, and the commands for it.
//!
//! Numbers: NVM Express Base Specification 2.0c; `include/uapi/linux/nvme_ioctl.h`.

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
}
