//! The charts with the real Helm, on a real API server with real controllers. Their manifests are accepted, their
//! promises about upgrades and removal hold, and they grant the permissions that the real operator needs.
//!
//! No node runs, so no pod does: where one must, a test plays its part, and its comment says so.

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
