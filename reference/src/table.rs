//! Renders Markdown tables. A text that is too long for a cell follows the table as an item of a list.

use std::fmt::{Display, Write};

/// The most characters of a cell.
const MOST_CHARACTERS: usize = 200;

/// Stands in a cell for a text that follows the table.
const BELOW: &str = "see below";

/// A table of `N` columns.
pub struct Table<const N: usize> {
    head: [&'static str; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub fn new(head: [&'static str; N]) -> Self {
        Self { head, rows: Vec::new() }
    }

    #[must_use]
    pub fn row(mut self, row: [String; N]) -> Self {
        self.rows.push(row);
        self
    }

    #[must_use]
    pub fn rows(self, rows: impl IntoIterator<Item = [String; N]>) -> Self {
        rows.into_iter().fold(self, Self::row)
    }

    /// Returns the table, then the texts that do not fit a cell, by the names of their rows.
    pub fn render(&self) -> String {
        let mut text = format!("| {} |\n|{}\n", self.head.join(" | "), "---|".repeat(N));
        let mut notes = Vec::new();
        for row in &self.rows {
            let cells = row.each_ref().map(|cell| {
                if cell.chars().count() <= MOST_CHARACTERS {
                    return cell.clone();
                }
                notes.push(format!("- {}: {cell}\n", name_of(row)));
                match first_sentence(cell) {
                    Some(sentence) if sentence.chars().count() <= MOST_CHARACTERS => format!("{sentence} ({BELOW})"),
                    _ => BELOW.to_owned(),
                }
            });
            let _ = writeln!(text, "| {} |", cells.join(" | "));
        }
        if !notes.is_empty() {
            text.push('\n');
            text.extend(notes);
        }
        text
    }
}

/// Returns the cell that names a row: the first one, unless it is empty or long; then the first one of code.
fn name_of(row: &[String]) -> &str {
    let is_short = |cell: &&String| cell.chars().count() <= MOST_CHARACTERS;
    let first = row.first().filter(|cell| **cell != none()).filter(is_short);
    let code = || row.iter().filter(is_short).find(|cell| cell.starts_with('`'));
    first.or_else(code).map_or("", String::as_str)
}

/// Returns the first sentence of a text of several, without a sentence that ends inside of code.
fn first_sentence(text: &str) -> Option<&str> {
    let end = text.match_indices(". ").map(|(at, _)| at + 1).find(|end| text[..*end].matches('`').count() % 2 == 0)?;
    Some(&text[..end])
}

/// Returns prose on one line, with what Markdown would take for the end of a cell or for a tag escaped.
pub fn prose(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    // Every second piece is code.
    let pieces = text.split('`').enumerate().map(|(number, piece)| match number % 2 {
        0 => piece.replace('<', "&lt;").replace('|', "\\|").replace('*', "\\*"),
        _ => piece.replace('|', "\\|"),
    });
    pieces.collect::<Vec<_>>().join("`")
}

/// Returns code on one line.
pub fn code(text: &impl Display) -> String {
    let text = text.to_string().split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
    format!("`{text}`")
}

/// Stands in a cell that has nothing to say.
pub fn none() -> String {
    "–".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_follows_the_table() {
        let long = format!("In short. {}", "word ".repeat(50).trim());
        let rows = [["`a`".to_owned(), "short".to_owned()], ["`b`".to_owned(), long.clone()]];
        let text = Table::new(["field", "meaning"]).rows(rows).render();
        let expected = format!(
            "| field | meaning |\n|---|---|\n| `a` | short |\n| `b` | In short. (see below) |\n\n- `b`: {long}\n"
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn a_row_is_named_by_its_first_cell_or_by_code() {
        let row = |cells: [&str; 3]| name_of(&cells.map(str::to_owned)).to_owned();
        assert_eq!(row(["a", "`b`", "c"]), "a");
        assert_eq!(row(["–", "8 s", "`c`"]), "`c`");
        assert_eq!(row([&"long ".repeat(50), "8 s", "`c`"]), "`c`");
    }

    #[test]
    fn a_cell_keeps_its_row_whole() {
        assert_eq!(prose("one | two\n  <THREE> `a|b<c>*`, *"), "one \\| two &lt;THREE> `a\\|b<c>*`, \\*");
        assert_eq!(code(&"a |\n b"), "`a \\| b`");
    }
}
