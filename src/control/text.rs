//! Text from the network on its way to a console, a log line or an event.

/// The longest piece of a peer's message that is shown, in characters.
pub const SHOWN_CHARS: usize = 512;

/// One printable line of at most `limit` characters.
///
/// Control characters (terminal escapes, line breaks) and the Unicode characters that
/// reorder or hide text become spaces, runs of spaces become one, and what was cut off is
/// marked with `…`.
#[must_use]
pub fn printable(text: &str, limit: usize) -> String {
    let mut line = String::new();
    let mut length = 0;
    let words = text.split(|c: char| c.is_whitespace() || c.is_control() || is_invisible(c));
    for word in words.filter(|word| !word.is_empty()) {
        let gap = usize::from(length > 0);
        if length + gap >= limit {
            line.push('…');
            return line;
        }
        if gap == 1 {
            line.push(' ');
            length += 1;
        }
        for character in word.chars() {
            if length == limit {
                line.push('…');
                return line;
            }
            line.push(character);
            length += 1;
        }
    }
    line
}

/// Zero-width and bidirectional format characters: they can make a line read as another.
fn is_invisible(character: char) -> bool {
    matches!(character,
        '\u{00ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_becomes_one_printable_line() {
        let cases = [
            ("no such machine", 80, "no such machine"),
            ("two\r\nlines\tand a tab", 80, "two lines and a tab"),
            ("\u{1b}[2Jcleared", 80, "[2Jcleared"),
            ("right\u{202e}left", 80, "right left"),
            ("  around  ", 80, "around"),
            ("abcdef", 3, "abc…"),
            ("abc def", 3, "abc…"),
            ("abc", 3, "abc"),
            ("", 3, ""),
            ("äöü€𝄞", 4, "äöü€…"),
        ];
        for (text, limit, expected) in cases {
            assert_eq!(printable(text, limit), expected, "{text:?}");
        }
    }
}
