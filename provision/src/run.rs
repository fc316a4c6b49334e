//! Handles all targets of an OrderFlow in parallel. A failure of one does not affect the others.

mod removal;

use std::{fmt::Display, time::Duration};

use futures_util::future::join_all;
use orderflow_core::{Shard, ShardMap, Topics};
use orderflow_service::{
    Backoff,
    postgres::{self, Dsn},
    s3,
};
use sqlx::postgres::PgConnectOptions;
use tokio::time::Instant;

use crate::{
    Settings, bucket,
    shard::{self, Claim},
    topics::{self, Topic, Wanted},
};

/// The result for one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The name of the target: `shard1`, `bucket order-receipts`, `topic orders`.
    pub target: String,
    pub text: String,
    pub ok: bool,
}

/// Ensures, checks or removes all targets, as the settings request. `dsns` are those of the shards, in the order of the
/// map. Returns one line per target: shards, bucket, topics.
pub async fn run(settings: &Settings, dsns: &[Dsn]) -> Vec<Line> {
    if settings.remove {
        return removal::run(settings, dsns).await;
    }
    let shards = join_all(settings.shards.iter().map(|shard| async {
        match distinct_options(&settings.shards, shard, dsns) {
            Ok(options) => run_shard(settings, shard, &options).await,
            Err(error) => Line::failed(shard.name.clone(), format!("{error:#}")),
        }
    }));
    let (mut lines, bucket, topics) = tokio::join!(shards, run_bucket(settings), run_topics(settings));
    lines.push(bucket);
    lines.extend(topics);
    lines
}

/// Refuses a database that two shards name. The first shard would set up an empty one, and the second DSN would then
/// look like the mistake.
fn distinct_options(map: &ShardMap, shard: &Shard, dsns: &[Dsn]) -> anyhow::Result<PgConnectOptions> {
    let read = |shard: &Shard| {
        let dsn = &dsns[shard.index.get()];
        postgres::options(&postgres::dsn_variable(shard), &dsn.url, dsn.ca.as_ref(), "orderflow-provision")
    };
    let options = read(shard)?;
    for other in map.iter().filter(|other| other.index != shard.index) {
        if read(other).is_ok_and(|other| postgres::same_database(&other, &options)) {
            let (one, other) = (postgres::dsn_variable(shard), postgres::dsn_variable(other));
            anyhow::bail!("{one} and {other} name the same database");
        }
    }
    Ok(options)
}

async fn run_shard(settings: &Settings, shard: &Shard, options: &PgConnectOptions) -> Line {
    let claim = claim(settings, shard);
    let attempt = async || {
        if settings.check {
            let shard::Found { version, notes } = shard::check(options, &claim).await?;
            Ok(notes.iter().fold(format!("ok, schema {version}"), |text, note| format!("{text}; {note}")))
        } else {
            Ok(shard::ensure(options, &claim).await?.to_string())
        }
    };
    let outcome =
        retry(settings.wait(), &shard.name, attempt, |outcome| transient(outcome, shard::Error::is_transient));
    Line::new(shard.name.clone(), outcome.await)
}

fn claim<'a>(settings: &'a Settings, shard: &Shard) -> Claim<'a> {
    Claim {
        owner: &settings.owner,
        map: &settings.shards,
        index: shard.index,
        topic: &settings.kafka.kafka_topic,
        bucket: &settings.s3.s3_bucket,
        adopt: settings.adopt(),
    }
}

async fn run_bucket(settings: &Settings) -> Line {
    let name = &settings.s3.s3_bucket;
    let target = format!("bucket {name}");
    let client = s3::client(&settings.s3, s3::http()).await;
    let attempt = async || {
        if settings.check {
            let notes = bucket::check(&client, name, &settings.owner).await?;
            Ok(notes.iter().fold("ok".to_owned(), |text, note| format!("{text}, {note}")))
        } else {
            let (region, owner) = (&settings.s3.aws_region, &settings.owner);
            Ok(bucket::ensure(&client, name, region, owner, settings.adopt()).await?.to_string())
        }
    };
    let outcome = retry(settings.wait(), &target, attempt, |outcome| transient(outcome, bucket::Error::is_transient));
    Line::new(target.clone(), outcome.await)
}

async fn run_topics(settings: &Settings) -> Vec<Line> {
    let wanted = Wanted {
        topics: Topics::named(&settings.kafka.kafka_topic),
        partitions: settings.partitions,
        shards: settings.shards.greatest_number().get() as i32,
        replication_factor: settings.replication_factor,
        retention: topics::RETENTION,
        owner: settings.owner.clone(),
        adopt: settings.adopt(),
    };
    let config = settings.kafka.client();
    let attempt = async || {
        if settings.check { topics::check(&config, &wanted).await } else { topics::ensure(&config, &wanted).await }
    };
    let outcome = retry(settings.wait(), "topics", attempt, |outcome| match outcome {
        Ok(found) => found.topics.iter().find_map(|topic| transient(&topic.outcome, topics::Error::is_transient)),
        Err(_) => transient(outcome, topics::Error::is_transient),
    });
    match outcome.await {
        Ok(found) => {
            let notes = (settings.check && !found.notes.is_empty()).then(|| found.notes.join("; "));
            let lines = found.topics.into_iter().map(|topic| Line::from_topic(topic, settings.check));
            let note = notes.map(|text| Line { target: "brokers".to_owned(), text, ok: true });
            lines.chain(note).collect()
        }
        Err(error) => vec![Line::failed(format!("topics {}…", wanted.topics.orders), error)],
    }
}

fn transient<T, E: Display>(outcome: &Result<T, E>, is_transient: impl Fn(&E) -> bool) -> Option<String> {
    outcome.as_ref().err().filter(|error| is_transient(error)).map(ToString::to_string)
}

/// Repeats the attempt for at most `wait` while `reason_to_wait` returns a reason.
async fn retry<T>(
    wait: Duration,
    target: &str,
    mut attempt: impl AsyncFnMut() -> T,
    reason_to_wait: impl Fn(&T) -> Option<String>,
) -> T {
    let deadline = Instant::now() + wait;
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
    let mut logged = false;
    loop {
        let outcome = attempt().await;
        let Some(reason) = reason_to_wait(&outcome) else { return outcome };
        if Instant::now() >= deadline {
            return outcome;
        }
        if !logged {
            tracing::info!(target, reason, "waiting");
            logged = true;
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

    /// Returns the line of a topic. A difference is no failure of ensuring, because the topic works, but it fails a
    /// check.
    fn from_topic(topic: Topic, check: bool) -> Self {
        let same = topic.outcome.as_ref().is_ok_and(|outcome| outcome.differences().is_empty());
        let line = Self::new(format!("topic {}", topic.name), topic.outcome.map(|outcome| outcome.to_string()));
        Self { ok: line.ok && (same || !check), ..line }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options_of_first(dsns: [&str; 2]) -> anyhow::Result<PgConnectOptions> {
        let map: ShardMap = "shard1=A-M,shard2=N-Z".parse().unwrap();
        let first = map.iter().next().unwrap();
        distinct_options(&map, first, &dsns.map(|dsn| Dsn { url: dsn.to_owned().into(), ca: None }))
    }

    #[test]
    fn two_shards_cannot_share_a_database() {
        let error =
            options_of_first(["postgres://a:secret@db/orders", "postgresql://b:other@db:5432/orders"]).unwrap_err();
        assert_eq!(error.to_string(), "PG_SHARD1_DSN and PG_SHARD2_DSN name the same database");
        options_of_first(["postgres://a@db/orders1", "postgres://a@db/orders2"]).unwrap();
        options_of_first(["postgres://a@db/o?options[search_path]=one", "postgres://a@db/o?options[search_path]=two"])
            .unwrap();
        // The other shard's own line reports that its DSN is invalid.
        options_of_first(["postgres://a@db/orders", "nonsense"]).unwrap();
    }

    #[tokio::test]
    async fn an_attempt_is_repeated_only_for_a_reason_and_only_until_the_deadline() {
        let tries = async |wait, reason: Option<&str>| {
            let mut tries = 0;
            let attempt = async || tries += 1;
            retry(wait, "target", attempt, |()| reason.map(ToOwned::to_owned)).await;
            tries
        };
        assert_eq!(tries(Duration::ZERO, Some("down")).await, 1);
        assert_eq!(tries(Duration::from_secs(60), None).await, 1);
        assert!(tries(Duration::from_millis(150), Some("down")).await > 1);
    }

    #[test]
    fn a_topic_that_differs_fails_only_a_check() {
        let topic = || Topic {
            name: "orders".to_owned(),
            outcome: Ok(topics::Outcome::Exists {
                partitions: 6,
                differences: vec![topics::Difference {
                    topic: "orders".to_owned(),
                    what: "retention.ms",
                    found: "604800000".to_owned(),
                    expected: "2592000000".to_owned(),
                }],
                keeping: None,
            }),
        };
        let text = "exists, 6 partitions; retention.ms is 604800000, expected 2592000000";
        let line = |ok| Line { target: "topic orders".to_owned(), text: text.to_owned(), ok };
        assert_eq!(Line::from_topic(topic(), false), line(true));
        assert_eq!(Line::from_topic(topic(), true), line(false));
    }
}
