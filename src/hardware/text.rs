//! What vendors write, made fit to be shown and sent.

/// What vendors write into a field that they do not fill, in lower case.
const PLACEHOLDERS: [&str; 21] = [
    "default string",
    "to be filled by o.e.m.",
    "to be filled by oem",
    "not specified",
    "not applicable",
    "not available",
    "not settable",
    "no dimm",
    "empty",
    "system serial number",
    "system product name",
    "system manufacturer",
    "chassis serial number",
    "base board serial number",
    "none",
    "null",
    "n/a",
    "unknown",
    "undefined",
    "0123456789",
    "123456789",
];

/// At most `limit` characters, none of them a control character, no spaces at the ends.
pub(super) fn clean(text: &str, limit: usize) -> String {
    let visible: String = text
        .trim()
        .chars()
        .map(|c| if is_unseen(c) { ' ' } else { c })
        .take(limit)
        .collect();
    visible.trim().to_owned()
}

/// Control characters, and those that turn the direction of what stands around them.
fn is_unseen(c: char) -> bool {
    let turns =
        matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns
}

/// As [`clean`], and empty for what only holds the place of a value.
pub(super) fn meaningful(text: &str, limit: usize) -> String {
    let text = clean(text, limit);
    let filler = text
        .chars()
        .all(|c| matches!(c, '0' | ' ' | '.' | '-' | 'x' | 'X'));
    if filler || PLACEHOLDERS.contains(&text.to_lowercase().as_str()) {
        return String::new();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_mean_nothing() {
        for text in [
            "",
            "0000000000",
            " To Be Filled By O.E.M. ",
            "N/A",
            "xxxx",
            "\0\u{1b}",
        ] {
            assert_eq!(meaningful(text, 64), "", "{text:?}");
        }
        assert_eq!(meaningful(" A\u{1b}1\n", 64), "A 1");
        assert_eq!(meaningful("\u{202e}1S", 64), "1S");
        assert_eq!(meaningful(&"ü".repeat(300), 256).chars().count(), 256);
    }
}
