//! EFI_LOAD_OPTION (UEFI 2.10, 3.1.3): the content of a `Boot####` variable.

use thiserror::Error;
use uuid::Uuid;

use super::device_path::{self, EspLocation, Node};

/// LOAD_OPTION_ACTIVE: the boot manager tries this entry by itself.
pub const ACTIVE: u32 = 0x1;

/// A boot entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadOption {
    pub attributes: u32,
    pub description: String,
    /// The first device path: what the firmware loads.
    pub path: Vec<Node>,
    /// What the loaded program gets as its arguments.
    pub optional_data: Vec<u8>,
}

/// Why bytes are no boot entry.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Problem {
    #[error("{0} bytes are too few for a boot entry")]
    TooShort(usize),
    #[error("its description has no end")]
    Description,
    #[error("its device path list of {stated} bytes does not fit in the {left} that are left")]
    PathLength { stated: usize, left: usize },
    #[error(transparent)]
    Path(#[from] device_path::Problem),
}

impl LoadOption {
    /// Reads a `Boot####` variable's data.
    ///
    /// # Errors
    /// Whatever does not fit or has no end.
    pub fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        let too_short = || Problem::TooShort(bytes.len());
        let (attributes, rest) = bytes.split_first_chunk::<4>().ok_or_else(too_short)?;
        let (length, rest) = rest.split_first_chunk::<2>().ok_or_else(too_short)?;
        let stated = usize::from(u16::from_le_bytes(*length));
        let units = rest
            .chunks_exact(2)
            .position(|unit| unit == [0, 0])
            .ok_or(Problem::Description)?;
        let (description, rest) = rest.split_at(units * 2);
        let rest = rest.get(2..).unwrap_or_default();
        let (paths, optional_data) = rest.split_at_checked(stated).ok_or(Problem::PathLength {
            stated,
            left: rest.len(),
        })?;
        Ok(Self {
            attributes: u32::from_le_bytes(*attributes),
            description: device_path::text(description),
            path: device_path::parse(paths)?,
            optional_data: optional_data.to_vec(),
        })
    }

    /// The GPT partition that the entry boots from.
    #[must_use]
    pub fn partition(&self) -> Option<Uuid> {
        self.path.iter().find_map(|node| match node {
            Node::Partition(at) => Some(at.guid),
            _ => None,
        })
    }

    /// The file that the entry loads.
    #[must_use]
    pub fn file(&self) -> Option<&str> {
        self.path.iter().find_map(|node| match node {
            Node::File(path) => Some(path.as_str()),
            _ => None,
        })
    }

    /// Whether the entry loads `file` from the partition. FAT ignores case.
    #[must_use]
    pub fn loads(&self, partition: Uuid, file: &str) -> bool {
        self.partition() == Some(partition)
            && self
                .file()
                .is_some_and(|own| own.eq_ignore_ascii_case(file))
    }
}

/// The data of a `Boot####` variable that loads `file` from a GPT partition, without
/// arguments: shim would take them for the name of another loader.
#[must_use]
pub fn encode(description: &str, partition: &EspLocation, file: &str) -> Vec<u8> {
    let path = device_path::encode(partition, file);
    let mut bytes = ACTIVE.to_le_bytes().to_vec();
    bytes.extend(u16::try_from(path.len()).unwrap_or(u16::MAX).to_le_bytes());
    bytes.extend(device_path::ucs2(description));
    bytes.extend(path);
    bytes
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The data of Boot0000, Boot0001 and Boot0002 in the distribution's
    /// OVMF_VARS_4M.ms.fd (package ovmf), read with `virt-fw-vars`: entries without a
    /// hard drive node, one of them with optional data.
    pub(crate) const OVMF: [&str; 3] = [
        "090100002c0055006900410070007000000004071400c9bdb87cebf8344faaea3ee4af6516a1\
         0406140021aa2c4614760345836e8ab6f46623317fff0400",
        "01000000200055004500460049002000510045004d00550020004800410052004400440049005300\
         4b00200051004d00300030003000300031002000000002010c00d041030a00000000010106000\
         21f03120a000000ffff00007fff04004eac0881119f594d850ee21a522c59b2",
        "010000002c00450046004900200049006e007400650072006e0061006c0020005300680065006c00\
         6c00000004071400c9bdb87cebf8344faaea3ee4af6516a10406140083a5047c3e9e1c4fad65e\
         05268d0b4d17fff0400",
    ];

    pub(crate) fn unhex(text: &str) -> Vec<u8> {
        text.as_bytes()
            .chunks_exact(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    #[test]
    fn entries_that_ovmf_wrote_are_read() {
        let [app, disk, shell] = OVMF.map(|text| LoadOption::parse(&unhex(text)).unwrap());
        assert_eq!(app.description, "UiApp");
        assert_eq!(app.attributes, 0x109);
        assert_eq!(disk.description, "UEFI QEMU HARDDISK QM00001 ");
        assert_eq!(
            disk.path,
            [Node::Other(2, 1), Node::Other(1, 1), Node::Other(3, 0x12)]
        );
        assert_eq!(disk.optional_data.len(), 16);
        assert_eq!(disk.partition(), None);
        assert_eq!(shell.description, "EFI Internal Shell");
        assert_eq!(shell.file(), None);
    }

    fn sample() -> Vec<u8> {
        let at = EspLocation {
            number: 1,
            start_lba: 2048,
            size_lba: 4096,
            guid: Uuid::from_u128(7),
        };
        encode("metal-anvil debian", &at, "\\EFI\\debian\\shimx64.efi")
    }

    #[test]
    fn our_own_entry_is_read_back() {
        let entry = LoadOption::parse(&sample()).unwrap();
        assert_eq!(entry.attributes, ACTIVE);
        assert_eq!(entry.description, "metal-anvil debian");
        assert!(entry.loads(Uuid::from_u128(7), "\\efi\\DEBIAN\\SHIMX64.EFI"));
        assert!(!entry.loads(Uuid::from_u128(8), "\\EFI\\debian\\shimx64.efi"));
        assert!(!entry.loads(Uuid::from_u128(7), "\\EFI\\debian\\grubx64.efi"));
        assert_eq!(entry.optional_data, b"");
    }

    #[test]
    fn every_cut_is_refused() {
        let whole = sample();
        for length in 0..whole.len() {
            assert!(LoadOption::parse(&whole[..length]).is_err(), "{length}");
        }
        assert_eq!(LoadOption::parse(&[1, 0]), Err(Problem::TooShort(2)));
        assert_eq!(
            LoadOption::parse(&[1, 0, 0, 0, 4, 0, b'a', 0]),
            Err(Problem::Description)
        );
        assert_eq!(
            LoadOption::parse(&[1, 0, 0, 0, 9, 0, 0, 0, 1]),
            Err(Problem::PathLength { stated: 9, left: 1 })
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(entry) = LoadOption::parse(&bytes) {
                prop_assert!(entry.optional_data.len() < bytes.len());
            }
        }
    }
}
