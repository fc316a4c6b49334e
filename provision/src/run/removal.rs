//! Removes all targets of one OrderFlow. The shards' databases say what the topics and the bucket were made for, so these are
//! asked first and go last: wherever a run ends early, the next one still knows what is whose.

use std::time::Duration;

use futures_util::future::join_all;
use orderflow_core::{Shard, Topics};
use orderflow_service::{postgres::Dsn, s3};
use sqlx::postgres::PgConnectOptions;

use super::{Line, claim, distinct_options, keep_trying, transient};
use crate::{Settings, bucket, shard, topics};

/// For about a million receipts. Another run goes on with what is left.
const BUCKET_DEADLINE: Duration = Duration::from_secs(600);

/// What a shard's database says about the claim on it.
enum Answer {
    Ours(Box<PgConnectOptions>),
    Nobodys,
    /// It is another's, or whatever else will not change by itself.
    Refused(String),
    Unreachable(String),
}

pub(super) async fn run(settings: &Settings, dsns: &[Dsn]) -> Vec<Line> {
    let shards_and_topics = async {
        let answers = join_all(settings.shards.iter().map(|shard| ask(settings, shard, dsns))).await;
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

async fn ask(settings: &Settings, shard: &Shard, dsns: &[Dsn]) -> Answer {
    let options = match distinct_options(&settings.shards, shard, dsns) {
        Ok(options) => options,
        Err(error) => return Answer::Refused(format!("{error:#}")),
    };
    let claim = claim(settings, shard);
    let answer = keep_trying(
        settings.wait(),
        &shard.name,
        async || shard::is_ours(&options, &claim).await,
        |answer| transient(answer, shard::Error::is_transient),
    );
    match answer.await {
        Ok(true) => Answer::Ours(Box::new(options)),
        Ok(false) => Answer::Nobodys,
        Err(error) if error.is_transient() => Answer::Unreachable(error.to_string()),
        Err(error) => Answer::Refused(error.to_string()),
    }
}

/// The consumer group, too, and first: as long as it has members, somebody reads the topics.
async fn remove_topics_if_ours(settings: &Settings, answers: &[Answer]) -> Vec<Line> {
    let topics = Topics::named(&settings.kafka.kafka_topic);
    let target = format!("topics {}…", topics.orders);
    match are_topics_ours(answers) {
        Ok(true) => {}
        Ok(false) => return vec![Line { target, text: "nothing of ours".to_owned(), ok: true }],
        Err(reason) => return vec![Line::failed(target, reason)],
    }
    let mut lines = Vec::new();
    if let Some(group) = settings.kafka_group_id.as_deref().filter(|group| !group.is_empty()) {
        let line = remove_group(settings, &topics, group).await;
        let gone = line.ok;
        lines.push(line);
        if !gone {
            lines.push(Line::failed(target, "left until the group is gone"));
            return lines;
        }
    }
    lines.extend(remove_topics(settings, &topics, target).await);
    lines
}

/// One shard that is ours is enough, and one that is not makes all of them doubtful.
fn are_topics_ours(answers: &[Answer]) -> Result<bool, &'static str> {
    if answers.iter().any(|answer| matches!(answer, Answer::Refused(_))) {
        Err("left, because a shard was refused")
    } else if answers.iter().any(|answer| matches!(answer, Answer::Ours(_))) {
        Ok(true)
    } else if answers.iter().any(|answer| matches!(answer, Answer::Unreachable(_))) {
        Err("left, because no shard says whose they are")
    } else {
        Ok(false)
    }
}

async fn remove_group(settings: &Settings, topics: &Topics, group: &str) -> Line {
    let (target, config) = (format!("group {group}"), settings.kafka.client());
    if !topics::belongs_to(group, &settings.owner) {
        let text = format!("kept, as its name does not begin with {}", settings.owner.replacen('/', ".", 1));
        return Line { target, text, ok: true };
    }
    let keeps_events = keep_trying(
        settings.wait(),
        &target,
        async || topics::keeps_events(&config, topics, &settings.owner).await,
        |answer| transient(answer, topics::Error::is_transient),
    );
    match keeps_events.await {
        Ok(false) => {}
        Ok(true) => {
            return Line { target, text: format!("kept, as the topic {} stays", topics.orders), ok: true };
        }
        Err(error) => return Line::failed(target, error),
    }
    let removal = keep_trying(
        settings.wait(),
        &target,
        async || topics::remove_group(&config, group).await,
        |removal| transient(removal, topics::Error::is_transient),
    );
    Line::new(target.clone(), removal.await.map(|removal| removal.to_string()))
}

async fn remove_topics(settings: &Settings, topics: &Topics, target: String) -> Vec<Line> {
    let config = settings.kafka.client();
    let removals = keep_trying(
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

async fn remove_shard(settings: &Settings, shard: &Shard, answer: Answer, topics_are_gone: bool) -> Line {
    let options = match answer {
        Answer::Ours(_) if !topics_are_gone => {
            return Line::failed(shard.name.clone(), "left until the topics are gone, as it says whose they are");
        }
        Answer::Ours(options) => options,
        Answer::Nobodys => {
            return Line::new(shard.name.clone(), Ok::<_, shard::Error>(shard::Removal::NothingOfOurs.to_string()));
        }
        Answer::Refused(reason) | Answer::Unreachable(reason) => return Line::failed(shard.name.clone(), reason),
    };
    let claim = claim(settings, shard);
    let removal = keep_trying(
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
    let removal = keep_trying(
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
    fn topics_are_ours_if_one_shard_is_and_none_is_anothers() {
        let ours = || Answer::Ours(Box::default());
        let refused = || Answer::Refused("another's".to_owned());
        let unreachable = || Answer::Unreachable("down".to_owned());
        assert_eq!(are_topics_ours(&[ours(), ours()]), Ok(true));
        assert_eq!(are_topics_ours(&[Answer::Nobodys, ours()]), Ok(true));
        assert_eq!(are_topics_ours(&[unreachable(), ours()]), Ok(true));
        assert_eq!(are_topics_ours(&[Answer::Nobodys, Answer::Nobodys]), Ok(false));
        are_topics_ours(&[ours(), refused()]).unwrap_err();
        are_topics_ours(&[Answer::Nobodys, unreachable()]).unwrap_err();
    }
}
