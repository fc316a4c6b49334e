//! Amounts of money in whole cents, read from and written as the text of a JSON number, never through a float.

use std::fmt;

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use crate::number::{self, NumberError};

/// An amount in cents (minor units). A unit price is at least 1 and below 100 million units (what `numeric(10,2)`
/// holds); a total may be up to [`Money::MAX_TOTAL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Money(i64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("must be a JSON number")]
    NotANumber,
    #[error("must have at most two decimals")]
    TooManyDecimals,
    #[error("must be greater than 0")]
    NotPositive,
    #[error("must be less than 100000000")]
    TooLarge,
}

impl Money {
    /// The first unit price that `numeric(10,2)` cannot hold, in cents.
    const PRICE_LIMIT: i64 = 100_000_000 * 100;

    /// The largest unit price.
    pub const MAX_PRICE: Money = Money(Self::PRICE_LIMIT - 1);

    /// The largest price × quantity: 10^13 units, in cents. Its 15 significant digits are exact even for a reader that
    /// parses JSON numbers as doubles.
    pub const MAX_TOTAL: Money = Money(10_000_000_000_000 * 100);

    pub const fn from_cents(cents: i64) -> Self {
        Self(cents)
    }

    pub const fn cents(self) -> i64 {
        self.0
    }

    /// Reads a unit price from the text of a JSON number (as `RawValue` gives it, so its grammar has been checked).
    /// Only the value counts: `149.99`, `149.9900` and `1.4999e2` are equal prices.
    pub fn parse_price(text: &str) -> Result<Self, ParseError> {
        match number::scaled(text, 2) {
            Err(NumberError::NotANumber) => Err(ParseError::NotANumber),
            _ if text.starts_with('-') => Err(ParseError::NotPositive),
            Err(NumberError::TooManyDecimals) => Err(ParseError::TooManyDecimals),
            Err(NumberError::TooLarge) => Err(ParseError::TooLarge),
            Ok(0) => Err(ParseError::NotPositive),
            Ok(cents) if cents >= Self::PRICE_LIMIT => Err(ParseError::TooLarge),
            Ok(cents) => Ok(Self(cents)),
        }
    }

    /// Reads an amount that another producer computed with floats (`0.30000000000000004`, `1.2e3`), rounded half up to
    /// whole cents. Returns `None` if the text is not a number or its cents do not fit.
    pub fn round_from(text: &str) -> Option<Self> {
        let (negative, magnitude) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (mantissa, exponent) = match magnitude.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
            None => (magnitude, 0),
        };
        let (units, decimals) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let is_number = !units.is_empty() && units.bytes().chain(decimals.bytes()).all(|byte| byte.is_ascii_digit());
        // No float has a longer mantissa or exponent.
        if !is_number || units.len() + decimals.len() > 64 || exponent.abs() > 64 {
            return None;
        }
        let point = i32::try_from(units.len()).ok()? + exponent + 2;
        let mut digits = units.bytes().chain(decimals.bytes());
        let mut cents: i64 = 0;
        for _ in 0..point {
            let digit = digits.next().map_or(0, |byte| i64::from(byte - b'0'));
            cents = cents.checked_mul(10)?.checked_add(digit)?;
        }
        if point >= 0 && digits.next().is_some_and(|byte| byte >= b'5') {
            cents = cents.checked_add(1)?;
        }
        Some(Self(if negative { -cents } else { cents }))
    }

    /// Returns price × quantity, or `None` above [`Money::MAX_TOTAL`].
    pub fn times(self, quantity: i32) -> Option<Self> {
        let total = self.0.checked_mul(i64::from(quantity))?;
        (total <= Self::MAX_TOTAL.0).then_some(Self(total))
    }

    /// Formats the amount with both decimals, for people: `150.00`.
    pub fn to_text(self) -> String {
        let (sign, cents) = (if self.0 < 0 { "-" } else { "" }, self.0.unsigned_abs());
        format!("{sign}{}.{:02}", cents / 100, cents % 100)
    }
}

/// Writes the shortest JSON number: `150`, `149.9`, `149.99`.
impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 0 {
            f.write_str("-")?;
        }
        let (units, cents) = (self.0.unsigned_abs() / 100, self.0.unsigned_abs() % 100);
        match cents {
            0 => write!(f, "{units}"),
            tenths if tenths % 10 == 0 => write!(f, "{units}.{}", tenths / 10),
            _ => write!(f, "{units}.{cents:02}"),
        }
    }
}

impl Serialize for Money {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RawValue::from_string(self.to_string()).map_err(serde::ser::Error::custom)?.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_price_that_breaks_a_rule_is_refused_with_that_rule() {
        for (text, expected) in [
            ("\"149.99\"", ParseError::NotANumber),
            ("true", ParseError::NotANumber),
            ("0", ParseError::NotPositive),
            ("0.00", ParseError::NotPositive),
            ("-0", ParseError::NotPositive),
            ("-1", ParseError::NotPositive),
            ("1.234", ParseError::TooManyDecimals),
            ("149.99000000000000000000000000000001", ParseError::TooManyDecimals),
            ("1e-3", ParseError::TooManyDecimals),
            ("-1e-3", ParseError::NotPositive),
            ("1e400", ParseError::TooLarge),
            ("1e8", ParseError::TooLarge),
            ("100000000", ParseError::TooLarge),
            ("99999999999999999999999999", ParseError::TooLarge),
        ] {
            assert_eq!(Money::parse_price(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn equal_prices_are_equal_in_every_notation() {
        for (text, cents) in
            [("149.9900", 14_999), ("1.0E7", 1_000_000_000), ("1e2", 10_000), ("1e-2", 1), ("2.50", 250)]
        {
            assert_eq!(Money::parse_price(text), Ok(Money(cents)), "{text}");
        }
    }

    #[test]
    fn floats_of_other_producers_are_rounded_to_cents() {
        for (text, cents) in [
            ("299.98", Some(29998)),
            ("0.30000000000000004", Some(30)),
            ("0.29999999999999999", Some(30)),
            ("1.005", Some(101)),
            ("1.2e3", Some(120_000)),
            ("1e-7", Some(0)),
            ("5e-3", Some(1)),
            ("-2.5", Some(-250)),
            ("1e60", None),
            ("1e400", None),
            ("NaN", None),
            ("", None),
            (".5", None),
        ] {
            assert_eq!(Money::round_from(text).map(Money::cents), cents, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_price_survives_printing_and_parsing(cents in 1..Money::PRICE_LIMIT) {
            let money = Money::from_cents(cents);
            prop_assert_eq!(Money::parse_price(&money.to_string()), Ok(money));
            prop_assert_eq!(Money::parse_price(&money.to_text()), Ok(money));
            prop_assert_eq!(Money::round_from(&money.to_string()), Some(money));
            prop_assert_eq!(serde_json::to_string(&money).unwrap(), money.to_string());
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in "\\PC{0,40}") {
            let _ = Money::parse_price(&text);
            let _ = Money::round_from(&text);
        }
    }
}
