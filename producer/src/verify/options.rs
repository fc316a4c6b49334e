//! What `verify` can be asked.

use std::str::FromStr;

use clap::{Args, ValueEnum};
use orderflow_core::Timestamp;

#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Queue again what is missing: receipts, and events and notifications that Kafka would still have if they had ever
    /// been there. Those that may have been deleted are left alone. Safe at any time, beside everything else
    #[arg(long)]
    pub repair: bool,

    /// Queue again also the events that the topics may have had once (expired, or deleted with their topic). Users may be
    /// notified a second time. Needs --since, so that what retention took is not announced again
    #[arg(long, requires = "repair", requires = "since")]
    pub renotify: bool,

    /// Only orders since then: a time as in 2026-11-24T18:00:00Z, or how long ago as in 90m, 24h, 7d [default: all]
    #[arg(long, value_name = "TIME")]
    since: Option<Since>,

    /// Only this part; with `receipts` Kafka is not asked at all, with `events` (and their notifications) S3 is not
    #[arg(long, value_enum, value_name = "PART")]
    pub only: Option<Part>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    Receipts,
    Events,
}

impl Options {
    /// The beginning of time if nothing was asked for.
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
            // Nothing is older, and a longer time ago is in no year that a time can hold.
            .and_then(|moment| Timestamp::from_unix_microseconds(moment.max(0)))
            .map(Self)
            .ok_or_else(|| "neither a time as in 2026-11-24T18:00:00Z nor a duration as in 90m, 24h, 7d".to_owned())
    }
}

/// `90m`
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
    fn what_is_neither_is_refused() {
        for text in ["", "m", "7", "7w", "-7d", "1.5h", "yesterday", "2026-11-24", "99999999999999999999d"] {
            assert!(text.parse::<Since>().is_err(), "{text}");
        }
    }
}
