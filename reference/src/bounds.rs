//! Renders the page of bounds from the constants of the product's sources.

use std::{fmt::Write, time::Duration};

use crate::{
    head,
    table::{Table, code, prose},
};

/// A constant that limits something.
#[derive(Clone, Debug, PartialEq)]
pub struct Bound {
    /// The first sentence of its documentation.
    pub meaning: String,
    pub value: Value,
    pub name: String,
    /// The path of its file, relative to the repository.
    pub file: String,
}

/// A value of a constant.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Time(Duration),
    /// A number of bytes.
    Size(i128),
    Count(i128),
    Fraction(f64),
}

/// Returns the whole page; `crates` are the crates in their order, each with its bounds.
pub fn page(crates: &[(&str, Vec<Bound>)]) -> String {
    let mut text = head(
        "Bounds",
        "For anyone who wants to know when OrderFlow gives up, and how much it holds. Nothing waits without a deadline, and \
         nothing grows without a limit.",
    );
    text.push_str(
        "\nThese bounds are constants. Those that can be configured are [settings](settings.md). A pause between two tries \
         also gets random jitter of up to its own length (`service/src/backoff.rs`).\n",
    );
    for (name, bounds) in crates {
        let rows = bounds.iter().map(|bound| {
            let place = format!("{} in {}", code(&bound.name), code(&bound.file));
            [prose(&bound.meaning), bound.value.to_string(), place]
        });
        let table = Table::new(["what it bounds", "value", "constant"]).rows(rows).render();
        let _ = write!(text, "\n## {name}\n\n{table}");
    }
    text
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Time(time) => f.write_str(&readable_time(*time)),
            Self::Size(bytes) => f.write_str(&readable_size(*bytes)),
            Self::Count(count) => f.write_str(&with_commas(*count)),
            Self::Fraction(number) => write!(f, "{number}"),
        }
    }
}

/// Returns a time in the largest unit of which it is a whole number, but for minutes of less than three.
fn readable_time(time: Duration) -> String {
    let units = [
        (86_400_000_000, 1, "d"),
        (3_600_000_000, 1, "h"),
        (60_000_000, 3, "min"),
        (1_000_000, 1, "s"),
        (1000, 1, "ms"),
    ];
    let micros = time.as_micros();
    let unit = units.iter().find(|(size, least, _)| micros.is_multiple_of(*size) && micros / size >= *least);
    unit.map_or_else(|| format!("{micros} µs"), |(size, _, unit)| format!("{} {unit}", micros / size))
}

fn readable_size(bytes: i128) -> String {
    let units = [(1024 * 1024, "MiB"), (1024, "KiB")];
    let unit = units.iter().find(|(size, _)| bytes % size == 0 && bytes >= *size);
    unit.map_or_else(
        || format!("{} bytes", with_commas(bytes)),
        |(size, unit)| format!("{} {unit}", with_commas(bytes / size)),
    )
}

fn with_commas(number: i128) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        // Four digits read well without.
        if digits.len() > 4 && position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if number < 0 { format!("-{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_readable() {
        for (value, expected) in [
            (Value::Time(Duration::from_secs(8)), "8 s"),
            (Value::Time(Duration::from_secs(90)), "90 s"),
            (Value::Time(Duration::from_secs(120)), "120 s"),
            (Value::Time(Duration::from_secs(300)), "5 min"),
            (Value::Time(Duration::from_secs(2_592_000)), "30 d"),
            (Value::Time(Duration::from_millis(250)), "250 ms"),
            (Value::Time(Duration::from_micros(200)), "200 µs"),
            (Value::Size(64 * 1024), "64 KiB"),
            (Value::Size(2 * 1024 * 1024), "2 MiB"),
            (Value::Size(2 * 1024 * 1024 - 4096), "2044 KiB"),
            (Value::Count(512), "512"),
            (Value::Count(4096), "4096"),
            (Value::Count(100_000), "100,000"),
            (Value::Fraction(30.0), "30"),
        ] {
            assert_eq!(value.to_string(), expected);
        }
    }
}
