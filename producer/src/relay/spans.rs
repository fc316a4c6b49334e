//! The spans of a transaction of the relay: one for each recorded order, whose context its event carries on, and one for
//! the batch.

use std::collections::HashMap;

use orderflow_service::traces::{
    self, Builder, KeyValue, Span, SpanKind,
    messaging::{self, Operation},
};

use super::outbox::OutboxRow;

/// The spans of one try to publish a batch. They end when they are dropped.
#[derive(Default)]
pub struct Spans {
    batch: Option<Span>,
    /// The span of each recorded order, by its position in the batch.
    orders: HashMap<usize, Span>,
}

impl Spans {
    pub fn start(topic: &str, batch: &[OutboxRow]) -> Self {
        if !traces::is_on() {
            return Self::default();
        }
        let recorded = |(position, row): (usize, &OutboxRow)| {
            Some((position, row.event_id, traces::recorded(row.traceparent.as_deref())?))
        };
        let recorded: Vec<_> = batch.iter().enumerate().filter_map(recorded).collect();
        if recorded.is_empty() {
            return Self::default();
        }
        let contexts: Vec<_> = recorded.iter().map(|(.., order)| order.clone()).collect();
        let mut sent =
            Builder::batch_continuation(messaging::name(Operation::Send, topic), SpanKind::Client, &contexts).start();
        if let Some(sent) = &mut sent {
            sent.set(messaging::of_topic(Operation::Send, topic));
            sent.set([messaging::batch(batch.len())]);
        }
        let mut orders = HashMap::new();
        for (position, event_id, order) in recorded {
            let name = messaging::name(Operation::Publish, topic);
            let mut publish = Builder::continuation(name, SpanKind::Producer, order);
            if let Some(sent) = &sent {
                publish = publish.linked(sent.context().clone());
            }
            if let Some(mut publish) = publish.start() {
                publish.set(messaging::of_topic(Operation::Publish, topic));
                publish.set([KeyValue::new("messaging.message.id", event_id.to_string())]);
                orders.insert(position, publish);
            }
        }
        Self { batch: sent, orders }
    }

    /// Returns the context that the event at `position` carries, if it is another than the stored one.
    pub fn traceparent(&self, position: usize) -> Option<String> {
        self.orders.get(&position).filter(|span| span.is_recorded()).map(|span| traces::format(span.context()))
    }

    /// Marks all as failed: nothing was published, or that is not known.
    pub fn fail(&mut self, kind: &'static str, reason: &str) {
        for span in self.batch.iter_mut().chain(self.orders.values_mut()) {
            span.fail(kind, reason);
        }
    }
}
