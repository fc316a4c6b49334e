//! Renders the reference pages of the book from the code: settings, the OrderFlow resource, the API, metrics, topics, tables
//! and bounds. Everything here is pure and returns the same text for the same code. The tests compare the pages in
//! `docs/reference` with it; with `UPDATE_REFERENCE=1` they rewrite the pages.
//!
//! No product code depends on this crate.

#![forbid(unsafe_code)]

pub mod api;
pub mod bounds;
pub mod metrics;
pub mod orderflow;
pub mod schema;
pub mod settings;
pub mod table;
pub mod tables;
pub mod topics;

/// Rewrites the pages.
pub const UPDATE: &str = "UPDATE_REFERENCE=1 cargo test -p orderflow-reference --test reference";

/// Returns the head of a page: its title, the note that it is generated, and who needs it.
fn head(title: &str, who: &str) -> String {
    format!("# {title}\n\n<!-- Generated from the code. To update it, run: {UPDATE} -->\n\n{who}\n")
}
