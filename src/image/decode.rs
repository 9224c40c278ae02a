//! From the image's bytes to the tar stream: the format told by its magic, lz4 frames decoded.

use std::io::{self, BufRead, Read};

use lz4_flex::frame::FrameDecoder;

use super::error::Error;
use super::pipe::{Stop, is_cut_off};

/// lz4 frame format, <https://github.com/lz4/lz4/blob/dev/doc/lz4_Frame_format.md>.
const LZ4_FRAME: [u8; 4] = 0x184D_2204_u32.to_le_bytes();
/// The format of `lz4 -l`: it has no end mark, so a cut-off file could not be told from a whole one.
const LZ4_LEGACY: [u8; 4] = 0x184C_2102_u32.to_le_bytes();
/// Enough to recognise every format below (a tar's `ustar` stands at 257).
pub const PEEK: usize = 262;
/// Size of the buffers handed to the unpacker.
pub const BUFFER: usize = 256 * 1024;

/// Decodes one or more lz4 frames from `source`; each full buffer goes to `sink`, which
/// returns the next one to fill. Returns the number of decoded bytes.
///
/// # Errors
/// `NotLz4` or `Lz4` for a bad stream; whatever `sink` fails with.
pub fn decode<R: BufRead>(
    source: R,
    shown_url: &str,
    mut sink: impl FnMut(Vec<u8>) -> Result<Vec<u8>, Stop>,
) -> Result<u64, Stop> {
    let mut source = Source::new(source);
    let head = source.peek(PEEK).map_err(|e| stop(&e, 0))?;
    check_magic(head, shown_url).map_err(Stop::Failed)?;
    let mut decoded = 0;
    let mut buffer = vec![0; BUFFER];
    let mut filled = 0;
    loop {
        source.hit_end = false;
        let mut frame = FrameDecoder::new(&mut source);
        loop {
            let read = frame.read(&mut buffer[filled..]);
            let count = read.map_err(|e| stop(&e, decoded))?;
            if count == 0 {
                break;
            }
            filled += count;
            decoded += count as u64;
            if filled == buffer.len() {
                buffer = sink(buffer)?;
                buffer.resize(BUFFER, 0);
                filled = 0;
            }
        }
        // FrameDecoder reports a missing end mark as a clean end; it read past the input to do so.
        if source.hit_end {
            return Err(damaged(
                decoded,
                "it ends in the middle of a frame (truncated?)",
            ));
        }
        let next = source.peek(4).map_err(|e| stop(&e, decoded))?;
        if next.is_empty() {
            break;
        }
        if next != LZ4_FRAME {
            return Err(damaged(
                decoded,
                "something that is not lz4 follows the last frame",
            ));
        }
    }
    if filled > 0 {
        buffer.truncate(filled);
        sink(buffer)?;
    }
    Ok(decoded)
}

/// Whether `head`, the first bytes of an image, begins an lz4 frame.
///
/// # Errors
/// `NotLz4`, with what it seems to be instead.
pub fn check_magic(head: &[u8], shown_url: &str) -> Result<(), Error> {
    if head.starts_with(&LZ4_FRAME) {
        return Ok(());
    }
    Err(Error::NotLz4 {
        url: shown_url.to_owned(),
        found: describe(head),
    })
}

fn damaged(at: u64, reason: &str) -> Stop {
    Stop::Failed(Error::Lz4 {
        at,
        reason: reason.to_owned(),
    })
}

fn stop(error: &io::Error, at: u64) -> Stop {
    if is_cut_off(error) {
        return Stop::Above;
    }
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return damaged(at, "it ends in the middle of a block (truncated?)");
    }
    damaged(at, &error.to_string())
}

/// What a file beginning with `head` seems to be.
fn describe(head: &[u8]) -> String {
    let known: [(&[u8], &str); 9] = [
        (
            &LZ4_LEGACY,
            "a legacy lz4 file, which has no end mark (use `lz4` without -l)",
        ),
        (
            &[0x28, 0xb5, 0x2f, 0xfd],
            "zstd, which this version cannot unpack",
        ),
        (&[0x1f, 0x8b], "gzip, which this version cannot unpack"),
        (
            &[0xfd, b'7', b'z', b'X', b'Z', 0],
            "xz, which this version cannot unpack",
        ),
        (b"BZh", "bzip2, which this version cannot unpack"),
        (b"PK\x03\x04", "a zip archive"),
        (b"<", "HTML or XML, perhaps an error page"),
        (b"{", "JSON, perhaps an error message"),
        (b"QFI\xfb", "a qcow2 disk image"),
    ];
    if head.is_empty() {
        return "nothing: the file is empty".to_owned();
    }
    if let Some((_, name)) = known.iter().find(|(magic, _)| head.starts_with(magic)) {
        return (*name).to_owned();
    }
    if head.get(257..262) == Some(b"ustar") {
        return "an uncompressed tar archive (compress it with lz4)".to_owned();
    }
    format!("bytes {:02x?}", &head[..head.len().min(8)])
}

/// A reader that remembers whether it was read past its end, and can look ahead.
struct Source<R> {
    inner: R,
    ahead: Vec<u8>,
    hit_end: bool,
}

impl<R: BufRead> Source<R> {
    fn new(inner: R) -> Self {
        Self {
            inner,
            ahead: Vec::new(),
            hit_end: false,
        }
    }

    /// Up to `count` bytes of what comes next; fewer only at the end.
    fn peek(&mut self, count: usize) -> io::Result<&[u8]> {
        while self.ahead.len() < count {
            let available = self.inner.fill_buf()?;
            let taken = available.len().min(count - self.ahead.len());
            if taken == 0 {
                break;
            }
            self.ahead.extend_from_slice(&available[..taken]);
            self.inner.consume(taken);
        }
        Ok(&self.ahead)
    }
}

impl<R: BufRead> Read for Source<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        if !self.ahead.is_empty() {
            let count = self.ahead.len().min(into.len());
            into[..count].copy_from_slice(&self.ahead[..count]);
            self.ahead.drain(..count);
            return Ok(count);
        }
        let count = self.inner.read(into)?;
        self.hit_end |= count == 0;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn frame(content: &[u8]) -> Vec<u8> {
        let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn run(bytes: &[u8]) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        let result = decode(bytes, "http://h/i", |buffer| {
            out.extend_from_slice(&buffer);
            Ok(buffer)
        });
        match result {
            Ok(count) => {
                assert_eq!(count, out.len() as u64);
                Ok(out)
            }
            Err(Stop::Failed(error)) => Err(error),
            Err(other) => panic!("{other:?}"),
        }
    }

    fn noise(length: usize) -> Vec<u8> {
        (0..length as u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect()
    }

    #[test]
    fn frames_one_after_another() {
        let (a, b) = (noise(3 * BUFFER + 17), noise(5));
        let mut stream = frame(&a);
        assert_eq!(run(&stream).unwrap(), a);
        stream.extend(frame(&b));
        assert_eq!(run(&stream).unwrap(), [a, b].concat());
    }

    #[test]
    fn every_truncation_is_an_error() {
        let whole = frame(&noise(3000));
        assert!(run(&whole).is_ok());
        for length in 0..whole.len() {
            let error = run(&whole[..length]).unwrap_err().to_string();
            let expected = if length < 4 { "not lz4" } else { "damaged" };
            assert!(error.contains(expected), "{length}: {error}");
        }
    }

    #[test]
    fn a_cut_between_blocks_is_an_error() {
        let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
        encoder.write_all(&noise(1000)).unwrap();
        encoder.flush().unwrap();
        let first_block = encoder.get_ref().len();
        encoder.write_all(&noise(1000)).unwrap();
        let whole = encoder.finish().unwrap();
        let error = run(&whole[..first_block]).unwrap_err().to_string();
        assert!(error.contains("truncated"), "{error}");
    }

    #[test]
    fn what_follows_the_frame_must_be_a_frame() {
        let mut stream = frame(b"x");
        stream.extend(b"junk");
        let error = run(&stream).unwrap_err().to_string();
        assert!(error.contains("not lz4 follows"), "{error}");
    }

    #[test]
    fn other_formats_are_named() {
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        let zstd = [0x28, 0xb5, 0x2f, 0xfd, 0];
        for (bytes, name) in [
            (&zstd[..], "zstd"),
            (&[0x1f, 0x8b, 8], "gzip"),
            (b"\xfd7zXZ\0\0", "xz"),
            (&tar, "uncompressed tar"),
            (&LZ4_LEGACY, "legacy"),
            (b"<html>", "HTML"),
            (b"", "empty"),
            (b"\x01\x02", "[01, 02]"),
        ] {
            let error = run(bytes).unwrap_err().to_string();
            assert!(error.contains("not lz4") && error.contains(name), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn damage_never_panics(position in 4_usize..2000, byte: u8) {
            let mut stream = frame(&noise(4000));
            let position = position % stream.len();
            stream[position] = byte;
            let _ = run(&stream);
        }
    }
}
