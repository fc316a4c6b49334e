//! Probes Kafka and S3 periodically, so that `/readyz` is right even while no orders arrive.

use std::time::Duration;

use aws_sdk_s3::Client;
use orderflow_core::Topics;
use orderflow_service::{
    Dependency,
    kafka::{self, LogContext},
    s3,
    shutdown::CancellationToken,
};
use rdkafka::{ClientConfig, config::FromClientConfigAndContext, consumer::BaseConsumer, error::KafkaError};

/// Time between two probes of Kafka and of S3.
const INTERVAL: Duration = Duration::from_secs(5);
/// Longest wait for a probe.
const TIMEOUT: Duration = Duration::from_secs(3);

pub async fn bucket(client: Client, bucket: String, dependency: Dependency, stop: CancellationToken) {
    let probe = async || match client.head_bucket().bucket(&bucket).send().await {
        Ok(_) => dependency.up(),
        Err(error) if error.raw_response().is_some_and(|response| response.status().as_u16() == 404) => {
            dependency.down(format!("the bucket {bucket} does not exist: run orderflow-provision"));
        }
        Err(error) => dependency.down(s3::explain(&error)),
    };
    loop {
        probe().await;
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = stop.cancelled() => return,
        }
    }
}

pub async fn topics(settings: kafka::Settings, topics: Topics, dependency: Dependency, stop: CancellationToken) {
    let config = settings.consumer("orderflow.probe");
    let (mut client, mut made) = (None, false);
    loop {
        let (kept, config, topics) = (client.take(), config.clone(), topics.clone());
        match tokio::task::spawn_blocking(move || probe(kept, &config, &topics)).await {
            Ok(Ok((consumer, missing))) => {
                (client, made) = (Some(consumer), true);
                match missing {
                    None => dependency.up(),
                    Some(topic) => {
                        dependency.down(format!("the topic {topic} does not exist: run orderflow-provision"));
                    }
                }
            }
            Ok(Err(ProbeError::Answer(error, kept))) => {
                (client, made) = (kept, true);
                dependency.down(error);
            }
            // The settings worked once. A later failure must not make the pod unready: its orders do not wait for
            // Kafka.
            Ok(Err(ProbeError::Client(error))) if made => dependency.down(error),
            Ok(Err(ProbeError::Client(error))) => dependency.unusable(error),
            Err(_) => return,
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = stop.cancelled() => return,
        }
    }
}

enum ProbeError {
    /// A client could not be made.
    Client(KafkaError),
    /// Kafka did not answer. The client is kept, since a single probe may be too short to connect, unless the
    /// certificate is to blame: a new client reads the CA file again.
    Answer(kafka::Unanswered, Option<BaseConsumer<LogContext>>),
}

/// Returns the client, and the first topic that does not exist.
fn probe(
    kept: Option<BaseConsumer<LogContext>>,
    config: &ClientConfig,
    topics: &Topics,
) -> Result<(BaseConsumer<LogContext>, Option<String>), ProbeError> {
    let make = || BaseConsumer::from_config_and_context(config, LogContext::default()).map_err(ProbeError::Client);
    let consumer = kept.map_or_else(make, Ok)?;
    for topic in [&topics.orders, &topics.relay] {
        let metadata = match kafka::fetch_metadata(&consumer, topic, TIMEOUT) {
            Ok(metadata) => metadata,
            Err(error) => {
                let kept = (error.broker_error != Some(kafka::BrokerError::Certificate)).then_some(consumer);
                return Err(ProbeError::Answer(error, kept));
            }
        };
        if !metadata.topics().iter().any(|topic| topic.error().is_none()) {
            return Ok((consumer, Some(topic.clone())));
        }
    }
    Ok((consumer, None))
}
