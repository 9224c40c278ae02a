//! EFI device paths (UEFI 2.10, chapter 10), as far as a boot entry for a file on a GPT
//! partition needs them.

use std::fmt;

use thiserror::Error;
use uuid::Uuid;

/// Media Device Path (10.3.5) and its subtypes.
const MEDIA: u8 = 0x04;
const MEDIA_HARD_DRIVE: u8 = 0x01;
const MEDIA_FILE_PATH: u8 = 0x04;
/// End of Hardware Device Path (10.3.1); subtype 0x01 ends one instance, 0xff the path.
const END: u8 = 0x7f;
const END_ENTIRE: u8 = 0xff;
/// Hard Drive node: partition format and signature type of a GPT partition (10.3.5.1).
const FORMAT_GPT: u8 = 0x02;
const SIGNATURE_GUID: u8 = 0x02;
const HARD_DRIVE_LENGTH: u16 = 42;

/// Where a partition is: what a Hard Drive node says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EspLocation {
    /// Counted from 1.
    pub number: u32,
    /// In the disk's own logical blocks.
    pub start_lba: u64,
    /// In the disk's own logical blocks.
    pub size_lba: u64,
    /// The unique partition GUID.
    pub guid: Uuid,
}

/// One node of a device path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A GPT partition.
    Partition(EspLocation),
    /// A file, `\EFI\debian\shimx64.efi`.
    File(String),
    /// Anything else, by type and subtype.
    Other(u8, u8),
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Partition(at) => write!(f, "HD({},GPT,{})", at.number, at.guid),
            Self::File(path) => f.write_str(path),
            Self::Other(kind, subtype) => write!(f, "Path({kind:#04x},{subtype:#04x})"),
        }
    }
}

/// Why bytes are no device path.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Problem {
    #[error("the device path ends in the middle of a node at byte {0}")]
    Truncated(usize),
    #[error("the device path node at byte {0} says it is {1} bytes long, less than its header")]
    NodeLength(usize, usize),
    #[error("the device path has no end node")]
    NoEnd,
}

/// Reads the nodes of the first device path in `bytes`, up to its end node or the end of
/// its first instance: what comes after is an alternative that the firmware may try.
///
/// # Errors
/// A node that does not fit, or no end.
pub fn parse(bytes: &[u8]) -> Result<Vec<Node>, Problem> {
    let mut nodes = Vec::new();
    let mut at = 0;
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        let [kind, subtype, low, high, ..] = *rest else {
            return Err(if rest.is_empty() {
                Problem::NoEnd
            } else {
                Problem::Truncated(at)
            });
        };
        let length = usize::from(u16::from_le_bytes([low, high]));
        if length < 4 {
            return Err(Problem::NodeLength(at, length));
        }
        let data = rest.get(4..length).ok_or(Problem::Truncated(at))?;
        if kind == END {
            return Ok(nodes);
        }
        nodes.push(match (kind, subtype) {
            (MEDIA, MEDIA_HARD_DRIVE) => {
                gpt_partition(data).map_or(Node::Other(kind, subtype), Node::Partition)
            }
            (MEDIA, MEDIA_FILE_PATH) => Node::File(text(data)),
            _ => Node::Other(kind, subtype),
        });
        at += length;
    }
}

/// The data of a Hard Drive node, when it names a GPT partition.
fn gpt_partition(data: &[u8]) -> Option<EspLocation> {
    let (number, rest) = data.split_first_chunk::<4>()?;
    let (start, rest) = rest.split_first_chunk::<8>()?;
    let (size, rest) = rest.split_first_chunk::<8>()?;
    let (guid, rest) = rest.split_first_chunk::<16>()?;
    (rest == [FORMAT_GPT, SIGNATURE_GUID]).then(|| EspLocation {
        number: u32::from_le_bytes(*number),
        start_lba: u64::from_le_bytes(*start),
        size_lba: u64::from_le_bytes(*size),
        guid: Uuid::from_bytes_le(*guid),
    })
}

/// UCS-2 up to the first NUL; what is no character is replaced.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    let units: Vec<u16> = bytes
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .take_while(|unit| *unit != 0)
        .collect();
    String::from_utf16_lossy(&units)
}

/// UCS-2 with a closing NUL. Characters outside the Basic Multilingual Plane, which
/// UCS-2 does not have, and NULs become `?`.
#[must_use]
pub fn ucs2(text: &str) -> Vec<u8> {
    text.chars()
        .map(|c| u16::try_from(u32::from(c)).ok().filter(|unit| *unit != 0))
        .map(|unit| unit.unwrap_or(u16::from(b'?')))
        .chain([0])
        .flat_map(u16::to_le_bytes)
        .collect()
}

/// The short-form device path of a file on a GPT partition: Hard Drive, File Path, end.
#[must_use]
pub fn encode(partition: &EspLocation, file: &str) -> Vec<u8> {
    let mut bytes = vec![MEDIA, MEDIA_HARD_DRIVE];
    bytes.extend(HARD_DRIVE_LENGTH.to_le_bytes());
    bytes.extend(partition.number.to_le_bytes());
    bytes.extend(partition.start_lba.to_le_bytes());
    bytes.extend(partition.size_lba.to_le_bytes());
    bytes.extend(partition.guid.to_bytes_le());
    bytes.extend([FORMAT_GPT, SIGNATURE_GUID]);
    // 64 Ki - 4 is what a node can hold; no path on a FAT file system comes near.
    let mut name = ucs2(file);
    name.truncate(usize::from(u16::MAX) - 5);
    bytes.extend([MEDIA, MEDIA_FILE_PATH]);
    bytes.extend(
        u16::try_from(name.len() + 4)
            .unwrap_or(u16::MAX)
            .to_le_bytes(),
    );
    bytes.extend(name);
    bytes.extend([END, END_ENTIRE, 4, 0]);
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn partition() -> EspLocation {
        EspLocation {
            number: 1,
            start_lba: 2048,
            size_lba: 1_024_000,
            guid: uuid::uuid!("01234567-89ab-cdef-0123-456789abcdef"),
        }
    }

    #[test]
    fn the_encoded_path_is_byte_for_byte_what_the_specification_says() {
        let mut expected = vec![0x04, 0x01, 42, 0, 1, 0, 0, 0];
        expected.extend([0x00, 0x08, 0, 0, 0, 0, 0, 0]);
        expected.extend([0x00, 0xa0, 0x0f, 0, 0, 0, 0, 0]);
        // Mixed-endian: the first three groups are little-endian.
        expected.extend([0x67, 0x45, 0x23, 0x01, 0xab, 0x89, 0xef, 0xcd]);
        expected.extend([0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 2, 2]);
        expected.extend([0x04, 0x04, 10, 0, b'\\', 0, b'A', 0, 0, 0]);
        expected.extend([0x7f, 0xff, 4, 0]);
        assert_eq!(encode(&partition(), "\\A"), expected);
    }

    #[test]
    fn broken_paths_are_named() {
        let whole = encode(&partition(), "\\EFI\\BOOT\\BOOTX64.EFI");
        assert_eq!(parse(&[]), Err(Problem::NoEnd));
        assert_eq!(parse(&whole[..whole.len() - 4]), Err(Problem::NoEnd));
        assert_eq!(parse(&whole[..20]), Err(Problem::Truncated(0)));
        assert_eq!(parse(&whole[..44]), Err(Problem::Truncated(42)));
        assert_eq!(parse(&[1, 1, 3, 0]), Err(Problem::NodeLength(0, 3)));
        assert_eq!(parse(&[1, 1, 0, 0]), Err(Problem::NodeLength(0, 0)));
    }

    #[test]
    fn an_mbr_partition_is_no_gpt_partition() {
        let mut bytes = encode(&partition(), "\\x");
        bytes[40] = 1;
        bytes[41] = 1;
        assert_eq!(parse(&bytes).unwrap()[0], Node::Other(4, 1));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(nodes) = parse(&bytes) {
                prop_assert!(nodes.len() <= bytes.len() / 4);
            }
        }

        #[test]
        fn what_is_encoded_is_parsed(number: u32, start_lba: u64, size_lba: u64, guid: u128,
                                     file in "[\\\\A-Za-z0-9.é-]{0,80}") {
            let at = EspLocation { number, start_lba, size_lba, guid: Uuid::from_u128(guid) };
            let nodes = parse(&encode(&at, &file)).unwrap();
            prop_assert_eq!(nodes, vec![Node::Partition(at), Node::File(file)]);
        }
    }
}
