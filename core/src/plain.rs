//! Finds invisible characters in settings, Secrets and specs, and in texts from clients that people read. A value with
//! such a character is refused before any library gets it. In a text the character is shown escaped.

use std::fmt::Write;

/// A character that no value may have, and its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "must have no control or invisible characters and no white space around it, and has {character:?} as character {position}"
)]
pub struct NotPlain {
    pub character: char,
    /// Position of the character, counted from 1.
    pub position: usize,
}

/// Checks that a value of one line has no invisible characters and no white space around it.
pub fn check(value: &str) -> Result<(), NotPlain> {
    let characters = value.chars().count();
    let at = |position: usize| NotPlain {
        character: value.chars().nth(position).unwrap_or_default(),
        position: position + 1,
    };
    match value.chars().position(is_invisible) {
        Some(position) => Err(at(position)),
        None if value.starts_with(char::is_whitespace) => Err(at(0)),
        None if value.ends_with(char::is_whitespace) => Err(at(characters - 1)),
        None => Ok(()),
    }
}

/// Checks a text of several lines, such as PEM. Line ends and tabs are allowed.
pub fn check_lines(text: &str) -> Result<(), NotPlain> {
    let is_refused = |character| is_invisible(character) && !matches!(character, '\n' | '\r' | '\t');
    match text.chars().enumerate().find(|(_, character)| is_refused(*character)) {
        Some((position, character)) => Err(NotPlain { character, position: position + 1 }),
        None => Ok(()),
    }
}

/// Returns true if a character is not shown or changes how others are shown: controls, marks of direction, zero-width
/// characters, line and paragraph separators, tags.
pub fn is_invisible(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Escapes the invisible characters of a text, as in `orders\r` and `\u{202e}`.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\r' | '\t' => escaped.extend(character.escape_default()),
            _ if is_invisible(character) => {
                let _ = write!(escaped, "{}", character.escape_unicode());
            }
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_with_an_invisible_character_is_refused_with_its_position() {
        for value in ["", "orders", "a b", "https://host:9000", "ключ", "ü", "p\u{e4}ss w\u{f6}rd"] {
            assert_eq!(check(value), Ok(()), "{value:?}");
        }
        for (value, character, position) in [
            ("orders\r", '\r', 7),
            ("AKIA\nsecret", '\n', 5),
            (" orders", ' ', 1),
            ("orders ", ' ', 7),
            ("\u{a0}orders", '\u{a0}', 1),
            ("\u{feff}orders", '\u{feff}', 1),
            ("ord\u{200b}ers", '\u{200b}', 4),
            ("a\0", '\0', 2),
            ("a\u{7f}b", '\u{7f}', 2),
        ] {
            assert_eq!(check(value), Err(NotPlain { character, position }), "{value:?}");
        }
        let message = check("orders\r").unwrap_err().to_string();
        assert!(message.ends_with(r"and has '\r' as character 7"), "{message}");
    }

    #[test]
    fn a_text_of_several_lines_may_have_line_ends() {
        assert_eq!(check_lines("-----BEGIN\r\nabc\n"), Ok(()));
        assert_eq!(check_lines("abc\n\0"), Err(NotPlain { character: '\0', position: 5 }));
    }

    #[test]
    fn invisible_characters_are_escaped() {
        assert_eq!(escape("orders\r"), r"orders\r");
        assert_eq!(escape("a\u{202e}b\u{1b}[2J ä😀"), r"a\u{202e}b\u{1b}[2J ä😀");
    }
}
