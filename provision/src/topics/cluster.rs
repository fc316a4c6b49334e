//! Requests to Kafka about topics and groups. Creation, removal and settings use its admin interface; metadata need a
//! blocking call on a separate thread.

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

/// The longest wait for one answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The time to find out why the brokers do not answer.
const DIAGNOSIS: Duration = Duration::from_secs(2);

/// The longest wait of the brokers until all of them know a new topic, and of this client until each partition has a
/// leader.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) struct Cluster {
    client: Arc<Client>,
    pub config: ClientConfig,
    brokers: String,
}

/// A client that is empty only while it is dropped.
struct Client(Option<AdminClient<LogContext>>);

impl Cluster {
    pub(super) fn connect(config: &ClientConfig) -> Result<Self, Error> {
        let brokers = config.get("bootstrap.servers").unwrap_or_default().to_owned();
        let client = config.create_with_context(LogContext::default()).map_err(Error::Settings)?;
        Ok(Self { client: Arc::new(Client(Some(client))), config: config.clone(), brokers })
    }

    /// Fetches the topic's metadata, or `None` if it does not exist. The client's settings prevent that a request
    /// creates it.
    pub(super) async fn fetch(&self, topic: &str) -> Result<Option<Shape>, Error> {
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
        match shape.map_err(|error| self.error("read the topic's metadata", &error)) {
            Err(unreachable @ Error::Unreachable { .. }) => Err(self.diagnose().await.unwrap_or(unreachable)),
            shape => shape,
        }
    }

    /// Finds out why the brokers do not answer.
    async fn diagnose(&self) -> Option<Error> {
        let config = self.config.clone();
        let diagnosis = tokio::task::spawn_blocking(move || kafka::diagnose(&config, DIAGNOSIS)).await;
        let trouble = diagnosis.expect("the blocking part does not panic and is not cancelled")?;
        // Other errors vary in their words and brokers from one attempt to the next.
        let known = !matches!(trouble, BrokerError::Other(_));
        known.then(|| Error::Unusable { brokers: self.brokers.clone(), trouble })
    }

    /// Creates the topic. Returns false if another client created it in between.
    pub(super) async fn create(&self, plan: &Plan) -> Result<bool, Error> {
        let what = "create the topic";
        // -1: the broker's own default, which applies to min.insync.replicas as well.
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
            Some(Err((_, code))) => Err(Error::from_code(what, &self.brokers, code)),
            None => Err(Error::from_code(what, &self.brokers, Code::Fail)),
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
            // The latter: the topic has that many by now.
            Some(Ok(_) | Err((_, Code::InvalidPartitions))) => Ok(()),
            Some(Err((_, code))) => Err(Error::from_code(what, &self.brokers, code)),
            None => Err(Error::from_code(what, &self.brokers, Code::Fail)),
        }
    }

    /// Returns the cluster's id, which does not depend on the names of its brokers. Call it once they have answered.
    pub(super) async fn id(&self) -> Option<String> {
        let client = Arc::clone(&self.client);
        let blocking = tokio::task::spawn_blocking(move || client.get().inner().fetch_cluster_id(REQUEST_TIMEOUT));
        blocking.await.expect("the blocking part does not panic and is not cancelled")
    }

    /// Waits until the topic has `least` partitions or more and all of them have leaders.
    pub(super) async fn wait_until_led(&self, topic: &str, least: i32) -> Result<Shape, Error> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            match self.fetch(topic).await? {
                Some(shape) if shape.led && shape.partitions >= least => return Ok(shape),
                _ if Instant::now() >= deadline => return Err(Error::NoLeader),
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Deletes the topic. Returns false if it does not exist.
    pub(super) async fn delete(&self, topic: &str) -> Result<bool, Error> {
        let what = "delete the topic";
        let options = AdminOptions::new()
            .request_timeout(Some(READY_TIMEOUT + REQUEST_TIMEOUT))
            .operation_timeout(Some(READY_TIMEOUT));
        let results = self.client.get().delete_topics(&[topic], &options).await;
        match results.map_err(|error| self.error(what, &error))?.into_iter().next() {
            Some(Ok(_)) => Ok(true),
            Some(Err((_, Code::UnknownTopicOrPartition | Code::UnknownTopic))) => Ok(false),
            Some(Err((_, code))) => Err(Error::from_code(what, &self.brokers, code)),
            None => Err(Error::from_code(what, &self.brokers, Code::Fail)),
        }
    }

    /// Waits until the metadata no longer contain the topic. Until then it would seem to exist.
    pub(super) async fn wait_until_gone(&self, topic: &str) -> Result<(), Error> {
        let deadline = Instant::now() + READY_TIMEOUT;
        while self.fetch(topic).await?.is_some() {
            if Instant::now() >= deadline {
                return Err(Error::NotGone);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Deletes the group. Returns false if it does not exist.
    pub(super) async fn delete_group(&self, group: &str) -> Result<bool, Error> {
        let what = "delete the consumer group";
        let options = AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT));
        let results = self.client.get().delete_groups(&[group], &options).await;
        match results.map_err(|error| self.error(what, &error))?.into_iter().next() {
            Some(Ok(_)) => Ok(true),
            Some(Err((_, Code::GroupIdNotFound))) => Ok(false),
            Some(Err((_, Code::NonEmptyGroup))) => Err(Error::GroupHasMembers),
            Some(Err((_, code))) => Err(Error::from_code(what, &self.brokers, code)),
            None => Err(Error::from_code(what, &self.brokers, Code::Fail)),
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
            Some(Err(code)) => Err(Error::from_code(what, &self.brokers, code)),
            None => Err(Error::from_code(what, &self.brokers, Code::Fail)),
        }
    }

    /// Returns the settings of each broker, or nothing without the permission to read them. Finds the brokers through
    /// any one topic, because the metadata of all topics can be large.
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
            // One at a time, because each broker answers for itself only.
            let described = self.client.get().describe_configs([&ResourceSpecifier::Broker(broker)], &options).await;
            let entries = described.into_iter().flatten().flatten().flat_map(|resource| resource.entries);
            all.push(entries.map(|entry| (entry.name, entry.value.unwrap_or_default())).collect());
        }
        all
    }

    pub(super) fn error(&self, what: &'static str, error: &KafkaError) -> Error {
        Error::from_code(what, &self.brokers, error.rdkafka_error_code().unwrap_or(Code::Fail))
    }
}

impl Client {
    fn get(&self) -> &AdminClient<LogContext> {
        self.0.as_ref().expect("the client exists until it is dropped")
    }
}

impl Drop for Client {
    /// Drops the client on a separate thread, because that waits 100 ms and more for the client's threads.
    fn drop(&mut self) {
        let client = self.0.take();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(client));
        }
    }
}
