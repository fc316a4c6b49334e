//! Counts the notifications of the last five minutes and how long they took, in one bin for each second. The dashboard
//! starts its charts with these bins. The counts are exact, and the number of bins is bounded. Pure: time comes from
//! the caller.

use std::collections::VecDeque;

use orderflow_core::Timestamp;

use super::frame::{Latency, Pending};

/// Number of seconds that are kept.
const SECONDS: i64 = 300;

/// The notifications of the epoch, by the second of notification.
#[derive(Debug)]
pub struct History {
    /// Unix second of the first bin.
    from: i64,
    bins: VecDeque<Bin>,
}

#[derive(Clone, Debug, Default)]
struct Bin {
    count: u64,
    latency: Latency,
}

impl History {
    /// Starts empty: nothing is known about the time before `now`.
    pub fn new(now: Timestamp) -> Self {
        Self { from: second(now), bins: VecDeque::new() }
    }

    pub fn add(&mut self, pending: &Pending, now: Timestamp) {
        self.reach(second(now));
        for (at, count, latency) in pending.seconds() {
            // A notification dated before or after all bins still counts, in the nearest bin.
            let last = self.bins.len() as i64 - 1;
            let bin = &mut self.bins[(at - self.from).clamp(0, last) as usize];
            bin.count += count;
            bin.latency.add(latency);
        }
    }

    /// Extends the bins up to `now`, and drops the bins that are older than [`SECONDS`].
    fn reach(&mut self, now: i64) {
        if now < self.from {
            // The clock was set back.
            *self = Self { from: now, bins: VecDeque::new() };
        } else if now - self.from >= 2 * SECONDS {
            // Nothing was notified for so long that all bins are too old.
            *self = Self { from: now - SECONDS + 1, bins: VecDeque::new() };
        }
        while self.from + (self.bins.len() as i64) <= now {
            self.bins.push_back(Bin::default());
        }
        while self.bins.len() as i64 > SECONDS {
            self.bins.pop_front();
            self.from += 1;
        }
    }

    /// Renders the history as JSON: `{"from":…,"bins":[[count,[[bound,count],…]],…]}`.
    pub fn render(&mut self, now: Timestamp) -> String {
        self.reach(second(now));
        let bins: Vec<_> = self.bins.iter().map(|bin| (bin.count, bin.latency.classes())).collect();
        let bins = serde_json::to_string(&bins).expect("numbers are JSON");
        format!(r#"{{"from":{},"bins":{bins}}}"#, self.from)
    }
}

fn second(moment: Timestamp) -> i64 {
    moment.unix_microseconds().div_euclid(1_000_000)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::feed::frame::tests::{map, notification};

    const BEGAN: i64 = 1_700_000_000;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix_microseconds((BEGAN + seconds) * 1_000_000).unwrap()
    }

    /// Makes a pending frame of `count` notifications in the first second after the beginning, each of which took 3 ms.
    fn pending(count: u128) -> Pending {
        let mut pending = Pending::new(&map());
        for number in 0..count {
            let (notification, text) = notification(number, 3000);
            pending.add(&notification, &text, &map());
        }
        pending
    }

    fn rendered(history: &mut History, seconds: i64) -> Value {
        serde_json::from_str(&history.render(at(seconds))).unwrap()
    }

    #[test]
    fn each_notification_is_in_the_second_in_which_it_was_notified() {
        let mut history = History::new(at(0));
        assert_eq!(rendered(&mut history, 0), json!({"from": BEGAN, "bins": [[0, []]]}));
        history.add(&pending(2), at(1));
        history.add(&pending(1), at(2));
        assert_eq!(
            rendered(&mut history, 3),
            json!({"from": BEGAN, "bins": [[3, [[3, 3]]], [0, []], [0, []], [0, []]]})
        );
    }

    #[test]
    fn five_minutes_are_kept_and_every_notification_of_them_counts() {
        let mut history = History::new(at(-10));
        history.add(&pending(1), at(0));
        let value = rendered(&mut history, SECONDS - 1);
        assert_eq!((&value["from"], value["bins"].as_array().unwrap().len()), (&json!(BEGAN), SECONDS as usize));
        assert_eq!(value["bins"][0][0], 1);
        let value = rendered(&mut history, SECONDS);
        assert_eq!((&value["from"], &value["bins"][0][0]), (&json!(BEGAN + 1), &json!(0)));
        // Notifications dated before all bins, as after a change of a consumer's clock, still count.
        history.add(&pending(5), at(SECONDS));
        assert_eq!(rendered(&mut history, SECONDS)["bins"][0][0], 5);
        assert_eq!(rendered(&mut history, 100 * SECONDS)["bins"].as_array().unwrap().len(), SECONDS as usize);
        // The clock was set back: what was before is not known.
        assert_eq!(rendered(&mut history, 0), json!({"from": BEGAN, "bins": [[0, []]]}));
    }
}
