//! The dashboard in a real browser, on the real pipeline: what a person does and sees, also when things break.
//!
//! At the end of each test the browser must have had nothing to complain about: no error, no breach of the page's policy,
//! no request to another origin.

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
mod screenshots;
mod search;
mod support;
mod up;
