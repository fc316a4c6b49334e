//! Prints aligned columns; the last one may have any width.

use std::fmt::Write;

/// Returns the rows as lines of text: each column as wide as its widest cell, two spaces between columns.
pub(super) fn aligned<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let mut line = String::from(" ");
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, " {cell:width$} ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["API", "http://a"], ["Dashboard", "b"]].map(|row| row.map(str::to_owned));
        assert_eq!(aligned(&rows), "  API        http://a\n  Dashboard  b\n");
    }
}
