//! What Kafka is asked about topics and groups. Creation, removal and settings go through its admin interface; the metadata
//! are asked for by a blocking call, on a thread that may block.

use std::{collections::HashMap, sync::Arc, time::Duration};

use orderflow_service::kafka::{self, BrokerError, LogContext};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication},
    error::KafkaError,
    metadata::MetadataBroker,
    types::RDKafkaErrorCode as Code,
};
use tokio::time::Instant;

use super::{
    Error,
    plan::{Plan, Shape},
};

/// Longest wait for one answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for finding out why they do not answer.
const DIAGNOSIS: Duration = Duration::from_secs(2);

/// Longest wait of the brokers until all of them know a new topic, and of ours until each of its partitions has a leader.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) struct Cluster {
    client: Arc<Client>,
    pub config: ClientConfig,
    brokers: String,
}

/// Empty only while it is dropped.
struct Client(Option<AdminClient<LogContext>>);

impl Cluster {
    pub(super) fn connect(config: &ClientConfig) -> Result<Self, Error> {
        let brokers = config.get("bootstrap.servers").unwrap_or_default().to_owned();
        let client = config.create_with_context(LogContext::default()).map_err(Error::Settings)?;
        Ok(Self { client: Arc::new(Client(Some(client))), config: config.clone(), brokers })
    }

    /// None: there is no such topic. Asking does not make it, as the client's settings forbid that.
    pub(super) async fn look(&self, topic: &str) -> Result<Option<Shape>, Error> {
        let (client, name) = (Arc::clone(&self.client), topic.to_owned());
        let blocking = tokio::task::spawn_blocking(move || {
            let metadata = client.get().inner().fetch_metadata(Some(&name), REQUEST_TIMEOUT)?;
            let Some(topic) = metadata.topics().first() else { return Ok(None) };
            match topic.error().map(Code::from) {
                None | Some(Code::LeaderNotAvailable) => {}
                Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => return Ok(None),
                Some(code) => return Err(KafkaError::MetadataFetch(code)),
            }
            let partitions = topic.partitions();
            Ok(Some(Shape {
                partitions: partitions.len() as i32,
                replicas: partitions.iter().map(|partition| partition.replicas().len()).min().unwrap_or(0) as i32,
                led: partitions.iter().all(|partition| partition.leader() >= 0),
            }))
        });
        let shape = blocking.await.expect("the blocking part does not panic and is not cancelled");
        match shape.map_err(|error| self.error("look at the topic", &error)) {
            Err(unreachable @ Error::Unreachable { .. }) => Err(self.diagnose().await.unwrap_or(unreachable)),
            shape => shape,
        }
    }

    /// Why the brokers do not answer, if that can be told.
    async fn diagnose(&self) -> Option<Error> {
        let config = self.config.clone();
        let diagnosis = tokio::task::spawn_blocking(move || kafka::diagnose(&config, DIAGNOSIS)).await;
        let trouble = diagnosis.expect("the blocking part does not panic and is not cancelled")?;
        // Which of them it was said of, and in which words, may be another each time.
        let known = !matches!(trouble, BrokerError::Other(_));
        known.then(|| Error::Unusable { brokers: self.brokers.clone(), trouble })
    }

    /// False if somebody else made it in the meantime.
    pub(super) async fn create(&self, plan: &Plan) -> Result<bool, Error> {
        let what = "create the topic";
        // -1: what the broker is configured for. That leaves min.insync.replicas to it as well.
        let replication = TopicReplication::Fixed(plan.replication_factor.unwrap_or(-1));
        let mut topic = NewTopic::new(&plan.name, plan.partitions, replication);
        for setting in &plan.settings {
            topic = topic.set(setting.name, &setting.value);
        }
        let options = AdminOptions::new()
            .request_timeout(Some(READY_TIMEOUT + REQUEST_TIMEOUT))
            .operation_timeout(Some(READY_TIMEOUT));
        let results = self.client.get().create_topics([&topic], &options).await;
        match results.map_err(|error| self.error(what, &error))?.into_iter().next() {
            Some(Ok(_)) => Ok(true),
            Some(Err((_, Code::TopicAlreadyExists))) => Ok(false),
            Some(Err((_, code))) => Err(Error::of(what, &self.brokers, code)),
            None => Err(Error::of(what, &self.brokers, Code::Fail)),
        }
    }

    /// Adds partitions until there are `count`, if no other run does so first.
    pub(super) async fn add_partitions(&self, topic: &str, count: i32) -> Result<(), Error> {
        let what = "add a partition to the topic";
        let options = AdminOptions::new()
            .request_timeout(Some(READY_TIMEOUT + REQUEST_TIMEOUT))
            .operation_timeout(Some(READY_TIMEOUT));
        let partitions = NewPartitions::new(topic, count as usize);
        let results = self.client.get().create_partitions([&partitions], &options).await;
        match results.map_err(|error| self.error(what, &error))?.into_iter().next() {
            // The latter: there are so many by now.
            Some(Ok(_) | Err((_, Code::InvalidPartitions))) => Ok(()),
            Some(Err((_, code))) => Err(Error::of(what, &self.brokers, code)),
            None => Err(Error::of(what, &self.brokers, Code::Fail)),
        }
    }

    /// The cluster's id, by whichever names its brokers are reached. To be asked for once they have answered.
    pub(super) async fn id(&self) -> Option<String> {
        let client = Arc::clone(&self.client);
        let blocking = tokio::task::spawn_blocking(move || client.get().inner().fetch_cluster_id(REQUEST_TIMEOUT));
        blocking.await.expect("the blocking part does not panic and is not cancelled")
    }

    /// Waits until the topic has `least` partitions or more and all of them have leaders.
    pub(super) async fn wait_until_led(&self, topic: &str, least: i32) -> Result<Shape, Error> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            match self.look(topic).await? {
                Some(shape) if shape.led && shape.partitions >= least => return Ok(shape),
                _ if Instant::now() >= deadline => return Err(Error::NoLeader),
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// False if there is no such topic (any more).
    pub(super) async fn delete(&self, topic: &str) -> Result<bool, Error> {
        let what = "delete the topic";
        let options = AdminOptions::new()
            .request_timeout(Some(READY_TIMEOUT + REQUEST_TIMEOUT))
            .operation_timeout(Some(READY_TIMEOUT));
        let results = self.client.get().delete_topics(&[topic], &options).await;
        match results.map_err(|error| self.error(what, &error))?.into_iter().next() {
            Some(Ok(_)) => Ok(true),
            Some(Err((_, Code::UnknownTopicOrPartition | Code::UnknownTopic))) => Ok(false),
            Some(Err((_, code))) => Err(Error::of(what, &self.brokers, code)),
            None => Err(Error::of(what, &self.brokers, Code::Fail)),
        }
    }

    /// Waits until the metadata no longer show the topic: whoever looks right after its removal would take it for there.
    pub(super) async fn wait_until_gone(&self, topic: &str) -> Result<(), Error> {
        let deadline = Instant::now() + READY_TIMEOUT;
        while self.look(topic).await?.is_some() {
            if Instant::now() >= deadline {
                return Err(Error::NotGone);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// False if there is no such group.
    pub(super) async fn delete_group(&self, group: &str) -> Result<bool, Error> {
        let what = "delete the consumer group";
        let options = AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT));
        let results = self.client.get().delete_groups(&[group], &options).await;
        match results.map_err(|error| self.error(what, &error))?.into_iter().next() {
            Some(Ok(_)) => Ok(true),
            Some(Err((_, Code::GroupIdNotFound))) => Ok(false),
            Some(Err((_, Code::NonEmptyGroup))) => Err(Error::GroupHasMembers),
            Some(Err((_, code))) => Err(Error::of(what, &self.brokers, code)),
            None => Err(Error::of(what, &self.brokers, Code::Fail)),
        }
    }

    pub(super) async fn settings(&self, topic: &str) -> Result<HashMap<String, String>, Error> {
        let what = "read the topic's settings";
        let options = AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT));
        let results = self.client.get().describe_configs([&ResourceSpecifier::Topic(topic)], &options).await;
        match results.map_err(|error| self.error(what, &error))?.into_iter().next() {
            Some(Ok(resource)) => {
                Ok(resource.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect())
            }
            Some(Err(code)) => Err(Error::of(what, &self.brokers, code)),
            None => Err(Error::of(what, &self.brokers, Code::Fail)),
        }
    }

    /// The settings of each broker, as far as it tells them: nobody needs the right to ask. The brokers are told with any topic,
    /// and with all topics there may be very many of these.
    pub(super) async fn brokers(&self, topic: &str) -> Vec<HashMap<String, String>> {
        let (client, name) = (Arc::clone(&self.client), topic.to_owned());
        let blocking = tokio::task::spawn_blocking(move || {
            let metadata = client.get().inner().fetch_metadata(Some(&name), REQUEST_TIMEOUT)?;
            Ok::<_, KafkaError>(metadata.brokers().iter().map(MetadataBroker::id).collect::<Vec<_>>())
        });
        let Ok(Ok(brokers)) = blocking.await else { return Vec::new() };
        let options = AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT));
        let mut all = Vec::new();
        for broker in brokers {
            // One at a time: each has to be asked itself.
            let described = self.client.get().describe_configs([&ResourceSpecifier::Broker(broker)], &options).await;
            let entries = described.into_iter().flatten().flatten().flat_map(|of| of.entries);
            all.push(entries.map(|entry| (entry.name, entry.value.unwrap_or_default())).collect());
        }
        all
    }

    pub(super) fn error(&self, what: &'static str, error: &KafkaError) -> Error {
        Error::of(what, &self.brokers, error.rdkafka_error_code().unwrap_or(Code::Fail))
    }
}

impl Client {
    fn get(&self) -> &AdminClient<LogContext> {
        self.0.as_ref().expect("the client is there until it is dropped")
    }
}

impl Drop for Client {
    /// The client's threads are waited for when it is dropped, 100 ms and more: not on a thread that has other work.
    fn drop(&mut self) {
        let client = self.0.take();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(client));
        }
    }
}
