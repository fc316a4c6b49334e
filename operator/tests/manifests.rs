//! The chart installs the definition and the permissions that the code has.
//!
//! After a change: `UPDATE_MANIFESTS=1 cargo test -p orderflow-operator --test manifests`, then review the difference.

use std::path::Path;

use orderflow_operator::{
    crd,
    permissions::{self, OWN, WATCHED},
};

fn expect(file: &str, made: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/orderflow-operator").join(file);
    if std::env::var_os("UPDATE_MANIFESTS").is_some() {
        std::fs::write(&path, made).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
    assert!(
        kept == made,
        "charts/orderflow-operator/{file} differs from what the code generates: run \
         UPDATE_MANIFESTS=1 cargo test -p orderflow-operator --test manifests"
    );
}

#[test]
fn the_chart_has_the_definition() {
    expect("files/definition.yaml", &crd::definition_yaml());
}

#[test]
fn the_chart_has_the_permissions() {
    expect("files/watched-rules.yaml", &permissions::rules_yaml(WATCHED));
    expect("files/own-rules.yaml", &permissions::rules_yaml(OWN));
}
