//! Superblocks: the UUID of a file system that is there already, and the header that
//! makes a partition swap space.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use uuid::Uuid;

use crate::control::api::Format;

/// Page size that swap is laid out for: x86-64 has no other.
pub const PAGE: u64 = 4096;
/// Smallest swap space, in pages (util-linux, `mkswap`).
const MIN_SWAP_PAGES: u64 = 10;
/// Longest label of a swap space in bytes: 16 with the closing zero.
pub const MAX_SWAP_LABEL: usize = 15;

/// What fstab needs to know of a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    pub family: Family,
    /// As `UUID=` in fstab wants it: `ABCD-1234` for FAT.
    pub uuid: String,
}

/// What a superblock tells of the format; ext3 and ext4 differ in features only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Ext,
    Fat,
    Swap,
}

impl Family {
    /// The family that a format of the layout belongs to; none for what has no superblock.
    #[must_use]
    pub fn of(format: Format) -> Option<Self> {
        match format {
            Format::Ext3 | Format::Ext4 => Some(Self::Ext),
            Format::Vfat => Some(Self::Fat),
            Format::Swap => Some(Self::Swap),
            Format::Unspecified | Format::Tmpfs | Format::None => None,
        }
    }
}

/// Reads the superblock of an ext, FAT or swap file system; `None` when there is none.
///
/// Offsets: kernel, `fs/ext4/ext4.h` (`ext4_super_block`), `include/uapi/linux/msdos_fs.h`
/// (`fat_boot_sector`), `include/linux/swap.h` (`swap_header`).
///
/// # Errors
/// When the device cannot be read.
pub fn read(device: &File) -> io::Result<Option<Superblock>> {
    read_at(device, 0)
}

/// The same of a file system that begins `start` bytes into the device.
///
/// # Errors
/// When the device cannot be read.
pub fn read_at(device: &File, start: u64) -> io::Result<Option<Superblock>> {
    let mut bytes = vec![0; PAGE as usize];
    match device.read_exact_at(&mut bytes, start) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let uuid_at = |at: usize| {
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&bytes[at..at + 16]);
        Uuid::from_bytes(uuid).to_string()
    };
    let fat_id_at = |at: usize| fat_uuid([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let (family, uuid) = if bytes[0x438..0x43a] == [0x53, 0xef] {
        (Family::Ext, uuid_at(0x468))
    } else if bytes.ends_with(b"SWAPSPACE2") {
        (Family::Swap, uuid_at(1036))
    } else if bytes[510..512] == [0x55, 0xaa] && bytes[82..90] == *b"FAT32   " {
        (Family::Fat, fat_id_at(67))
    } else if bytes[510..512] == [0x55, 0xaa] && bytes[54..58] == *b"FAT1" {
        (Family::Fat, fat_id_at(39))
    } else {
        return Ok(None);
    };
    Ok(Some(Superblock { family, uuid }))
}

/// FAT's volume ID as `blkid` and udev print it; it is stored little-endian.
#[must_use]
pub fn fat_uuid(id: [u8; 4]) -> String {
    format!("{:02X}{:02X}-{:02X}{:02X}", id[3], id[2], id[1], id[0])
}

/// The first page of a swap space of `size` bytes (kernel, `include/linux/swap.h`):
/// version 1, number of the last page, no bad pages, UUID, label, magic.
///
/// `None` when it would be too small, too large for the header, or the label too long.
#[must_use]
pub fn swap_header(size: u64, uuid: Uuid, label: &str) -> Option<Vec<u8>> {
    let pages = size / PAGE;
    if pages < MIN_SWAP_PAGES || label.len() > MAX_SWAP_LABEL {
        return None;
    }
    let last_page = u32::try_from(pages - 1).ok()?;
    let mut page = vec![0; PAGE as usize];
    page[1024..1028].copy_from_slice(&1_u32.to_le_bytes());
    page[1028..1032].copy_from_slice(&last_page.to_le_bytes());
    page[1036..1052].copy_from_slice(uuid.as_bytes());
    page[1052..1052 + label.len()].copy_from_slice(label.as_bytes());
    page[PAGE as usize - 10..].copy_from_slice(b"SWAPSPACE2");
    Some(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(marks: &[(usize, &[u8])]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        for (at, bytes) in marks {
            file.write_all_at(bytes, *at as u64).unwrap();
        }
        file
    }

    #[test]
    fn each_family() {
        let uuid = Uuid::from_u128(0x1122_3344_5566_7788_99aa_bbcc_ddee_ff00);
        let id: &[u8] = &[0x34, 0x12, 0xcd, 0xab];
        let boot: (usize, &[u8]) = (510, &[0x55, 0xaa]);
        let found = |family, uuid: &str| {
            Some(Superblock {
                family,
                uuid: uuid.into(),
            })
        };
        let text = "11223344-5566-7788-99aa-bbccddeeff00";
        type Marks<'m> = &'m [(usize, &'m [u8])];
        let table: [(Marks, Option<Superblock>); 6] = [
            (
                &[(0x438, &[0x53, 0xef]), (0x468, uuid.as_bytes())],
                found(Family::Ext, text),
            ),
            (
                &[(4086, b"SWAPSPACE2"), (1036, uuid.as_bytes())],
                found(Family::Swap, text),
            ),
            (
                &[boot, (82, b"FAT32   "), (67, id)],
                found(Family::Fat, "ABCD-1234"),
            ),
            (
                &[boot, (54, b"FAT16   "), (39, id)],
                found(Family::Fat, "ABCD-1234"),
            ),
            (&[(82, b"FAT32   "), (67, id)], None),
            (&[], None),
        ];
        for (marks, expected) in table {
            assert_eq!(read(&device(marks)).unwrap(), expected);
        }
        assert_eq!(read(&tempfile::tempfile().unwrap()).unwrap(), None);
    }

    #[test]
    fn a_swap_header_is_read_back() {
        let uuid = Uuid::from_u128(7);
        let header = swap_header(1 << 20, uuid, "swap").unwrap();
        assert_eq!(header[1028..1032], 255_u32.to_le_bytes());
        assert_eq!(header[1052..1057], *b"swap\0");
        let found = read(&device(&[(0, &header)])).unwrap().unwrap();
        assert_eq!((found.family, found.uuid), (Family::Swap, uuid.to_string()));
        assert_eq!(swap_header(9 * PAGE, uuid, ""), None);
        assert_eq!(swap_header(u64::MAX, uuid, ""), None);
        assert_eq!(swap_header(1 << 20, uuid, "sixteen-letters!"), None);
    }
}
