//! The shards, and the rule that assigns users to them. No other module may implement this rule.

use std::{fmt, ops::RangeInclusive, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::UserId;

/// Position of a shard in its [`ShardMap`], counted from 0. Events and tables count from 1 (`number`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShardIndex(u8);

impl ShardIndex {
    pub const fn get(self) -> usize {
        self.0 as usize
    }

    /// Returns the number counted from 1, as in `shard1`, `PG_SHARD1_DSN` and the `shard` of an event.
    pub const fn number(self) -> u32 {
        self.0 as u32 + 1
    }

    /// Returns the partition of `orders.relay` that holds this shard's progress records.
    pub const fn relay_partition(self) -> i32 {
        self.0 as i32
    }
}

/// A shard: its name, and the range of first letters of its users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    pub index: ShardIndex,
    pub name: String,
    letters: RangeInclusive<char>,
}

impl Shard {
    /// Returns the range of letters: `A-M`.
    pub fn users(&self) -> String {
        format!("{}-{}", self.letters.start(), self.letters.end())
    }

    /// Returns the text that the API shows: `shard1 (A-M)`.
    pub fn info(&self) -> String {
        format!("{} ({})", self.name, self.users())
    }
}

/// An ordered list of shards with letter ranges that do not overlap. A user whose first character is in no range
/// (digits, other alphabets, punctuation, a gap) belongs to the LAST shard.
///
/// Its text is `shard1=A-M,shard2=N-Z`. Each shard's database stores the text of the map that it was made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardMap {
    shards: Vec<Shard>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("shards: expected 1 to 26 of them, as in `shard1=A-M,shard2=N-Z`")]
    Count,
    #[error("shards: {0:?} is not NAME=X-Y with letters X to Y from A to Z, as in `shard1=A-M`")]
    Form(String),
    #[error("shards: the name {0:?} is not 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit")]
    Name(String),
    #[error("shards: the name {0:?} appears twice")]
    SameName(String),
    #[error("shards: {0} and {1} both name the letter {2}")]
    Overlap(String, String, char),
}

impl ShardMap {
    /// Returns the shard of a user, which depends on the first character, upper-cased if it is ASCII.
    pub fn shard_of(&self, user: &UserId) -> &Shard {
        let first = user.as_str().chars().next().map(|first| first.to_ascii_uppercase());
        let named = first.and_then(|first| self.shards.iter().find(|shard| shard.letters.contains(&first)));
        named.unwrap_or_else(|| self.shards.last().expect("a shard map has at least one shard"))
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Shard> {
        self.shards.iter()
    }

    pub fn get(&self, index: ShardIndex) -> &Shard {
        &self.shards[index.get()]
    }

    #[expect(clippy::len_without_is_empty, reason = "a shard map is never empty")]
    pub fn len(&self) -> usize {
        self.shards.len()
    }
}

impl<'a> IntoIterator for &'a ShardMap {
    type Item = &'a Shard;
    type IntoIter = std::slice::Iter<'a, Shard>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl FromStr for ShardMap {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let parts: Vec<&str> = text.split(',').map(str::trim).collect();
        if parts.len() > 26 || text.trim().is_empty() {
            return Err(ParseError::Count);
        }
        let mut shards: Vec<Shard> = Vec::with_capacity(parts.len());
        for (index, part) in parts.into_iter().enumerate() {
            let (name, users) = part.split_once('=').ok_or_else(|| ParseError::Form(part.to_owned()))?;
            let letters = parse_letters(users).ok_or_else(|| ParseError::Form(part.to_owned()))?;
            if !is_name(name) {
                return Err(ParseError::Name(name.to_owned()));
            }
            for other in &shards {
                if other.name == name {
                    return Err(ParseError::SameName(name.to_owned()));
                }
                if let Some(letter) = letters.clone().find(|letter| other.letters.contains(letter)) {
                    return Err(ParseError::Overlap(other.name.clone(), name.to_owned(), letter));
                }
            }
            shards.push(Shard { index: ShardIndex(index as u8), name: name.to_owned(), letters });
        }
        Ok(Self { shards })
    }
}

impl fmt::Display for ShardMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, shard) in self.shards.iter().enumerate() {
            let separator = if position == 0 { "" } else { "," };
            write!(f, "{separator}{}={}", shard.name, shard.users())?;
        }
        Ok(())
    }
}

fn parse_letters(users: &str) -> Option<RangeInclusive<char>> {
    let (first, last) = users.split_once('-')?;
    let letter = |text: &str| text.parse::<char>().ok().filter(char::is_ascii_uppercase);
    let (first, last) = (letter(first)?, letter(last)?);
    (first <= last).then_some(first..=last)
}

fn is_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&name.len()) && name.bytes().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn demo() -> ShardMap {
        "shard1=A-M,shard2=N-Z".parse().unwrap()
    }

    /// Implements the demo's rule a second time, as a table.
    fn by_the_demo(first: char) -> &'static str {
        match first {
            'A' | 'B' | 'C' | 'D' | 'E' | 'F' | 'G' | 'H' | 'I' | 'J' | 'K' | 'L' | 'M' | 'a' | 'b' | 'c' | 'd'
            | 'e' | 'f' | 'g' | 'h' | 'i' | 'j' | 'k' | 'l' | 'm' => "shard1",
            _ => "shard2",
        }
    }

    #[test]
    fn known_users_get_the_shards_that_the_demo_gave_them() {
        for (user, shard) in [
            ("alice", "shard1"),
            ("Mallory", "shard1"),
            ("nina", "shard2"),
            ("zara", "shard2"),
            ("7up", "shard2"),
            ("_x", "shard2"),
            ("émile", "shard2"),
            ("Ärger", "shard2"),
            ("ſ", "shard2"),
            ("ａ", "shard2"),
        ] {
            assert_eq!(demo().shard_of(&UserId::parse(user).unwrap()).name, shard, "{user}");
        }
    }

    #[test]
    fn a_letter_in_a_gap_goes_to_the_last_shard() {
        let map: ShardMap = "one=A-C,two=X-Z,three=F-G".parse().unwrap();
        assert_eq!(map.shard_of(&UserId::parse("dora").unwrap()).name, "three");
        assert_eq!(map.shard_of(&UserId::parse("yann").unwrap()).name, "two");
    }

    #[test]
    fn a_map_that_breaks_a_rule_is_refused() {
        for text in [
            "",
            ",",
            "shard1",
            "shard1=A",
            "shard1=a-m",
            "shard1=M-A",
            "shard1=A-ZZ",
            "=A-B",
            "S=A-B",
            "-s=A-B",
            "one=A-M,one=N-Z",
            "one=A-M,two=M-Z",
            "one=A-M,",
            "one=A-É",
        ] {
            assert!(text.parse::<ShardMap>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn every_user_has_the_demos_shard(user in "\\PC{1,20}") {
            let first = user.chars().next().unwrap();
            let map = demo();
            prop_assert_eq!(&map.shard_of(&UserId::parse(&user).unwrap()).name, by_the_demo(first));
        }

        #[test]
        fn a_map_survives_printing_and_parsing(cuts in proptest::collection::btree_set(b'B'..=b'Z', 0..25)) {
            let mut from = b'A';
            let mut parts = Vec::new();
            for cut in cuts.into_iter().chain([b'Z' + 1]) {
                parts.push(format!("s{}={}-{}", parts.len(), from as char, (cut - 1) as char));
                from = cut;
            }
            let text = parts.join(",");
            prop_assert_eq!(text.parse::<ShardMap>().unwrap().to_string(), text);
        }
    }
}
