//! What everybody who reads topics without a group has to know: how many partitions there are, and which errors of a poll
//! are no reason to stop.

use std::time::Duration;

use rdkafka::{
    consumer::{BaseConsumer, ConsumerContext},
    error::{KafkaError, RDKafkaErrorCode},
};

use super::{Told, fetch_metadata};

/// Number of partitions of one topic. The error is for people. For a consumer that reads nothing yet, see
/// [`fetch_metadata`].
pub fn count_partitions<C: ConsumerContext + Told>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    timeout: Duration,
) -> Result<usize, String> {
    let metadata = fetch_metadata(consumer, topic, timeout)
        .map_err(|unanswered| format!("cannot ask for topic {topic}: {unanswered}"))?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let found = found.ok_or_else(|| format!("topic {topic} does not exist"))?;
    match found.error().map(RDKafkaErrorCode::from) {
        None if !found.partitions().is_empty() => Ok(found.partitions().len()),
        None | Some(RDKafkaErrorCode::UnknownTopicOrPartition) => Err(format!("topic {topic} does not exist")),
        Some(error) => Err(format!("topic {topic}: {error}")),
    }
}

/// Whether librdkafka mends this by itself.
pub fn passes(error: &KafkaError) -> bool {
    matches!(
        error,
        KafkaError::MessageConsumption(
            RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::OperationTimedOut
        )
    )
}
