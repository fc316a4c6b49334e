//! Provisions schemas, bucket and topics, in parallel, with one result for each part. A part that is already correct is only
//! checked, and a probe that found no problem is cached until shortly before the next one.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use orderflow_provision::{
    Adopt, bucket,
    shard::{self, Claim},
    topics,
};
use orderflow_service::{kafka::BrokerError, postgres::ConnectError, s3};

use super::{
    claims,
    context::Context,
    dereference::place,
    provisioned::{Notes, Provisioned},
    resource_state::{Probed, ResourceState},
};
use crate::{
    cache::trim::hash,
    condition::{Problem, Reason},
    crd::{OrderFlow, SecretKey},
    pipeline::{Part, Pipeline, Shard, Topic},
};

/// The deadline of a check. Creating and changing things have deadlines of their own.
const CHECK: Duration = Duration::from_secs(15);

pub async fn provision(
    context: &Context,
    flow: &OrderFlow,
    pipeline: &Pipeline,
    state: &mut ResourceState,
) -> Provisioned {
    let cluster = flow.status.as_ref().and_then(|status| status.kafka_cluster_id.as_deref());
    let rival = claims::rival(&context.stores, flow, &pipeline.topic, cluster);
    let inputs = probe_inputs(flow, pipeline, rival.as_deref());
    if let Some(probed) = &state.probed
        && probed.inputs == inputs
        // Less than the shortest interval between two probes, which is spread by 10 %.
        && probed.at.elapsed() < context.probe_interval.mul_f64(0.85)
        && probed.result.problems().next().is_none()
        && !probed.result.suppressed
    {
        return probed.result.clone();
    }
    let at = Instant::now();
    let (shards, bucket, topic) = tokio::join!(
        join_all(pipeline.shards.iter().map(|shard| provision_shard(context, pipeline, shard))),
        provision_bucket(context, pipeline),
        provision_topics(context, flow, pipeline),
    );
    let mut notes = Notes::default();
    let shards = std::iter::zip(&pipeline.shards, shards)
        .map(|(shard, found)| {
            let shard::Found { version, notes: found } = found?;
            notes.shards.extend(found.iter().map(|note| format!("{}: {note}", shard.name)));
            Ok(version)
        })
        .collect();
    let topic = topic.map(|(differences, found)| {
        (notes.brokers, notes.kafka_cluster_id) = (found.notes, found.cluster);
        differences
    });
    let mut result = Provisioned { shards, bucket, topic, notes, suppressed: false };
    if let Some(unheeded) = pipeline.adoption.unheeded() {
        result.explain_adoption(unheeded);
    }
    if let Some(before) = state.probed.as_ref().filter(|before| before.inputs == inputs) {
        result.suppress_once(&before.result);
    }
    state.probed = Some(Probed { at, inputs, result: result.clone() });
    result
}

/// Hashes the inputs of the probe. They include the annotations, because a user who annotates a resource wants it
/// to be probed.
fn probe_inputs(flow: &OrderFlow, pipeline: &Pipeline, rival: Option<&str>) -> u64 {
    let shards: Vec<_> =
        pipeline.shards.iter().map(|shard| shard.access.as_ref().ok().map(|access| &access.secret_values)).collect();
    let bucket = pipeline.bucket.access.as_ref().ok().map(|access| &access.secret_values);
    let topic = pipeline.topic.access.as_ref().ok().map(|access| &access.secret_values);
    hash(&(flow.metadata.generation, &flow.metadata.annotations, shards, bucket, topic, rival))
}

/// Checks a part, and ensures it only if that can solve the error of the check.
async fn check_then_ensure<T, E>(
    check: impl Future<Output = Result<T, E>>,
    helps: impl Fn(&E) -> bool,
    ensure: impl Future<Output = Result<T, E>>,
) -> Result<T, Failure<E>> {
    match tokio::time::timeout(CHECK, check).await {
        Ok(Err(error)) if helps(&error) => ensure.await.map_err(Failure::Error),
        Ok(answer) => answer.map_err(Failure::Error),
        Err(_) => Err(Failure::Timeout),
    }
}

enum Failure<E> {
    Error(E),
    Timeout,
}

impl<E: std::fmt::Display> Failure<E> {
    fn error(&self) -> Option<&E> {
        match self {
            Self::Error(error) => Some(error),
            Self::Timeout => None,
        }
    }

    fn problem(self, reason: impl Fn(&E) -> Reason) -> Problem {
        match self {
            Self::Error(error) => Problem::new(reason(&error), error),
            Self::Timeout => Problem::new(Reason::Unreachable, format!("no answer within {} s", CHECK.as_secs())),
        }
    }
}

pub fn claim<'a>(pipeline: &'a Pipeline, shard: &Shard, owner: &'a str) -> Claim<'a> {
    Claim {
        owner,
        map: &pipeline.map,
        index: shard.index,
        topic: &pipeline.topic.names.orders,
        bucket: &pipeline.bucket.name,
        adopt: pipeline.adopt(),
    }
}

async fn provision_shard(context: &Context, pipeline: &Pipeline, shard: &Shard) -> Part<shard::Found> {
    let options = &shard.access.as_ref().map_err(Clone::clone)?.options;
    context.backends.require_allowed_database(shard, options).await?;
    let owner = pipeline.identity.owner();
    let claim = claim(pipeline, shard, &owner);
    let check = shard::check(options, &claim);
    let ensure = async {
        let outcome = shard::ensure(options, &claim).await?;
        tracing::info!(shard = shard.name, %outcome, "schema");
        shard::check(options, &claim).await
    };
    let helps = |error: &shard::Error| match error {
        shard::Error::Missing | shard::Error::Outdated { .. } => true,
        shard::Error::OwnedByAnother { .. } | shard::Error::MadeForAnother { .. } | shard::Error::NotEmpty { .. } => {
            claim.adopt != Adopt::Nothing
        }
        _ => false,
    };
    let found = check_then_ensure(check, helps, ensure).await;
    found.map_err(|failure| {
        let secret = failure.error().and_then(|error| secret_of_shard(shard, error));
        failure.problem(shard_reason).in_part(&shard.name).see(secret.map(place))
    })
}

/// Returns the Secret that the error is probably about.
fn secret_of_shard<'a>(shard: &'a Shard, error: &shard::Error) -> Option<&'a SecretKey> {
    /// The class of invalid_authorization_specification and invalid_password.
    const LOG_IN: &str = "28";
    match error {
        shard::Error::Connect(ConnectError::Certificate(_)) => Some(shard.ca.as_ref().unwrap_or(&shard.dsn)),
        shard::Error::Connect(ConnectError::Other(sqlx::Error::Database(error)))
            if error.code().is_some_and(|code| code.starts_with(LOG_IN)) =>
        {
            Some(&shard.dsn)
        }
        _ => None,
    }
}

pub fn shard_reason(error: &shard::Error) -> Reason {
    match error {
        error if error.is_transient() => Reason::Unreachable,
        shard::Error::OwnedByAnother { .. } => Reason::OwnedByAnother,
        shard::Error::ShardMismatch { .. } => Reason::ShardMismatch,
        shard::Error::MadeForAnother { .. } => Reason::MadeForAnother,
        shard::Error::NotEmpty { .. } => Reason::DatabaseNotEmpty,
        shard::Error::UnsuitableServer(_) | shard::Error::EditedMigration(_) => Reason::DatabaseUnsuitable,
        _ => Reason::Refused,
    }
}

/// Returns the settings of the client of the bucket, with the credentials that the spec names or with the operator's
/// own where its settings allow that. Anyone who can edit an OrderFlow chooses the bucket's name and the endpoint.
pub fn bucket_settings<'a>(context: &Context, pipeline: &'a Pipeline) -> Part<&'a s3::Settings> {
    let bucket = &pipeline.bucket;
    let settings = &bucket.access.as_ref().map_err(Clone::clone)?.settings;
    if bucket.credentials.is_none() {
        context.own_buckets.require(&bucket.name, bucket.endpoint.as_deref())?;
    }
    Ok(settings)
}

async fn provision_bucket(context: &Context, pipeline: &Pipeline) -> Part<Vec<String>> {
    let settings = bucket_settings(context, pipeline)?;
    context.backends.require_allowed_endpoint(&pipeline.bucket).await?;
    let client = s3::client(settings, context.s3.clone()).await;
    let (name, region, owner) = (&pipeline.bucket.name, &pipeline.bucket.region, pipeline.identity.owner());
    let check = bucket::check(&client, name, &owner);
    let ensure = async {
        let outcome = bucket::ensure(&client, name, region, &owner, pipeline.adopt()).await?;
        tracing::info!(bucket = name, %outcome, "bucket");
        Ok(outcome.notes)
    };
    let helps = |error: &bucket::Error| match error {
        bucket::Error::Missing | bucket::Error::Unclaimed | bucket::Error::NotPrivate => true,
        bucket::Error::OwnedByAnother { owner: Some(owner) } => pipeline.adopt().allows(owner),
        _ => false,
    };
    match check_then_ensure(check, helps, ensure).await {
        Ok(notes) => Ok(notes.iter().map(ToString::to_string).collect()),
        Err(failure) => Err(failure.problem(bucket_reason).in_part(format_args!("bucket {name}"))),
    }
}

pub fn bucket_reason(error: &bucket::Error) -> Reason {
    match error {
        error if error.is_transient() => Reason::Unreachable,
        // Without a known owner the bucket may belong to another account, or these credentials may lack permissions.
        bucket::Error::OwnedByAnother { owner: Some(_) } => Reason::OwnedByAnother,
        bucket::Error::NotEmpty { .. } => Reason::BucketNotEmpty,
        _ => Reason::Refused,
    }
}

/// Provisions the topics. Returns the differences from the spec, and the result without the topics.
async fn provision_topics(
    context: &Context,
    flow: &OrderFlow,
    pipeline: &Pipeline,
) -> Part<(Vec<String>, topics::Found)> {
    let settings = &pipeline.topic.access.as_ref().map_err(Clone::clone)?.settings;
    context.backends.require_allowed_brokers(&pipeline.topic).await?;
    let (config, wanted) = (settings.client(), pipeline.topics());
    let ensure = async {
        let found = topics::ensure(&config, &wanted).await?;
        for topic in &found.topics {
            if let Ok(outcome) = topic.outcome.as_ref()
                && outcome.differences().is_empty()
            {
                tracing::info!(topic = topic.name, %outcome, "topic");
            }
        }
        Ok(found)
    };
    let found = match tokio::time::timeout(CHECK, topics::check(&config, &wanted)).await {
        Ok(Ok(found))
            if any_error(&found, |error| matches!(error, topics::Error::Missing | topics::Error::Unclaimed)) =>
        {
            // Kafka records the owner of the topics. Without a record, the resources are compared.
            let relay = &wanted.topics.relay;
            let unclaimed = found.topics.iter().any(|topic| topic.name == *relay && topic.outcome.is_err());
            let rival =
                claims::rival(&context.stores, flow, &pipeline.topic, found.cluster.as_deref()).filter(|_| unclaimed);
            if let Some(rival) = rival {
                let name = &wanted.topics.orders;
                let message = format!("topic {name}: it belongs to {rival}; nothing was written");
                return Err(Problem::new(Reason::OwnedByAnother, message));
            }
            ensure.await.map_err(Failure::Error)
        }
        Ok(Err(topics::Error::OwnedByAnother { owner })) if wanted.adopt.allows(&owner) => {
            ensure.await.map_err(Failure::Error)
        }
        Ok(found) => found.map_err(Failure::Error),
        Err(_) => Err(Failure::Timeout),
    };
    let mut found = found.map_err(|failure| {
        let secret = failure.error().and_then(|error| secret_of_topic(&pipeline.topic, error));
        failure.problem(topic_reason).in_part("topics").see(secret.map(place))
    })?;
    let mut differences = Vec::new();
    for topic in std::mem::take(&mut found.topics) {
        let outcome = topic
            .outcome
            .map_err(|error| Problem::new(topic_reason(&error), format!("topic {}: {error}", topic.name)))?;
        differences.extend(outcome.differences().iter().map(|difference| format!("{}: {difference}", topic.name)));
    }
    Ok((differences, found))
}

fn any_error(found: &topics::Found, what: impl Fn(&topics::Error) -> bool) -> bool {
    found.topics.iter().any(|topic| topic.outcome.as_ref().is_err_and(&what))
}

/// Returns the Secret that the error is probably about.
fn secret_of_topic<'a>(topic: &'a Topic, error: &topics::Error) -> Option<&'a SecretKey> {
    match error {
        topics::Error::Unusable { trouble: BrokerError::LogIn(_), .. } => {
            topic.sasl.as_ref().map(|sasl| &sasl.password)
        }
        topics::Error::Unusable { trouble: BrokerError::Certificate, .. } => topic.tls.as_ref()?.ca.as_ref(),
        _ => None,
    }
}

pub fn topic_reason(error: &topics::Error) -> Reason {
    match error {
        error if error.is_transient() => Reason::Unreachable,
        topics::Error::OwnedByAnother { .. } => Reason::OwnedByAnother,
        topics::Error::TooFewPartitions(_) => Reason::TooFewPartitions,
        topics::Error::Settings(_) => Reason::SecretInvalid,
        _ => Reason::Refused,
    }
}
