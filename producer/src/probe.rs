//! Asks Kafka and S3 now and then whether they are there, so that `/readyz` tells the truth on a quiet day too.

use std::time::Duration;

use aws_sdk_s3::Client;
use orderflow_core::Topics;
use orderflow_service::{
    Dependency,
    kafka::{self, Quiet},
    s3,
    shutdown::CancellationToken,
};
use rdkafka::{
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
};

const INTERVAL: Duration = Duration::from_secs(5);
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
    let consumer = match BaseConsumer::from_config_and_context(&settings.consumer("orderflow.probe"), Quiet) {
        Ok(consumer) => std::sync::Arc::new(consumer),
        Err(error) => return dependency.unusable(error),
    };
    loop {
        let (asking, needed) = (consumer.clone(), [topics.orders.clone(), topics.relay.clone()]);
        let asked = tokio::task::spawn_blocking(move || {
            for topic in needed {
                let metadata = asking.fetch_metadata(Some(&topic), TIMEOUT)?;
                if !metadata.topics().iter().any(|topic| topic.error().is_none()) {
                    return Ok(Some(topic));
                }
            }
            Ok::<_, KafkaError>(None)
        });
        match asked.await {
            Ok(Ok(None)) => dependency.up(),
            Ok(Ok(Some(topic))) => {
                dependency.down(format!("the topic {topic} is not there: run orderflow-provision"));
            }
            Ok(Err(error)) => dependency.down(error),
            Err(_) => return,
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = stop.cancelled() => return,
        }
    }
}
