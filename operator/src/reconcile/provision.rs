//! Makes the outside world so: schemas, bucket and topics, side by side, one answer each. What is so already is only looked
//! at, and a look that found everything well counts for a while.

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
use orderflow_service::{kafka::Trouble, postgres::ConnectError, s3};

use super::{
    claims,
    dereference::place,
    validate::{Part, Pipeline, Shard, Topic},
};
use crate::{
    condition::{Class, Problem, Reason},
    context::Context,
    controller::kept::hash,
    crd::{OrderFlow, SecretKey},
    memory::{Memory, Probed},
};

/// Longest wait for a look; making something bounds itself.
const LOOK: Duration = Duration::from_secs(15);

/// One answer for each part.
#[derive(Clone, Debug)]
pub struct Provisioned {
    /// The version of the schema, in the order of the shards.
    pub shards: Vec<Part<i64>>,
    /// What the server cannot promise.
    pub bucket: Part<Vec<String>>,
    /// What is not as the spec says, and works nevertheless.
    pub topic: Part<Vec<String>>,
    /// Something that was well did not answer this once. It counts as well until it is asked again, soon: a server that is
    /// slow for a moment should wake nobody.
    pub doubted: bool,
}

impl Provisioned {
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        let shards = self.shards.iter().filter_map(|shard| shard.as_ref().err());
        shards.chain(self.bucket.as_ref().err()).chain(self.topic.as_ref().err())
    }

    /// Adds to each part that an adoption could take over why it does not.
    fn explain_adoption(&mut self, why: &str) {
        let shards = self.shards.iter_mut().filter_map(|shard| shard.as_mut().err());
        for problem in shards.chain(self.bucket.as_mut().err()).chain(self.topic.as_mut().err()) {
            if matches!(problem.reason, Reason::OwnedByAnother | Reason::MadeForAnother | Reason::DatabaseNotEmpty) {
                problem.message = format!("{}; {why}", problem.message);
            }
        }
    }

    /// Once only: what was doubted before is believed now.
    fn doubt(&mut self, before: &Self) {
        if before.doubted {
            return;
        }
        let shards = std::iter::zip(&mut self.shards, &before.shards).map(|(now, before)| doubt(now, before));
        let doubted = shards.fold(false, |any, doubted| any | doubted);
        self.doubted = doubted | doubt(&mut self.bucket, &before.bucket) | doubt(&mut self.topic, &before.topic);
    }
}

fn doubt<T: Clone>(now: &mut Part<T>, before: &Part<T>) -> bool {
    let transient = now.as_ref().is_err_and(|problem| problem.class() == Class::Transient);
    if transient && before.is_ok() {
        now.clone_from(before);
        return true;
    }
    false
}

pub async fn provision(context: &Context, flow: &OrderFlow, pipeline: &Pipeline, memory: &mut Memory) -> Provisioned {
    let rival = claims::rival(&context.live, flow);
    let question = question(flow, pipeline, rival.as_deref());
    if let Some(probed) = &memory.probed
        && probed.question == question
        // Somewhat less than what lies between two probes, as that is spread by a tenth.
        && probed.at.elapsed() < context.probe_interval.mul_f64(0.85)
        && probed.answer.problems().next().is_none()
        && !probed.answer.doubted
    {
        return probed.answer.clone();
    }
    let at = Instant::now();
    let (shards, bucket, topic) = tokio::join!(
        join_all(pipeline.shards.iter().map(|shard| provision_shard(context, pipeline, shard))),
        provision_bucket(context, pipeline),
        provision_topics(context, pipeline, rival.as_deref()),
    );
    let mut answer = Provisioned { shards, bucket, topic, doubted: false };
    if let Some(unheeded) = pipeline.adoption.unheeded() {
        answer.explain_adoption(unheeded);
    }
    if let Some(before) = memory.probed.as_ref().filter(|before| before.question == question) {
        answer.doubt(&before.answer);
    }
    memory.probed = Some(Probed { at, question, answer: answer.clone() });
    answer
}

/// Whoever annotates a resource wants it to be looked at, so annotations are part of it.
fn question(flow: &OrderFlow, pipeline: &Pipeline, rival: Option<&str>) -> u64 {
    let shards: Vec<_> =
        pipeline.shards.iter().map(|shard| shard.access.as_ref().ok().map(|access| &access.secret_values)).collect();
    let bucket = pipeline.bucket.access.as_ref().ok().map(|access| &access.secret_values);
    let topic = pipeline.topic.access.as_ref().ok().map(|access| &access.secret_values);
    hash(&(flow.metadata.generation, &flow.metadata.annotations, shards, bucket, topic, rival))
}

/// Looks, and makes only if the look says that this would help.
async fn look_then_make<T, E>(
    look: impl Future<Output = Result<T, E>>,
    helps: impl Fn(&E) -> bool,
    make: impl Future<Output = Result<T, E>>,
) -> Result<T, Answer<E>> {
    match tokio::time::timeout(LOOK, look).await {
        Ok(Err(error)) if helps(&error) => make.await.map_err(Answer::Error),
        Ok(answer) => answer.map_err(Answer::Error),
        Err(_) => Err(Answer::None),
    }
}

enum Answer<E> {
    Error(E),
    None,
}

impl<E: std::fmt::Display> Answer<E> {
    fn error(&self) -> Option<&E> {
        match self {
            Self::Error(error) => Some(error),
            Self::None => None,
        }
    }

    fn problem(self, reason: impl Fn(&E) -> Reason) -> Problem {
        match self {
            Self::Error(error) => Problem::new(reason(&error), error),
            Self::None => Problem::new(Reason::Unreachable, format!("no answer within {} s", LOOK.as_secs())),
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

async fn provision_shard(context: &Context, pipeline: &Pipeline, shard: &Shard) -> Part<i64> {
    let options = &shard.access.as_ref().map_err(Clone::clone)?.options;
    context.backends.require_allowed_database(shard, options).await?;
    let owner = pipeline.identity.owner();
    let claim = claim(pipeline, shard, &owner);
    let look = shard::check(options, &claim);
    let make = async {
        let outcome = shard::ensure(options, &claim).await?;
        tracing::info!(shard = shard.name, %outcome, "schema");
        let (shard::Outcome::Created { version }
        | shard::Outcome::Migrated { to: version, .. }
        | shard::Outcome::Adopted { version, .. }
        | shard::Outcome::Unchanged { version }) = outcome;
        Ok(version)
    };
    let helps = |error: &shard::Error| match error {
        shard::Error::Missing | shard::Error::Outdated { .. } => true,
        shard::Error::OwnedByAnother { .. } | shard::Error::MadeForAnother { .. } | shard::Error::NotEmpty { .. } => {
            claim.adopt != Adopt::Nothing
        }
        _ => false,
    };
    let version = look_then_make(look, helps, make).await;
    version.map_err(|answer| {
        let secret = answer.error().and_then(|error| secret_of_shard(shard, error));
        answer.problem(shard_reason).of(&shard.name).see(secret.map(place))
    })
}

/// Which Secret to look at.
fn secret_of_shard<'a>(shard: &'a Shard, error: &shard::Error) -> Option<&'a SecretKey> {
    /// invalid_authorization_specification, invalid_password
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

async fn provision_bucket(context: &Context, pipeline: &Pipeline) -> Part<Vec<String>> {
    let settings = &pipeline.bucket.access.as_ref().map_err(Clone::clone)?.settings;
    context.backends.require_allowed_endpoint(&pipeline.bucket).await?;
    let client = s3::client(settings, context.s3.clone()).await;
    let (name, region, owner) = (&pipeline.bucket.name, &pipeline.bucket.region, pipeline.identity.owner());
    let look = bucket::check(&client, name, &owner);
    let make = async {
        let outcome = bucket::ensure(&client, name, region, &owner, pipeline.adopt()).await?;
        tracing::info!(bucket = name, %outcome, "bucket");
        Ok(outcome.notes)
    };
    let helps = |error: &bucket::Error| match error {
        bucket::Error::Missing | bucket::Error::Unclaimed | bucket::Error::NotPrivate => true,
        bucket::Error::OwnedByAnother { owner: Some(owner) } => pipeline.adopt().allows(owner),
        _ => false,
    };
    match look_then_make(look, helps, make).await {
        Ok(notes) => Ok(notes.iter().map(ToString::to_string).collect()),
        Err(answer) => Err(answer.problem(bucket_reason).of(format_args!("bucket {name}"))),
    }
}

pub fn bucket_reason(error: &bucket::Error) -> Reason {
    match error {
        error if error.is_transient() => Reason::Unreachable,
        // Without a name nobody knows whether it is another's, or these credentials may not look at it.
        bucket::Error::OwnedByAnother { owner: Some(_) } => Reason::OwnedByAnother,
        _ => Reason::Refused,
    }
}

async fn provision_topics(context: &Context, pipeline: &Pipeline, rival: Option<&str>) -> Part<Vec<String>> {
    let settings = &pipeline.topic.access.as_ref().map_err(Clone::clone)?.settings;
    let name = &pipeline.topic.names.orders;
    if let Some(rival) = rival {
        return Err(Problem::new(
            Reason::OwnedByAnother,
            format!("topic {name}: it is {rival}'s; nothing was written"),
        ));
    }
    context.backends.require_allowed_brokers(&pipeline.topic).await?;
    let (config, wanted) = (settings.client(), pipeline.topics());
    let look = async {
        let topics = topics::check(&config, &wanted).await?;
        let missing = topics.iter().any(|topic| matches!(topic.outcome, Err(topics::Error::Missing)));
        if missing { Err(topics::Error::Missing) } else { Ok(topics) }
    };
    let make = async {
        let topics = topics::ensure(&config, &wanted).await?;
        for topic in
            topics.iter().filter(|topic| topic.outcome.as_ref().is_ok_and(|outcome| outcome.differences().is_empty()))
        {
            if let Ok(outcome) = &topic.outcome {
                tracing::info!(topic = topic.name, %outcome, "topic");
            }
        }
        Ok(topics)
    };
    let topics = look_then_make(look, |error| matches!(error, topics::Error::Missing), make).await;
    let topics = topics.map_err(|answer| {
        let secret = answer.error().and_then(|error| secret_of_topic(&pipeline.topic, error));
        answer.problem(topic_reason).of("topics").see(secret.map(place))
    })?;
    let mut differences = Vec::new();
    for topic in topics {
        let outcome = topic
            .outcome
            .map_err(|error| Problem::new(topic_reason(&error), format!("topic {}: {error}", topic.name)))?;
        differences.extend(outcome.differences().iter().map(|difference| format!("{}: {difference}", topic.name)));
    }
    Ok(differences)
}

/// Which Secret to look at.
fn secret_of_topic<'a>(topic: &'a Topic, error: &topics::Error) -> Option<&'a SecretKey> {
    match error {
        topics::Error::Unusable { trouble: Trouble::LogIn(_), .. } => topic.sasl.as_ref().map(|sasl| &sasl.password),
        topics::Error::Unusable { trouble: Trouble::Certificate, .. } => topic.tls.as_ref()?.ca.as_ref(),
        _ => None,
    }
}

pub fn topic_reason(error: &topics::Error) -> Reason {
    match error {
        error if error.is_transient() => Reason::Unreachable,
        topics::Error::TooFewPartitions(_) => Reason::TooFewPartitions,
        topics::Error::Settings(_) => Reason::SecretInvalid,
        _ => Reason::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_silence_is_doubted_and_a_second_is_believed() {
        let answer = |shard: Part<i64>| Provisioned {
            shards: vec![Ok(1), shard],
            bucket: Ok(Vec::new()),
            topic: Ok(Vec::new()),
            doubted: false,
        };
        let silent = || Err(Problem::new(Reason::Unreachable, "no answer"));
        let refused = || Err(Problem::new(Reason::ShardMismatch, "another shard's"));
        let (well, mut first, mut second) = (answer(Ok(1)), answer(silent()), answer(silent()));
        first.doubt(&well);
        assert!(first.doubted && first.problems().next().is_none());
        second.doubt(&first);
        assert!(!second.doubted && second.problems().count() == 1);
        // What somebody has to decide about is said at once.
        let mut other = answer(refused());
        other.doubt(&well);
        assert!(!other.doubted && other.problems().count() == 1);
    }
}
