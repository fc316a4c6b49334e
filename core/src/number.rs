//! Reads the exact value of a JSON number from its text, never through a float. Clients in other languages write `2` as
//! `2.0`, `2.00` or `0.2e1`: all are one value.

/// The reason why a text has no value with the requested decimals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NumberError {
    NotANumber,
    /// A digit other than 0 follows the last requested decimal.
    TooManyDecimals,
    /// The scaled value has more than 18 digits.
    TooLarge,
}

/// Most digits of a scaled value. Every such value fits into an `i64`.
const MOST_DIGITS: i64 = 18;

/// Reads `text`, a JSON number as `RawValue` gives it, in units of 10^-`decimals`: cents with 2, whole numbers with 0.
pub fn scaled(text: &str, decimals: u8) -> Result<i64, NumberError> {
    let (negative, magnitude) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (mantissa, exponent) = match magnitude.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, parse_exponent(exponent).ok_or(NumberError::NotANumber)?),
        None => (magnitude, 0),
    };
    let (units, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if units.is_empty() || !units.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
        return Err(NumberError::NotANumber);
    }
    let digits = || units.bytes().chain(fraction.bytes());
    let zeros_behind = digits().rev().take_while(|digit| *digit == b'0').count();
    let kept = units.len() + fraction.len() - zeros_behind;
    let significant: Vec<u8> = digits().take(kept).skip_while(|digit| *digit == b'0').collect();
    if significant.is_empty() {
        return Ok(0);
    }
    // The value in units is the significant digits, read as a whole number, times 10^`power`.
    let power = exponent + i64::from(decimals) + zeros_behind as i64 - fraction.len() as i64;
    if power < 0 {
        return Err(NumberError::TooManyDecimals);
    }
    if significant.len() as i64 + power > MOST_DIGITS {
        return Err(NumberError::TooLarge);
    }
    let value = significant.iter().fold(0, |value, digit| value * 10 + i64::from(digit - b'0'));
    let value = value * 10_i64.pow(power as u32);
    Ok(if negative { -value } else { value })
}

/// Parses an exponent. Limits it to ±`FAR`, which is beyond the exponent of any valid value.
fn parse_exponent(text: &str) -> Option<i64> {
    const FAR: i64 = 1 << 40;
    let (negative, digits) = match text.as_bytes() {
        [b'-', ..] => (true, &text[1..]),
        [b'+', ..] => (false, &text[1..]),
        _ => (false, text),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let exponent = digits.parse::<i64>().map_or(FAR, |exponent| exponent.min(FAR));
    Some(if negative { -exponent } else { exponent })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equal_values_are_equal_in_every_notation() {
        for (text, decimals, value) in [
            ("2", 0, 2),
            ("2.0", 0, 2),
            ("0.2e1", 0, 2),
            ("20E-1", 0, 2),
            ("-2.00", 0, -2),
            ("0", 0, 0),
            ("-0.0e5", 0, 0),
            ("0e99999999999999999999", 0, 0),
            ("149.9900", 2, 14_999),
            ("1.0E7", 2, 1_000_000_000),
            ("1e+2", 2, 10_000),
            ("0.07", 2, 7),
            ("999999999999999999", 0, 999_999_999_999_999_999),
        ] {
            assert_eq!(scaled(text, decimals), Ok(value), "{text}");
        }
    }

    #[test]
    fn a_text_without_an_exact_value_is_refused() {
        for (text, expected) in [
            ("1.5", NumberError::TooManyDecimals),
            ("1e-1", NumberError::TooManyDecimals),
            ("1e-99999999999999999999", NumberError::TooManyDecimals),
            ("1e99999999999999999999", NumberError::TooLarge),
            ("1000000000000000000", NumberError::TooLarge),
            ("", NumberError::NotANumber),
            ("-", NumberError::NotANumber),
            (".5", NumberError::NotANumber),
            ("1e", NumberError::NotANumber),
            ("+1", NumberError::NotANumber),
            ("NaN", NumberError::NotANumber),
            ("1.2.3", NumberError::NotANumber),
        ] {
            assert_eq!(scaled(text, 0), Err(expected), "{text}");
        }
    }

    proptest! {
        #[test]
        fn trailing_zeros_and_exponents_do_not_change_the_value(value in -1_000_000_000_i64..1_000_000_000, zeros in 0..20_usize, power in -8..8_i32) {
            let point_moved = format!("{value}{}e-{zeros}", "0".repeat(zeros));
            prop_assert_eq!(scaled(&point_moved, 0), Ok(value));
            prop_assert_eq!(scaled(&format!("{value}.{}", "0".repeat(zeros + 1)), 0), Ok(value));
            let by_exponent = scaled(&format!("{value}e{power}"), 8);
            let whole = i128::from(value) * 10_i128.pow((power + 8) as u32);
            let expected = if whole.abs() < 10_i128.pow(18) { Ok(whole) } else { Err(NumberError::TooLarge) };
            prop_assert_eq!(by_exponent.map(i128::from), expected);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,40}|-?[0-9.eE+-]{0,40}", decimals in 0..9_u8) {
            let _ = scaled(&text, decimals);
        }
    }
}
