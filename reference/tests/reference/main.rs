//! Checks that the reference pages of the book match the code.
//!
//! After a change, run `UPDATE_REFERENCE=1 cargo test -p orderflow-reference --test reference`, then read the difference.
//! The section of the tables comes from a real database: `testbed/tests/pipeline/tables.rs` checks it.

mod bounds;
#[path = "../common/mod.rs"]
mod common;
mod metrics;
mod settings;

use orderflow_core::Topics;
use orderflow_producer::PROBLEM_KINDS;
use orderflow_provision::{Adopt, topics};
use orderflow_reference::{UPDATE, api, orderflow, tables};

/// Compares a page with `made`, or rewrites it.
fn check(page: &str, made: &str) {
    let name = format!("docs/reference/{page}");
    let path = common::root().join(&name);
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    if std::env::var_os("UPDATE_REFERENCE").is_some() && kept != made {
        std::fs::write(&path, made).unwrap_or_else(|error| panic!("write {name}: {error}"));
    } else {
        assert!(kept == made, "{name} does not match the code. Run: {UPDATE}");
    }
}

#[test]
fn the_page_of_settings_matches_the_code() {
    check("settings.md", &settings::page());
}

#[test]
fn the_page_of_the_resource_matches_the_code() {
    check("orderflow.md", &orderflow::page());
}

#[test]
fn the_page_of_the_api_matches_the_code() {
    let document = serde_json::to_value(orderflow_producer::openapi()).expect("the document is JSON");
    let public = serde_json::to_value(orderflow_producer::public_openapi()).expect("the document is JSON");
    check("api.md", &api::page(&document, &public, PROBLEM_KINDS));
}

#[test]
fn the_page_of_metrics_matches_the_code() {
    check("metrics.md", &metrics::page());
}

#[test]
fn the_page_of_bounds_matches_the_code() {
    check("bounds.md", &bounds::page());
}

/// Leaves the section of the tables as it is.
#[test]
fn the_section_of_topics_matches_the_code() {
    const PAGE: &str = "topics-and-tables.md";
    const EVENTS: &str = "orders";
    let wanted = topics::Wanted {
        topics: Topics::named(EVENTS),
        partitions: 6,
        shards: 2,
        replication_factor: None,
        retention: topics::RETENTION,
        owner: "local/orderflow".to_owned(),
        adopt: Adopt::Nothing,
    };
    let planned = topics::planned(&wanted).into_iter().map(|topic| orderflow_reference::topics::Topic {
        name: topic.name,
        partitions: topic.partitions,
        settings: topic
            .settings
            .into_iter()
            .map(|setting| (setting.name.to_owned(), setting.value, setting.is_minimum))
            .collect(),
    });
    let planned: Vec<_> = planned.collect();
    let kept = std::fs::read_to_string(common::root().join("docs/reference").join(PAGE)).unwrap_or_default();
    check(PAGE, &tables::with_topics(&kept, EVENTS, &planned));
}
