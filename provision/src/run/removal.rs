//! Removes all targets of an OrderFlow. The shards' databases record the topic and the bucket that they were set up
//! for. So they are read first and removed last: if a run ends early, the next one still knows the owner of everything.

use std::time::Duration;

use futures_util::future::join_all;
use orderflow_core::{Shard, Topics};
use orderflow_service::{postgres::Dsn, s3};
use sqlx::postgres::PgConnectOptions;

use super::{Line, claim, distinct_options, retry, transient};
use crate::{Settings, bucket, shard, topics};

/// The deadline of the bucket's removal, enough for about a million receipts. Another run continues from there.
const BUCKET_DEADLINE: Duration = Duration::from_secs(600);

/// The ownership of a shard's database.
enum Ownership {
    Ours(Box<PgConnectOptions>),
    Unclaimed,
    /// The database belongs to another owner, or another error will not resolve itself.
    Refused(String),
    Unreachable(String),
}

pub(super) async fn run(settings: &Settings, dsns: &[Dsn]) -> Vec<Line> {
    let shards_and_topics = async {
        let answers = join_all(settings.shards.iter().map(|shard| fetch_ownership(settings, shard, dsns))).await;
        let topics = remove_topics_if_ours(settings, &answers).await;
        let topics_are_gone = topics.iter().all(|line| line.ok);
        let shards = settings.shards.iter().zip(answers);
        let shards =
            join_all(shards.map(|(shard, answer)| remove_shard(settings, shard, answer, topics_are_gone))).await;
        (shards, topics)
    };
    let ((mut lines, topics), bucket) = tokio::join!(shards_and_topics, remove_bucket(settings));
    lines.push(bucket);
    lines.extend(topics);
    lines
}

async fn fetch_ownership(settings: &Settings, shard: &Shard, dsns: &[Dsn]) -> Ownership {
    let options = match distinct_options(&settings.shards, shard, dsns) {
        Ok(options) => options,
        Err(error) => return Ownership::Refused(format!("{error:#}")),
    };
    let claim = claim(settings, shard);
    let answer = retry(
        settings.wait(),
        &shard.name,
        async || shard::is_ours(&options, &claim).await,
        |answer| transient(answer, shard::Error::is_transient),
    );
    match answer.await {
        Ok(true) => Ownership::Ours(Box::new(options)),
        Ok(false) => Ownership::Unclaimed,
        Err(error) if error.is_transient() => Ownership::Unreachable(error.to_string()),
        Err(error) => Ownership::Refused(error.to_string()),
    }
}

/// Removes the consumer group, then the topics. While the group has members, consumers read the topics.
async fn remove_topics_if_ours(settings: &Settings, answers: &[Ownership]) -> Vec<Line> {
    let topics = Topics::named(&settings.kafka.kafka_topic);
    let target = format!("topics {}…", topics.orders);
    match are_topics_ours(answers) {
        Ok(true) => {}
        Ok(false) => return vec![Line { target, text: "has no owner, nothing removed".to_owned(), ok: true }],
        Err(reason) => return vec![Line::failed(target, reason)],
    }
    let mut lines = Vec::new();
    if let Some(group) = settings.kafka_group_id.as_deref().filter(|group| !group.is_empty()) {
        let line = remove_group(settings, &topics, group).await;
        let gone = line.ok;
        lines.push(line);
        if !gone {
            lines.push(Line::failed(target, "kept until the group is removed"));
            return lines;
        }
    }
    lines.extend(remove_topics(settings, &topics, target).await);
    lines
}

/// Returns true if at least one shard is ours. A shard of another owner puts the ownership of the topics in doubt.
fn are_topics_ours(answers: &[Ownership]) -> Result<bool, &'static str> {
    if answers.iter().any(|answer| matches!(answer, Ownership::Refused(_))) {
        Err("kept, because a shard was refused")
    } else if answers.iter().any(|answer| matches!(answer, Ownership::Ours(_))) {
        Ok(true)
    } else if answers.iter().any(|answer| matches!(answer, Ownership::Unreachable(_))) {
        Err("kept, because no shard records their owner")
    } else {
        Ok(false)
    }
}

async fn remove_group(settings: &Settings, topics: &Topics, group: &str) -> Line {
    let (target, config) = (format!("group {group}"), settings.kafka.client());
    if !topics::belongs_to(group, &settings.owner) {
        let text = format!("kept, because its name does not begin with {}", settings.owner.replacen('/', ".", 1));
        return Line { target, text, ok: true };
    }
    let keeps_events = retry(
        settings.wait(),
        &target,
        async || topics::keeps_events(&config, topics, &settings.owner).await,
        |answer| transient(answer, topics::Error::is_transient),
    );
    match keeps_events.await {
        Ok(false) => {}
        Ok(true) => {
            return Line { target, text: format!("kept, because the topic {} stays", topics.orders), ok: true };
        }
        Err(error) => return Line::failed(target, error),
    }
    let removal = retry(
        settings.wait(),
        &target,
        async || topics::remove_group(&config, group).await,
        |removal| transient(removal, topics::Error::is_transient),
    );
    Line::new(target.clone(), removal.await.map(|removal| removal.to_string()))
}

async fn remove_topics(settings: &Settings, topics: &Topics, target: String) -> Vec<Line> {
    let config = settings.kafka.client();
    let removals = retry(
        settings.wait(),
        &target,
        async || topics::remove(&config, topics, &settings.owner).await,
        |removals| match removals {
            Ok(topics) => topics.iter().find_map(|topic| transient(&topic.outcome, topics::Error::is_transient)),
            Err(_) => transient(removals, topics::Error::is_transient),
        },
    );
    let line = |topic: topics::Topic<topics::Removal>| {
        Line::new(format!("topic {}", topic.name), topic.outcome.map(|removal| removal.to_string()))
    };
    match removals.await {
        Ok(topics) => topics.into_iter().map(line).collect(),
        Err(error) => vec![Line::failed(target, error)],
    }
}

async fn remove_shard(settings: &Settings, shard: &Shard, answer: Ownership, topics_are_gone: bool) -> Line {
    let options = match answer {
        Ownership::Ours(_) if !topics_are_gone => {
            return Line::failed(
                shard.name.clone(),
                "kept until the topics are removed, because it records their owner",
            );
        }
        Ownership::Ours(options) => options,
        Ownership::Unclaimed => {
            return Line::new(shard.name.clone(), Ok::<_, shard::Error>(shard::Removal::NotOwned.to_string()));
        }
        Ownership::Refused(reason) | Ownership::Unreachable(reason) => return Line::failed(shard.name.clone(), reason),
    };
    let claim = claim(settings, shard);
    let removal = retry(
        settings.wait(),
        &shard.name,
        async || shard::remove(&options, &claim).await,
        |removal| transient(removal, shard::Error::is_transient),
    );
    Line::new(shard.name.clone(), removal.await.map(|removal| removal.to_string()))
}

async fn remove_bucket(settings: &Settings) -> Line {
    let (name, owner) = (&settings.s3.s3_bucket, &settings.owner);
    let (target, client) = (format!("bucket {name}"), s3::client(&settings.s3, s3::http()).await);
    let removal = retry(
        settings.wait(),
        &target,
        async || bucket::remove(&client, name, owner, BUCKET_DEADLINE).await,
        |removal| transient(removal, bucket::Error::is_transient),
    );
    Line::new(target.clone(), removal.await.map(|removal| removal.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_ours_if_one_shard_is_ours_and_none_was_refused() {
        let ours = || Ownership::Ours(Box::default());
        let refused = || Ownership::Refused("belongs to another".to_owned());
        let unreachable = || Ownership::Unreachable("down".to_owned());
        assert_eq!(are_topics_ours(&[ours(), ours()]), Ok(true));
        assert_eq!(are_topics_ours(&[Ownership::Unclaimed, ours()]), Ok(true));
        assert_eq!(are_topics_ours(&[unreachable(), ours()]), Ok(true));
        assert_eq!(are_topics_ours(&[Ownership::Unclaimed, Ownership::Unclaimed]), Ok(false));
        are_topics_ours(&[ours(), refused()]).unwrap_err();
        are_topics_ours(&[Ownership::Unclaimed, unreachable()]).unwrap_err();
    }
}
