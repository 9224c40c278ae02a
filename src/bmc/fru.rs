//! FRU inventory: what the maker wrote into the board's EEPROM (IPMI Platform Management
//! FRU Information Storage Definition v1.0, rev. 1.3).
//!
//! Only the chassis, board and product areas are read. The multi-record area is never
//! looked at, so nothing in it can do harm.

use thiserror::Error;

use crate::control::api::Fru;

/// The header and the areas count in eights of bytes (section 8).
pub const UNIT: usize = 8;
/// The longest area that its length byte can name.
pub const MAX_AREA: usize = 255 * UNIT;
/// No area has more fields than this; a hostile one could have 2000 empty ones.
const MAX_FIELDS: usize = 64;

/// What is wrong with an inventory or one of its areas.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FruError {
    #[error("the FRU {part} has format {version:#04x}, expected 0x01")]
    Version { part: &'static str, version: u8 },
    #[error("the FRU {part} has a wrong checksum")]
    Checksum { part: &'static str },
    #[error("the FRU {part} ends after {length} bytes, in the middle of a field")]
    Truncated { part: &'static str, length: usize },
}

/// Where the areas begin, in bytes; `None` for those that the inventory lacks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    pub chassis: Option<usize>,
    pub board: Option<usize>,
    pub product: Option<usize>,
}

impl Header {
    /// Reads the common header (section 8).
    ///
    /// # Errors
    /// Another format, or a wrong checksum, as of an EEPROM that was never written.
    pub fn parse(bytes: &[u8; UNIT]) -> Result<Self, FruError> {
        let part = "header";
        let [
            version,
            _internal,
            chassis,
            board,
            product,
            _multi,
            _pad,
            _checksum,
        ] = *bytes;
        if version & 0x0f != 1 {
            return Err(FruError::Version { part, version });
        }
        checksum(part, bytes)?;
        let start = |offset: u8| (offset != 0).then_some(usize::from(offset) * UNIT);
        Ok(Self {
            chassis: start(chassis),
            board: start(board),
            product: start(product),
        })
    }
}

/// Bytes of an area that begins with these two.
#[must_use]
pub fn area_length(start: [u8; 2]) -> usize {
    usize::from(start[1]) * UNIT
}

/// Puts what a chassis area says (section 10) into `fru`.
///
/// # Errors
/// [`FruError`]; `fru` is as it was then.
pub fn chassis(area: &[u8], fru: &mut Fru) -> Result<(), FruError> {
    // Chassis type, then the fields; they are English always.
    let fields = fields("chassis area", area, 3, true)?;
    let [number, serial] = first(fields);
    fru.chassis_part_number = number;
    fru.chassis_part_serial = serial;
    Ok(())
}

/// Puts what a board area says (section 11) into `fru`.
///
/// # Errors
/// [`FruError`]; `fru` is as it was then.
pub fn board(area: &[u8], fru: &mut Fru) -> Result<(), FruError> {
    // Language code and three bytes of date.
    let fields = fields("board area", area, 6, is_english(area))?;
    let [manufacturer, _product, serial, number] = first(fields);
    fru.board_mfg = manufacturer;
    fru.board_mfg_serial = serial;
    fru.board_part_number = number;
    Ok(())
}

/// Puts what a product area says (section 12) into `fru`.
///
/// # Errors
/// [`FruError`]; `fru` is as it was then.
pub fn product(area: &[u8], fru: &mut Fru) -> Result<(), FruError> {
    let fields = fields("product area", area, 3, is_english(area))?;
    let [manufacturer, _name, number, _version, serial] = first(fields);
    fru.product_manufacturer = manufacturer;
    fru.product_part_number = number;
    fru.product_serial = serial;
    Ok(())
}

/// The areas' third byte: 0 and 25 are English, whose text is 8-bit ASCII and Latin 1; that
/// of every other language is 16-bit Unicode (section 15).
fn is_english(area: &[u8]) -> bool {
    matches!(area.get(2), Some(0 | 25))
}

fn first<const N: usize>(fields: Vec<String>) -> [String; N] {
    let mut fields = fields.into_iter();
    std::array::from_fn(|_| fields.next().unwrap_or_default())
}

/// All bytes of a header or an area add up to zero.
fn checksum(part: &'static str, bytes: &[u8]) -> Result<(), FruError> {
    let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    (sum == 0).then_some(()).ok_or(FruError::Checksum { part })
}

/// The fields of an area, behind `start` bytes of other things, up to the end mark.
fn fields(
    part: &'static str,
    area: &[u8],
    start: usize,
    english: bool,
) -> Result<Vec<String>, FruError> {
    let version = area.first().copied().unwrap_or_default();
    if version & 0x0f != 1 {
        return Err(FruError::Version { part, version });
    }
    checksum(part, area)?;
    let truncated = || FruError::Truncated {
        part,
        length: area.len(),
    };
    // The last byte is the checksum.
    let end = area.len() - 1;
    let mut rest = area.get(start..end).ok_or_else(truncated)?;
    let mut fields = Vec::new();
    while let Some((&kind, behind)) = rest.split_first()
        && fields.len() < MAX_FIELDS
    {
        // Type 3 of length 1 ends the fields (section 13).
        if kind == 0xc1 {
            break;
        }
        let (value, behind) = behind
            .split_at_checked(usize::from(kind & 0x3f))
            .ok_or_else(truncated)?;
        fields.push(text(kind >> 6, value, english));
        rest = behind;
    }
    Ok(fields)
}

/// A field's text by its type code (section 13).
fn text(kind: u8, value: &[u8], english: bool) -> String {
    let text: String = match kind {
        0 => binary(value),
        1 => value
            .iter()
            .flat_map(|byte| [byte >> 4, byte & 0x0f])
            .map(|digit| char::from(b"0123456789 -.???"[usize::from(digit)]))
            .collect(),
        2 => six_bit(value),
        _ if english => value.iter().map(|byte| char::from(*byte)).collect(),
        _ => {
            let (pairs, _) = value.as_chunks::<2>();
            let units = pairs.iter().map(|pair| u16::from_le_bytes(*pair));
            char::decode_utf16(units)
                .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
                .collect()
        }
    };
    text.trim_matches(|c: char| c == '\0' || c.is_whitespace())
        .to_owned()
}

/// Some makers write text and call it binary; all else is shown in hexadecimal.
fn binary(value: &[u8]) -> String {
    let end = value.iter().rposition(|byte| *byte != 0);
    let value = &value[..end.map_or(0, |last| last + 1)];
    if value.iter().all(|byte| matches!(byte, b' '..=b'~')) {
        return value.iter().map(|byte| char::from(*byte)).collect();
    }
    value.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Four characters in three bytes, the first in the lowest bits (section 13.3).
fn six_bit(value: &[u8]) -> String {
    value
        .chunks(3)
        .flat_map(|chunk| {
            let bits = chunk
                .iter()
                .rev()
                .fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
            let count = chunk.len() * 8 / 6;
            (0..count).map(move |index| (bits >> (6 * index) & 0x3f) as u8)
        })
        .map(|code| char::from(code + b' '))
        .collect()
}

#[cfg(test)]
#[path = "fru_tests.rs"]
mod tests;
