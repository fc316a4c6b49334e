//! `dlq list`: one line for each dead letter.

use std::{collections::BTreeMap, io::Write, ops::ControlFlow};

use comfy_table::{CellAlignment, Table, presets};
use orderflow_core::plain;
use orderflow_dead_letters::{COMMAND, DeadLetters, Description};
use rdkafka::Message;

/// The most characters of a printed text. `dlq show` prints whole texts.
const MOST_CHARACTERS: usize = 60;

pub fn run(dead_letters: &DeadLetters, all: bool, limit: usize, out: &mut impl Write) -> anyhow::Result<()> {
    let letters = dead_letters.open(COMMAND)?;
    let (mut rows, mut more) = (BTreeMap::new(), false);
    letters.visit(all, |letter| {
        if rows.len() == limit {
            more = true;
            return Ok(ControlFlow::Break(()));
        }
        rows.insert((letter.partition(), letter.offset()), row(&letter));
        Ok(ControlFlow::Continue(()))
    })?;
    for (partition, expired) in letters.expired() {
        writeln!(out, "{}/{partition}: {expired} offsets expired before they were replayed", letters.topic)?;
    }
    if rows.is_empty() {
        writeln!(out, "no dead letters in {}{}", letters.topic, if all { "" } else { " that wait for a replay" })?;
        return Ok(());
    }
    writeln!(out, "{}", table(rows.into_values()))?;
    if more {
        writeln!(out, "… and more: these are the first {limit} (--limit)")?;
    }
    Ok(())
}

const HEADINGS: [&str; 7] = ["PARTITION", "OFFSET", "FAILED AT", "SOURCE", "KEY", "BYTES", "REASON"];

fn row<M: Message>(letter: &M) -> [String; 7] {
    let description = Description::read(letter);
    let source = description.source.map_or_else(
        || "unknown".to_owned(),
        |source| format!("{}/{}@{}", source.topic, source.partition, source.offset),
    );
    let key = letter.key().map_or_else(|| "-".to_owned(), |key| String::from_utf8_lossy(key).into_owned());
    [
        letter.partition().to_string(),
        letter.offset().to_string(),
        printable(&description.failed_at),
        printable(&source),
        printable(&key),
        letter.payload().map_or(0, <[u8]>::len).to_string(),
        printable(&description.reason),
    ]
}

fn table(rows: impl IntoIterator<Item = [String; 7]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(HEADINGS).add_rows(rows);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if ["PARTITION", "OFFSET", "BYTES"].contains(&HEADINGS[index]) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// Shortens a text of a record to one line. Replaces invisible characters, which could move the cursor or reverse the
/// text, with U+FFFD.
pub fn printable(text: &str) -> String {
    let mut line: String = text
        .chars()
        .take(MOST_CHARACTERS)
        .map(|character| if plain::is_invisible(character) { '\u{fffd}' } else { character })
        .collect();
    if text.chars().nth(MOST_CHARACTERS).is_some() {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use orderflow_core::Timestamp;
    use orderflow_dead_letters::{DeadLetter, letter::SIZE_LIMIT};
    use rdkafka::message::{OwnedHeaders, OwnedMessage};

    use super::*;

    #[test]
    fn a_row_is_one_line_for_any_record() {
        let time = rdkafka::Timestamp::CreateTime(1);
        let key = Some("ali\x1b[2Jce\u{202e}\n".as_bytes().to_vec());
        let record = OwnedMessage::new(Some(b"{".to_vec()), key, "orders".into(), time, 3, 42, None);
        let failed_at = Timestamp::from_unix_microseconds(1_700_000_000_000_000).unwrap();
        let letter = DeadLetter::new(&record, &"not JSON ".repeat(20), "g", failed_at, SIZE_LIMIT);
        let letter = OwnedMessage::new(
            Some(b"{".to_vec()),
            record.key().map(Into::into),
            "orders.dlq".into(),
            time,
            1,
            7,
            Some(letter.headers),
        );
        let [partition, offset, failed_at, source, key, bytes, reason] = row(&letter);
        assert_eq!([&*partition, &*offset, &*bytes], ["1", "7", "1"]);
        assert_eq!([&*failed_at, &*source], ["2023-11-14T22:13:20.000000Z", "orders/3@42"]);
        assert_eq!(key, "ali\u{fffd}[2Jce\u{fffd}\u{fffd}");
        assert_eq!(reason.chars().count(), MOST_CHARACTERS + 1);
    }

    #[test]
    fn a_record_of_another_program_is_listed() {
        let time = rdkafka::Timestamp::NotAvailable;
        let letter = OwnedMessage::new(None, None, "orders.dlq".into(), time, 0, 1, None::<OwnedHeaders>);
        assert_eq!(row(&letter), ["0", "1", "", "unknown", "-", "0", ""].map(str::to_owned));
    }

    #[test]
    fn columns_are_aligned() {
        let row = |partition: &str, offset: &str| {
            [partition, offset, "now", "orders/1@2", "alice", "17", "no"].map(str::to_owned)
        };
        let expected = [
            "PARTITION  OFFSET  FAILED AT  SOURCE      KEY    BYTES  REASON",
            "        0       7  now        orders/1@2  alice     17  no",
            "       11     123  now        orders/1@2  alice     17  no",
        ];
        assert_eq!(table(vec![row("0", "7"), row("11", "123")]).lines().collect::<Vec<_>>(), expected);
    }
}
