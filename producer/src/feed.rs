//! The feed: the notifications of all users, for the page and other clients. A thread tails their topic (`tail`), cuts
//! them into frames (`frame`), and keeps the latest frames in one ring (`ring`). A stream is only a place in that ring:
//! however many streams there are and however slowly they read, they hold no frames of their own.

mod frame;
mod history;
mod ring;
mod tail;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use axum::body::Bytes;
use orderflow_core::{Notification, OrderId, ShardMap, json};
use tokio::sync::watch;
use uuid::Uuid;

use frame::{Latest, Pending};
use ring::{Next, Place, Refusal, Ring};

pub use tail::Tail;

/// A handle of the feed; clones share its ring.
#[derive(Clone)]
pub struct Feed {
    inner: Arc<Inner>,
}

struct Inner {
    map: ShardMap,
    ring: Mutex<Ring>,
    /// Number of the newest frame; `None` until it is known where the epoch begins on the topic.
    newest: watch::Sender<Option<u64>>,
}

/// One stream of events.
pub struct Stream {
    feed: Feed,
    newest: watch::Receiver<Option<u64>>,
    /// Events to send before any other.
    first: VecDeque<Bytes>,
    /// True until the `recent` event is sent.
    begins: bool,
    place: Place,
}

impl Feed {
    pub fn new(map: ShardMap) -> Self {
        let ring = Mutex::new(Ring::new(Uuid::now_v7()));
        Self { inner: Arc::new(Inner { map, ring, newest: watch::Sender::new(None) }) }
    }

    /// Opens a stream that begins now, or after the frame with this id if the ring still has the next one.
    pub fn stream(&self, last_event_id: Option<&str>) -> Stream {
        let newest = self.inner.newest.subscribe();
        let mut ring = self.ring();
        let resumed = last_event_id.map(|id| ring.resume(id));
        let place = resumed.and_then(Result::ok);
        let total = place.unwrap_or(ring.newest()).total;
        let (epoch, resumes) = (ring.epoch(), place.is_some());
        // The client of a stream that resumes already has the history, and before the epoch begins there is none.
        let begun = newest.borrow().is_some();
        let history = if resumes || !begun { String::new() } else { format!(",\"history\":{}", ring.history()) };
        let hello = format!(
            "event: hello\ndata: {{\"epoch\":\"{epoch}\",\"resumed\":{resumes},\"total\":{total}{history}}}\n\n"
        );
        let mut first = VecDeque::from([Bytes::from(hello)]);
        match resumed {
            Some(Err(Refusal::OtherReplica)) => first.push_back(reset("other-replica")),
            Some(Err(Refusal::TooOld)) => first.push_back(reset("too-old")),
            None | Some(Ok(_)) => {}
        }
        // A new stream starts where the history ends, even if the tail knows its beginning only later: it would
        // otherwise miss frames that were cut in between.
        let begins = place.is_none();
        let place = place.unwrap_or_else(|| ring.newest());
        drop(ring);
        Stream { feed: self.clone(), newest, first, begins, place }
    }

    /// Returns true once it is known where the epoch begins on the topic.
    fn has_begun(&self) -> bool {
        self.inner.newest.borrow().is_some()
    }

    pub fn epoch(&self) -> Uuid {
        self.ring().epoch()
    }

    /// Returns the notifications since the epoch began, and per second over the last 10 s.
    pub fn figures(&self) -> (u64, f64) {
        let mut ring = self.ring();
        (ring.newest().total, ring.pace(Instant::now()))
    }

    /// Returns the notification of an order, if it is one of the latest that were shown.
    pub fn notification(&self, order_id: OrderId) -> Option<Notification> {
        json::from_object(self.ring().find(order_id)?.as_bytes()).ok()
    }

    /// Begins the epoch after these notifications: from now on streams have a place. `gap`: others were missed before.
    fn begin(&self, latest: Latest, gap: bool) {
        let mut ring = self.ring();
        ring.begin(latest);
        if gap {
            ring.gap();
        }
        self.inner.newest.send_replace(Some(ring.newest().number));
    }

    fn push(&self, pending: &Pending) {
        let mut ring = self.ring();
        ring.push(pending, &self.inner.map, Instant::now());
        self.inner.newest.send_replace(Some(ring.newest().number));
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.inner.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stream {
    /// Returns the next event, as it is sent. Cancel-safe.
    pub async fn next(&mut self) -> Bytes {
        loop {
            if let Some(event) = self.first.pop_front() {
                return event;
            }
            if self.begins {
                // The feed outlives its streams.
                let _ = self.newest.wait_for(Option::is_some).await;
                self.begins = false;
                return self.feed.ring().recent().render();
            }
            self.newest.mark_unchanged();
            let next = self.feed.ring().after(self.place);
            match next {
                Next::Nothing => {
                    let _ = self.newest.changed().await;
                }
                Next::Frame(text, after) => {
                    self.place = after;
                    return text;
                }
                Next::Lagged { missed, newest } => {
                    self.place = newest;
                    self.first.push_back(format!("event: lagged\ndata: {{\"missed\":{missed}}}\n\n").into());
                    self.first.push_back(reset("lagged"));
                }
            }
        }
    }
}

fn reset(reason: &str) -> Bytes {
    format!("event: reset\ndata: {{\"reason\":\"{reason}\"}}\n\n").into()
}
