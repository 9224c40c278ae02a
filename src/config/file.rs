//! `metal.config`, the JSON file on the boot medium (contracts.md §2).

use std::fmt;

use serde_json::{Map, Value};
use thiserror::Error;

use super::layer::{self, Layer};

/// A `metal.config` is a page of text; more is a mistake.
pub const MAX_BYTES: usize = 64 * 1024;

/// One key that could not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub key: String,
    pub why: String,
}

impl Problem {
    pub(super) fn new(key: &str, why: impl Into<String>) -> Self {
        Self {
            key: key.chars().take(64).collect(),
            why: why.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.why)
    }
}

/// A file that is no `metal.config` at all.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FileError {
    #[error("metal.config is not JSON: {why} at line {line} column {column}")]
    NotJson {
        line: usize,
        column: usize,
        why: String,
    },
    #[error("metal.config holds {0}, expected a JSON object")]
    NotAnObject(&'static str),
    #[error("metal.config has {0} bytes, more than {MAX_BYTES}")]
    TooLong(usize),
}

/// Reads a `metal.config`. Unusable and unknown keys are reported beside the layer.
///
/// # Errors
/// When the text is not a JSON object, with the line and column of the mistake.
pub fn parse(bytes: &[u8]) -> Result<(Layer, Vec<Problem>), FileError> {
    if bytes.len() > MAX_BYTES {
        return Err(FileError::TooLong(bytes.len()));
    }
    // Media tools pad the file in place with blanks or zeroes.
    let text = bytes.trim_ascii_end();
    let text = &text[..text
        .iter()
        .rposition(|b| *b != 0)
        .map_or(0, |last| last + 1)];
    if text.trim_ascii().is_empty() {
        return Ok((Layer::default(), Vec::new()));
    }
    let value: Value = serde_json::from_slice(text).map_err(|error| FileError::NotJson {
        line: error.line(),
        column: error.column(),
        why: reason(&error),
    })?;
    let kind = match value {
        Value::Object(map) => return Ok(layer::from_map(without_comments(map))),
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
    };
    Err(FileError::NotAnObject(kind))
}

/// Keys that begin with `#` or `_` are an operator's remarks.
fn without_comments(map: Map<String, Value>) -> Map<String, Value> {
    map.into_iter()
        .filter(|(key, _)| !key.starts_with(['#', '_']))
        .collect()
}

/// serde_json's message without its own "at line … column …".
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    #[test]
    fn the_keys_of_the_contract() {
        let (layer, problems) = parse(
            br#"{"metal_api_url":"https://api.example.org","hostname":"","ipv6":true,
                 "console":"ttyS1,115200n8","metal_ticket":"t1",
                 "machine":{"allocation":"urn:uuid:7b0b6ad5-6a4f-4f7e-a0e7-0c2a8a8f8f10"},
                 "boot_helper_url":"http://[fd00::1]:4242","pixie_api_url":"http://[fd00::2]:4242",
                 "ntp_servers":["2001:db8::1"],"partition":"fra","logging":{"endpoint":"x"},
                 "policy":{"adopt":"boot-disk","lldp":{"interfaces":0}}}"#,
        )
        .unwrap();
        assert_eq!(problems, []);
        assert_eq!(
            layer.apiserver_url.unwrap().as_str(),
            "https://api.example.org/"
        );
        assert_eq!(layer.hostname, None);
        assert_eq!(layer.ticket.unwrap().expose_secret(), "t1");
        assert_eq!(
            layer.order.unwrap().to_string(),
            "7b0b6ad5-6a4f-4f7e-a0e7-0c2a8a8f8f10"
        );
        assert_eq!(
            layer.boot_helper_url.unwrap().url.as_str(),
            "http://[fd00::1]:4242/"
        );
        assert_eq!(layer.policy.adopt, Some(crate::decide::Adopt::BootDisk));
        assert_eq!(layer.policy.switches().interfaces, 0);
    }

    #[test]
    fn the_apiservers_newer_name_wins() {
        let (layer, _) = parse(
            br#"{"metal_api_url":"https://old.example.org","metal_apiserver_url":"https://new.example.org"}"#,
        )
        .unwrap();
        assert_eq!(
            layer.apiserver_url.unwrap().as_str(),
            "https://new.example.org/"
        );
    }

    #[test]
    fn unusable_keys_are_named_and_the_rest_counts() {
        let (layer, problems) = parse(
            br#"{"metal_api_url":7,"pixie_api_url":"ftp://x/","surprise":1,"partition":"fra",
                 "machine":{"allocation":"garbage"},"policy":{"exclude_disks":[12345]},"metal_ticket":["s3cret"]}"#,
        )
        .unwrap();
        assert_eq!(layer.partition.as_deref(), Some("fra"));
        assert!(layer.order.is_none());
        let text: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let text = text.join("\n");
        for key in [
            "metal_api_url",
            "pixie_api_url",
            "surprise",
            "machine.allocation",
            "policy",
            "metal_ticket",
        ] {
            assert!(text.contains(key), "{key} in {text}");
        }
        assert!(!text.contains("s3cret"), "{text}");
    }

    #[test]
    fn a_broken_file_is_located() {
        let table: [(&[u8], FileError); 3] = [
            (
                b"{\"partition\":\n  fra}",
                FileError::NotJson {
                    line: 2,
                    column: 4,
                    why: "expected ident".into(),
                },
            ),
            (b"[]", FileError::NotAnObject("a list")),
            (&[b' '; MAX_BYTES + 1], FileError::TooLong(MAX_BYTES + 1)),
        ];
        for (bytes, expected) in table {
            assert_eq!(parse(bytes).unwrap_err(), expected);
        }
    }

    #[test]
    fn padding_is_no_content() {
        for bytes in [&b""[..], b"  \n\0\0", b"{}\0\0\0\0", b"{}   \n"] {
            assert!(parse(bytes).is_ok(), "{bytes:?}");
        }
    }
}
