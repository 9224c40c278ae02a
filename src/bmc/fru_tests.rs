//! FRU inventories: good, odd and hostile.

use proptest::prelude::*;

use super::super::fru_reader::read;
use super::super::talk::Talk;
use super::super::testing::{FakeBmc, Quirks};
use super::*;

/// Fills up to a multiple of eight and makes the sum zero.
fn sealed(mut area: Vec<u8>) -> Vec<u8> {
    area.resize((area.len() + 1).next_multiple_of(8) - 1, 0);
    area[1] = ((area.len() + 1) / 8) as u8;
    let sum = area.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    area.push(0_u8.wrapping_sub(sum));
    area
}

/// An area out of its first bytes and its fields, each with its type code.
fn area(start: &[u8], fields: &[(u8, &[u8])]) -> Vec<u8> {
    let mut area = start.to_vec();
    for (kind, value) in fields {
        area.push(kind << 6 | value.len() as u8);
        area.extend_from_slice(value);
    }
    area.push(0xc1);
    sealed(area)
}

/// An inventory of these three areas, and a multi-record area of garbage behind them.
fn inventory(chassis: &[u8], board: &[u8], product: &[u8]) -> Vec<u8> {
    let mut header = vec![1, 0, 0, 0, 0, 0, 0];
    let mut body = Vec::new();
    for (index, area) in [chassis, board, product].into_iter().enumerate() {
        if !area.is_empty() {
            header[2 + index] = 1 + (body.len() / 8) as u8;
            body.extend_from_slice(area);
        }
    }
    header[5] = 1 + (body.len() / 8) as u8;
    let sum = header
        .iter()
        .fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    header.push(0_u8.wrapping_sub(sum));
    [header, body, vec![0xee; 64]].concat()
}

fn full() -> Vec<u8> {
    inventory(
        &area(&[1, 0, 0x17], &[(3, b"CSE-829"), (3, b"C8290FA")]),
        &area(
            &[1, 0, 25, 1, 2, 3],
            &[
                (3, b"Supermicro"),
                (3, b"X11"),
                (3, b"VM19"),
                (3, b"X11DPT-B"),
            ],
        ),
        &area(
            &[1, 0, 0],
            &[
                (3, b"Supermicro"),
                (3, b"SYS"),
                (3, b"SYS-2029BT"),
                (3, b"01"),
                (3, b"A2617"),
                (3, b"asset"),
                (0, b""),
                (3, b"custom"),
            ],
        ),
    )
}

fn expected() -> Fru {
    let text = str::to_owned;
    Fru {
        chassis_part_number: text("CSE-829"),
        chassis_part_serial: text("C8290FA"),
        board_mfg: text("Supermicro"),
        board_mfg_serial: text("VM19"),
        board_part_number: text("X11DPT-B"),
        product_manufacturer: text("Supermicro"),
        product_part_number: text("SYS-2029BT"),
        product_serial: text("A2617"),
    }
}

fn read_from(fru: Vec<u8>, quirks: Quirks) -> (Fru, Vec<String>) {
    let bmc = FakeBmc {
        fru,
        quirks,
        ..FakeBmc::good()
    };
    let (fru, problems) = read(&mut Talk::impatient(bmc));
    (fru, problems.iter().map(ToString::to_string).collect())
}

#[test]
fn three_areas_are_read_whatever_the_bmc_gives_at_once() {
    for chunk in [0, 32, 16, 8, 31] {
        let quirks = Quirks {
            fru_chunk: chunk,
            ..Quirks::default()
        };
        assert_eq!(read_from(full(), quirks), (expected(), vec![]), "{chunk}");
    }
    let words = Quirks {
        fru_words: true,
        ..Quirks::default()
    };
    assert_eq!(read_from(full(), words), (expected(), vec![]));
}

#[test]
fn a_bad_area_does_not_count_and_the_others_do() {
    let mut bytes = full();
    // In the board's manufacturer.
    let at = bytes.windows(6).rposition(|w| w == b"X11DPT").unwrap();
    bytes[at] ^= 1;
    let (fru, problems) = read_from(bytes, Quirks::default());
    let without_board = Fru {
        board_mfg: String::new(),
        board_mfg_serial: String::new(),
        board_part_number: String::new(),
        ..expected()
    };
    assert_eq!(fru, without_board);
    assert_eq!(problems, ["the FRU board area has a wrong checksum"]);
}

#[test]
fn what_is_no_inventory_is_said() {
    let mut checksum = full();
    checksum[7] ^= 1;
    // The header alone, with its offsets.
    let cut = full()[..32].to_vec();
    let table: [(Vec<u8>, &str); 6] = [
        (vec![0xff; 256], "the FRU header has format 0xff"),
        (vec![0; 256], "the FRU header has format 0x00"),
        (checksum, "the FRU header has a wrong checksum"),
        (
            vec![],
            "an FRU area ends at byte 8 of an inventory of 0 bytes",
        ),
        (cut, "of an inventory of 32 bytes"),
        (
            inventory(&sealed(vec![2, 0, 0x17, 0xc1]), &[], &[]),
            "the FRU chassis area has format 0x02",
        ),
    ];
    for (bytes, why) in table {
        let (_, problems) = read_from(bytes, Quirks::default());
        assert!(
            problems.iter().any(|p| p.contains(why)),
            "{why}: {problems:?}"
        );
    }
}

#[test]
fn an_inventory_without_areas_is_empty_and_fine() {
    assert_eq!(
        read_from(inventory(&[], &[], &[]), Quirks::default()),
        (Fru::default(), vec![])
    );
}

#[test]
fn text_comes_in_four_codings() {
    let table: [(u8, &[u8], bool, &str); 12] = [
        (3, b"Plain text ", true, "Plain text"),
        (3, b"M\xfcller", true, "M\u{fc}ller"),
        (3, &[0x2f, 0x67, 0x75, 0x00], false, "\u{672f}u"),
        (3, &[0x00, 0xd8], false, "\u{fffd}"),
        (1, &[0x12, 0xab, 0xc9], true, "12 -.9"),
        (1, &[0xef], true, "??"),
        // The standard's own example (13.3).
        (2, &[0x29, 0xdc, 0xa6], true, "IPMI"),
        (2, &[0x29], true, "I"),
        (0, &[0xde, 0xad], true, "dead"),
        (0, b"TEXT\0\0", true, "TEXT"),
        (0, &[0, 0], true, ""),
        (3, b"\0\0\0", true, ""),
    ];
    for (kind, value, english, wanted) in table {
        assert_eq!(text(kind, value, english), wanted, "{kind} {value:x?}");
    }
}

#[test]
fn an_areas_language_decides_how_its_text_is_read() {
    let mut fru = Fru::default();
    let word: Vec<u8> = "Ge".encode_utf16().flat_map(u16::to_le_bytes).collect();
    board(&area(&[1, 0, 9, 0, 0, 0], &[(3, &word)]), &mut fru).unwrap();
    assert_eq!(fru.board_mfg, "Ge");
    // A chassis has no language: its third byte is its type.
    chassis(&area(&[1, 0, 9], &[(3, b"Ge")]), &mut fru).unwrap();
    assert_eq!(fru.chassis_part_number, "Ge");
}

#[test]
fn a_field_beyond_its_area_is_an_error() {
    let bytes = sealed(vec![1, 0, 0x17, 0xff, b'x']);
    let error = chassis(&bytes, &mut Fru::default()).unwrap_err();
    assert!(matches!(error, FruError::Truncated { .. }), "{error}");
    // No end mark: as many fields as fit, then the area is over.
    let bytes = sealed(vec![1, 0, 0x17, 0xc2, b'a', b'b', 0xc2, b'c', b'd']);
    let error = chassis(&bytes, &mut Fru::default()).err();
    assert_eq!(
        error, None,
        "zeroes are empty fields, up to the checksum's byte"
    );
}

#[test]
fn hostile_sizes_cost_little() {
    // Every area claims 2040 bytes of an inventory that claims 64 KiB.
    let mut bytes = vec![1, 0, 1, 2, 3, 0, 0, 0];
    bytes[7] = 0_u8.wrapping_sub(7);
    bytes.extend([[1, 255, 0, 0, 0, 0, 0, 0]; 3].concat());
    bytes.resize(65535, 0);
    let bmc = FakeBmc {
        fru: bytes,
        ..FakeBmc::good()
    };
    let mut talk = Talk::impatient(bmc);
    let _ = read(&mut talk);
    let asked = talk.transport().answered;
    let whole = 3 * 2040 / 32;
    assert!((whole..whole + 12).contains(&asked), "{asked} requests");
}

proptest! {
    #[test]
    fn no_inventory_makes_the_reader_panic_or_run_on(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..600),
        chunk in 0_u8..40,
        fru_words: bool,
        offsets in any::<[u8; 4]>(),
    ) {
        // A good header leads to the areas.
        if bytes.len() >= 8 {
            let [a, b, c, d] = offsets;
            bytes[..7].copy_from_slice(&[1, a, b % 40, c % 40, d % 40, 0, 0]);
            let sum = bytes[..7].iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
            bytes[7] = 0_u8.wrapping_sub(sum);
        }
        let bmc = FakeBmc {
            fru: bytes,
            quirks: Quirks { fru_chunk: chunk, fru_words, ..Quirks::default() },
            ..FakeBmc::good()
        };
        let mut talk = Talk::impatient(bmc);
        let _ = read(&mut talk);
        prop_assert!(talk.transport().answered < 1000);
    }

    #[test]
    fn any_area_with_a_right_checksum_is_read_without_panic(
        bytes in proptest::collection::vec(any::<u8>(), 3..300),
    ) {
        let mut bytes = bytes;
        bytes[0] = 1;
        let area = sealed(bytes);
        let mut fru = Fru::default();
        let _ = chassis(&area, &mut fru);
        let _ = board(&area, &mut fru);
        let _ = product(&area, &mut fru);
        for text in [fru.board_mfg, fru.product_serial, fru.chassis_part_number] {
            prop_assert!(text.chars().count() <= 126);
        }
    }
}
