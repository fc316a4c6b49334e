//! The spans of a transaction of the consumer. For each recorded event: its processing, a child of its publication, and
//! the publication of what it became, whose context the record carries on. One more for the batch.

use std::collections::HashMap;

use orderflow_core::event;
use orderflow_service::{
    kafka::header,
    traces::{
        self, Builder, Context, KeyValue, Span, SpanKind,
        messaging::{self, Operation},
    },
};
use rdkafka::Message;

/// The spans of one try to settle a batch. They end when they are dropped.
#[derive(Default)]
pub struct Spans {
    batch: Option<Span>,
    /// The spans of each recorded event, by its position in the batch.
    events: HashMap<usize, Event>,
}

struct Event {
    process: Span,
    publish: Option<Span>,
}

impl Spans {
    pub fn start<M: Message>(batch: &[M], topic: &str, group: &str) -> Self {
        if !traces::is_on() {
            return Self::default();
        }
        let mut spans = Self::default();
        let mut published = Vec::new();
        for (position, record) in batch.iter().enumerate() {
            let traceparent = header::last_text(record.headers(), event::header::TRACEPARENT);
            let Some(order) = traces::recorded(traceparent) else { continue };
            published.push(order.clone());
            let name = messaging::name(Operation::Process, topic);
            let Some(mut process) = Builder::continuation(name, SpanKind::Consumer, order).start() else { continue };
            process.set(messaging::of_topic(Operation::Process, topic));
            process.set(messaging::group(group));
            process.set(messaging::place(record.partition(), Some(record.offset())));
            spans.events.insert(position, Event { process, publish: None });
        }
        if !published.is_empty() {
            spans.batch =
                Builder::batch_continuation("settle batch".to_owned(), SpanKind::Internal, &published).start();
            if let Some(span) = &mut spans.batch {
                span.set([messaging::batch(batch.len())]);
                span.set(messaging::group(group));
            }
        }
        spans
    }

    /// Starts the publication of what the event at `position` became, and returns the `traceparent` of its record.
    pub fn publish(&mut self, position: usize, topic: &str, partition: i32) -> Option<String> {
        let event = self.events.get_mut(&position)?;
        let name = messaging::name(Operation::Publish, topic);
        let mut publish = Builder::step(name, SpanKind::Producer, event.process.context().clone());
        if let Some(batch) = &self.batch {
            publish = publish.linked(batch.context().clone());
        }
        let mut publish = publish.start()?;
        publish.set(messaging::of_topic(Operation::Publish, topic));
        publish.set(messaging::place(partition, None));
        let traceparent = publish.is_recorded().then(|| traces::format(publish.context()));
        event.publish = Some(publish);
        traceparent
    }

    /// Adds the order of an event that could be read.
    pub fn order(&mut self, position: usize, order_id: &impl ToString) {
        if let Some(event) = self.events.get_mut(&position) {
            event.process.set([KeyValue::new("orderflow.order.id", order_id.to_string())]);
        }
    }

    /// Marks an event that could not be read.
    pub fn unreadable(&mut self, position: usize, reason: &str) {
        if let Some(event) = self.events.get_mut(&position) {
            event.process.fail("unreadable", reason);
        }
    }

    /// Marks all as failed: the transaction was aborted, or its outcome is unknown.
    pub fn fail(&mut self, reason: &str) {
        let events = self.events.values_mut();
        let of_events = events.flat_map(|event| [Some(&mut event.process), event.publish.as_mut()]).flatten();
        for span in self.batch.iter_mut().chain(of_events) {
            span.fail("transaction", reason);
        }
    }

    /// Returns a context in which log lines have the ids of the event at `position`.
    pub fn log_context(&self, position: usize) -> Option<Context> {
        self.events.get(&position).map(|event| traces::log_context(event.process.context()))
    }
}
