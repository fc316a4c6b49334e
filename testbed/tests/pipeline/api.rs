//! What clients of the API rely on: the contracts of the demo, byte for byte where they are shown, and what was promised
//! beyond them.

mod databases;
mod idempotency;
mod paging;
mod placing;
mod receipts;
mod stopping;
mod surface;
