//! The API as its clients use it: the contracts of the demo, byte for byte where they are visible, and the promises
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
