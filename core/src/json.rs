//! Reads JSON objects. serde also accepts an array for a struct and takes its elements as the fields in their order:
//! `[0]` would be a request with one field. Every body and record is read through this module, so that an array is an
//! error.

use serde::{Deserialize, Deserializer, de::Visitor, forward_to_deserialize_any};

/// Reads one JSON object. Anything after it is an error.
pub fn from_object<'de, T: Deserialize<'de>>(text: &'de [u8]) -> serde_json::Result<T> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let value = T::deserialize(Object(&mut json))?;
    json.end()?;
    Ok(value)
}

/// Requests a map from the format, whatever the type requests. The format itself reads the fields.
struct Object<D>(D);

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Object<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_map(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Replay {
        through: i64,
        #[serde(default)]
        topics: Vec<String>,
    }

    #[test]
    fn only_an_object_is_read_as_one() {
        let read = |text: &str| from_object::<Replay>(text.as_bytes()).ok();
        let expected = Replay { through: 3, topics: vec!["orders".to_owned()] };
        assert_eq!(read(r#" {"through":3,"topics":["orders"],"other":[1]} "#), Some(expected));
        for text in ["[3]", r#"[3,["orders"]]"#, " [ 3 ] ", "3", "null", r#""3""#, "", r#"{"through":3} x"#] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
