//! `dlq show`: prints a whole dead letter, bounded, with unsafe characters escaped.

use std::{fmt::Write as _, io::Write};

use orderflow_core::plain;
use orderflow_dead_letters::{COMMAND, DeadLetters};
use orderflow_service::kafka::header;
use rdkafka::Message;

/// The most bytes of a text that are printed.
const MOST_TEXT: usize = 64 * 1024;
/// The most bytes that are printed as hexadecimal digits.
const MOST_HEX: usize = 4 * 1024;

pub fn run(dead_letters: &DeadLetters, partition: i32, offset: i64, out: &mut impl Write) -> anyhow::Result<()> {
    let letters = dead_letters.open(COMMAND)?;
    let letter = letters.at(partition, offset)?;
    out.write_all(render(&letter).as_bytes())?;
    Ok(())
}

fn render<M: Message>(letter: &M) -> String {
    let mut text = format!("{}/{}@{}\n", letter.topic(), letter.partition(), letter.offset());
    let mut line = |name: &str, value: Option<&[u8]>| {
        let value = value.map_or_else(|| "(none)".to_owned(), readable);
        let _ = writeln!(text, "{name}: {value}");
    };
    line("key", letter.key());
    for header in header::all(letter.headers()) {
        match header {
            Some(header) => line(&format!("header {}", readable(header.key.as_bytes())), header.value),
            None => line("header with a name that is not UTF-8", None),
        }
    }
    let size = letter.payload().map_or(0, <[u8]>::len);
    line(&format!("value ({size} bytes)"), letter.payload());
    text
}

/// Renders text with its invisible characters escaped, except newlines and tabs, because they could move the cursor or
/// reverse the text. Renders other bytes as hexadecimal digits.
fn readable(bytes: &[u8]) -> String {
    let Ok(text) = std::str::from_utf8(bytes) else {
        let shown = &bytes[..bytes.len().min(MOST_HEX)];
        let mut digits = String::from("hex ");
        for byte in shown {
            let _ = write!(digits, "{byte:02x}");
        }
        return digits + &rest(bytes.len() - shown.len());
    };
    let shown = &text[..text.floor_char_boundary(MOST_TEXT)];
    let mut readable = String::with_capacity(shown.len());
    for character in shown.chars() {
        if plain::is_invisible(character) && character != '\n' && character != '\t' {
            readable.extend(character.escape_default());
        } else {
            readable.push(character);
        }
    }
    readable + &rest(text.len() - shown.len())
}

fn rest(bytes: usize) -> String {
    if bytes == 0 { String::new() } else { format!(" … and {bytes} more bytes") }
}

#[cfg(test)]
mod tests {
    use rdkafka::message::{Header, OwnedHeaders, OwnedMessage};

    use super::*;

    #[test]
    fn a_letter_is_printed_completely() {
        let headers = OwnedHeaders::new()
            .insert(Header { key: "dlq.reason", value: Some("no\x1b\u{202e}") })
            .insert(Header { key: "empty", value: None::<&str> });
        let time = rdkafka::Timestamp::NotAvailable;
        let letter = OwnedMessage::new(
            Some(vec![0xff, 0x00]),
            Some("älice".into()),
            "orders.dlq".into(),
            time,
            1,
            7,
            Some(headers),
        );
        let expected = "orders.dlq/1@7\nkey: älice\nheader dlq.reason: no\\u{1b}\\u{202e}\nheader empty: (none)\nvalue (2 bytes): hex ff00\n";
        assert_eq!(render(&letter), expected);
    }

    #[test]
    fn printed_values_are_bounded() {
        assert!(readable("ä".repeat(MOST_TEXT).as_bytes()).ends_with("… and 65536 more bytes"));
        assert!(readable(&[0xff; MOST_HEX + 1]).ends_with("ff … and 1 more bytes"));
    }
}
