//! The shards, and the rule that assigns users to them. No other module may implement this rule.

mod routes;
mod term;

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::UserId;
pub use routes::{InvalidRoutes, RangeId, Routes};
use term::Interval;
pub use term::Term;

/// Position of a shard in its [`ShardMap`], counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShardIndex(u8);

impl ShardIndex {
    pub const fn get(self) -> usize {
        self.0 as usize
    }
}

/// The number of a shard, from 1, as in `PG_SHARD1_DSN` and in the `shard` of an event. A shard has it for good: when
/// it is removed, no other shard may have its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShardNumber(u8);

impl ShardNumber {
    /// The greatest number, because the cursor of a list has a bit for each.
    pub const MAX: u8 = 32;

    pub const fn get(self) -> u32 {
        self.0 as u32
    }

    /// Returns the bit that stands for this number in a set of numbers.
    pub const fn bit(self) -> u32 {
        1 << (self.0 - 1)
    }

    /// Returns the partition of `orders.relay` that holds this shard's progress records.
    pub const fn relay_partition(self) -> i32 {
        self.0 as i32 - 1
    }
}

/// A shard: its name, its number, and its users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    pub index: ShardIndex,
    pub number: ShardNumber,
    pub name: String,
    terms: Vec<Term>,
}

impl Shard {
    /// Returns the users as text: `A-M`, or `A-F+*`.
    pub fn users(&self) -> String {
        let terms: Vec<String> = self.terms.iter().map(Term::to_string).collect();
        terms.join("+")
    }

    /// Returns the text of the API and of receipts: `shard1 (A-M)`. It leaves out single users, whom other users must not
    /// see.
    pub fn info(&self) -> String {
        let terms: Vec<String> =
            self.terms.iter().filter(|term| !matches!(term, Term::User(_))).map(Term::to_string).collect();
        format!("{} ({})", self.name, terms.join("+"))
    }

    fn numbered_by_position(&self) -> bool {
        u32::from(self.index.0) + 1 == self.number.get()
    }
}

/// An ordered list of shards, each with the terms of its users. Of two terms that contain a user, the inner one counts.
/// A user in no term belongs to the shard with the term `*`, or without such a term to the LAST shard.
///
/// Its text is `shard1=A-M,shard2=N-Z`, or with numbers other than the positions `shard1=A-M,shard3:3=N-Z+*`. Each
/// shard's database stores the text of the map that it was made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardMap {
    shards: Vec<Shard>,
    /// All folded ids, in order.
    segments: Vec<Segment>,
}

/// The folded ids from `lower` to the next segment's.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Segment {
    lower: String,
    shard: ShardIndex,
    /// False for users that no term names.
    is_named: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("shards: expected 1 to 26 of them, as in `shard1=A-M,shard2=N-Z`")]
    Count,
    #[error(
        "shards: {0:?} is not NAME=USERS or NAME:NUMBER=USERS, as in `shard1=A-M`; users are spans such as A-M or GA-GM, \
         single users such as @alice, and * for all others, joined by +"
    )]
    Form(String),
    #[error("shards: the name {0:?} is not 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit")]
    Name(String),
    #[error("shards: the name {0:?} appears twice")]
    SameName(String),
    #[error("shards: the number of {0} is not 1 to 32")]
    Number(String),
    #[error("shards: {0} and {1} have the same number; name another one, as in `shard3:3=A-M`")]
    SameNumber(String, String),
    #[error("shards: the users {2} of {1} overlap those of {0}; they must be apart, or some inside the others")]
    Overlap(String, String, String),
}

impl ShardMap {
    /// Returns the shard of a user.
    pub fn shard_of(&self, user: &UserId) -> &Shard {
        let above = self.segments.partition_point(|segment| term::compare(user, &segment.lower).is_ge());
        // The first segment begins with the empty text, which no id is less than.
        self.get(self.segments[above - 1].shard)
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

    /// Returns the ranges of all folded ids: where each begins, and its shard. It ends where the next one begins.
    pub fn ranges(&self) -> Vec<(&str, &Shard)> {
        let mut ranges: Vec<_> =
            self.segments.iter().map(|segment| (segment.lower.as_str(), self.get(segment.shard))).collect();
        ranges.dedup_by_key(|(_, shard)| shard.index);
        ranges
    }

    pub fn numbered(&self, number: ShardNumber) -> Option<&Shard> {
        self.shards.iter().find(|shard| shard.number == number)
    }

    /// Returns the greatest number, which is the number of partitions that the relays need.
    pub fn greatest_number(&self) -> ShardNumber {
        self.shards.iter().map(|shard| shard.number).max().expect("a shard map has at least one shard")
    }
}

/// The number of a [`ShardMap`] among those that a pipeline has had, from 1.
pub type MapEpoch = i32;

/// The epoch of a pipeline whose map was never changed.
pub const FIRST_EPOCH: MapEpoch = 1;

/// The maps that a pipeline has had, by epoch.
#[derive(Clone, Debug, Default)]
pub struct ShardMaps(BTreeMap<MapEpoch, ShardMap>);

impl ShardMaps {
    pub fn of(&self, epoch: MapEpoch) -> Option<&ShardMap> {
        self.0.get(&epoch)
    }

    pub fn insert(&mut self, epoch: MapEpoch, map: ShardMap) {
        self.0.insert(epoch, map);
    }
}

impl FromIterator<(MapEpoch, ShardMap)> for ShardMaps {
    fn from_iter<T: IntoIterator<Item = (MapEpoch, ShardMap)>>(maps: T) -> Self {
        Self(maps.into_iter().collect())
    }
}

impl IntoIterator for ShardMaps {
    type Item = (MapEpoch, ShardMap);
    type IntoIter = std::collections::btree_map::IntoIter<MapEpoch, ShardMap>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
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
            let shard = parse_shard(ShardIndex(index as u8), part)?;
            for other in &shards {
                if other.name == shard.name {
                    return Err(ParseError::SameName(shard.name));
                }
                if other.number == shard.number {
                    return Err(ParseError::SameNumber(other.name.clone(), shard.name));
                }
            }
            shards.push(shard);
        }
        Ok(Self { segments: segments(&shards)?, shards })
    }
}

impl fmt::Display for ShardMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, shard) in self.shards.iter().enumerate() {
            f.write_str(if position == 0 { "" } else { "," })?;
            f.write_str(&shard.name)?;
            if !shard.numbered_by_position() {
                write!(f, ":{}", shard.number.get())?;
            }
            write!(f, "={}", shard.users())?;
        }
        Ok(())
    }
}

fn parse_shard(index: ShardIndex, part: &str) -> Result<Shard, ParseError> {
    let form = || ParseError::Form(part.to_owned());
    let (name, users) = part.split_once('=').ok_or_else(form)?;
    let (name, number) = match name.split_once(':') {
        Some((name, number)) => (name, number.parse().map_err(|_| form())?),
        None => (name, index.0 + 1),
    };
    if !is_name(name) {
        return Err(ParseError::Name(name.to_owned()));
    }
    if !(1..=ShardNumber::MAX).contains(&number) {
        return Err(ParseError::Number(name.to_owned()));
    }
    let terms = users.split('+').filter(|_| !users.is_empty()).map(|term| term.parse().map_err(|()| form()));
    Ok(Shard { index, number: ShardNumber(number), name: name.to_owned(), terms: terms.collect::<Result<_, _>>()? })
}

/// Cuts all folded ids at the bounds of the terms, so that each piece has one shard.
fn segments(shards: &[Shard]) -> Result<Vec<Segment>, ParseError> {
    let mut others = shards.last().expect("a map has a shard").index;
    let mut named: Vec<(Interval, &Shard, &Term)> = Vec::new();
    let mut others_named_by: Option<&Shard> = None;
    for (shard, term) in shards.iter().flat_map(|shard| shard.terms.iter().map(move |term| (shard, term))) {
        let overlap = |other: &Shard| ParseError::Overlap(other.name.clone(), shard.name.clone(), term.to_string());
        let Some(interval) = term.interval() else {
            if let Some(other) = others_named_by.replace(shard) {
                return Err(overlap(other));
            }
            others = shard.index;
            continue;
        };
        let crosses = |other: &Interval| {
            interval == *other || interval.overlaps(other) && !interval.contains(other) && !other.contains(&interval)
        };
        if let Some((_, other, _)) = named.iter().find(|(other, ..)| crosses(other)) {
            return Err(overlap(other));
        }
        named.push((interval, shard, term));
    }
    // An inner term before the one that contains it.
    named.sort_by(|(one, ..), (other, ..)| other.lower.cmp(&one.lower).then(one.upper.cmp(&other.upper)));
    let mut bounds: Vec<&str> = vec![""];
    bounds.extend(named.iter().flat_map(|(interval, ..)| [interval.lower.as_str(), interval.upper.as_str()]));
    bounds.sort_unstable();
    bounds.dedup();
    let shard_at = |bound: &str| {
        let inner =
            named.iter().find(|(interval, ..)| interval.lower.as_str() <= bound && bound < interval.upper.as_str());
        inner.map_or((others, false), |(_, shard, _)| (shard.index, true))
    };
    let segment = |bound: &str| {
        let (shard, is_named) = shard_at(bound);
        Segment { lower: bound.to_owned(), shard, is_named }
    };
    let mut segments: Vec<Segment> = bounds.into_iter().map(segment).collect();
    segments.dedup_by_key(|segment| (segment.shard, segment.is_named));
    Ok(segments)
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
            "one=A-M+",
            "one=GA-G",
            "one=GAAAA-GAAAZ",
            "one=@",
            "one=@a%00",
            "one=*+*",
            "one=*,two=*",
            "one=A-M,two=A-M",
            "one=@alice,two=@ALICE",
            "one=A-GM,two=G-Z",
            "one:0=A-M",
            "one:33=A-M",
            "one:x=A-M",
            "one:2=A-M,two=N-Z",
        ] {
            assert!(text.parse::<ShardMap>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn of_two_terms_that_contain_a_user_the_inner_one_counts() {
        let map: ShardMap = "one=A-M,two=GA-GM+*,three=@gaston+@a%2Cb%C3%A9,four=N-Z".parse().unwrap();
        for (user, shard) in [
            ("alice", "one"),
            ("g", "one"),
            ("ga", "two"),
            ("Gabi", "two"),
            ("gaston", "three"),
            ("GASTON", "three"),
            ("gaston2", "two"),
            ("gasto", "two"),
            ("gmé", "two"),
            ("gn", "one"),
            ("g9", "one"),
            ("a,bé", "three"),
            ("A,Bé", "three"),
            ("a,bÉ", "one"),
            ("zoe", "four"),
            ("7up", "two"),
            ("émile", "two"),
        ] {
            assert_eq!(map.shard_of(&UserId::parse(user).unwrap()).name, shard, "{user}");
        }
    }

    #[test]
    fn a_number_that_is_not_the_position_is_printed() {
        for text in ["one=A-M,three:3=N-Z", "two:2=A-M,one:1=", "one=A-M+*,two=", "one=@a%2Cb%C3%A9+0-9"] {
            assert_eq!(text.parse::<ShardMap>().unwrap().to_string(), text);
        }
        let map: ShardMap = "one=A-M,three:3=N-Z".parse().unwrap();
        let numbers: Vec<_> = map.iter().map(|shard| shard.number.get()).collect();
        assert_eq!((numbers.as_slice(), map.greatest_number().relay_partition()), (&[1, 3][..], 2));
        assert_eq!("one:1=A-Z".parse::<ShardMap>().unwrap().to_string(), "one=A-Z");
        let single: ShardMap = "one=A-M+@zoe+*".parse().unwrap();
        assert_eq!(single.iter().next().unwrap().info(), "one (A-M+*)");
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
