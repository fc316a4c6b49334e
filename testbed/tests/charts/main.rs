//! The charts with the real Helm, on a real API server with real controllers: what they render is accepted, what they promise of
//! upgrades and removal holds, and the rights that they give are those that the real operator needs.
//!
//! There is no node, so no pod runs: where it matters that one did, a test plays its part and says so.

mod backing;
mod control_plane;
mod controls;
mod examples;
mod files;
mod manifests;
mod programs;
mod releases;
mod schema;
mod site;
mod values;
