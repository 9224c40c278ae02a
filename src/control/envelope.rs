//! The envelopes of a Connect stream: a flag byte, a big-endian length, a body.
//!
//! <https://connectrpc.com/docs/protocol#streaming-rpcs>. Pure: bytes in, frames out.

use bytes::{Buf, Bytes, BytesMut};
use serde::Deserialize;
use thiserror::Error;

use super::code::WireError;

/// Flag byte and length.
const HEADER: usize = 5;
/// Flag bit 0: the body is compressed.
const COMPRESSED: u8 = 0b01;
/// Flag bit 1: the body is the end-of-stream message.
const END_OF_STREAM: u8 = 0b10;

/// What a stream carries.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// One message.
    Message(Bytes),
    /// The stream is over; with an error when the call failed.
    End(Option<WireError>),
}

/// Bytes that are not a stream this agent can read.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum EnvelopeError {
    #[error("a compressed message, although no compression was offered")]
    Compressed,
    #[error("unknown flags {0:#010b} before a message")]
    UnknownFlags(u8),
    #[error("a message of {length} bytes; at most {limit} are read")]
    TooLarge { length: usize, limit: usize },
    #[error("the end-of-stream message is not what the Connect protocol says: {0}")]
    BadEnd(String),
    #[error("bytes after the end-of-stream message")]
    AfterEnd,
}

/// Puts envelopes together from chunks of any size.
///
/// Holds at most `limit` bytes and one chunk: take every frame with [`take`](Self::take)
/// before pushing more.
#[derive(Debug)]
pub struct EnvelopeReader {
    buffer: BytesMut,
    limit: usize,
    ended: bool,
}

impl EnvelopeReader {
    /// A reader that refuses bodies of more than `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            limit,
            ended: false,
        }
    }

    /// Takes a chunk as it came from the network.
    pub fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// The next whole frame; `None` when more bytes are needed.
    ///
    /// # Errors
    /// Any [`EnvelopeError`]; the stream cannot be read on after one.
    pub fn take(&mut self) -> Result<Option<Frame>, EnvelopeError> {
        if self.ended {
            return if self.buffer.is_empty() {
                Ok(None)
            } else {
                Err(EnvelopeError::AfterEnd)
            };
        }
        let Some((&[flags, a, b, c, d], _)) = self.buffer.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        if flags & COMPRESSED != 0 {
            return Err(EnvelopeError::Compressed);
        }
        if flags & !END_OF_STREAM != 0 {
            return Err(EnvelopeError::UnknownFlags(flags));
        }
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > self.limit {
            return Err(EnvelopeError::TooLarge {
                length,
                limit: self.limit,
            });
        }
        if self.buffer.len() - HEADER < length {
            return Ok(None);
        }
        self.buffer.advance(HEADER);
        let body = self.buffer.split_to(length).freeze();
        if flags & END_OF_STREAM == 0 {
            return Ok(Some(Frame::Message(body)));
        }
        self.ended = true;
        Ok(Some(Frame::End(end_of_stream(&body)?)))
    }

    /// Whether the bytes so far stop in the middle of an envelope.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        !self.buffer.is_empty()
    }
}

/// `{"error": {...}?, "metadata": {...}?}`
fn end_of_stream(body: &[u8]) -> Result<Option<WireError>, EnvelopeError> {
    #[derive(Deserialize)]
    struct End {
        #[serde(default)]
        error: Option<WireError>,
    }
    if !is_object(body) {
        return Err(EnvelopeError::BadEnd("expected an object".into()));
    }
    serde_json::from_slice::<End>(body)
        .map(|end| end.error)
        .map_err(|error| EnvelopeError::BadEnd(error.to_string()))
}

/// Whether a body looks like a JSON object, as every protobuf message is: serde would also
/// take a list for a struct.
#[must_use]
pub fn is_object(body: &[u8]) -> bool {
    body.trim_ascii_start().starts_with(b"{")
}

/// One message as an envelope, for a request.
///
/// # Errors
/// [`EnvelopeError::TooLarge`] when the length does not fit into four bytes.
pub fn wrap(body: &[u8]) -> Result<Vec<u8>, EnvelopeError> {
    let length = u32::try_from(body.len()).map_err(|_| EnvelopeError::TooLarge {
        length: body.len(),
        limit: u32::MAX as usize,
    })?;
    let mut envelope = Vec::with_capacity(HEADER + body.len());
    envelope.push(0);
    envelope.extend_from_slice(&length.to_be_bytes());
    envelope.extend_from_slice(body);
    Ok(envelope)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::code::Code;
    use super::*;

    const LIMIT: usize = 1 << 16;

    fn envelope(flags: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = wrap(body).unwrap();
        bytes[0] = flags;
        bytes
    }

    fn read(chunks: &[&[u8]]) -> (Vec<Frame>, Option<EnvelopeError>) {
        let mut reader = EnvelopeReader::new(LIMIT);
        let mut frames = Vec::new();
        for chunk in chunks {
            reader.push(chunk);
            loop {
                match reader.take() {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => break,
                    Err(error) => return (frames, Some(error)),
                }
            }
        }
        (frames, None)
    }

    #[test]
    fn ends_of_a_stream() {
        let end = |body: &str| read(&[&envelope(2, body.as_bytes())]);
        assert_eq!(end("{}"), (vec![Frame::End(None)], None));
        assert_eq!(
            end(r#"{"metadata":{"a":["b"]}}"#),
            (vec![Frame::End(None)], None)
        );
        let failed =
            end(r#"{"error":{"code":"unauthenticated","message":"expired"},"metadata":{}}"#);
        let error = WireError {
            code: Code::Unauthenticated,
            message: "expired".into(),
        };
        assert_eq!(failed, (vec![Frame::End(Some(error))], None));
        for wrong in ["", "<html>", "[]", r#"{"error":"text"}"#] {
            let (frames, error) = end(wrong);
            assert!(frames.is_empty());
            assert!(matches!(error, Some(EnvelopeError::BadEnd(_))), "{wrong}");
        }
    }

    #[test]
    fn streams_that_are_refused() {
        let message = envelope(0, b"{}");
        let cases: [(Vec<u8>, EnvelopeError); 6] = [
            (envelope(1, b"zz"), EnvelopeError::Compressed),
            (envelope(3, b"zz"), EnvelopeError::Compressed),
            (envelope(4, b"zz"), EnvelopeError::UnknownFlags(4)),
            // HTML read as an envelope: `<` is 0x3c, and no body of that size is awaited.
            (b"<html>".to_vec(), EnvelopeError::UnknownFlags(0x3c)),
            (
                vec![0, 0xff, 0xff, 0xff, 0xff],
                EnvelopeError::TooLarge {
                    length: 0xffff_ffff,
                    limit: LIMIT,
                },
            ),
            (
                [envelope(2, b"{}"), message].concat(),
                EnvelopeError::AfterEnd,
            ),
        ];
        for (bytes, expected) in cases {
            assert_eq!(read(&[&bytes]).1, Some(expected), "{bytes:?}");
        }
    }

    #[test]
    fn a_cut_in_the_middle_is_noticed() {
        let bytes = envelope(0, b"{\"a\":1}");
        for cut in 1..bytes.len() {
            let mut reader = EnvelopeReader::new(LIMIT);
            reader.push(&bytes[..cut]);
            assert_eq!(reader.take(), Ok(None));
            assert!(reader.is_cut(), "after {cut} bytes");
        }
    }

    proptest! {
        #[test]
        fn chunking_does_not_matter(
            bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..6),
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..20),
        ) {
            let mut bytes: Vec<u8> = bodies.iter().flat_map(|body| envelope(0, body)).collect();
            bytes.extend(envelope(2, b"{}"));
            let mut points: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
            points.extend([0, bytes.len()]);
            points.sort_unstable();
            let chunks: Vec<&[u8]> = points.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            let mut expected: Vec<Frame> =
                bodies.into_iter().map(|body| Frame::Message(body.into())).collect();
            expected.push(Frame::End(None));
            prop_assert_eq!(read(&chunks), (expected, None));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let (frames, _) = read(&[&bytes]);
            prop_assert!(frames.len() <= bytes.len() / HEADER);
        }
    }
}
