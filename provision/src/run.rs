//! All targets of one OrderFlow side by side: each is done, or said to have failed, whatever happens to the others.

use std::{fmt::Display, time::Duration};

use futures_util::future::join_all;
use orderflow_core::{Shard, Topics};
use orderflow_service::{
    Backoff, postgres, s3,
    secrecy::{ExposeSecret, SecretString},
};
use sqlx::postgres::PgConnectOptions;
use tokio::time::Instant;

use crate::{
    Settings, bucket,
    shard::{self, Claim},
    topics::{self, Topic, Wanted},
};

/// What became of one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// `shard1`, `bucket order-receipts`, `topic orders`
    pub target: String,
    pub text: String,
    pub ok: bool,
}

/// Makes everything, or only looks if the settings say so. `dsns` are those of the shards, in the order of the map. One
/// line per target: shards, bucket, topics.
pub async fn run(settings: &Settings, dsns: &[SecretString]) -> Vec<Line> {
    let shards = join_all(settings.shards.iter().zip(dsns).map(|(shard, dsn)| async move {
        match distinct_options(settings, shard, dsn, dsns) {
            Ok(options) => run_shard(settings, shard, &options).await,
            Err(error) => Line::failed(shard.name.clone(), format!("{error:#}")),
        }
    }));
    let (mut lines, bucket, topics) = tokio::join!(shards, run_bucket(settings), run_topics(settings));
    lines.push(bucket);
    lines.extend(topics);
    lines
}

/// An empty database named for two shards would become the one's that comes first, and its DSN would then look like the
/// mistake.
fn distinct_options(
    settings: &Settings,
    shard: &Shard,
    dsn: &SecretString,
    dsns: &[SecretString],
) -> anyhow::Result<PgConnectOptions> {
    let application = "orderflow-provision";
    let variable = postgres::dsn_variable(shard);
    let options = postgres::options(&variable, dsn, application)?;
    let place = |options: &PgConnectOptions| {
        let host = (options.get_host().to_owned(), options.get_port(), options.get_socket().cloned());
        (host, options.get_database().map(ToOwned::to_owned), options.get_options().map(ToOwned::to_owned))
    };
    for (other, other_dsn) in settings.shards.iter().zip(dsns).filter(|(other, _)| other.index != shard.index) {
        let other = postgres::dsn_variable(other);
        let same_text = dsn.expose_secret() == other_dsn.expose_secret();
        let other_options = postgres::options(&other, other_dsn, application);
        let same_place = other_options.is_ok_and(|other_options| place(&other_options) == place(&options));
        anyhow::ensure!(!same_text && !same_place, "{variable} and {other} name the same database");
    }
    Ok(options)
}

async fn run_shard(settings: &Settings, shard: &Shard, options: &PgConnectOptions) -> Line {
    let claim = Claim {
        owner: &settings.owner,
        map: &settings.shards,
        index: shard.index,
        topic: &settings.kafka.kafka_topic,
        bucket: &settings.s3.s3_bucket,
        adopt: settings.adopt,
    };
    let attempt = async || {
        if settings.check {
            let version = shard::check(options, &claim).await?;
            Ok(format!("ok, schema {version}"))
        } else {
            Ok(shard::ensure(options, &claim).await?.to_string())
        }
    };
    let outcome =
        keep_trying(settings.wait(), &shard.name, attempt, |outcome| transient(outcome, shard::Error::is_transient));
    Line::new(shard.name.clone(), outcome.await)
}

async fn run_bucket(settings: &Settings) -> Line {
    let name = &settings.s3.s3_bucket;
    let target = format!("bucket {name}");
    let client = s3::client(&settings.s3).await;
    let attempt = async || {
        if settings.check {
            let notes = bucket::check(&client, name, &settings.owner).await?;
            Ok(notes.iter().fold("ok".to_owned(), |text, note| format!("{text}, {note}")))
        } else {
            let (region, owner) = (&settings.s3.aws_region, &settings.owner);
            Ok(bucket::ensure(&client, name, region, owner, settings.adopt).await?.to_string())
        }
    };
    let outcome =
        keep_trying(settings.wait(), &target, attempt, |outcome| transient(outcome, bucket::Error::is_transient));
    Line::new(target.clone(), outcome.await)
}

async fn run_topics(settings: &Settings) -> Vec<Line> {
    let wanted = Wanted {
        topics: Topics::named(&settings.kafka.kafka_topic),
        partitions: settings.partitions,
        shards: settings.shards.len() as i32,
        replication_factor: settings.replication_factor,
        retention: topics::RETENTION,
    };
    let config = settings.kafka.client();
    let attempt = async || {
        if settings.check { topics::check(&config, &wanted).await } else { topics::ensure(&config, &wanted).await }
    };
    let outcome = keep_trying(settings.wait(), "topics", attempt, |outcome| match outcome {
        Ok(topics) => topics.iter().find_map(|topic| transient(&topic.outcome, topics::Error::is_transient)),
        Err(_) => transient(outcome, topics::Error::is_transient),
    });
    match outcome.await {
        Ok(topics) => topics.into_iter().map(|topic| Line::of_topic(topic, settings.check)).collect(),
        Err(error) => vec![Line::failed(format!("topics {}…", wanted.topics.orders), error)],
    }
}

fn transient<T, E: Display>(outcome: &Result<T, E>, is_transient: impl Fn(&E) -> bool) -> Option<String> {
    outcome.as_ref().err().filter(|error| is_transient(error)).map(ToString::to_string)
}

/// Tries again, for `wait` at most, while `reason_to_wait` gives one.
async fn keep_trying<T>(
    wait: Duration,
    target: &str,
    mut attempt: impl AsyncFnMut() -> T,
    reason_to_wait: impl Fn(&T) -> Option<String>,
) -> T {
    let deadline = Instant::now() + wait;
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
    let mut said = false;
    loop {
        let outcome = attempt().await;
        let Some(reason) = reason_to_wait(&outcome) else { return outcome };
        if Instant::now() >= deadline {
            return outcome;
        }
        if !said {
            tracing::info!(target, reason, "waiting");
            said = true;
        }
        backoff.wait().await;
    }
}

impl Line {
    fn new<E: Display>(target: String, outcome: Result<String, E>) -> Self {
        match outcome {
            Ok(text) => Self { target, text, ok: true },
            Err(error) => Self::failed(target, error),
        }
    }

    fn failed(target: String, error: impl Display) -> Self {
        Self { target, text: format!("FAILED: {error}"), ok: false }
    }

    /// A topic that differs works, so making sure of it succeeds; looking at it is there to find the difference.
    fn of_topic(topic: Topic, check: bool) -> Self {
        let same = topic.outcome.as_ref().is_ok_and(|outcome| outcome.differences().is_empty());
        let line = Self::new(format!("topic {}", topic.name), topic.outcome.map(|outcome| outcome.to_string()));
        Self { ok: line.ok && (same || !check), ..line }
    }
}
