//! The bounded queue between the requests and the writers of one shard, and the ticket that settles, once, whether an
//! order was taken by a writer or withdrawn by its request.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use orderflow_core::{Fingerprint, IdempotencyKey, Order};
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::Instant,
};

use super::{PlaceError, Placed};

/// An order on its way to the database.
pub struct Submission {
    pub order: Order,
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

/// The receiving end, shared by the writers of a shard.
pub type Submissions = Arc<Mutex<mpsc::Receiver<Submission>>>;

pub fn bounded(capacity: usize) -> (mpsc::Sender<Submission>, Submissions) {
    let (sender, receiver) = mpsc::channel(capacity);
    (sender, Arc::new(Mutex::new(receiver)))
}

const WAITING: u8 = 0;
const TAKEN: u8 = 1;
const WITHDRAWN: u8 = 2;

/// The state of a submission: waiting → taken, or waiting → withdrawn; never both.
#[derive(Clone, Default)]
pub struct Ticket(Arc<AtomicU8>);

impl Ticket {
    /// Takes the order, for a writer. Returns false if the request has withdrawn it.
    pub fn take(&self) -> bool {
        self.leave_waiting(TAKEN)
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
