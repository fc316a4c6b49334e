//! The table that `up` prints after its start: all addresses, and commands to inspect the services, ready to be copied.

use std::path::Path;

use anyhow::Result;
use orderflow_testbed::{localstack, tools};

use crate::{
    environment::{BUCKET, TOPIC, database},
    home::Home,
    running::{Addresses, Running},
    table::aligned,
};

/// Returns the table, followed by what is kept and how to stop.
pub(super) fn table(running: &Running, home: &Home) -> Result<String> {
    let Addresses { producer: url, producer_admin: admin_url, consumer_admin: consumer_admin_url, controls } =
        &running.addresses;
    let (endpoint, bootstrap) = (running.localstack.endpoint(), running.kafka.bootstrap());
    let mut rows = vec![
        row("Dashboard", format!("{url}/")),
        row("API", format!("{url}/api/orders")),
        row("Health, metrics", format!("{admin_url}/readyz  {admin_url}/metrics")),
        row("Consumer", format!("{consumer_admin_url}/readyz  {consumer_admin_url}/metrics")),
        row("Postgres shard 1", format!("psql {}", running.postgres[0].dsn(&database(1)))),
        row("Postgres shard 2", format!("psql {}", running.postgres[1].dsn(&database(2)))),
        row("S3", s3_command(&endpoint)),
        row("", format!("curl '{endpoint}/{BUCKET}/?list-type=2'")),
        row("Kafka", console_consumer(&bootstrap)?),
        row("Dead letters", dead_letters(&bootstrap)?),
        row(
            "Controls",
            format!(
                "curl -X PUT {controls}/controls/kafka -H 'content-type: application/json' -d '{{\"running\":false}}'"
            ),
        ),
        row("Logs", shown(&home.logs())),
        row("Data", shown(&home.folder().join("data"))),
    ];
    if let Some(prometheus) = &running.prometheus {
        let address = prometheus.address();
        rows.insert(4, row("Prometheus", format!("{address}/graph  {address}/alerts")));
    }
    Ok(format!(
        "\n{}\n  Kept when this stops: orders (Postgres) and events (Kafka). Receipts are written again at the next start, because\n  \
         LocalStack keeps its objects in memory.\n  Ctrl-C stops everything; make down also removes the data.\n",
        aligned(&rows)
    ))
}

fn row(label: &str, value: String) -> [String; 2] {
    [label.to_owned(), value]
}

fn s3_command(endpoint: &str) -> String {
    format!(
        "AWS_ACCESS_KEY_ID={} AWS_SECRET_ACCESS_KEY={} aws --region {} --endpoint-url {endpoint} s3 ls s3://{BUCKET} --recursive",
        localstack::ACCESS_KEY_ID,
        localstack::SECRET_ACCESS_KEY,
        localstack::REGION
    )
}

fn console_consumer(bootstrap: &str) -> Result<String> {
    Ok(format!(
        "java -cp \"{}\" org.apache.kafka.tools.consumer.ConsoleConsumer --bootstrap-server {bootstrap} --topic {TOPIC} \
         --from-beginning --isolation-level read_committed",
        tools::kafka_class_path()?.display()
    ))
}

fn dead_letters(bootstrap: &str) -> Result<String> {
    let consumer = tools::product_binary("orderflow-consumer")?;
    Ok(format!("KAFKA_BROKERS={bootstrap} KAFKA_TOPIC={TOPIC} {} dlq list", shown(&consumer)))
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
