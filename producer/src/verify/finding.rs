//! What `verify` can find about an order, its receipt, its event and its notification.

use std::collections::BTreeMap;

use orderflow_core::{OrderId, Timestamp};

/// Orders shown as examples of each finding.
pub const EXAMPLES: usize = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    Order,
    Receipt(Receipt),
    Event(Event),
    UnknownEvent,
    Notification(Notification),
    UnknownNotification,
}

impl Finding {
    pub const ALL: [Self; 22] = [
        Self::Order,
        Self::Receipt(Receipt::Stored),
        Self::Receipt(Receipt::Pending),
        Self::Receipt(Receipt::Missing),
        Self::Receipt(Receipt::Different),
        Self::Event(Event::Published),
        Self::Event(Event::Waiting),
        Self::Event(Event::Refused),
        Self::Event(Event::Missing),
        Self::Event(Event::Expired),
        Self::Event(Event::Deleted),
        Self::Event(Event::Twice),
        Self::UnknownEvent,
        Self::Notification(Notification::Sent),
        Self::Notification(Notification::Waiting),
        Self::Notification(Notification::DeadLetter),
        Self::Notification(Notification::NoEvent),
        Self::Notification(Notification::Missing),
        Self::Notification(Notification::Expired),
        Self::Notification(Notification::Deleted),
        Self::Notification(Notification::Twice),
        Self::UnknownNotification,
    ];

    pub fn part(self) -> &'static str {
        match self {
            Self::Order => "orders",
            Self::Receipt(_) => "receipts",
            Self::Event(_) | Self::UnknownEvent => "events",
            Self::Notification(_) | Self::UnknownNotification => "notifications",
        }
    }

    pub fn label(self) -> &'static str {
        match self {
            Self::Order => "",
            Self::Receipt(Receipt::Stored) => "stored",
            Self::Receipt(Receipt::Pending) => "pending",
            Self::Receipt(Receipt::Different) => "different",
            Self::Event(Event::Published) => "published",
            Self::Event(Event::Waiting) | Self::Notification(Notification::Waiting) => "waiting",
            Self::Event(Event::Refused) => "refused by Kafka",
            Self::Receipt(Receipt::Missing)
            | Self::Event(Event::Missing)
            | Self::Notification(Notification::Missing) => "missing",
            Self::Event(Event::Expired) | Self::Notification(Notification::Expired) => "expired",
            Self::Event(Event::Deleted) | Self::Notification(Notification::Deleted) => "deleted",
            Self::Event(Event::Twice) | Self::Notification(Notification::Twice) => "twice",
            Self::Notification(Notification::Sent) => "sent",
            Self::Notification(Notification::DeadLetter) => "dead letter",
            Self::Notification(Notification::NoEvent) => "without event",
            Self::UnknownEvent | Self::UnknownNotification => "of no order",
        }
    }

    /// Returns whether a repair queues it again.
    pub fn is_repaired(self) -> bool {
        matches!(
            self,
            Self::Receipt(Receipt::Missing | Receipt::Different)
                | Self::Event(Event::Missing)
                | Self::Notification(Notification::Missing)
        )
    }

    /// Returns whether only a person can know that no notification was sent.
    pub fn is_deleted(self) -> bool {
        matches!(self, Self::Event(Event::Deleted) | Self::Notification(Notification::Deleted))
    }

    pub fn is_wrong(self) -> bool {
        let is_too_much = matches!(
            self,
            Self::Event(Event::Twice)
                | Self::Notification(Notification::Twice)
                | Self::UnknownEvent
                | Self::UnknownNotification
        );
        is_too_much || self.is_repaired() || self.is_deleted()
    }

    /// Returns whether the report shows examples.
    pub fn is_shown(self) -> bool {
        self.is_wrong() || matches!(self, Self::Event(Event::Refused) | Self::Notification(Notification::DeadLetter))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Receipt {
    Stored,
    /// Still to be written.
    Pending,
    Missing,
    /// Its length is not that of the order's receipt.
    Different,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    Published,
    /// In the outbox.
    Waiting,
    /// Refused by Kafka, in `outbox_dead`.
    Refused,
    Missing,
    /// Older than the topic's retention.
    Expired,
    /// Younger than that, and the topic does not reach back to it: somebody deleted or cut it.
    Deleted,
    Twice,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Notification {
    Sent,
    /// Of an event that the consumers have not come to, or that is not published yet.
    Waiting,
    /// Of an event that no consumer could read.
    DeadLetter,
    /// Of an event that is not in Kafka.
    NoEvent,
    Missing,
    /// Its event is older than the notifications' retention.
    Expired,
    /// Younger than that, and the notifications do not reach back to it.
    Deleted,
    Twice,
}

/// A record's place, and when it was produced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub partition: i32,
    pub offset: i64,
    pub produced_at: Timestamp,
}

/// Records of orders that no shard has.
#[derive(Default)]
pub struct Unknown {
    /// By the shard of their users.
    pub counts: BTreeMap<usize, u64>,
    pub first: Vec<OrderId>,
}
