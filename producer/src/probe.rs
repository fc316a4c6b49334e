//! Asks Kafka and S3 now and then whether they are there, so that `/readyz` tells the truth on a quiet day too.

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
    let ask = async || match client.head_bucket().bucket(&bucket).send().await {
        Ok(_) => dependency.up(),
        Err(error) if error.raw_response().is_some_and(|response| response.status().as_u16() == 404) => {
            dependency.down(format!("the bucket {bucket} is not there: run orderflow-provision"));
        }
        Err(error) => dependency.down(s3::explain(&error)),
    };
    loop {
        ask().await;
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
        match tokio::task::spawn_blocking(move || ask(kept, &config, &topics)).await {
            Ok(Ok((consumer, missing))) => {
                (client, made) = (Some(consumer), true);
                match missing {
                    None => dependency.up(),
                    Some(topic) => dependency.down(format!("the topic {topic} is not there: run orderflow-provision")),
                }
            }
            Ok(Err(Unasked::Answer(error, kept))) => {
                (client, made) = (kept, true);
                dependency.down(error);
            }
            // The settings were good once: what else fails must not make a pod unready whose orders wait for no Kafka.
            Ok(Err(Unasked::Client(error))) if made => dependency.down(error),
            Ok(Err(Unasked::Client(error))) => dependency.unusable(error),
            Err(_) => return,
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = stop.cancelled() => return,
        }
    }
}

enum Unasked {
    /// One could not be made.
    Client(KafkaError),
    /// With the client, unless a new one has to be made: that reads its CA file again, which may have been mended. Any other
    /// goes on trying to connect, for which one look may be too short.
    Answer(kafka::Unanswered, Option<BaseConsumer<LogContext>>),
}

/// Returns the client and the topic that is not there.
fn ask(
    kept: Option<BaseConsumer<LogContext>>,
    config: &ClientConfig,
    topics: &Topics,
) -> Result<(BaseConsumer<LogContext>, Option<String>), Unasked> {
    let make = || BaseConsumer::from_config_and_context(config, LogContext::default()).map_err(Unasked::Client);
    let consumer = kept.map_or_else(make, Ok)?;
    for topic in [&topics.orders, &topics.relay] {
        let metadata = match kafka::fetch_metadata(&consumer, topic, TIMEOUT) {
            Ok(metadata) => metadata,
            Err(error) => {
                let kept = (error.broker_error != Some(kafka::BrokerError::Certificate)).then_some(consumer);
                return Err(Unasked::Answer(error, kept));
            }
        };
        if !metadata.topics().iter().any(|topic| topic.error().is_none()) {
            return Ok((consumer, Some(topic.clone())));
        }
    }
    Ok((consumer, None))
}
