//! The cursor of a list: where the page ended, and which shards were missing when it was made.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use orderflow_core::{OrderId, Timestamp};

use crate::shard::Position;

/// A cursor, opaque to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub after: Position,
    /// Bits of the shards that did not answer for this page or one before: these pages do not have their newer orders.
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

    /// Decodes the form that the API documents: base64url of 29 bytes, of which the first is [`VERSION`]. Returns
    /// `None` for any other form. A time that no order can have stands for the first or last time that an order can
    /// have.
    pub fn decode(text: &str) -> Option<Self> {
        let bytes: [u8; LENGTH] = URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?;
        let (version, rest) = bytes.split_first()?;
        let (microseconds, rest) = rest.split_first_chunk::<8>()?;
        let (id, missing) = rest.split_first_chunk::<16>()?;
        let microseconds = i64::from_be_bytes(*microseconds);
        let nearest = if microseconds < 0 { Timestamp::MIN } else { Timestamp::MAX };
        let created_at = Timestamp::from_unix_microseconds(microseconds).unwrap_or(nearest);
        (*version == VERSION).then_some(Self {
            after: Position {
                created_at: created_at.clamp(Timestamp::MIN, Timestamp::MAX),
                id: OrderId::from_bytes(*id),
            },
            missing: u32::from_be_bytes(missing.try_into().ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_survives_encoding_and_any_other_text_is_refused() {
        let cursor = Cursor { after: Position { created_at: Timestamp::now(), id: OrderId::now_v7() }, missing: 0b10 };
        assert_eq!(Cursor::decode(&cursor.encode()), Some(cursor));
        for text in ["", "x", "AAAA", "%%%", &"A".repeat(39), &format!("{}A", cursor.encode())] {
            assert_eq!(Cursor::decode(text), None, "{text}");
        }
    }

    #[test]
    fn a_cursor_may_be_before_1970_or_outside_of_all_time() {
        let at = |microseconds: i64| {
            let created_at = Timestamp::from_unix_microseconds(microseconds).unwrap();
            Cursor { after: Position { created_at, id: OrderId::nil() }, missing: 0 }
        };
        for cursor in [at(-1), at(-1_000_000_000_000_000), at(0)] {
            assert_eq!(Cursor::decode(&cursor.encode()), Some(cursor));
        }
        let mut bytes = [0xff; LENGTH];
        bytes[0] = VERSION;
        bytes[1] = 0x7f;
        assert_eq!(Cursor::decode(&URL_SAFE_NO_PAD.encode(bytes)).unwrap().after.created_at, Timestamp::MAX);
        bytes[1] = 0x80;
        assert_eq!(Cursor::decode(&URL_SAFE_NO_PAD.encode(bytes)).unwrap().after.created_at, Timestamp::MIN);
    }
}
