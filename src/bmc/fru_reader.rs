//! Reads the FRU inventory out of the BMC, no more of it than is used.

use super::Error;
use super::command;
use super::fru::{self, FruError, Header, MAX_AREA, UNIT};
use super::message::{Completion, head};
use super::talk::{Talk, Transport};
use crate::control::api::Fru;

/// Bytes asked for at a time: first what most BMCs give, then what every one must.
const CHUNKS: [u16; 3] = [32, 16, 8];

type Parser = fn(&[u8], &mut Fru) -> Result<(), FruError>;

/// Reads the three areas from the BMC: at most 6 KiB, whatever the inventory claims. What is
/// wrong with one of them is said, and does not count; the others do.
pub fn read<T: Transport>(talk: &mut Talk<T>) -> (Fru, Vec<Error>) {
    let mut found = Fru::default();
    let mut problems = Vec::new();
    let mut reader = match Reader::open(talk) {
        Ok(reader) => reader,
        Err(error) => return (found, vec![error]),
    };
    let header = reader
        .bytes(0, UNIT)
        .and_then(|bytes| head("Read FRU Data", &bytes))
        .and_then(|bytes| Ok(Header::parse(&bytes)?));
    let header = match header {
        Ok(header) => header,
        Err(error) => return (found, vec![error]),
    };
    let areas: [(Option<usize>, Parser); 3] = [
        (header.chassis, fru::chassis),
        (header.board, fru::board),
        (header.product, fru::product),
    ];
    for (start, parse) in areas {
        let Some(start) = start else { continue };
        let parsed = reader
            .area(start)
            .and_then(|area| Ok(parse(&area, &mut found)?));
        problems.extend(parsed.err());
    }
    (found, problems)
}

/// Reads bytes out of the inventory.
struct Reader<'a, T> {
    talk: &'a mut Talk<T>,
    size: usize,
    /// Bytes of the units that the BMC counts in.
    unit: u16,
    /// Which of [`CHUNKS`] this BMC can give.
    chunk: usize,
}

impl<'a, T: Transport> Reader<'a, T> {
    fn open(talk: &'a mut Talk<T>) -> Result<Self, Error> {
        let (size, unit) = command::fru_size(&talk.ask(&command::fru_info())?)?;
        Ok(Self {
            talk,
            size: usize::from(size),
            unit,
            chunk: 0,
        })
    }

    /// A whole area.
    fn area(&mut self, start: usize) -> Result<Vec<u8>, Error> {
        let head = head("Read FRU Data", &self.bytes(start, UNIT)?)?;
        self.bytes(start, fru::area_length(head).clamp(UNIT, MAX_AREA))
    }

    /// `length` bytes at `start`; both are multiples of eight.
    fn bytes(&mut self, start: usize, length: usize) -> Result<Vec<u8>, Error> {
        let end = start + length;
        if end > self.size {
            return Err(Error::FruSize {
                end,
                size: self.size,
            });
        }
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let at = (start + bytes.len()) / usize::from(self.unit);
            let left = (length - bytes.len()).min(usize::from(CHUNKS[self.chunk]));
            let count = left / usize::from(self.unit);
            let request = command::read_fru(at as u16, count as u8);
            match self.talk.ask(&request) {
                Ok(data) => {
                    let read = command::fru_data(&data, self.unit)?;
                    bytes.extend_from_slice(&read[..read.len().min(left)]);
                }
                Err(Error::Refused { code, .. })
                    if too_much(code) && self.chunk + 1 < CHUNKS.len() =>
                {
                    self.chunk += 1;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(bytes)
    }
}

/// How BMCs say that they cannot send so many bytes at once.
fn too_much(code: Completion) -> bool {
    [
        Completion::INVALID_LENGTH,
        Completion::FIELD_LENGTH_EXCEEDED,
        Completion::PARAMETER_OUT_OF_RANGE,
        Completion::CANNOT_RETURN_SO_MUCH,
        Completion::INVALID_FIELD,
        Completion(0xff),
    ]
    .contains(&code)
}
