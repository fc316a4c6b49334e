//! A moment in UTC with microseconds, the precision of Postgres: what was written and what is read back are equal.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, de};
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

/// Serialized as RFC 3339 in UTC with as many decimals as are needed: `2026-11-22T19:25:32.123456Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Timestamp(#[serde(serialize_with = "time::serde::rfc3339::serialize")] OffsetDateTime);

impl Timestamp {
    pub fn now() -> Self {
        OffsetDateTime::now_utc().into()
    }

    /// Before every order.
    pub const EPOCH: Self = Self(OffsetDateTime::UNIX_EPOCH);

    /// After every moment that Postgres and RFC 3339 can hold an order of.
    pub const MAX: Self = Self(time::macros::datetime!(9999-12-31 0:00 UTC));

    /// `None` outside the years -9999 to 9999.
    pub fn from_unix_microseconds(microseconds: i64) -> Option<Self> {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(microseconds) * 1000).ok().map(Self)
    }

    pub fn unix_microseconds(self) -> i64 {
        (self.0.unix_timestamp_nanos() / 1000) as i64
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
        // The last hours of the year 9999 in a zone west of Greenwich are in no year that a time can hold.
        let moment = moment.checked_to_offset(UtcOffset::UTC).ok_or_else(|| de::Error::custom("time out of range"))?;
        Ok(moment.into())
    }
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
        moment
            .checked_to_offset(UtcOffset::UTC)
            .map(Self::from)
            .ok_or(time::error::Parse::TryFromParsed(time::error::TryFromParsed::InsufficientInformation))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.format(&Rfc3339).map_err(|_| fmt::Error)?;
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_utc_cannot_hold_is_an_error() {
        assert!(serde_json::from_str::<Timestamp>("\"9999-12-31T23:59:59-01:00\"").is_err());
    }

    #[test]
    fn what_is_below_a_microsecond_is_cut() {
        let moment = OffsetDateTime::from_unix_timestamp_nanos(1_700_000_000_123_456_789).unwrap();
        assert_eq!(Timestamp::from(moment).to_string(), "2023-11-14T22:13:20.123456Z");
        assert_eq!(Timestamp::from(moment).unix_microseconds(), 1_700_000_000_123_456);
    }
}
