//! The environment of the product's programs, and the names of its topic, bucket and group.

use orderflow_testbed::{Kafka, localstack, product::Environment};

pub(super) const TOPIC: &str = "orders";
pub(super) const BUCKET: &str = "order-receipts";
const GROUP: &str = "order-consumer-group";
const OWNER: &str = "local/orderflow";

/// Returns the name of a shard's database.
pub(super) fn database(shard: usize) -> String {
    format!("orders_shard{shard}")
}

/// Returns the variables that every program gets.
pub(super) fn environment(kafka: &Kafka, s3: &str, dsn1: String, dsn2: String) -> Environment {
    [
        ("OWNER", OWNER.to_owned()),
        ("KAFKA_BROKERS", kafka.bootstrap()),
        ("KAFKA_TOPIC", TOPIC.to_owned()),
        ("KAFKA_GROUP_ID", GROUP.to_owned()),
        ("SHARDS", "shard1=A-M,shard2=N-Z".to_owned()),
        ("PG_SHARD1_DSN", dsn1),
        ("PG_SHARD2_DSN", dsn2),
        ("S3_ENDPOINT", s3.to_owned()),
        ("S3_BUCKET", BUCKET.to_owned()),
        ("AWS_REGION", localstack::REGION.to_owned()),
        ("AWS_ACCESS_KEY_ID", localstack::ACCESS_KEY_ID.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", localstack::SECRET_ACCESS_KEY.to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}
