//! The progress of the consumer group, queried from Kafka without joining the group.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use orderflow_core::{OrderCreated, OrderId, Timestamp, Topics};
use orderflow_service::kafka::{self, reader};
use rdkafka::{Message, consumer::Consumer as _, error::RDKafkaErrorCode as Code};

use super::snapshot::{Consumer, Partition};
use crate::kafka_query::{Queries, Query};

/// Offsets within which the lag is counted exactly. Transaction markers have offsets too, so a group that has read
/// everything is one offset behind. Beyond this number the difference does not matter.
const EXACT_LAG: i64 = 100;

/// Largest difference between the clocks of two synchronized machines.
const SKEW: Duration = Duration::from_secs(1);

pub struct GroupProgress {
    group: Arc<str>,
    topic: Arc<str>,
    /// Queries for the group's offsets. With `read_committed` they would wait while any transaction holds offsets of
    /// the group: under load nearly always.
    offsets: Queries<()>,
    records: Queries<Known>,
}

/// Unhandled events that were read, by partition: the range of offsets, and what was found in it.
type Known = BTreeMap<i32, ((i64, i64), Found)>;

/// The first events that are not handled yet, within [`EXACT_LAG`] offsets.
#[derive(Clone, Debug, Default)]
struct Found {
    count: i64,
    ids: HashSet<OrderId>,
    /// The time of publication of the first event.
    first_at: Option<Timestamp>,
}

/// The events of a partition that the consumer group had not handled when Kafka was queried.
#[derive(Clone, Debug, Default)]
pub struct Unhandled {
    /// Orders of the first unhandled events.
    pub ids: HashSet<OrderId>,
    /// True if `ids` has all unhandled events.
    pub is_complete: bool,
    /// An order that was accepted after this moment was published after the first unhandled event.
    pub since: Option<Timestamp>,
    /// Times by shard, up to which the events of all accepted orders are handled.
    pub handled_through: Vec<Option<Timestamp>>,
}

/// The progress of the consumer group in one partition.
#[derive(Clone, Debug)]
pub struct Reach {
    /// The offset before which all events are handled. `None` if offsets were skipped or lost, so that nothing is
    /// certain.
    pub position: Option<i64>,
    /// The high-water mark: everything published so far is before it, committed or not.
    pub high: i64,
    pub unhandled: Unhandled,
    /// The time of publication of the first unhandled event. `None`: there is none, or it was not read in time.
    pub oldest: Option<Timestamp>,
}

/// The members, if Kafka reports them; the partitions; and the group's progress in each.
type GroupFigures = (Option<usize>, Vec<Partition>, Vec<Reach>);

/// The state of the consumer group and its partitions.
pub struct Answer {
    pub consumer: Consumer,
    pub partitions: Vec<Partition>,
    pub reach: Vec<Reach>,
}

impl GroupProgress {
    pub fn new(settings: &kafka::Settings, group: &str, topics: &Topics) -> Self {
        let mut config = settings.consumer(group);
        config.set("isolation.level", "read_uncommitted");
        Self {
            group: group.into(),
            topic: topics.orders.as_str().into(),
            offsets: Queries::new(config),
            records: Queries::new(settings.consumer(group)),
        }
    }

    /// Returns the state to show while Kafka does not report the group.
    pub fn unknown(&self) -> Consumer {
        Consumer { group: self.group.to_string(), members: None, lag: None }
    }

    /// Returns the state of the group, or the reason why Kafka does not report it.
    pub async fn query(&self, timeout: Duration) -> Result<Answer, String> {
        let topic = self.topic.clone();
        let committed = move |query: &mut Query<'_, ()>| {
            let count = query.partitions(&topic)?;
            let committed = query.committed(&topic, count).map_err(explain)?;
            // The end that a reader of committed records sees is the last stable offset: an open transaction may hide
            // events that another relay has published behind it.
            let high = (0..count)
                .map(|partition| Ok(query.extent(&topic, partition)?.1))
                .collect::<Result<_, reader::Error>>()?;
            Ok((committed, high))
        };
        // Read before the ends: an offset that is committed in between would be beyond them.
        let (committed, high): (_, Vec<i64>) = self.offsets.run(timeout, committed).await?;
        let (group, topic) = (self.group.clone(), self.topic.clone());
        let ends = move |query: &mut Query<'_, Known>| read(query, &group, &topic, &committed, &high);
        let (members, partitions, reach) = self.records.run(timeout, ends).await?;
        let lag = partitions.iter().map(|partition| partition.lag).sum();
        Ok(Answer { consumer: Consumer { members, lag, ..self.unknown() }, partitions, reach })
    }
}

/// Explains why Kafka does not return the group's offsets. Each start of Kafka passes through moments in which the
/// group's coordinator is not found, or still reads the offsets; librdkafka's words for that sound like a fault.
fn explain(error: reader::Error) -> String {
    match error.code() {
        Some(
            Code::CoordinatorLoadInProgress
            | Code::CoordinatorNotAvailable
            | Code::NotCoordinator
            | Code::WaitingForCoordinator,
        ) => {
            tracing::debug!(reason = %error, "the group's coordinator is not available yet");
            "Kafka's group coordinator is not available yet".to_owned()
        }
        _ => error.into(),
    }
}

fn read(
    query: &mut Query<'_, Known>,
    group: &str,
    topic: &str,
    committed: &BTreeMap<i32, i64>,
    high: &[i64],
) -> Result<GroupFigures, String> {
    let count = query.partitions(topic)?;
    let (mut partitions, mut reach, mut behind) = (Vec::new(), Vec::new(), BTreeMap::new());
    for partition in 0..count {
        let (start, end) = query.extent(topic, partition)?;
        let committed = committed.get(&partition).copied();
        let position = committed.unwrap_or(start).max(start);
        if position < end {
            behind.insert(partition, (position, end.min(position + EXACT_LAG)));
        }
        partitions.push(Partition { partition, end, committed, lag: Some((end - position).max(0)) });
        // A partition that was added after the high-water marks were read has none yet.
        let high = high.get(partition as usize).copied().unwrap_or(i64::MAX);
        let is_certain = committed.map_or(start == 0, |committed| (start..=high).contains(&committed));
        reach.push(Reach {
            position: is_certain.then_some(position),
            high,
            unhandled: Unhandled { is_complete: is_certain && position >= high, ..Unhandled::default() },
            oldest: None,
        });
    }
    let mut found = read_first(query, topic, &behind);
    for (partition, reach) in partitions.iter_mut().zip(&mut reach) {
        let Some((_, upto)) = behind.get(&partition.partition) else { continue };
        let is_counted = *upto == partition.end;
        let found = found.remove(&partition.partition);
        if is_counted {
            partition.lag = found.as_ref().map(|found| found.count);
        }
        let Some(Found { count, ids, first_at }) = found else { continue };
        reach.oldest = first_at;
        let is_complete = is_counted && partition.end >= reach.high && reach.position.is_some();
        if is_counted && count == 0 {
            // Only transaction markers follow the group's position.
            reach.position = reach.position.map(|_| partition.end);
        }
        let since = first_at.map(|first| first.after(SKEW)).filter(|_| reach.position.is_some());
        reach.unhandled = Unhandled { ids, is_complete, since, ..Unhandled::default() };
    }
    // A group that Kafka does not know has no members.
    let listed = query.reader.consumer().fetch_group_list(Some(group), query.left()).ok();
    let members = listed.map(|list| list.groups().first().map_or(0, |found| found.members().len()));
    Ok((members, partitions, reach))
}

/// Reads the events between these offsets, of the partitions for which there is time.
fn read_first(query: &mut Query<'_, Known>, topic: &str, behind: &BTreeMap<i32, (i64, i64)>) -> BTreeMap<i32, Found> {
    // Without new events nothing has changed since the last query, and nothing is read.
    query.known.retain(|partition, (extent, _)| behind.get(partition) == Some(extent));
    let unknown: BTreeMap<_, _> = behind
        .iter()
        .filter(|(partition, _)| !query.known.contains_key(partition))
        .map(|(partition, extent)| (*partition, *extent))
        .collect();
    // Partitions that are nearly read first: they must not wait for those with much to read.
    let (near, far): (BTreeMap<_, _>, BTreeMap<_, _>) =
        unknown.into_iter().partition(|(_, (start, end))| end - start < EXACT_LAG);
    for unknown in [near, far] {
        let mut found: BTreeMap<i32, Found> = unknown.keys().map(|partition| (*partition, Found::default())).collect();
        let read = query.read(topic, &unknown, |record| {
            let found = found.entry(record.partition()).or_default();
            found.count += 1;
            found.ids.extend(OrderCreated::decode(record.payload(), None).map(|event| event.order_id));
            let milliseconds = record.timestamp().to_millis().unwrap_or_default();
            found.first_at =
                found.first_at.or_else(|| Timestamp::from_unix_microseconds(milliseconds.saturating_mul(1000)));
            true
        });
        if read == Ok(true) {
            query.known.extend(found.into_iter().map(|(partition, found)| (partition, (unknown[&partition], found))));
        }
    }
    query.known.iter().map(|(partition, (_, found))| (*partition, found.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: Code) -> reader::Error {
        reader::Error::Refused { action: "read".to_owned(), reason: "no".to_owned(), code: Some(code) }
    }

    #[test]
    fn a_coordinator_that_is_not_available_yet_is_explained_in_a_sentence() {
        for code in [Code::NotCoordinator, Code::WaitingForCoordinator, Code::CoordinatorLoadInProgress] {
            assert_eq!(explain(refused(code)), "Kafka's group coordinator is not available yet");
        }
    }

    #[test]
    fn any_other_reason_is_returned_unchanged() {
        assert_eq!(explain(refused(Code::GroupAuthorizationFailed)), "cannot read: no");
    }
}
