//! The options of `verify`.

use std::str::FromStr;

use clap::{Args, ValueEnum};
use orderflow_core::Timestamp;

#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Queue missing receipts, events and notifications again. Events and notifications that Kafka may have had and
    /// deleted are left alone. Safe at any time, while everything runs
    #[arg(long)]
    pub repair: bool,

    /// Queue events again even if the topics may have had them once (expired, or deleted with their topic). Users may
    /// be notified a second time. Needs --since, so that not all expired events are published again
    #[arg(long, requires = "repair", requires = "since")]
    pub renotify: bool,

    /// Check only orders since a time as in 2026-11-24T18:00:00Z, or since a duration ago as in 90m, 24h, 7d [default:
    /// all]
    #[arg(long, value_name = "TIME")]
    since: Option<Since>,

    /// Check only this part: `receipts` does not use Kafka, `events` (with their notifications) does not use S3
    #[arg(long, value_enum, value_name = "PART")]
    pub only: Option<Part>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    Receipts,
    Events,
}

impl Options {
    /// Returns the time from which on orders are checked, by default the Unix epoch.
    pub fn since(&self) -> Timestamp {
        self.since.map_or(Timestamp::EPOCH, |Since(moment)| moment)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Since(Timestamp);

impl FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let moment = match seconds(text) {
            Some(seconds) => {
                Timestamp::now().unix_microseconds().checked_sub_unsigned(seconds.saturating_mul(1_000_000))
            }
            None => text.parse::<Timestamp>().ok().map(Timestamp::unix_microseconds),
        };
        moment
            // No order is older than the epoch, and a timestamp cannot hold every longer duration.
            .and_then(|moment| Timestamp::from_unix_microseconds(moment.max(0)))
            .map(Self)
            .ok_or_else(|| "neither a time as in 2026-11-24T18:00:00Z nor a duration as in 90m, 24h, 7d".to_owned())
    }
}

/// Parses a duration such as `90m`.
fn seconds(duration: &str) -> Option<u64> {
    let unit = match duration.chars().last()? {
        's' => 1,
        'm' => 60,
        'h' => 60 * 60,
        'd' => 24 * 60 * 60,
        _ => return None,
    };
    duration[..duration.len() - 1].parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_time_or_how_long_ago() {
        let Since(moment) = "2026-11-24T19:00:00.5+01:00".parse().unwrap();
        assert_eq!(moment.to_string(), "2026-11-24T18:00:00.500000Z");
        for (text, seconds) in [("30s", 30), ("90m", 5400), ("24h", 86_400), ("7d", 604_800)] {
            let Since(moment) = text.parse().unwrap();
            let ago = Timestamp::now().unix_microseconds() - moment.unix_microseconds();
            assert!((0..5_000_000).contains(&(ago - seconds * 1_000_000)), "{text}: {ago}");
        }
        assert_eq!("9000000d".parse(), Ok(Since(Timestamp::EPOCH)));
    }

    #[test]
    fn since_refuses_any_other_text() {
        for text in ["", "m", "7", "7w", "-7d", "1.5h", "yesterday", "2026-11-24", "99999999999999999999d"] {
            assert!(text.parse::<Since>().is_err(), "{text}");
        }
    }
}
