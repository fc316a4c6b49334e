//! The `Idempotency-Key` header (IETF draft): requests of one user with equal keys and equal fields are one order.

use sha2::{Digest, Sha256};

use crate::NewOrder;

/// A key of 1–255 visible ASCII characters or spaces. The quoted form of the draft and the bare form are equal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// Most characters of an Idempotency-Key.
    pub const MAX_LENGTH: usize = 255;

    /// Reads the value of the header. The error is the rule that the value broke.
    pub fn parse(header: &[u8]) -> Result<Self, &'static str> {
        let header = header.trim_ascii();
        let key = match header {
            [b'"', inner @ .., b'"'] => unescape(inner)?,
            [b'"', ..] => return Err("has no closing quote"),
            bare => bare.to_vec(),
        };
        match String::from_utf8(key) {
            Ok(key) if !key.bytes().all(|byte| (b' '..=b'~').contains(&byte)) => Err("must be visible ASCII"),
            Err(_) => Err("must be visible ASCII"),
            Ok(key) if key.is_empty() => Err("must not be empty"),
            Ok(key) if key.len() > Self::MAX_LENGTH => Err("must have at most 255 characters"),
            Ok(key) => Ok(Self(key)),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A hash of an order's fields at the first use of its key: SHA-256 behind a version, 33 bytes. Two requests with one
/// key are the same order only if their fingerprints are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint([u8; 33]);

impl Fingerprint {
    const VERSION: u8 = 1;

    /// Hashes the parsed fields, so that white space, field order and `150` or `150.00` make no difference.
    pub fn new(order: &NewOrder) -> Self {
        let mut hash = Sha256::new();
        for text in [order.user_id.as_str(), order.product_name.as_str()] {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        }
        hash.update(order.quantity.get().to_be_bytes());
        hash.update(order.price.cents().to_be_bytes());
        let mut bytes = [Self::VERSION; 33];
        bytes[1..].copy_from_slice(&hash.finalize());
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Unescapes the inside of an RFC 8941 string, whose only escapes are `\"` and `\\`.
fn unescape(inner: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut key = Vec::with_capacity(inner.len());
    let mut bytes = inner.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b'"' => return Err("has a quote inside the quotes"),
            b'\\' => match bytes.next() {
                Some(&escaped @ (b'"' | b'\\')) => key.push(escaped),
                _ => return Err("has a backslash before something other than a quote or a backslash"),
            },
            other => key.push(other),
        }
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_and_bare_forms_are_equal() {
        let key = |header: &str| IdempotencyKey::parse(header.as_bytes()).unwrap();
        assert_eq!(key("8e03978e-40d5"), key("\"8e03978e-40d5\""));
        assert_eq!(key(r#""a\"b\\c""#).as_str(), r#"a"b\c"#);
        assert_eq!(key(&"k".repeat(255)).as_str().len(), 255);
    }

    #[test]
    fn a_key_that_breaks_a_rule_is_refused() {
        let long = "k".repeat(256);
        for header in ["", "  ", "\"\"", "\"", "\"a", r#""a"b""#, r#""a\n""#, "ключ", "a\u{7f}", &long] {
            assert!(IdempotencyKey::parse(header.as_bytes()).is_err(), "{header:?}");
        }
    }

    #[test]
    fn the_fingerprint_depends_on_every_field_and_not_on_formatting() {
        let fingerprint = |body: &str| Fingerprint::new(&NewOrder::parse(body.as_bytes()).unwrap());
        let first = fingerprint(r#"{"user_id":"a","product_name":"bc","quantity":1,"price":150}"#);
        assert_eq!(first, fingerprint(r#"{ "price":150.00, "quantity":1, "product_name":"b\u0063", "user_id":"a" }"#));
        for other in [
            r#"{"user_id":"ab","product_name":"c","quantity":1,"price":150}"#,
            r#"{"user_id":"a","product_name":"bc","quantity":2,"price":150}"#,
            r#"{"user_id":"a","product_name":"bc","quantity":1,"price":150.01}"#,
        ] {
            assert_ne!(first, fingerprint(other), "{other}");
        }
    }
}
