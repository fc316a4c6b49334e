//! Times in UTC with microseconds, the precision of Postgres, so that a written time and the time read back are equal.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

/// A moment, formatted as RFC 3339 in UTC with six decimals, so that texts sort by time: `2026-11-22T19:25:32.123400Z`.
/// The parser accepts any number of decimals and any time zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(OffsetDateTime);

impl Timestamp {
    pub fn now() -> Self {
        OffsetDateTime::now_utc().into()
    }

    /// A moment before every order.
    pub const EPOCH: Self = Self(OffsetDateTime::UNIX_EPOCH);

    /// The earliest moment that RFC 3339 can express.
    pub const MIN: Self = Self(time::macros::datetime!(0000-01-01 0:00 UTC));

    /// A moment after every order that Postgres and RFC 3339 can represent.
    pub const MAX: Self = Self(time::macros::datetime!(9999-12-31 0:00 UTC));

    /// Converts a Unix time. Returns `None` outside the years -9999 to 9999.
    pub fn from_unix_microseconds(microseconds: i64) -> Option<Self> {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(microseconds) * 1000).ok().map(Self)
    }

    pub fn unix_microseconds(self) -> i64 {
        (self.0.unix_timestamp_nanos() / 1000) as i64
    }

    /// Returns the moment `duration` earlier, but not before [`MIN`](Self::MIN).
    #[must_use]
    pub fn before(self, duration: Duration) -> Self {
        self.0.checked_sub(duration.try_into().unwrap_or(time::Duration::MAX)).map_or(Self::MIN, Self)
    }

    /// Returns the moment `duration` later, but not after [`MAX`](Self::MAX).
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        self.0.checked_add(duration.try_into().unwrap_or(time::Duration::MAX)).map_or(Self::MAX, Self)
    }

    /// Formats as RFC 3339 with as many decimals as the moment needs. Receipts have this form, because the text of a
    /// receipt never changes.
    pub fn to_receipt_text(self) -> String {
        self.0.format(&Rfc3339).unwrap_or_else(|_| self.to_string())
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Times of other years can only come from a database.
        if !(0..=9999).contains(&self.0.year()) {
            return Err(ser::Error::custom("RFC 3339 has only the years 0 to 9999"));
        }
        serializer.collect_str(self)
    }
}

impl From<OffsetDateTime> for Timestamp {
    fn from(moment: OffsetDateTime) -> Self {
        let moment = moment.to_offset(UtcOffset::UTC);
        let microsecond = moment.microsecond();
        Self(moment.replace_microsecond(microsecond).expect("a microsecond taken from a time is in range"))
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let moment = time::serde::rfc3339::deserialize(deserializer)?;
        in_utc(moment).ok_or_else(|| de::Error::custom("time out of range"))
    }
}

/// Converts a moment to UTC. Returns `None` for the last hours of the year 9999 in a zone west of Greenwich and the
/// first hours of the year 0 in a zone east of it: in UTC they are in years that RFC 3339 cannot express.
fn in_utc(moment: OffsetDateTime) -> Option<Timestamp> {
    let moment = moment.checked_to_offset(UtcOffset::UTC)?;
    (0..=9999).contains(&moment.year()).then(|| moment.into())
}

impl From<Timestamp> for OffsetDateTime {
    fn from(timestamp: Timestamp) -> Self {
        timestamp.0
    }
}

/// Reads RFC 3339, in any zone.
impl FromStr for Timestamp {
    type Err = time::error::Parse;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let moment = OffsetDateTime::parse(text, &Rfc3339)?;
        in_utc(moment).ok_or(time::error::Parse::TryFromParsed(time::error::TryFromParsed::InsufficientInformation))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (date, time) = (self.0.date(), self.0.time());
        let (year, month, day) = (date.year(), u8::from(date.month()), date.day());
        let (hour, minute, second, microsecond) = time.as_hms_micro();
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{microsecond:06}Z")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_utc_cannot_hold_is_an_error() {
        for text in ["9999-12-31T23:59:59-01:00", "0000-01-01T00:00:00+01:00"] {
            assert!(serde_json::from_str::<Timestamp>(&format!("{text:?}")).is_err(), "{text}");
            assert!(text.parse::<Timestamp>().is_err(), "{text}");
        }
    }

    #[test]
    fn nanoseconds_are_cut_off() {
        let moment = OffsetDateTime::from_unix_timestamp_nanos(1_700_000_000_123_456_789).unwrap();
        assert_eq!(Timestamp::from(moment).to_string(), "2023-11-14T22:13:20.123456Z");
        assert_eq!(Timestamp::from(moment).unix_microseconds(), 1_700_000_000_123_456);
    }

    #[test]
    fn texts_sort_by_time() {
        let texts: Vec<String> =
            [1_700_000_000_000_000, 1_700_000_000_746_070, 1_700_000_000_746_078, 1_700_000_001_000_000]
                .map(|microseconds| Timestamp::from_unix_microseconds(microseconds).unwrap().to_string())
                .into();
        assert!(texts.is_sorted() && texts.iter().all(|text| text.len() == 27), "{texts:?}");
        assert_eq!(texts[1], "2023-11-14T22:13:20.746070Z");
        assert_eq!(serde_json::to_string(&Timestamp::MIN).unwrap(), r#""0000-01-01T00:00:00.000000Z""#);
    }

    #[test]
    fn the_format_of_older_versions_is_parsed_and_is_that_of_receipts() {
        for text in ["2023-11-14T22:13:20.74607Z", "2023-11-14T22:13:20Z"] {
            let moment: Timestamp = text.parse().unwrap();
            assert_eq!(moment.to_receipt_text(), text);
            assert_eq!(serde_json::from_str::<Timestamp>(&format!("{text:?}")).unwrap(), moment);
            assert_eq!(moment.to_string().parse(), Ok(moment));
        }
    }
}
