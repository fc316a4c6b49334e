//! The terms of a shard's users: which folded ids each contains. An id is folded by upper-casing its ASCII letters, and
//! ids are compared byte by byte, as Postgres compares `upper(user_id COLLATE "C")`.

use std::{cmp::Ordering, fmt, str::FromStr};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::UserId;

/// Most characters of each end of a span of users, such as `GA-GM`.
const MAX_SPAN: usize = 4;

/// Characters of a single user's id that are written as they are. All others, the separators of a map above all, are
/// percent-encoded.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');

/// A part of the users: `A-M`, `GA-GM`, `@alice` or `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Term {
    /// The ids that begin with `first`, with `last`, or with anything between.
    Span { first: String, last: String },
    /// A single user, and those whose ids differ only in the case of ASCII letters.
    User(UserId),
    /// The users that no other term contains.
    Others,
}

/// The folded ids from `lower` up to, but without, `upper`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interval {
    pub lower: String,
    pub upper: String,
}

impl Term {
    /// Returns the ids that the term contains, or `None` for [`Term::Others`].
    pub fn interval(&self) -> Option<Interval> {
        match self {
            Self::Span { first, last } => Some(Interval { lower: first.clone(), upper: successor(last) }),
            // No id contains a control character.
            Self::User(user) => {
                let lower = user.as_str().to_ascii_uppercase();
                Some(Interval { upper: format!("{lower}\u{1}"), lower })
            }
            Self::Others => None,
        }
    }
}

impl Interval {
    pub fn contains(&self, other: &Self) -> bool {
        self.lower <= other.lower && other.upper <= self.upper
    }

    pub fn overlaps(&self, other: &Self) -> bool {
        self.lower < other.upper && other.lower < self.upper
    }
}

/// Compares a user's folded id with a bound.
pub fn compare(user: &UserId, bound: &str) -> Ordering {
    user.as_str().bytes().map(|byte| byte.to_ascii_uppercase()).cmp(bound.bytes())
}

/// Returns the least text that is greater than any that begins with `span`, which ends with an ASCII character.
fn successor(span: &str) -> String {
    let mut text = span.to_owned();
    let last = text.pop().expect("a span has a character");
    text.push(char::from(last as u8 + 1));
    text
}

impl FromStr for Term {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text == "*" {
            return Ok(Self::Others);
        }
        if let Some(user) = text.strip_prefix('@') {
            let user = percent_decode_str(user).decode_utf8().map_err(drop)?;
            return UserId::parse(user).map(Self::User).map_err(drop);
        }
        let (first, last) = text.split_once('-').ok_or(())?;
        let is_end = |end: &str| {
            (1..=MAX_SPAN).contains(&end.len())
                && end.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
        };
        let is_span = is_end(first) && is_end(last) && first.len() == last.len() && first <= last;
        is_span.then(|| Self::Span { first: first.to_owned(), last: last.to_owned() }).ok_or(())
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Span { first, last } => write!(f, "{first}-{last}"),
            Self::User(user) => write!(f, "@{}", utf8_percent_encode(user.as_str(), ENCODED)),
            Self::Others => f.write_str("*"),
        }
    }
}
