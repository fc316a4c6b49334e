//! How far the consumers of the group are, asked of Kafka as one of its members would ask, without ever being one.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use orderflow_core::Topics;
use orderflow_service::kafka;
use rdkafka::{Message, consumer::Consumer as _};

use super::snapshot::{Consumer, Partition};
use crate::kafka_reader::{Asked, Reader};

/// Offsets over which events are told from the ends of transactions, which have offsets too: a group that has read
/// everything is one of those behind. Above it the difference does not matter.
const TOLD_APART: i64 = 100;

pub struct GroupProgress {
    group: Arc<str>,
    topic: Arc<str>,
    reader: Reader<Known>,
}

/// What was counted, by partition: between which offsets, and how many events.
type Known = BTreeMap<i32, ((i64, i64), i64)>;

impl GroupProgress {
    pub fn new(settings: &kafka::Settings, group: &str, topics: &Topics) -> Self {
        Self {
            group: group.into(),
            topic: topics.orders.as_str().into(),
            reader: Reader::new(settings.consumer(group)),
        }
    }

    /// While Kafka does not tell.
    pub fn unknown(&self) -> Consumer {
        Consumer { group: self.group.to_string(), members: None, lag: None }
    }

    /// Or the reason why Kafka does not tell.
    pub async fn look(&self, timeout: Duration) -> Result<(Consumer, Vec<Partition>), String> {
        let (group, topic) = (self.group.clone(), self.topic.clone());
        let asked = move |asked: &mut Asked<'_, Known>| ask(asked, &group, &topic);
        let (members, partitions) = self.reader.ask(timeout, asked).await?;
        let lag = partitions.iter().map(|partition| partition.lag).sum();
        Ok((Consumer { members, lag, ..self.unknown() }, partitions))
    }
}

fn ask(asked: &mut Asked<'_, Known>, group: &str, topic: &str) -> Result<(Option<usize>, Vec<Partition>), String> {
    let count = asked.partitions(topic)?;
    // Not to be had while a transaction holds offsets of the group.
    let committed = asked.committed(topic, count).ok();
    let (mut partitions, mut behind) = (Vec::new(), BTreeMap::new());
    for partition in 0..count {
        let (start, end) = asked.extent(topic, partition)?;
        let found = committed.as_ref().map(|committed| committed.get(&partition).copied());
        let next = found.map(|committed| committed.unwrap_or(start).max(start));
        if let Some(next) = next.filter(|next| (1..=TOLD_APART).contains(&(end - next))) {
            behind.insert(partition, (next, end));
        }
        let lag = next.map(|next| (end - next).max(0));
        partitions.push(Partition { partition, end, committed: found.flatten(), lag });
    }
    let counted = count_events(asked, topic, &behind);
    for partition in &mut partitions {
        if behind.contains_key(&partition.partition) {
            partition.lag = counted.get(&partition.partition).copied();
        }
    }
    // A group that Kafka does not know has no members.
    let listed = asked.consumer.fetch_group_list(Some(group), asked.left()).ok();
    let members = listed.map(|list| list.groups().first().map_or(0, |found| found.members().len()));
    Ok((members, partitions))
}

/// Events between these offsets, of the partitions for which there is time.
fn count_events(asked: &mut Asked<'_, Known>, topic: &str, behind: &BTreeMap<i32, (i64, i64)>) -> BTreeMap<i32, i64> {
    // On a quiet day nothing has changed since the last look, and nothing is read.
    asked.known.retain(|partition, (extent, _)| behind.get(partition) == Some(extent));
    let unknown: BTreeMap<_, _> = behind
        .iter()
        .filter(|(partition, _)| !asked.known.contains_key(partition))
        .map(|(partition, extent)| (*partition, *extent))
        .collect();
    let mut counts: BTreeMap<i32, i64> = unknown.keys().map(|partition| (*partition, 0)).collect();
    let read = asked.read(topic, &unknown, |_, event| {
        counts.entry(event.partition()).and_modify(|count| *count += 1);
        true
    });
    if read == Ok(true) {
        asked.known.extend(unknown.iter().map(|(partition, extent)| (*partition, (*extent, counts[partition]))));
    }
    asked.known.iter().map(|(partition, (_, count))| (*partition, *count)).collect()
}
