//! Secrets taken out of what an installer prints.

use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

/// What stands in a secret's place.
const BLANK: &str = "[secret]";
/// A shorter secret would blank out half the log.
const MIN_SECRET: usize = 4;
/// The same for a line of userdata, most of which are no secrets (`runcmd:`).
const MIN_PIECE: usize = 6;

/// The texts that are never printed.
pub struct Blanks {
    /// The longest first: one may be a part of another.
    texts: Vec<Zeroizing<String>>,
}

impl Blanks {
    /// Blanks each secret; of one with several lines (userdata) each line that is more than
    /// a word or two, and the value in it after `:` or `=`.
    pub fn new(secrets: &[SecretString]) -> Self {
        let mut texts: Vec<Zeroizing<String>> = Vec::new();
        for secret in secrets {
            let secret = secret.expose_secret().trim();
            let mut pieces = vec![secret];
            if secret.contains('\n') {
                pieces = secret.lines().flat_map(line_and_value).collect();
                pieces.retain(|piece| piece.len() >= MIN_PIECE);
            }
            pieces.retain(|piece| piece.len() >= MIN_SECRET);
            texts.extend(pieces.into_iter().map(|piece| piece.to_owned().into()));
        }
        texts.sort_unstable_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        texts.dedup();
        Self { texts }
    }

    /// `text` without them.
    pub fn apply(&self, mut text: String) -> String {
        for secret in &self.texts {
            if text.contains(secret.as_str()) {
                text = text.replace(secret.as_str(), BLANK);
            }
        }
        text
    }
}

fn line_and_value(line: &str) -> [&str; 2] {
    let line = line.trim();
    let value = line.split_once([':', '=']).map_or("", |(_, value)| value);
    let quotes = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ',');
    [line, value.trim_matches(quotes)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_the_lines_of_userdata_are_blanked() {
        let userdata = "#cloud-config\npassword: \"hunter22\"\nruncmd:\n  - echo done\nTOKEN=abc-def-1\nssh: yes\n";
        let blanks = Blanks::new(&[
            SecretString::from("console-pw"),
            SecretString::from("abc"),
            SecretString::from(userdata),
        ]);
        for (printed, expected) in [
            ("set to console-pw.", "set to [secret]."),
            ("+ password: \"hunter22\"", "+ [secret]"),
            ("user has hunter22 now", "user has [secret] now"),
            ("export TOKEN=abc-def-1", "export [secret]"),
            ("curl -H abc-def-1", "curl -H [secret]"),
            ("  - echo done", "  [secret]"),
            // Too short to be told from ordinary words.
            ("abc yes", "abc yes"),
        ] {
            assert_eq!(blanks.apply(printed.to_owned()), expected);
        }
    }
}
