//! Pipelines for tests, made as in production: from a spec and its Secrets.

use k8s_openapi::serde::Serialize;
use serde_json::{Value, json};

use super::{Children, ConsumerChildren, ProducerChildren, config_hash};
use crate::{
    condition::Problem,
    crd::OrderFlowSpec,
    pipeline::{Adoption, Identity, Images, Pipeline},
    reconcile::{backends::Backends, dereference::Secrets, validate},
};

/// All Secrets that the specs here name: name, key, value.
pub const SECRETS: [(&str, &str, &str); 9] = [
    ("postgres-shard1", "dsn", "postgres://orderflow:hunter2@postgres-shard1:5432/orders"),
    ("postgres-shard1", "ca.crt", CA),
    ("postgres-shard2", "dsn", "postgres://orderflow:swordfish@postgres-shard2:5433/orders"),
    ("s3-credentials", "AWS_ACCESS_KEY_ID", "AKIAEXAMPLE"),
    ("s3-credentials", "AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI"),
    ("s3-credentials", "AWS_SESSION_TOKEN", "FwoGZXIvYXdzE"),
    ("kafka-ca", "ca.crt", CA),
    ("kafka-user", "username", "kafka-user-name"),
    ("kafka-user", "password", "correct-horse"),
];

/// Returns the pipeline of the README's example, with `changes` to its spec (a JSON merge patch).
pub fn pipeline(changes: &Value) -> Pipeline {
    pipeline_with(changes, &Secrets::new(SECRETS))
}

pub fn pipeline_with(changes: &Value, secrets: &Secrets) -> Pipeline {
    try_pipeline(changes, secrets).expect("the spec is valid")
}

pub fn try_pipeline(changes: &Value, secrets: &Secrets) -> Result<Pipeline, Problem> {
    let identity = Identity {
        namespace: "store".to_owned(),
        name: "shop".to_owned(),
        uid: "4f3c0c2e-6a52-4c0f-9b0e-0d3a6f1f2b11".to_owned(),
        generation: 1,
    };
    let images =
        Images { producer: "orderflow-producer:0.1.0".to_owned(), consumer: "orderflow-consumer:0.1.0".to_owned() };
    validate::validate(identity, Adoption::default(), &spec(changes), secrets, &images, &Backends::default())
}

/// Returns a pipeline that uses every option of the spec.
pub fn everything() -> Pipeline {
    let pipeline = pipeline(&everything_changes());
    assert_eq!(pipeline.unresolved(), None);
    pipeline
}

pub fn everything_changes() -> Value {
    json!({
        "shards": [
            {"name": "shard1", "users": "A-M", "dsnSecretRef": {"name": "postgres-shard1", "key": "dsn"},
                "caSecretRef": {"name": "postgres-shard1", "key": "ca.crt"}},
            {"name": "shard2", "users": "N-Z", "dsnSecretRef": {"name": "postgres-shard2", "key": "dsn"}},
        ],
        "topic": {
            "tls": {"caSecretRef": {"name": "kafka-ca", "key": "ca.crt"}},
            "sasl": {"mechanism": "SCRAM-SHA-512", "secretRef": {"name": "kafka-user"}},
        },
        "producer": {
            "replicas": null,
            "autoscaling": {"min": 2, "max": 5},
            "serviceAccount": {"annotations": {"example.com/role": "producer"}},
        },
        "traces": {
            "endpoint": "http://otel-collector.monitoring:4318/",
            "samplePercent": 25,
            "urlTemplate": "https://jaeger.example.com/trace/{trace_id}",
        },
        "networkPolicy": {
            "kafka": [{"podSelector": {"matchLabels": {"strimzi.io/cluster": "orderflow"}}}],
            "postgres": [{"ipBlock": {"cidr": "10.1.0.0/16"}}],
        },
    })
}

pub fn spec(changes: &Value) -> OrderFlowSpec {
    let mut spec = json!({
        "shards": [
            {"name": "shard1", "users": "A-M", "dsnSecretRef": {"name": "postgres-shard1", "key": "dsn"}},
            {"name": "shard2", "users": "N-Z", "dsnSecretRef": {"name": "postgres-shard2", "key": "dsn"}},
        ],
        "bucket": {
            "name": "order-receipts",
            "endpoint": "http://localstack:4566",
            "credentialsSecretRef": {"name": "s3-credentials"},
        },
        "topic": {"name": "orders", "bootstrapServers": "orderflow-kafka-bootstrap:9092"},
        "producer": {"replicas": 2},
        "consumer": {"replicas": 2},
    });
    merge(&mut spec, changes);
    serde_json::from_value(spec).expect("the spec fits its definition")
}

/// Applies a JSON merge patch (RFC 7386).
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let target = target.as_object_mut().expect("it was made an object above");
    for (name, value) in patch {
        if value.is_null() {
            target.remove(name);
        } else {
            merge(target.entry(name).or_insert(Value::Null), value);
        }
    }
}

pub fn key() -> config_hash::Key {
    config_hash::Key::new(b"0123456789abcdef0123456789abcdef".to_vec())
}

pub fn build(pipeline: &Pipeline) -> Children {
    super::build(pipeline, &key())
}

/// Returns all children, as they are sent.
pub fn objects(children: &Children) -> Vec<Value> {
    fn sent(object: &impl Serialize) -> Value {
        serde_json::to_value(object).expect("a Kubernetes object is JSON")
    }
    let Children { producer, consumer } = children;
    let ProducerChildren {
        service_account,
        service,
        internal_service,
        deployment,
        disruption_budget,
        autoscaler,
        network_policy,
    } = producer;
    let producer_objects = [
        Some(sent(service_account)),
        Some(sent(service)),
        Some(sent(internal_service)),
        Some(sent(deployment)),
        Some(sent(disruption_budget)),
        autoscaler.as_ref().map(sent),
        network_policy.as_ref().map(sent),
    ];
    let ConsumerChildren { service_account, deployment, disruption_budget, network_policy } = consumer;
    let consumer_objects = [
        Some(sent(service_account)),
        Some(sent(deployment)),
        Some(sent(disruption_budget)),
        network_policy.as_ref().map(sent),
    ];
    producer_objects.into_iter().chain(consumer_objects).flatten().collect()
}

/// A certificate that no server uses, valid in form.
const CA: &str = "\
-----BEGIN CERTIFICATE-----
MIIBiTCCAS+gAwIBAgIUbXVjppxW/aC05BTgv+JtXEH86kUwCgYIKoZIzj0EAwIw
GTEXMBUGA1UEAwwOdGVzdCBhdXRob3JpdHkwIBcNMjYxMTIyMjI1MzIzWhgPMjEy
NjEwMjkyMjUzMjNaMBkxFzAVBgNVBAMMDnRlc3QgYXV0aG9yaXR5MFkwEwYHKoZI
zj0CAQYIKoZIzj0DAQcDQgAE4PvWUJuTZK/R6YjMA5sB5Ca2jghK0bmr6/df4xCx
5OkZPbXV+lro1TP5Mr+cWhCqXk9OVYR7e7bOjs+8rsLr56NTMFEwHQYDVR0OBBYE
FJzcI811gER1JqS7JfouvZKEkjxuMB8GA1UdIwQYMBaAFJzcI811gER1JqS7Jfou
vZKEkjxuMA8GA1UdEwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDSAAwRQIgdZp5c0l6
G7b2lbtJr1dSaVGOOWnSETYdiaBV9wM+5fcCIQCVRIWa8ifMn+zywA/YQkymFy/3
mAwjjV8bqneWru1GbQ==
-----END CERTIFICATE-----
";
