//! The SMBIOS table as bytes (DMTF DSP0134), from `/sys/firmware/dmi/tables`
//! (Documentation/ABI/testing/sysfs-firmware-dmi-tables).
//!
//! The firmware writes it, so nothing in it is believed: a structure that is cut short or
//! runs past the end is where reading stops, a field that a short structure lacks is
//! missing, a string number without a string is empty.

use std::path::Path;

use uuid::Uuid;

use super::{read_bytes, text::meaningful, types::Module};

/// No machine's table is near this size: 64 KiB is the limit of the 32-bit entry point.
const MAX_TABLE: u64 = 1 << 20;
const MAX_ENTRY_POINT: u64 = 64;
const MAX_STRUCTURES: usize = 8192;
/// Longest string that is kept, in characters.
const MAX_TEXT: usize = 256;

const SYSTEM: u8 = 1;
const MEMORY_ARRAY: u8 = 16;
const MEMORY_DEVICE: u8 = 17;
const END: u8 = 127;

/// The table: its version decides how a UUID is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    version: (u8, u8),
    structures: Vec<Structure>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Structure {
    kind: u8,
    handle: u16,
    /// The formatted area, header included.
    area: Vec<u8>,
    strings: Vec<String>,
}

impl Structure {
    fn byte(&self, at: usize) -> Option<u8> {
        self.area.get(at).copied()
    }

    fn word(&self, at: usize) -> Option<u16> {
        let bytes = self.area.get(at..at + 2)?;
        Some(u16::from_le_bytes(bytes.try_into().ok()?))
    }

    fn double(&self, at: usize) -> Option<u32> {
        let bytes = self.area.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    }

    /// The string whose number is in the byte `at`; numbers start at 1, 0 is "none".
    fn text(&self, at: usize) -> String {
        self.byte(at)
            .and_then(|number| usize::from(number).checked_sub(1))
            .and_then(|index| self.strings.get(index))
            .map(|text| meaningful(text, MAX_TEXT))
            .unwrap_or_default()
    }
}

impl Table {
    /// The table below `sys`; `None` without one (or without the right to read it).
    pub(super) fn read(sys: &Path) -> Option<Self> {
        let tables = sys.join("firmware/dmi/tables");
        let table = read_bytes(&tables.join("DMI"), MAX_TABLE).ok()?;
        let entry = read_bytes(&tables.join("smbios_entry_point"), MAX_ENTRY_POINT).ok()?;
        Some(Self {
            version: version(&entry)?,
            structures: structures(&table),
        })
    }

    /// The system's UUID as text would have it. Since SMBIOS 2.6 the first three fields
    /// are stored little-endian and the rest as it is read; before, all of it was stored
    /// as it is read (DSP0134 §7.2.1; drivers/firmware/dmi_scan.c, `dmi_save_uuid`).
    pub(super) fn system_uuid(&self) -> Option<Uuid> {
        let system = self.structures.iter().find(|it| it.kind == SYSTEM)?;
        let bytes: [u8; 16] = system.area.get(8..24)?.try_into().ok()?;
        Some(if self.version >= (2, 6) {
            Uuid::from_bytes_le(bytes)
        } else {
            Uuid::from_bytes(bytes)
        })
    }

    /// Every slot of the system's memory, empty ones with size 0. Flash, video memory and
    /// the like are left out: by their array's use (type 16) and their own type.
    pub(super) fn modules(&self) -> Vec<Module> {
        const SYSTEM_MEMORY: u8 = 3;
        let other_use = |handle: u16| {
            self.structures.iter().any(|it| {
                it.kind == MEMORY_ARRAY
                    && it.handle == handle
                    && it.byte(5).is_some_and(|use_| use_ != SYSTEM_MEMORY)
            })
        };
        self.structures
            .iter()
            .filter(|it| it.kind == MEMORY_DEVICE)
            .filter(|it| !it.word(4).is_some_and(other_use))
            .filter_map(module)
            .collect()
    }
}

/// A type 17 structure. `None` for what is no working memory.
fn module(it: &Structure) -> Option<Module> {
    let kind = it.byte(0x12).unwrap_or(2);
    // ROM, flash and its kin, and non-volatile modules used as storage.
    if matches!(kind, 0x08..=0x0c | 0x1f) {
        return None;
    }
    // 0xffff: the firmware does not know.
    let known = |word: Option<u16>| word.filter(|value| !matches!(value, 0 | 0xffff));
    let speed = |at, extended| match it.word(at) {
        Some(0xffff) => it.double(extended).filter(|speed| *speed > 0),
        other => known(other).map(u32::from),
    };
    let (total, data) = (known(it.word(0x08)), known(it.word(0x0a)));
    Some(Module {
        locator: it.text(0x10),
        bank: it.text(0x11),
        size: size(it)?,
        kind: memory_type(kind).to_owned(),
        speed: speed(0x15, 0x54),
        configured_speed: speed(0x20, 0x58),
        manufacturer: it.text(0x17),
        serial: it.text(0x18),
        part: it.text(0x1a),
        ranks: it.byte(0x1b).map(|it| it & 0x0f).filter(|it| *it > 0),
        ecc: total.zip(data).map(|(total, data)| total > data),
    })
}

/// Bytes. `None` when the firmware does not know (0xffff): then nobody can add it up.
fn size(it: &Structure) -> Option<u64> {
    match it.word(0x0c)? {
        0xffff => None,
        // 32 GiB and more are written elsewhere, in MiB.
        0x7fff => it
            .double(0x1c)
            .map(|mib| u64::from(mib & 0x7fff_ffff) << 20),
        kib if kib & 0x8000 != 0 => Some(u64::from(kib & 0x7fff) << 10),
        mib => Some(u64::from(mib) << 20),
    }
}

/// DSP0134 §7.18.2.
fn memory_type(kind: u8) -> &'static str {
    match kind {
        0x03 => "DRAM",
        0x07 => "RAM",
        0x0f => "SDRAM",
        0x12 => "DDR",
        0x13 => "DDR2",
        0x14 => "DDR2 FB-DIMM",
        0x18 => "DDR3",
        0x1a => "DDR4",
        0x1b => "LPDDR",
        0x1c => "LPDDR2",
        0x1d => "LPDDR3",
        0x1e => "LPDDR4",
        0x20 => "HBM",
        0x21 => "HBM2",
        0x22 => "DDR5",
        0x23 => "LPDDR5",
        0x24 => "HBM3",
        _ => "",
    }
}

/// Major and minor version from an entry point of 64 bits (`_SM3_`) or 32 (`_SM_`), or of
/// the time before, whose version is binary-coded decimal (`_DMI_`).
fn version(entry: &[u8]) -> Option<(u8, u8)> {
    match entry {
        [b'_', b'S', b'M', b'3', b'_', _, _, major, minor, ..] => Some((*major, *minor)),
        [b'_', b'S', b'M', b'_', _, _, major, minor, ..] => Some((*major, *minor)),
        [b'_', b'D', b'M', b'I', b'_', ..] => entry.get(14).map(|bcd| (bcd >> 4, bcd & 0x0f)),
        _ => None,
    }
}

fn structures(mut table: &[u8]) -> Vec<Structure> {
    let mut found = Vec::new();
    while found.len() < MAX_STRUCTURES {
        let &[kind, length, low, high, ..] = table else {
            break;
        };
        let Some((area, rest)) = table
            .split_at_checked(usize::from(length))
            .filter(|_| length >= 4 && kind != END)
        else {
            break;
        };
        // Strings end in a NUL each and the set in one more; without any there are two.
        let Some(end) = rest.windows(2).position(|pair| pair == [0, 0]) else {
            break;
        };
        let strings = rest[..end]
            .split(|byte| *byte == 0)
            .map(|text| String::from_utf8_lossy(text).into_owned())
            .collect();
        found.push(Structure {
            kind,
            handle: u16::from_le_bytes([low, high]),
            area: area.to_vec(),
            strings,
        });
        table = &rest[end + 2..];
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "00112233-4455-6677-8899-aabbccddeeff";
    const LITTLE: [u8; 16] = [
        0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee,
        0xff,
    ];

    fn structure(kind: u8, body: &[u8], strings: &[&str]) -> Vec<u8> {
        let mut out = vec![kind, body.len() as u8 + 4, kind, 0];
        out.extend_from_slice(body);
        for text in strings {
            out.extend_from_slice(text.as_bytes());
            out.push(0);
        }
        out.resize(out.len() + if strings.is_empty() { 2 } else { 1 }, 0);
        out
    }

    fn table(version: (u8, u8), bytes: &[u8]) -> Table {
        Table {
            version,
            structures: structures(bytes),
        }
    }

    fn device(size: u16, kind: u8, extended: u32) -> Vec<u8> {
        let mut body = vec![16, 0, 0xff, 0xff, 72, 0, 64, 0];
        body.extend_from_slice(&size.to_le_bytes());
        body.extend_from_slice(&[9, 0, 1, 2, kind, 0, 0, 0x80, 0x0c, 3, 4, 0, 5, 2]);
        body.extend_from_slice(&extended.to_le_bytes());
        body.extend_from_slice(&[0x75, 0x0b]);
        structure(MEMORY_DEVICE, &body, &["A1", "B0", "Samsung", "S1", "P1"])
    }

    #[test]
    fn the_byte_order_of_a_uuid_changed_with_version_2_6() {
        let mut body = vec![1, 2, 3, 4];
        body.extend_from_slice(&LITTLE);
        let bytes = structure(SYSTEM, &body, &["Vendor"]);
        for (version, uuid) in [
            ((2, 5), "33221100-5544-7766-8899-aabbccddeeff"),
            ((2, 6), TEXT),
            ((3, 0), TEXT),
        ] {
            let found = table(version, &bytes).system_uuid().unwrap();
            assert_eq!(found.to_string(), uuid, "{version:?}");
        }
        assert_eq!(table((3, 0), &bytes[..20]).system_uuid(), None);
    }

    #[test]
    fn entry_points_of_all_ages_tell_their_version() {
        let cases: [(&[u8], _); 5] = [
            (b"_SM3_\x00\x18\x03\x05\x00", Some((3, 5))),
            (b"_SM_\x00\x1f\x02\x08", Some((2, 8))),
            (b"_DMI_\0\0\0\0\0\0\0\0\0\x24", Some((2, 4))),
            (b"_DMI_", None),
            (b"", None),
        ];
        for (entry, expected) in cases {
            assert_eq!(version(entry), expected, "{entry:?}");
        }
    }

    #[test]
    fn sizes_of_modules_are_said_in_three_ways() {
        for (size, extended, bytes) in [
            (0, 0, Some(0)),
            (0x4000, 0, Some(16 << 30)),
            (0x7fff, 0x8000_0000 | (64 << 10), Some(64 << 30)),
            (0x8200, 0, Some(512 << 10)),
            (0xffff, 0, None),
        ] {
            let modules = table((3, 0), &device(size, 0x1a, extended)).modules();
            assert_eq!(modules.first().map(|it| it.size), bytes, "{size:#x}");
        }
    }

    #[test]
    fn a_module_says_what_it_is() {
        let [module] = &table((3, 0), &device(0x4000, 0x1a, 0)).modules()[..] else {
            panic!("one module");
        };
        let expected = Module {
            locator: "A1".into(),
            bank: "B0".into(),
            size: 16 << 30,
            kind: "DDR4".into(),
            speed: Some(3200),
            configured_speed: Some(2933),
            manufacturer: "Samsung".into(),
            serial: "S1".into(),
            part: "P1".into(),
            ranks: Some(2),
            ecc: Some(true),
        };
        assert_eq!(*module, expected);
    }

    #[test]
    fn what_is_no_working_memory_is_left_out() {
        assert_eq!(table((3, 0), &device(0x10, 0x09, 0)).modules(), []);
        assert_eq!(table((3, 0), &device(0x10, 0x1f, 0)).modules(), []);
        for (use_, count) in [(3, 1), (4, 0)] {
            let mut bytes = structure(MEMORY_ARRAY, &[3, use_], &[]);
            bytes.extend(device(0x10, 0x1a, 0));
            assert_eq!(table((3, 0), &bytes).modules().len(), count);
        }
    }

    #[test]
    fn reading_stops_where_the_table_is_broken() {
        let good = device(0x10, 0x1a, 0);
        let broken: [&[u8]; 5] = [
            &[17, 3, 0, 0, 0, 0],
            &[17, 40, 0, 0],
            &[17, 4, 0, 0, b'x'],
            &[END, 4, 0, 0, 0, 0],
            &[17],
        ];
        for tail in broken {
            let mut bytes = good.clone();
            bytes.extend_from_slice(tail);
            bytes.extend_from_slice(&[0xff; 3]);
            assert_eq!(structures(&bytes).len(), 1, "{tail:?}");
        }
    }

    proptest! {
        #[test]
        fn no_table_is_too_hostile(bytes in prop::collection::vec(any::<u8>(), 0..600), flip in 0..4000usize) {
            let parse = |bytes: &[u8]| {
                let table = table((3, 0), bytes);
                (table.system_uuid(), table.modules())
            };
            parse(&bytes);
            let mut one_wrong = [device(0x10, 0x1a, 0), device(0x20, 0x1a, 0)].concat();
            let at = flip % one_wrong.len();
            one_wrong[at] ^= (flip % 255) as u8 + 1;
            prop_assert!(parse(&one_wrong).1.len() <= 2);
        }
    }
}
