//! The findings of `verify` about an order, its receipt, its event and its notification.

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

    /// Returns true if a repair queues it again.
    pub fn is_repaired(self) -> bool {
        matches!(
            self,
            Self::Receipt(Receipt::Missing | Receipt::Different)
                | Self::Event(Event::Missing)
                | Self::Notification(Notification::Missing)
        )
    }

    /// Returns true if only a person can know that no notification was sent.
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

    /// Returns true if the report shows examples.
    pub fn is_shown(self) -> bool {
        self.is_wrong() || matches!(self, Self::Event(Event::Refused) | Self::Notification(Notification::DeadLetter))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Receipt {
    Stored,
    /// The receipt is still to be written.
    Pending,
    Missing,
    /// The object's length is not that of the order's receipt.
    Different,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    Published,
    /// The event is in the outbox.
    Waiting,
    /// Kafka refused the event; it is in `outbox_dead`.
    Refused,
    Missing,
    /// The event is older than the topic's retention.
    Expired,
    /// The event is younger than that, but the topic does not reach back to it: it was deleted or truncated.
    Deleted,
    Twice,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Notification {
    Sent,
    /// The event is not published yet, or the consumers have not reached it.
    Waiting,
    /// The event is a dead letter: no consumer could read it.
    DeadLetter,
    /// The event is not in Kafka.
    NoEvent,
    Missing,
    /// The event is older than the notifications' retention.
    Expired,
    /// The event is younger than that, but the notifications do not reach back to it.
    Deleted,
    Twice,
}

/// The place of a record, and the time at which it was produced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub partition: i32,
    pub offset: i64,
    pub produced_at: Timestamp,
}

/// Records of orders that no shard has.
#[derive(Default)]
pub struct Unknown {
    /// Numbers of records, by the shard of their users.
    pub counts: BTreeMap<usize, u64>,
    pub first: Vec<OrderId>,
}
