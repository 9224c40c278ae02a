//! From the image's bytes to the tar stream: the format is told by its magic, then decoded.
//!
//! A decoder has to come to the format's own end: a stream that stops before it, or that
//! something else follows, is damaged, whatever was decoded until then.

mod lz4;
mod source;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;
use lzma_rust2::XzReader;
use zstd::stream::read::Decoder as ZstdDecoder;

use super::archive::is_header;
use super::error::Error;
use super::pipe::{Stop, is_cut_off};
use source::Source;

/// Enough to recognise every format below, a tar's whole first header included.
pub const PEEK: usize = 512;
/// Size of the buffers handed to the unpacker. Measured on two cores: with half of it the threads
/// wake each other more often than it is worth, with twice as much the caches lose.
pub const BUFFER: usize = 512 * 1024;
/// Greatest zstd window, `ZSTD_WINDOWLOG_LIMIT_DEFAULT` of zstd.h: what the `zstd` program
/// decodes without `--long`, 128 MiB. Images made with -19 or less need 8 MiB.
const ZSTD_WINDOW_LOG: u32 = 27;
/// Memory for one xz block: `xz -9` needs 65 MiB.
const XZ_MEMORY_KIB: u32 = 128 * 1024;

const ZSTD: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
const GZIP: [u8; 2] = [0x1f, 0x8b];
const XZ: [u8; 6] = [0xfd, b'7', b'z', b'X', b'Z', 0];

/// How an image is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Frames and legacy files (<https://github.com/lz4/lz4/tree/dev/doc>).
    Lz4,
    /// RFC 8878.
    Zstd,
    /// RFC 1952.
    Gzip,
    /// <https://tukaani.org/xz/xz-file-format.txt>.
    Xz,
    /// A tar archive as it is.
    Tar,
    /// A disk image as it is.
    Disk,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Tar => "tar",
            Self::Disk => "raw",
        })
    }
}

impl Format {
    /// The format of a file that begins with `head`, [`PEEK`] bytes of it or all.
    fn of(head: &[u8]) -> Option<Self> {
        if head.starts_with(&lz4::FRAME) || head.starts_with(&lz4::LEGACY) {
            Some(Self::Lz4)
        } else if head.starts_with(&ZSTD) {
            Some(Self::Zstd)
        } else if head.starts_with(&GZIP) {
            Some(Self::Gzip)
        } else if head.starts_with(&XZ) {
            Some(Self::Xz)
        } else if is_header(head) {
            Some(Self::Tar)
        } else if is_protective_mbr(head) {
            Some(Self::Disk)
        } else {
            None
        }
    }
}

/// The first block of a disk with a GUID partition table (UEFI 2.10, 5.2.3): a partition of
/// type 0xEE, and the signature.
fn is_protective_mbr(head: &[u8]) -> bool {
    let has_type = |at: usize| head.get(at) == Some(&0xee);
    head.get(510..512) == Some(&[0x55, 0xaa]) && [450, 466, 482, 498].into_iter().any(has_type)
}

/// Decodes `source` to its end; each full buffer goes to `sink`, which returns the next one
/// to fill. Returns the number of decoded bytes, at most `limit`.
///
/// # Errors
/// `Format`, `Damaged` or `TooLarge` for a bad stream; whatever `sink` fails with.
pub fn decode<R: BufRead>(
    source: R,
    shown_url: &str,
    limit: u64,
    sink: impl FnMut(Vec<u8>) -> Result<Vec<u8>, Stop>,
) -> Result<u64, Stop> {
    let mut source = Source::new(source);
    // lz4 and zstd share them; pzstd begins its files with one.
    while lz4::is_skippable(source.peek(4).map_err(|e| stop(Format::Zstd, &e, 0))?) {
        lz4::skip(&mut source, Format::Zstd)?;
    }
    let head = source
        .peek(PEEK)
        .map_err(|e| stop(Format::Zstd, &e, 0))?
        .to_vec();
    let Some(format) = Format::of(&head) else {
        return Err(Stop::Failed(unknown(&head, shown_url)));
    };
    let mut output = Output {
        format,
        buffer: vec![0; BUFFER],
        filled: 0,
        decoded: 0,
        limit,
        sink,
    };
    match format {
        Format::Lz4 => lz4::decode(&mut source, &mut output)?,
        Format::Zstd => {
            let mut decoder =
                ZstdDecoder::with_buffer(&mut source).map_err(|e| stop(format, &e, 0))?;
            let window = decoder.window_log_max(ZSTD_WINDOW_LOG);
            window.map_err(|e| stop(format, &e, 0))?;
            output.drain(&mut decoder)?;
        }
        Format::Gzip => members(&mut source, &mut output)?,
        Format::Xz => output.drain(&mut XzReader::new_mem_limit(
            &mut source,
            true,
            XZ_MEMORY_KIB,
        ))?,
        Format::Tar | Format::Disk => output.drain(&mut source)?,
    }
    output.finish()
}

/// gzip members, one after the other (RFC 1952, 2.2). `MultiGzDecoder` would take an end
/// within the next member's header for the end of the file.
fn members<R, S>(source: &mut Source<R>, output: &mut Output<S>) -> Result<(), Stop>
where
    R: BufRead,
    S: FnMut(Vec<u8>) -> Result<Vec<u8>, Stop>,
{
    loop {
        output.drain(&mut GzDecoder::new(&mut *source))?;
        let next = source
            .peek(GZIP.len())
            .map_err(|e| stop(Format::Gzip, &e, output.decoded))?;
        if next.is_empty() {
            return Ok(());
        }
        if next != GZIP {
            return Err(output.damaged("something that is not gzip follows the last member"));
        }
    }
}

/// Whether `head`, the first [`PEEK`] bytes of an image, begins something that can be unpacked,
/// or, when it is to be a disk image, written.
///
/// # Errors
/// `Format`, with what it seems to be instead.
pub fn check_magic(head: &[u8], shown_url: &str, is_disk_image: bool) -> Result<(), Error> {
    match Format::of(head) {
        Some(Format::Disk) if !is_disk_image => {}
        Some(Format::Tar) if is_disk_image => {}
        Some(_) => return Ok(()),
        None if lz4::is_skippable(head) => return Ok(()),
        None => {}
    }
    Err(unknown(head, shown_url))
}

/// Where the decoders put what they decode.
struct Output<S> {
    format: Format,
    buffer: Vec<u8>,
    filled: usize,
    decoded: u64,
    limit: u64,
    sink: S,
}

impl<S: FnMut(Vec<u8>) -> Result<Vec<u8>, Stop>> Output<S> {
    /// Takes what `decoder` has until it says that this is all.
    fn drain(&mut self, decoder: &mut impl Read) -> Result<(), Stop> {
        loop {
            match decoder.read(&mut self.buffer[self.filled..]) {
                Ok(0) => return Ok(()),
                Ok(count) => self.advance(count)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(stop(self.format, &error, self.decoded)),
            }
        }
    }

    /// Takes bytes that were decoded elsewhere.
    fn write(&mut self, mut bytes: &[u8]) -> Result<(), Stop> {
        while !bytes.is_empty() {
            let count = bytes.len().min(self.buffer.len() - self.filled);
            self.buffer[self.filled..][..count].copy_from_slice(&bytes[..count]);
            self.advance(count)?;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    fn advance(&mut self, count: usize) -> Result<(), Stop> {
        self.filled += count;
        self.decoded += count as u64;
        if self.decoded > self.limit {
            return Err(Stop::Failed(Error::TooLarge { limit: self.limit }));
        }
        if self.filled == self.buffer.len() {
            let full = std::mem::take(&mut self.buffer);
            self.buffer = (self.sink)(full)?;
            self.buffer.resize(BUFFER, 0);
            self.filled = 0;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<u64, Stop> {
        if self.filled > 0 {
            self.buffer.truncate(self.filled);
            (self.sink)(self.buffer)?;
        }
        Ok(self.decoded)
    }

    fn damaged(&self, reason: impl Into<String>) -> Stop {
        damaged(self.format, self.decoded, reason)
    }
}

fn damaged(format: Format, at: u64, reason: impl Into<String>) -> Stop {
    Stop::Failed(Error::Damaged {
        format,
        at,
        reason: reason.into(),
    })
}

fn stop(format: Format, error: &io::Error, at: u64) -> Stop {
    if is_cut_off(error) {
        return Stop::Above;
    }
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return damaged(format, at, "it ends before its end mark (truncated?)");
    }
    damaged(format, at, error.to_string())
}

fn unknown(head: &[u8], shown_url: &str) -> Error {
    Error::Format {
        url: shown_url.to_owned(),
        found: describe(head),
    }
}

/// What a file beginning with `head` seems to be.
fn describe(head: &[u8]) -> String {
    let known: [(&[u8], &str); 7] = [
        (b"BZh", "bzip2, which is not supported"),
        (b"PK\x03\x04", "a zip archive"),
        (b"<", "HTML or XML, perhaps an error page"),
        (b"{", "JSON, perhaps an error message"),
        (b"QFI\xfb", "a qcow2 disk image"),
        (b"070701", "a cpio archive"),
        (b"hsqs", "a squashfs file system"),
    ];
    if head.is_empty() {
        return "nothing: the file is empty".to_owned();
    }
    match Format::of(head) {
        Some(Format::Disk) => return "a disk image, which has to be called *.raw".to_owned(),
        Some(Format::Tar) => return "a tar archive, which is no disk image".to_owned(),
        _ => {}
    }
    if let Some((_, name)) = known.iter().find(|(magic, _)| head.starts_with(magic)) {
        return (*name).to_owned();
    }
    format!("bytes {:02x?}", &head[..head.len().min(8)])
}
