//! The dashboard in a real browser, on the real pipeline: a person's actions and what the page shows, also during
//! faults.
//!
//! At the end of each test the browser must have reported nothing: no error, no violation of the page's policy, no
//! request to another origin.

mod accessibility;
mod burst;
mod console;
mod controls;
mod dead_letters;
mod dots;
mod earlier;
mod feed;
mod hostile;
mod ordering;
mod outages;
mod page;
mod reference;
mod screenshots;
mod search;
mod support;
mod trace;
mod up;
