//! Checksum files beside an image, and the digest that is held against them.

use std::fmt;

use md5::Md5;
use sha2::{Digest, Sha256, Sha512};

/// A checksum file is one line; this is ample.
pub const MAX_FILE: usize = 4096;

/// The kinds of checksum, the strongest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    Sha512,
    Sha256,
    /// What metal-images ships. It finds accidents, not attackers.
    Md5,
}

impl Algorithm {
    /// The order in which they are looked for.
    pub const STRONGEST_FIRST: [Self; 3] = [Self::Sha512, Self::Sha256, Self::Md5];

    /// The file name suffix beside the image.
    #[must_use]
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Sha512 => ".sha512",
            Self::Sha256 => ".sha256",
            Self::Md5 => ".md5",
        }
    }

    /// Length of the digest in hexadecimal digits.
    #[must_use]
    pub fn digits(self) -> usize {
        match self {
            Self::Sha512 => 128,
            Self::Sha256 => 64,
            Self::Md5 => 32,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.suffix()[1..])
    }
}

/// A digest that is expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    pub algorithm: Algorithm,
    /// Lower case.
    pub hex: String,
}

/// Reads what `md5sum` and its kin print: `<hex>  <name>`, `<hex> *<name>` or the bare digest.
/// With several lines, the one that carries `name` counts.
///
/// # Errors
/// A sentence that says what is wrong with the file.
pub fn parse(bytes: &[u8], algorithm: Algorithm, name: &str) -> Result<Expected, String> {
    if bytes.len() > MAX_FILE {
        return Err(format!("longer than {MAX_FILE} bytes"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "not text".to_owned())?;
    let lines: Vec<(&str, &str)> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(split_line)
        .collect();
    let hex = match lines.as_slice() {
        [] => return Err("the file is empty".to_owned()),
        [(hex, _)] => hex,
        many => many
            .iter()
            .find(|(_, file)| file.rsplit('/').next() == Some(name))
            .map(|(hex, _)| hex)
            .ok_or_else(|| format!("{} lines and none of them names {name:?}", many.len()))?,
    };
    if hex.is_empty() || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err("the first word is not hexadecimal".to_owned());
    }
    if hex.len() != algorithm.digits() {
        return Err(format!(
            "{} hexadecimal digits, expected {}",
            hex.len(),
            algorithm.digits()
        ));
    }
    Ok(Expected {
        algorithm,
        hex: hex.to_ascii_lowercase(),
    })
}

/// Digest and name of a line. coreutils mark a name with escapes by a leading backslash.
fn split_line(line: &str) -> (&str, &str) {
    let line = line.trim();
    let line = line.strip_prefix('\\').unwrap_or(line);
    let (hex, rest) = line
        .split_once(|c: char| c.is_ascii_whitespace())
        .unwrap_or((line, ""));
    let name = rest.trim_start();
    (hex, name.strip_prefix('*').unwrap_or(name))
}

/// A digest in the making.
pub enum Hasher {
    Sha512(Sha512),
    Sha256(Sha256),
    Md5(Md5),
}

impl Hasher {
    #[must_use]
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha512 => Self::Sha512(Sha512::new()),
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Md5 => Self::Md5(Md5::new()),
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha512(state) => state.update(bytes),
            Self::Sha256(state) => state.update(bytes),
            Self::Md5(state) => state.update(bytes),
        }
    }

    /// Lower-case hexadecimal digits.
    #[must_use]
    pub fn finish(self) -> String {
        match self {
            Self::Sha512(state) => hex(&state.finalize()),
            Self::Sha256(state) => hex(&state.finalize()),
            Self::Md5(state) => hex(&state.finalize()),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MD5: &str = "d41d8cd98f00b204e9800998ecf8427e";

    #[test]
    fn lines_that_the_tools_print() {
        for text in [
            format!("{MD5}  img.tar.lz4\n"),
            format!("{MD5} *img.tar.lz4\n"),
            format!("{}\r\n", MD5.to_uppercase()),
            MD5.to_owned(),
            format!("\\{MD5}  a\\nb\n"),
            format!("\n{MD5}\t./dir/img.tar.lz4\n\n"),
            format!("{}  other\n{MD5}  x/img.tar.lz4\n", "0".repeat(32)),
        ] {
            let expected = parse(text.as_bytes(), Algorithm::Md5, "img.tar.lz4");
            assert_eq!(expected.unwrap().hex, MD5, "{text:?}");
        }
    }

    #[test]
    fn files_that_are_no_checksum() {
        let sha = "0".repeat(64);
        for (text, reason) in [
            (String::new(), "empty"),
            ("\n \n".into(), "empty"),
            ("<html>not found</html>".into(), "not hexadecimal"),
            (format!("{sha}  img"), "64 hexadecimal digits, expected 32"),
            (format!("{}  img", &MD5[1..]), "31 hexadecimal digits"),
            (format!("MD5 (img) = {MD5}"), "not hexadecimal"),
            (format!("{MD5}  a\n{MD5}  b\n"), "none of them names"),
            (" ".repeat(MAX_FILE + 1), "longer than"),
        ] {
            let error = parse(text.as_bytes(), Algorithm::Md5, "img").unwrap_err();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
        assert!(parse(&[0xff, 0xfe], Algorithm::Md5, "img").is_err());
    }

    #[test]
    fn digests_of_abc() {
        for (algorithm, start) in [
            (Algorithm::Md5, "900150983cd24fb0d6963f7d28e17f72"),
            (Algorithm::Sha256, "ba7816bf8f01cfea414140de5dae2223"),
            (Algorithm::Sha512, "ddaf35a193617abacc417349ae204131"),
        ] {
            let mut hasher = Hasher::new(algorithm);
            hasher.update(b"a");
            hasher.update(b"bc");
            let hex = hasher.finish();
            assert!(hex.starts_with(start), "{algorithm}: {hex}");
            assert_eq!(hex.len(), algorithm.digits());
        }
    }
}
