//! Checks that the definition of the resource accepts the examples.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use kube_cel::Validator;
use orderflow_operator::{
    crd::{self, OrderFlow},
    reconcile::dereference,
};
use serde_json::Value;

const EXAMPLES: [&str; 3] = ["examples/orderflow.yaml", "examples/autoscaled.yaml", "examples/production.yaml"];

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(file(name)).unwrap_or_else(|error| panic!("read {name}: {error}"))
}

/// Returns the objects of an example.
fn example(name: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&read(name)).unwrap_or_else(|error| panic!("{name} is no YAML: {error}"))
}

fn orderflow(objects: &[Value]) -> &Value {
    objects.iter().find(|object| object["kind"] == "OrderFlow").expect("an OrderFlow is in the example")
}

#[test]
fn the_examples_fit_the_definition() {
    for name in EXAMPLES {
        let objects = example(name);
        let written = orderflow(&objects);
        let read: OrderFlow = serde_json::from_value(written.clone()).expect("the OrderFlow can be read");
        let kept = serde_json::to_value(&read).expect("an OrderFlow is JSON");
        assert!(is_part_of(written, &kept), "a field of {name} is unknown:\n{written:#}\n{kept:#}");

        let definition = serde_json::to_value(crd::definition()).expect("the definition is JSON");
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        // The API server fills in the defaults before it validates, so validate the object with them.
        Validator::new().validate(schema, &kept, None).unwrap_or_else(|errors| panic!("{name}: {errors:?}"));
    }
}

#[test]
fn the_example_for_production_has_every_secret_that_its_orderflow_names() {
    let objects = example("examples/production.yaml");
    let flow: OrderFlow = serde_json::from_value(orderflow(&objects).clone()).expect("the OrderFlow can be read");
    let secrets: BTreeMap<&str, &Value> = objects
        .iter()
        .filter(|object| object["kind"] == "Secret")
        .filter_map(|secret| Some((secret["metadata"]["name"].as_str()?, &secret["stringData"])))
        .collect();
    assert_eq!(secrets.keys().copied().collect::<BTreeSet<_>>(), dereference::names(&flow.spec));
    let shards = flow.spec.shards.iter().flat_map(|shard| [Some(&shard.dsn_secret_ref), shard.ca_secret_ref.as_ref()]);
    let kafka_ca = flow.spec.topic.tls.as_ref().and_then(|tls| tls.ca_secret_ref.as_ref());
    for key in shards.chain([kafka_ca]).flatten() {
        assert!(secrets[key.name.as_str()][&key.key].is_string(), "Secret {} has no key {}", key.name, key.key);
    }
    let user = flow.spec.topic.sasl.expect("the example logs in to Kafka").secret_ref.name;
    assert!(secrets[user.as_str()]["password"].is_string(), "Secret {user} has no key password");
}

/// Checks that everything in `one` is also in `other`.
fn is_part_of(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            one.iter().all(|(name, value)| other.get(name).is_some_and(|other| is_part_of(value, other)))
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && std::iter::zip(one, other).all(|(one, other)| is_part_of(one, other))
        }
        _ => one == other,
    }
}
