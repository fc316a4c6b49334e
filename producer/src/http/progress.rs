//! Determines for each order of a page whether it was published and notified. The queue tables of its shard show
//! whether it was published, and the offsets of the consumer group whether it was notified. That takes one more query
//! to each shard and one shared query to Kafka, whatever the number of orders. A state that is not certain is unknown.

use std::collections::HashMap;

use futures_util::future::join_all;
use orderflow_core::{OrderId, ShardNumber, Timestamp, partition};
use serde::Serialize;
use utoipa::ToSchema;

use super::app::App;
use crate::{
    shard::{QueuedEvents, Shard, StoredOrder},
    stats::{GroupState, Unhandled},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub published: PublishedState,
    pub notified: NotifiedState,
}

/// State of an order's event
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PublishedState {
    Waiting,
    Published,
    Refused,
    Unknown,
}

/// State of an order's notification
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum NotifiedState {
    Waiting,
    Notified,
    Unknown,
}

/// Returns the progress of each order in `found`. Read `found` first: only then an event that is in no queue has been
/// published.
pub async fn determine(app: &App, found: &[StoredOrder]) -> HashMap<OrderId, Progress> {
    let routes = app.maps.routes();
    let mut of_shard: HashMap<ShardNumber, Vec<&StoredOrder>> = HashMap::new();
    for stored in found {
        of_shard.entry(routes.shard_of(&stored.order.user_id).number).or_default().push(stored);
    }
    let of_shard: Vec<_> =
        of_shard.into_iter().filter_map(|(number, orders)| Some((app.shards.numbered(number)?, orders))).collect();
    let queued = join_all(of_shard.iter().map(|(shard, orders)| {
        let ids: Vec<OrderId> = orders.iter().map(|stored| stored.order.id).collect();
        let shard = Shard::clone(shard);
        async move { shard.queued_events(ids).await.ok() }
    }));
    let (queued, group) = tokio::join!(queued, app.stats.group());
    let mut progress = HashMap::new();
    for ((shard, orders), queued) in of_shard.into_iter().zip(queued) {
        for stored in orders {
            let published = published(stored, shard, queued.as_ref());
            let notified = match published {
                PublishedState::Waiting | PublishedState::Refused => NotifiedState::Waiting,
                PublishedState::Unknown => NotifiedState::Unknown,
                PublishedState::Published => {
                    group.as_ref().map_or(NotifiedState::Unknown, |group| notified(stored, shard, group))
                }
            };
            // The feed may have shown the notification of an order that is too recent for the offsets.
            let is_shown = || app.feed.notification(stored.order.id).is_some();
            let (published, notified) = if notified != NotifiedState::Notified && is_shown() {
                (PublishedState::Published, NotifiedState::Notified)
            } else {
                (published, notified)
            };
            progress.insert(stored.order.id, Progress { published, notified });
        }
    }
    progress
}

fn published(stored: &StoredOrder, shard: &Shard, queued: Option<&QueuedEvents>) -> PublishedState {
    let Some(QueuedEvents { waiting, refused, oldest, is_complete }) = queued else {
        return PublishedState::Unknown;
    };
    let order = &stored.order;
    if waiting.contains(&order.id) {
        PublishedState::Waiting
    } else if refused.contains(&order.id) {
        PublishedState::Refused
    } else if *is_complete || oldest.is_none_or(|oldest| order.created_at < oldest.before(shard.longest_wait())) {
        PublishedState::Published
    } else {
        PublishedState::Unknown
    }
}

/// Returns the state of the notification of an order whose event was published. An order counts as notified only once
/// the group has passed what every partition had then: in a topic that has grown, older events of a user are in another
/// partition.
fn notified(stored: &StoredOrder, shard: &Shard, group: &GroupState) -> NotifiedState {
    let (order, index) = (&stored.order, shard.shard().index.get());
    let reaches = |through: Option<Timestamp>| through.is_some_and(|through| order.created_at <= through);
    let is_passed = |partition: &Unhandled| {
        (partition.is_complete && reaches(group.published_through[index])) || reaches(partition.handled_through[index])
    };
    let own = partition::of_user(&order.user_id, group.partitions.len()).map(|partition| &group.partitions[partition]);
    if group.partitions.iter().any(|partition| partition.ids.contains(&order.id)) {
        NotifiedState::Waiting
    } else if own.is_some() && group.partitions.iter().all(is_passed) {
        NotifiedState::Notified
    } else if own.and_then(|own| own.since).is_some_and(|since| order.created_at > since) {
        NotifiedState::Waiting
    } else {
        NotifiedState::Unknown
    }
}
