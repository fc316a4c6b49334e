//! The cursor of a list: where the page ended, and which shards were missing when it was made.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use orderflow_core::{OrderId, Timestamp};

use crate::shard::Position;

/// Opaque to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub after: Position,
    /// Bit n: shard n did not answer for this page or one before; its newer orders were not in them.
    pub missing: u32,
}

const VERSION: u8 = 1;
const LENGTH: usize = 1 + 8 + 16 + 4;

impl Cursor {
    pub fn encode(self) -> String {
        let mut bytes = Vec::with_capacity(LENGTH);
        bytes.push(VERSION);
        bytes.extend(self.after.created_at.unix_microseconds().to_be_bytes());
        bytes.extend(self.after.id.as_bytes());
        bytes.extend(self.missing.to_be_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    pub fn decode(text: &str) -> Option<Self> {
        let bytes: [u8; LENGTH] = URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?;
        let (version, rest) = bytes.split_first()?;
        let (microseconds, rest) = rest.split_first_chunk::<8>()?;
        let (id, missing) = rest.split_first_chunk::<16>()?;
        let created_at = Timestamp::from_unix_microseconds(i64::from_be_bytes(*microseconds))?;
        // Outside of what Postgres can hold it is none of ours, and would be an error there.
        let plausible = *version == VERSION && created_at <= Timestamp::MAX && created_at.unix_microseconds() >= 0;
        plausible.then_some(Self {
            after: Position { created_at, id: OrderId::from_bytes(*id) },
            missing: u32::from_be_bytes(missing.try_into().ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_survives_encoding_and_nothing_else_is_one() {
        let cursor = Cursor { after: Position { created_at: Timestamp::now(), id: OrderId::now_v7() }, missing: 0b10 };
        assert_eq!(Cursor::decode(&cursor.encode()), Some(cursor));
        for text in ["", "x", "AAAA", "%%%", &"A".repeat(39), &format!("{}A", cursor.encode())] {
            assert_eq!(Cursor::decode(text), None, "{text}");
        }
    }
}
