//! The bounded queue between the requests and the writers of one shard, and the ticket that settles, once, whether an
//! order was taken by a writer or withdrawn by its request.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use orderflow_core::{Fingerprint, IdempotencyKey, MapEpoch, Order, RangeId};
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::Instant,
};

use super::{PlaceError, Placed};

/// The place of an order in the shard map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    pub epoch: MapEpoch,
    pub range: RangeId,
}

/// An order on its way to the database.
pub struct Submission {
    pub order: Order,
    /// The route for which its event is encoded.
    pub route: Route,
    /// True after a try with an unknown outcome: a later refusal proves nothing, because that try may have stored it.
    pub is_unknown: bool,
    pub key: Option<IdempotencyKey>,
    pub fingerprint: Fingerprint,
    /// The event, encoded.
    pub payload: Vec<u8>,
    /// W3C trace context.
    pub traceparent: String,
    /// The time at which it was queued.
    pub queued: Instant,
    /// The time at which its request gives up.
    pub deadline: Instant,
    pub ticket: Ticket,
    pub reply: oneshot::Sender<Result<Placed, PlaceError>>,
}

/// The receiving ends, shared by the writers of a shard.
pub struct Submissions {
    new: mpsc::Receiver<Submission>,
    /// Orders that another shard did not take. They come first, and beyond the bound: it held when they were new.
    moved: mpsc::UnboundedReceiver<Submission>,
}

/// The sending ends: for new orders, and for moved ones.
pub type Senders = (mpsc::Sender<Submission>, mpsc::UnboundedSender<Submission>);

pub fn bounded(capacity: usize) -> (Senders, Arc<Mutex<Submissions>>) {
    let (new_sender, new) = mpsc::channel(capacity);
    let (moved_sender, moved) = mpsc::unbounded_channel();
    ((new_sender, moved_sender), Arc::new(Mutex::new(Submissions { new, moved })))
}

impl Submissions {
    /// Waits for orders, and takes at most `most`. Returns 0 when no new ones can come and the others are taken.
    pub async fn receive(&mut self, batch: &mut Vec<Submission>, most: usize) -> usize {
        while batch.len() < most {
            let Ok(moved) = self.moved.try_recv() else { break };
            batch.push(moved);
        }
        if !batch.is_empty() {
            return batch.len();
        }
        tokio::select! {
            biased;
            Some(moved) = self.moved.recv() => {
                batch.push(moved);
                1
            }
            count = self.new.recv_many(batch, most) => count,
        }
    }

    /// Returns the number of new orders that wait.
    pub fn len(&self) -> usize {
        self.new.len()
    }
}

const WAITING: u8 = 0;
const TAKEN: u8 = 1;
const WITHDRAWN: u8 = 2;

/// The state of a submission: waiting → taken, or waiting → withdrawn; never both.
#[derive(Clone, Default)]
pub struct Ticket(Arc<AtomicU8>);

impl Ticket {
    /// Lets the request withdraw the order again, because no database has stored it.
    pub fn give_back(&self) {
        self.0.store(WAITING, Ordering::Release);
    }

    /// Takes the order, for a writer. Returns false if the request has withdrawn it. A moved order that may be stored
    /// stays taken.
    pub fn take(&self) -> bool {
        self.leave_waiting(TAKEN) || self.0.load(Ordering::Acquire) == TAKEN
    }

    pub fn withdraw_on_drop(self) -> Withdrawal {
        Withdrawal(self)
    }

    fn leave_waiting(&self, to: u8) -> bool {
        self.0.compare_exchange(WAITING, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// The request's end of a ticket.
pub struct Withdrawal(Ticket);

impl Withdrawal {
    /// Withdraws the order. Returns true if it was still waiting, so that it will certainly not be stored.
    pub fn withdraw(&self) -> bool {
        self.0.leave_waiting(WITHDRAWN)
    }
}

impl Drop for Withdrawal {
    fn drop(&mut self) {
        self.withdraw();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_taken_or_withdrawn_and_never_both() {
        let ticket = Ticket::default();
        assert!(ticket.take());
        assert!(!ticket.clone().withdraw_on_drop().withdraw());

        let ticket = Ticket::default();
        drop(ticket.clone().withdraw_on_drop());
        assert!(!ticket.take());
    }
}
