//! What clients of the API rely on: the contracts of the demo, byte for byte where they are shown, and what was promised
//! beyond them.

mod clients;
mod databases;
mod idempotency;
mod paging;
mod placing;
mod receipts;
mod refusals;
mod stopping;
mod surface;
