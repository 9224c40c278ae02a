//! A screen as a grid of cells, and the bytes that make one grid of another. Pure.
//!
//! ASCII in eight colours: what the kernel's own font and every terminal surely have.

use std::fmt::Write as _;

/// Smallest and largest screens that are drawn on, columns and rows; beyond them the size is a
/// mistake.
const COLUMNS: std::ops::RangeInclusive<usize> = 20..=512;
const ROWS: std::ops::RangeInclusive<usize> = 6..=256;

/// How text looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Style {
    #[default]
    Plain,
    /// A heading.
    Title,
    /// A rule, or what is still to come.
    Faint,
    Strong,
    Good,
    Warning,
    Bad,
}

impl Style {
    /// The parameters of SGR (ECMA-48 §8.3.117).
    const fn parameters(self) -> &'static str {
        match self {
            Self::Plain => "0",
            Self::Title => "0;30;46",
            Self::Faint => "0;36",
            Self::Strong => "0;1;37",
            Self::Good => "0;32",
            Self::Warning => "0;1;33",
            Self::Bad => "0;1;31",
        }
    }
}

/// One character on the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cell {
    byte: u8,
    style: Style,
}

const BLANK: Cell = Cell {
    byte: b' ',
    style: Style::Plain,
};

/// Everything that a screen shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grid {
    columns: usize,
    rows: usize,
    cells: Vec<Cell>,
}

impl Grid {
    /// An empty screen, of a size within reason.
    #[must_use]
    pub fn new(columns: usize, rows: usize) -> Self {
        let columns = columns.clamp(*COLUMNS.start(), *COLUMNS.end());
        let rows = rows.clamp(*ROWS.start(), *ROWS.end());
        Self {
            columns,
            rows,
            cells: vec![BLANK; columns * rows],
        }
    }

    /// Characters in a row.
    #[must_use]
    pub const fn columns(&self) -> usize {
        self.columns
    }

    #[must_use]
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Writes text from a place on; what does not fit into the row is left out. Characters that
    /// are no printable ASCII become `?`. Answers the column behind it.
    pub fn put(&mut self, row: usize, column: usize, style: Style, text: &str) -> usize {
        let mut at = column;
        for character in text.chars() {
            if row >= self.rows || at >= self.columns {
                break;
            }
            let byte = match u8::try_from(character) {
                Ok(byte) if byte.is_ascii_graphic() || byte == b' ' => byte,
                _ => b'?',
            };
            if let Some(cell) = self.cells.get_mut(row * self.columns + at) {
                *cell = Cell { byte, style };
            }
            at += 1;
        }
        at
    }

    /// Gives a whole row a style, and its text from the first column on.
    pub fn bar(&mut self, row: usize, style: Style, text: &str) {
        let padded = format!("{text:<width$}", width = self.columns);
        self.put(row, 0, style, &padded);
    }

    /// The rows as text, without blanks at their ends.
    #[cfg(test)]
    #[must_use]
    pub fn text(&self) -> Vec<String> {
        let row = |cells: &[Cell]| {
            let text: String = cells.iter().map(|cell| char::from(cell.byte)).collect();
            text.trim_end().to_owned()
        };
        self.cells.chunks(self.columns).map(row).collect()
    }

    /// What a terminal that shows `before` has to be told to show this: nothing where nothing
    /// changed, everything where nothing is known.
    #[must_use]
    pub fn update(&self, before: Option<&Self>) -> String {
        let before = before.filter(|b| (b.columns, b.rows) == (self.columns, self.rows));
        let mut out = String::new();
        if before.is_none() {
            // No cursor, no wrapping at the last column, no blanking after a while; then clear
            // (console_codes(4)).
            out.push_str("\x1b[?25l\x1b[?7l\x1b[9;0]\x1b[0m\x1b[2J");
        }
        // Where the cursor stands, and in which style.
        let (mut cursor, mut pen) = (None, None);
        for (index, cell) in self.cells.iter().enumerate() {
            let old = before.map_or(Some(&BLANK), |before| before.cells.get(index));
            if old == Some(cell) {
                continue;
            }
            let (row, column) = (index / self.columns, index % self.columns);
            if cursor != Some(index) || column == 0 {
                let _ = write!(out, "\x1b[{};{}H", row + 1, column + 1);
            }
            if pen != Some(cell.style) {
                let _ = write!(out, "\x1b[{}m", cell.style.parameters());
                pen = Some(cell.style);
            }
            out.push(char::from(cell.byte));
            cursor = Some(index + 1);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_what_changed_is_sent() {
        let mut before = Grid::new(20, 6);
        before.put(0, 0, Style::Plain, "abc");
        let mut after = before.clone();
        after.put(0, 1, Style::Plain, "xc");
        after.put(5, 18, Style::Bad, "yes");
        assert_eq!(
            after.update(Some(&before)),
            "\x1b[1;2H\x1b[0mx\x1b[6;19H\x1b[0;1;31mye"
        );
        assert_eq!(after.update(Some(&after)), "");
        let whole = after.update(Some(&Grid::new(21, 6)));
        assert!(
            whole.contains("\x1b[2J") && whole.contains("axc"),
            "{whole:?}"
        );
    }

    #[test]
    fn no_text_leaves_its_row_or_the_alphabet() {
        let mut grid = Grid::new(0, 100_000);
        assert_eq!((grid.columns(), grid.rows()), (20, 256));
        grid.put(0, 15, Style::Plain, "é\x1b…1234567");
        grid.put(999, 0, Style::Plain, "nowhere");
        assert_eq!(grid.text()[0], "               ???12");
        assert_eq!(grid.text()[1], "");
    }

    /// A terminal that knows what `update` says.
    fn play(columns: usize, rows: usize, shown: &mut [u8], bytes: &str) {
        let mut at = 0;
        let mut rest = bytes;
        while let Some(first) = rest.chars().next() {
            let Some(order) = rest.strip_prefix("\x1b[") else {
                shown[at] = first as u8;
                at += 1;
                rest = &rest[1..];
                continue;
            };
            let end = order
                .find(|c: char| c.is_ascii_alphabetic() || c == ']')
                .unwrap();
            let (parameters, tail) = (&order[..end], &order[end + 1..]);
            match order.as_bytes()[end] {
                b'H' => {
                    let (row, column) = parameters.split_once(';').unwrap();
                    let (row, column): (usize, usize) =
                        (row.parse().unwrap(), column.parse().unwrap());
                    assert!(row <= rows && column <= columns);
                    at = (row - 1) * columns + column - 1;
                }
                b'J' => shown.fill(b' '),
                _ => {}
            }
            rest = tail;
        }
    }

    proptest! {
        #[test]
        fn a_terminal_shows_what_the_grid_holds(
            texts in proptest::collection::vec((0_usize..8, 0_usize..24, "[ -~]{0,30}"), 1..12),
            split in 0_usize..12,
        ) {
            let mut grid = Grid::new(24, 8);
            let mut shown = vec![b'#'; 24 * 8];
            play(24, 8, &mut shown, &grid.update(None));
            let mut before = grid.clone();
            for (number, (row, column, text)) in texts.iter().enumerate() {
                grid.put(*row, *column, Style::Plain, text);
                if number == split {
                    play(24, 8, &mut shown, &grid.update(Some(&before)));
                    before = grid.clone();
                }
            }
            play(24, 8, &mut shown, &grid.update(Some(&before)));
            let rows: Vec<_> = shown.chunks(24).map(|row| String::from_utf8_lossy(row).trim_end().to_owned()).collect();
            prop_assert_eq!(rows, grid.text());
        }
    }
}
