//! lz4: frames, legacy files and skippable frames, any number one after the other.

use std::io::{BufRead, Read};

use lz4_flex::block::{decompress_into, get_maximum_output_size};
use lz4_flex::frame::FrameDecoder;

use super::source::Source;
use super::{Format, Output, damaged, stop};
use crate::image::pipe::Stop;

/// Frame format, <https://github.com/lz4/lz4/blob/dev/doc/lz4_Frame_format.md>.
pub const FRAME: [u8; 4] = 0x184D_2204_u32.to_le_bytes();
/// Legacy frame, same page: what `lz4 -l` and the kernel's build write.
pub const LEGACY: [u8; 4] = 0x184C_2102_u32.to_le_bytes();
/// Content of a block of the legacy format.
const LEGACY_BLOCK: usize = 8 << 20;

/// Whether a skippable frame begins here (0x184D2A50 to 0x184D2A5F).
pub fn is_skippable(head: &[u8]) -> bool {
    head.first_chunk()
        .is_some_and(|magic| u32::from_le_bytes(*magic) & !0xf == 0x184D_2A50)
}

/// Skips a skippable frame: magic, length, that many bytes of no concern.
pub fn skip<R: BufRead>(source: &mut Source<R>, format: Format) -> Result<(), Stop> {
    let failed = |e| stop(format, &e, 0);
    let mut head = [0; 8];
    source.read_exact(&mut head).map_err(failed)?;
    let mut left = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
    while left > 0 {
        let available = source.fill_buf().map_err(failed)?.len();
        if available == 0 {
            return Err(damaged(
                format,
                0,
                "it ends in a skippable frame (truncated?)",
            ));
        }
        source.consume(available.min(left));
        left -= available.min(left);
    }
    Ok(())
}

/// Decodes everything up to the end of the file.
pub fn decode<R, S>(source: &mut Source<R>, output: &mut Output<S>) -> Result<(), Stop>
where
    R: BufRead,
    S: FnMut(Vec<u8>) -> Result<Vec<u8>, Stop>,
{
    loop {
        let next = source
            .peek(4)
            .map_err(|e| stop(Format::Lz4, &e, output.decoded))?;
        if next.is_empty() {
            return Ok(());
        } else if next == FRAME {
            frame(source, output)?;
        } else if next == LEGACY {
            source.consume(LEGACY.len());
            legacy(source, output)?;
        } else if is_skippable(next) {
            skip(source, Format::Lz4)?;
        } else {
            return Err(output.damaged("something that is not lz4 follows the last frame"));
        }
    }
}

fn frame<R, S>(source: &mut Source<R>, output: &mut Output<S>) -> Result<(), Stop>
where
    R: BufRead,
    S: FnMut(Vec<u8>) -> Result<Vec<u8>, Stop>,
{
    source.hit_end = false;
    output.drain(&mut FrameDecoder::new(&mut *source))?;
    // FrameDecoder reports a missing end mark as a clean end; it read past the input to do so.
    if source.hit_end {
        return Err(output.damaged("it ends in the middle of a frame (truncated?)"));
    }
    Ok(())
}

/// Blocks until the end of the file or the next magic; there is no end mark. A cut between
/// two blocks is therefore left to the tar archive's end and to the checksum.
fn legacy<R, S>(source: &mut Source<R>, output: &mut Output<S>) -> Result<(), Stop>
where
    R: BufRead,
    S: FnMut(Vec<u8>) -> Result<Vec<u8>, Stop>,
{
    let mut packed = Vec::new();
    let mut block = vec![0; LEGACY_BLOCK];
    loop {
        let head = source
            .peek(4)
            .map_err(|e| stop(Format::Lz4, &e, output.decoded))?;
        let Some(&length) = head.first_chunk() else {
            if head.is_empty() {
                return Ok(());
            }
            return Err(output.damaged("it ends in the middle of a block (truncated?)"));
        };
        let length = u32::from_le_bytes(length) as usize;
        // No block is that large: it is a magic, and the caller knows which.
        if length > get_maximum_output_size(LEGACY_BLOCK) {
            return Ok(());
        }
        source.consume(4);
        packed.resize(length, 0);
        source
            .read_exact(&mut packed)
            .map_err(|e| stop(Format::Lz4, &e, output.decoded))?;
        let count = decompress_into(&packed, &mut block)
            .map_err(|error| output.damaged(error.to_string()))?;
        output.write(&block[..count])?;
    }
}
