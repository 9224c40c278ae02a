//! Files over HTTP: conditional requests (RFC 9110 §13), one range (§14), and nothing above
//! the directory.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use axum::body::Body;
use axum::http::header::{
    ACCEPT_RANGES, ALLOW, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_MODIFIED_SINCE,
    IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED, RANGE,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::BytesMut;
use futures_util::stream;
use jiff::Timestamp;
use jiff::fmt::rfc2822::{DateTimeParser, DateTimePrinter};
use tokio::io::{AsyncReadExt, AsyncSeekExt, SeekFrom};

use crate::image::root::RootDir;

/// Bytes read at once.
const CHUNK: usize = 64 << 10;

/// What is asked for of a file: method and conditions.
#[derive(Debug)]
pub struct Ask<'a> {
    pub method: &'a Method,
    pub headers: &'a HeaderMap,
}

impl<'a> Ask<'a> {
    #[must_use]
    pub fn new(method: &'a Method, headers: &'a HeaderMap) -> Self {
        Self { method, headers }
    }
}

/// Which bytes of a file are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Whole,
    /// From the first to the last byte, both counted.
    Range(u64, u64),
    /// The range lies behind the end.
    Beyond,
}

/// The path below the directory that a request's path means; `None` for one that no honest
/// client sends.
#[must_use]
pub fn below(path: &str) -> Option<PathBuf> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(if byte == b'%' {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            let (high, low) = (digit(rest.next()?)?, digit(rest.next()?)?);
            u8::try_from(high * 16 + low).ok()?
        } else {
            byte
        });
    }
    let text = String::from_utf8(bytes).ok()?;
    if text.contains(['\0', '\\']) || text.len() > 4096 {
        return None;
    }
    let path = Path::new(&text);
    // A hidden file was not put there to be given out.
    let is_plain = |part: Component<'_>| match part {
        Component::Normal(name) => !name.as_encoded_bytes().starts_with(b"."),
        _ => false,
    };
    (!text.is_empty() && !text.contains("//") && path.components().all(is_plain))
        .then(|| path.to_owned())
}

/// Answers with a file of `root`.
pub async fn serve(root: Arc<RootDir>, path: &str, ask: Ask<'_>) -> Response {
    if ask.method != Method::GET && ask.method != Method::HEAD {
        return not_allowed();
    }
    let Some(path) = below(path) else {
        return missing();
    };
    // Looking up may wait for a disk.
    let opened = tokio::task::spawn_blocking(move || {
        let file = root.open_file(&path)?;
        let metadata = file.metadata()?;
        Ok::<_, std::io::Error>((file, metadata))
    });
    let (file, metadata) = match opened.await {
        Ok(Ok(opened)) => opened,
        // Which of them it is is nobody's business outside.
        Ok(Err(_)) => return missing(),
        Err(_) => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    };
    let file = tokio::fs::File::from_std(file);
    About::of(&metadata).answer(&ask, |wanted| bytes_of(file, wanted))
}

/// 405 with what is allowed.
#[must_use]
pub fn not_allowed() -> Response {
    let mut response = StatusCode::METHOD_NOT_ALLOWED.into_response();
    let allowed = HeaderValue::from_static("GET, HEAD");
    response.headers_mut().insert(ALLOW, allowed);
    response
}

fn missing() -> Response {
    (StatusCode::NOT_FOUND, "no such file\n").into_response()
}

/// What HTTP says about a file.
#[derive(Debug)]
pub struct About {
    length: u64,
    modified: Option<Timestamp>,
    etag: String,
}

/// The bytes that a body has to bring.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    pub first: u64,
    pub length: u64,
}

impl About {
    /// From what the file system says. A file that is replaced gets another inode or another
    /// time, so its tag differs.
    #[must_use]
    pub fn of(metadata: &Metadata) -> Self {
        let nanos = u32::try_from(metadata.mtime_nsec()).unwrap_or(0);
        let etag = format!(
            "\"{:x}-{:x}-{:x}.{nanos:x}\"",
            metadata.ino(),
            metadata.len(),
            metadata.mtime()
        );
        Self {
            length: metadata.len(),
            modified: Timestamp::from_second(metadata.mtime()).ok(),
            etag,
        }
    }

    /// A file that is known by its tag alone, which is quoted already.
    #[must_use]
    pub fn tagged(length: u64, etag: String) -> Self {
        Self {
            length,
            modified: None,
            etag,
        }
    }

    /// Whether the client has it already (RFC 9110 §13.2.2).
    fn is_known(&self, headers: &HeaderMap) -> bool {
        if let Some(tags) = text(headers, &IF_NONE_MATCH) {
            return tags.trim() == "*"
                || tags
                    .split(',')
                    .any(|tag| tag.trim().trim_start_matches("W/") == self.etag);
        }
        text(headers, &IF_MODIFIED_SINCE)
            .and_then(date)
            .is_some_and(|since| self.modified.is_some_and(|modified| modified <= since))
    }

    /// The bytes that are wanted.
    fn part(&self, headers: &HeaderMap) -> Part {
        let Some(range) = text(headers, &RANGE) else {
            return Part::Whole;
        };
        // A range of another version of the file would be put to the wrong bytes.
        if let Some(condition) = text(headers, &IF_RANGE)
            && condition.trim() != self.etag
            && (self.modified.is_none() || date(condition) != self.modified)
        {
            return Part::Whole;
        }
        part(range, self.length)
    }

    /// The whole answer; `body` brings the bytes that are wanted.
    pub fn answer(&self, ask: &Ask<'_>, body: impl FnOnce(Wanted) -> Body) -> Response {
        let mut headers = HeaderMap::new();
        let mut set = |name: HeaderName, text: String| {
            if let Ok(value) = HeaderValue::from_str(&text) {
                headers.insert(name, value);
            }
        };
        set(ETAG, self.etag.clone());
        let printer = DateTimePrinter::new();
        if let Some(modified) = &self.modified
            && let Ok(date) = printer.timestamp_to_rfc9110_string(modified)
        {
            set(LAST_MODIFIED, date);
        }
        set(ACCEPT_RANGES, "bytes".into());
        if self.is_known(ask.headers) {
            return (StatusCode::NOT_MODIFIED, headers).into_response();
        }
        let whole = self.length;
        let (status, first, length) = match self.part(ask.headers) {
            Part::Whole => (StatusCode::OK, 0, whole),
            Part::Range(first, last) => {
                set(CONTENT_RANGE, format!("bytes {first}-{last}/{whole}"));
                (StatusCode::PARTIAL_CONTENT, first, last - first + 1)
            }
            Part::Beyond => {
                set(CONTENT_RANGE, format!("bytes */{whole}"));
                return (StatusCode::RANGE_NOT_SATISFIABLE, headers).into_response();
            }
        };
        set(CONTENT_TYPE, "application/octet-stream".into());
        set(CONTENT_LENGTH, length.to_string());
        let body = if ask.method == Method::HEAD {
            Body::empty()
        } else {
            body(Wanted { first, length })
        };
        (status, headers, body).into_response()
    }
}

/// `length` bytes of a file. A file that has become shorter breaks the answer off.
fn bytes_of(file: tokio::fs::File, wanted: Wanted) -> Body {
    let state = (file, Some(wanted.first), wanted.length);
    Body::from_stream(stream::try_unfold(
        state,
        |(mut file, first, left)| async move {
            if let Some(first) = first {
                file.seek(SeekFrom::Start(first)).await?;
            }
            if left == 0 {
                return Ok::<_, std::io::Error>(None);
            }
            let mut chunk =
                BytesMut::with_capacity(CHUNK.min(usize::try_from(left).unwrap_or(CHUNK)));
            (&mut file)
                .take(left.min(CHUNK as u64))
                .read_buf(&mut chunk)
                .await?;
            if chunk.is_empty() {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let left = left - chunk.len() as u64;
            Ok(Some((chunk.freeze(), (file, None, left))))
        },
    ))
}

/// One range of bytes. Several, and other units, are answered with the whole file, as a
/// server may (RFC 9110 §14.2).
#[must_use]
pub fn part(range: &str, length: u64) -> Part {
    let Some(range) = range.trim().strip_prefix("bytes=") else {
        return Part::Whole;
    };
    let Some((first, last)) = range.split_once('-') else {
        return Part::Whole;
    };
    let number = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    match (number(first), number(last)) {
        (Some(first), _) if first >= length && (last.is_empty() || number(last).is_some()) => {
            Part::Beyond
        }
        (Some(first), Some(last)) if first <= last => Part::Range(first, last.min(length - 1)),
        (Some(first), None) if last.is_empty() => Part::Range(first, length - 1),
        (None, Some(0)) if first.is_empty() => Part::Beyond,
        (None, Some(_)) if first.is_empty() && length == 0 => Part::Beyond,
        (None, Some(count)) if first.is_empty() => {
            Part::Range(length.saturating_sub(count), length - 1)
        }
        _ => Part::Whole,
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn date(text: &str) -> Option<Timestamp> {
    DateTimeParser::new().parse_timestamp(text.trim()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_stay_below() {
        for (path, expected) in [
            ("vmlinuz", Some("vmlinuz")),
            ("a/b.img", Some("a/b.img")),
            ("with%20space", Some("with space")),
            ("%76mlinuz", Some("vmlinuz")),
            ("", None),
            ("/etc/passwd", None),
            ("../etc/passwd", None),
            ("a/../../etc/passwd", None),
            ("%2e%2e/etc/passwd", None),
            ("..%2fetc%2fpasswd", None),
            ("%2fetc/passwd", None),
            ("a//b", None),
            ("./a", None),
            (".hidden", None),
            ("a/.hidden", None),
            ("a%00b", None),
            ("a\\b", None),
            ("a%5cb", None),
            ("%", None),
            ("%4", None),
            ("%zz", None),
            ("%ff", None),
        ] {
            assert_eq!(below(path), expected.map(PathBuf::from), "{path}");
        }
        assert_eq!(below(&"x".repeat(5000)), None);
    }

    #[test]
    fn ranges() {
        for (range, length, expected) in [
            ("bytes=0-99", 1000, Part::Range(0, 99)),
            ("bytes=10-10", 1000, Part::Range(10, 10)),
            ("bytes=990-2000", 1000, Part::Range(990, 999)),
            ("bytes=10-", 1000, Part::Range(10, 999)),
            ("bytes=-10", 1000, Part::Range(990, 999)),
            ("bytes=-2000", 1000, Part::Range(0, 999)),
            ("bytes=1000-", 1000, Part::Beyond),
            ("bytes=1000-2000", 1000, Part::Beyond),
            ("bytes=99999999999999999999999-", 1000, Part::Beyond),
            ("bytes=-0", 1000, Part::Beyond),
            ("bytes=-5", 0, Part::Beyond),
            ("bytes=0-", 0, Part::Beyond),
            ("bytes=9-5", 1000, Part::Whole),
            ("bytes=0-1,3-4", 1000, Part::Whole),
            ("bytes=-", 1000, Part::Whole),
            ("bytes=a-b", 1000, Part::Whole),
            ("bytes=+1-5", 1000, Part::Whole),
            ("lines=0-1", 1000, Part::Whole),
        ] {
            assert_eq!(part(range, length), expected, "{range} of {length}");
        }
    }

    #[tokio::test]
    async fn a_file_that_becomes_shorter_breaks_the_answer_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"0123456789").unwrap();
        let answer = async |first, length| {
            let file = tokio::fs::File::open(&path).await.unwrap();
            let body = bytes_of(file, Wanted { first, length });
            axum::body::to_bytes(body, 100).await
        };
        assert_eq!(answer(2, 4).await.unwrap(), "2345");
        assert_eq!(answer(0, 10).await.unwrap(), "0123456789");
        assert!(answer(0, 11).await.is_err());
        assert!(answer(10, 1).await.is_err());
    }

    fn about() -> About {
        About {
            length: 100,
            modified: "2026-11-22T08:00:01Z".parse().ok(),
            etag: "\"tag\"".into(),
        }
    }

    fn headers(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.clone(), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn conditions() {
        let known = |pairs: &[_]| about().is_known(&headers(pairs));
        assert!(known(&[(IF_NONE_MATCH, "\"other\", W/\"tag\"")]));
        assert!(known(&[(IF_NONE_MATCH, "*")]));
        assert!(!known(&[(IF_NONE_MATCH, "\"other\"")]));
        let (at, before) = (
            "Sun, 22 Nov 2026 08:00:01 GMT",
            "Sun, 22 Nov 2026 08:00:00 GMT",
        );
        assert!(known(&[(IF_MODIFIED_SINCE, at)]));
        assert!(!known(&[(IF_MODIFIED_SINCE, before)]));
        // The tag counts where both are given.
        assert!(!known(&[
            (IF_NONE_MATCH, "\"other\""),
            (IF_MODIFIED_SINCE, at)
        ]));
        assert!(!known(&[]));
        let part = |pairs: &[_]| about().part(&headers(pairs));
        let range = (RANGE, "bytes=1-2");
        assert_eq!(part(std::slice::from_ref(&range)), Part::Range(1, 2));
        assert_eq!(
            part(&[range.clone(), (IF_RANGE, "\"tag\"")]),
            Part::Range(1, 2)
        );
        assert_eq!(part(&[range.clone(), (IF_RANGE, at)]), Part::Range(1, 2));
        assert_eq!(part(&[range.clone(), (IF_RANGE, "\"other\"")]), Part::Whole);
        assert_eq!(part(&[range, (IF_RANGE, before)]), Part::Whole);
    }
}
