//! The report of a run, for people and for programs.

use std::{collections::BTreeMap, fmt};

use comfy_table::{Table, presets};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::{
    checker::{Kind, Trail, Verdict},
    history::Time,
    settings::Settings,
    storm::{Record, Struck},
};

/// One hour, in microseconds: longer than any run waits.
const LONGEST: u64 = 3_600_000_000;

/// Findings that are printed; the rest is only counted.
const SHOWN: usize = 20;

#[derive(Debug)]
pub struct Report {
    pub seed: u64,
    pub rate: u32,
    /// The length of the whole run, to its verdict.
    pub seconds: i64,
    pub verdict: Verdict,
    /// The times from 201 to notification, in microseconds.
    pub delays: Histogram<u64>,
    /// The recoveries by kind of fault.
    pub faults: BTreeMap<String, Recoveries>,
    pub missed: Vec<String>,
}

/// The recoveries after one kind of fault.
#[derive(Debug, Default, Serialize)]
pub struct Recoveries {
    pub times: usize,
    /// Recovery times in microseconds: from the end of each fault until an order of each shard that was sent after it
    /// had arrived everywhere. Other faults may have happened in between.
    pub took: Vec<Time>,
}

impl Report {
    pub fn new(seed: u64, settings: &Settings, record: &Record, verdict: Verdict, seconds: i64) -> Self {
        let mut delays = Histogram::new_with_bounds(1, LONGEST, 3).expect("these bounds are valid");
        for trail in &verdict.trails {
            delays.saturating_record((trail.notified - trail.acked).max(1).cast_unsigned());
        }
        let mut faults: BTreeMap<String, Recoveries> = BTreeMap::new();
        for struck in &record.struck {
            let recoveries = faults.entry(struck.kind.clone()).or_default();
            recoveries.times += 1;
            recoveries.took.extend(recovery(struck, &verdict.trails));
        }
        for recoveries in faults.values_mut() {
            recoveries.took.sort_unstable();
        }
        Self { seed, rate: settings.rate, seconds, verdict, delays, faults, missed: record.missed.clone() }
    }

    pub fn passed(&self) -> bool {
        self.verdict.passed()
    }

    /// Returns the report as JSON, to combine several runs; times in microseconds.
    pub fn to_json(&self) -> serde_json::Value {
        let delay = |share| self.delays.value_at_quantile(share);
        serde_json::json!({
            "seed": self.seed,
            "rate": self.rate,
            "seconds": self.seconds,
            "counts": self.verdict.counts,
            "findings": self.verdict.findings,
            "delays": { "count": self.delays.len(), "p50": delay(0.5), "p99": delay(0.99), "worst": self.delays.max() },
            "faults": self.faults,
            "missed": self.missed,
        })
    }
}

/// Returns the recovery time of a fault: to the receipts of later orders for a fault of S3, to their notifications for
/// any other.
fn recovery(struck: &Struck, trails: &[Trail]) -> Option<Time> {
    let of_s3 = struck.part.contains("S3");
    let end = |trail: &Trail| if of_s3 { trail.receipt } else { trail.notified };
    let of_shard = |shard| {
        let after = trails.iter().filter(|trail| trail.shard == shard && trail.sent >= struck.to);
        after.map(|trail| (end(trail) - struck.to).max(0)).min()
    };
    Some(of_shard(1)?.max(of_shard(2)?))
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = &self.verdict;
        let counts = &verdict.counts;
        let mut table = table(["", ""]);
        let rows = [
            ("attempts", counts.attempts),
            ("requests", counts.requests),
            ("acked (201)", counts.acked),
            ("  returned again for their key", counts.replayed),
            ("refused (4xx)", counts.refused),
            ("not accepted (503, or no connection)", counts.not_accepted),
            ("unknown to their client", counts.unknown),
            ("  recovered: stored nevertheless, wholly", counts.recovered),
            ("lost", verdict.count(Kind::Lost)),
            ("duplicated", verdict.count(Kind::Duplicated)),
            ("unexpected", verdict.count(Kind::Unexpected)),
            ("different", verdict.count(Kind::Different)),
            ("reordered", verdict.count(Kind::Reordered)),
        ];
        for (what, count) in rows {
            table.add_row([what.to_owned(), count.to_string()]);
        }
        writeln!(out, "\nSEED={} RATE={}, {} s\n{table}\n", self.seed, self.rate, self.seconds)?;
        writeln!(
            out,
            "201 → notification: p50 {}, p99 {}, worst {} ({} orders)\n",
            shown(self.delays.value_at_quantile(0.5) as Time),
            shown(self.delays.value_at_quantile(0.99) as Time),
            shown(self.delays.max() as Time),
            self.delays.len(),
        )?;
        let mut table = self::table(["fault", "times", "recovery p50", "worst"]);
        for (kind, recoveries) in &self.faults {
            let took = &recoveries.took;
            let at = |index: usize| took.get(index).map_or_else(|| "–".to_owned(), |took| shown(*took));
            let last = took.len().saturating_sub(1);
            table.add_row([kind.clone(), recoveries.times.to_string(), at(last / 2), at(last)]);
        }
        let times: usize = self.faults.values().map(|recoveries| recoveries.times).sum();
        table.add_row(["all".to_owned(), times.to_string(), String::new(), String::new()]);
        writeln!(out, "{table}\n")?;
        if !self.missed.is_empty() {
            writeln!(out, "Did not happen, for lack of time or opportunity: {}\n", self.missed.join("; "))?;
        }
        if verdict.passed() {
            return writeln!(out, "PASSED: every order arrived everywhere, once.");
        }
        writeln!(out, "FAILED: {} findings", verdict.findings.len())?;
        for finding in verdict.findings.iter().take(SHOWN) {
            let order = finding.order.map(|order| format!(" order {order}")).unwrap_or_default();
            let attempt = finding.attempt.map(|attempt| format!(" #{attempt}")).unwrap_or_default();
            writeln!(out, "  {:?}{attempt}{order}: {}", finding.kind, finding.what)?;
        }
        Ok(())
    }
}

fn table<const COLUMNS: usize>(header: [&str; COLUMNS]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if header.iter().any(|title| !title.is_empty()) {
        table.set_header(header);
    }
    table
}

fn shown(microseconds: Time) -> String {
    match microseconds {
        ..10_000_000 => format!("{:.0} ms", microseconds as f64 / 1e3),
        _ => format!("{:.1} s", microseconds as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_over_when_later_orders_of_both_shards_have_arrived() {
        let trail = |shard, sent, notified| Trail { shard, sent, acked: sent, notified, receipt: notified + 5 };
        let struck = |part: &str| Struck { kind: "kill".to_owned(), part: part.to_owned(), from: 0, to: 100 };
        let trails = [trail(1, 90, 101), trail(1, 110, 130), trail(2, 120, 170), trail(2, 125, 160)];
        assert_eq!(recovery(&struck("Kafka"), &trails), Some(60));
        assert_eq!(recovery(&struck("S3"), &trails), Some(65));
        assert_eq!(recovery(&struck("Kafka"), &trails[..2]), None);
    }
}
