//! The report: the findings as a table with a column for each shard, and the repairs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use comfy_table::{CellAlignment, Table, presets};
use orderflow_core::OrderId;

use super::{
    finding::{EXAMPLES, Finding, Unknown},
    kafka_findings::KafkaFindings,
    options::{Options, Part},
    slice::Slice,
};
use crate::Settings;

#[derive(Default)]
pub struct Requeued {
    pub receipts: u64,
    pub events: u64,
    /// Events that are in their topic already.
    pub again: u64,
}

pub struct Report {
    shards: Vec<String>,
    only: Option<Part>,
    repair: bool,
    renotify: bool,
    group: String,
    /// Numbers of findings, by position in the shard map.
    counts: BTreeMap<Finding, Vec<u64>>,
    examples: BTreeMap<Finding, Vec<OrderId>>,
    lost: BTreeSet<i32>,
    pub requeued: Requeued,
}

impl Report {
    pub fn new(settings: &Settings, options: &Options) -> Self {
        Self {
            shards: settings.shards.iter().map(|shard| shard.name.clone()).collect(),
            only: options.only,
            repair: options.repair,
            renotify: options.renotify,
            group: settings.kafka_group_id.clone(),
            counts: BTreeMap::new(),
            examples: BTreeMap::new(),
            lost: BTreeSet::new(),
            requeued: Requeued::default(),
        }
    }

    pub fn add(&mut self, slice: &Slice, in_kafka: Option<&KafkaFindings>) {
        for (id, order) in &slice.orders {
            let receipt = order.receipt.map(Finding::Receipt);
            let event = in_kafka.map(|findings| Finding::Event(findings.event(order)));
            let notification = in_kafka.map(|findings| Finding::Notification(findings.notification(order)));
            for finding in [Some(Finding::Order), receipt, event, notification].into_iter().flatten() {
                self.count(finding, order.shard, 1);
                self.show(finding, &[*id]);
            }
        }
        if let Some(findings) = in_kafka {
            self.lost.extend(&findings.lost);
            self.add_unknown(Finding::UnknownEvent, &findings.unknown_events);
            self.add_unknown(Finding::UnknownNotification, &findings.unknown_notifications);
        }
    }

    fn add_unknown(&mut self, finding: Finding, unknown: &Unknown) {
        for (shard, count) in &unknown.counts {
            self.count(finding, *shard, *count);
        }
        self.show(finding, &unknown.first);
    }

    fn count(&mut self, finding: Finding, shard: usize, count: u64) {
        self.counts.entry(finding).or_insert_with(|| vec![0; self.shards.len()])[shard] += count;
    }

    fn show(&mut self, finding: Finding, ids: &[OrderId]) {
        if finding.is_shown() && !ids.is_empty() {
            let examples = self.examples.entry(finding).or_default();
            examples.extend(ids.iter().take(EXAMPLES - examples.len()));
        }
    }

    fn total(&self, finding: Finding) -> u64 {
        self.counts.get(&finding).into_iter().flatten().sum()
    }

    /// Returns true if nothing is wrong, or everything that was is queued again.
    pub fn is_well(&self) -> bool {
        let is_queued =
            |finding: &Finding| (self.repair && finding.is_repaired()) || (self.renotify && finding.is_deleted());
        let is_left = |finding: &Finding| finding.is_wrong() && !is_queued(finding);
        Finding::ALL.into_iter().filter(is_left).all(|finding| self.total(finding) == 0)
    }

    fn table(&self) -> String {
        let is_checked = |finding: &Finding| match finding {
            Finding::Order => true,
            Finding::Receipt(_) => self.only != Some(Part::Events),
            _ => self.only != Some(Part::Receipts),
        };
        let mut part = "";
        let rows = Finding::ALL.into_iter().filter(is_checked).map(|finding| {
            // Each part is named once.
            let first = if part == finding.part() { "" } else { finding.part() };
            part = finding.part();
            let counts =
                (0..self.shards.len()).map(|shard| self.counts.get(&finding).map_or(0, |counts| counts[shard]));
            let counts = counts.map(|count| count.to_string());
            [first.to_owned(), finding.label().to_owned()].into_iter().chain(counts).collect::<Vec<_>>()
        });
        let headings =
            ["", ""].into_iter().map(str::to_owned).chain(self.shards.iter().map(|name| name.to_uppercase()));
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(headings).add_rows(rows);
        for (index, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, 2));
            if index > 1 {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.trim_fmt()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.table())?;
        if Finding::ALL.into_iter().any(|finding| finding.is_deleted() && self.total(finding) > 0) {
            writeln!(
                f,
                "\ndeleted: Kafka should still have it, but its topic was deleted or truncated.\n\
                 Users may have been notified, so only --repair --renotify --since TIME queues it again."
            )?;
        }
        if !self.lost.is_empty() {
            let partitions: Vec<String> = self.lost.iter().map(ToString::to_string).collect();
            writeln!(
                f,
                "\nThe group {} has committed offsets beyond the end of partitions {}: the log was cut or recreated.\n\
                 Its consumers stop and log what to do; until then these events count as waiting.",
                self.group,
                partitions.join(", ")
            )?;
        }
        if self.repair {
            let Requeued { receipts, events, again } = self.requeued;
            writeln!(f, "\nqueued again: {receipts} receipts, {events} events")?;
            if again > 0 {
                writeln!(
                    f,
                    "and {again} events whose notifications are missing: these events will be in their topic twice"
                )?;
            }
        }
        for (finding, ids) in &self.examples {
            let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
            let first = if self.total(*finding) > ids.len() as u64 { "the first are " } else { "" };
            writeln!(f, "\n{} {}: {first}{}", finding.part(), finding.label(), ids.join(" "))?;
        }
        Ok(())
    }
}
