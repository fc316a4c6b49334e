//! The fields of an order, each with its rules.

use std::{borrow::Cow, fmt};

use serde::Serialize;
use uuid::Uuid;

use crate::number;

/// A UUIDv7, made before the order is written, so that a write with an unknown outcome can be repeated.
pub type OrderId = Uuid;

/// The user who places an order: 1–100 characters without control characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct UserId(String);

/// The product that is ordered: 1–255 characters without control characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct ProductName(String);

/// The number of units: 1 to 2,147,483,647.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Quantity(i32);

impl UserId {
    /// Most characters of a user id.
    pub const MAX_CHARACTERS: usize = 100;

    pub fn parse(text: impl Into<String>) -> Result<Self, Cow<'static, str>> {
        parse_line(text.into(), Self::MAX_CHARACTERS).map(Self)
    }

    /// Wraps a value that was parsed before it was stored.
    pub fn from_stored(text: String) -> Self {
        Self(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl ProductName {
    /// Most characters of a product's name.
    pub const MAX_CHARACTERS: usize = 255;

    pub fn parse(text: impl Into<String>) -> Result<Self, Cow<'static, str>> {
        parse_line(text.into(), Self::MAX_CHARACTERS).map(Self)
    }

    /// Wraps a value that was parsed before it was stored.
    pub fn from_stored(text: String) -> Self {
        Self(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Quantity {
    /// Most units of an order.
    pub const MAX: i32 = i32::MAX;

    /// Reads a quantity from the text of a JSON number; `2.0` is 2.
    pub fn parse(text: &str) -> Result<Self, Cow<'static, str>> {
        match number::scaled(text, 0).map(i32::try_from) {
            Ok(Ok(quantity)) if quantity > 0 => Ok(Self(quantity)),
            _ => Err("must be a whole number from 1 to 2147483647".into()),
        }
    }

    /// Wraps a value that was parsed before it was stored.
    pub fn from_stored(quantity: i32) -> Self {
        Self(quantity)
    }

    pub fn get(self) -> i32 {
        self.0
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ProductName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Checks a line of text: 1 to `max` characters, no control characters.
fn parse_line(text: String, max: usize) -> Result<String, Cow<'static, str>> {
    if text.is_empty() {
        return Err("must not be empty".into());
    }
    if text.chars().count() > max {
        return Err(format!("must have at most {max} characters").into());
    }
    if text.chars().any(char::is_control) {
        return Err("must have no control characters".into());
    }
    Ok(text)
}
