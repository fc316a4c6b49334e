//! The feed as its clients see it: each notification counts once, whatever is cut, restarted or never read.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::join;
use orderflow_testbed::{Service, Stack, api::Api, eventually, wait::PATIENCE};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
};

use crate::{outages, support::serving};

/// An open stream.
struct Events {
    answer: reqwest::Response,
    text: String,
}

#[derive(Clone, Debug)]
struct Event {
    id: Option<String>,
    name: String,
    data: Value,
}

impl Events {
    async fn open(api: &Api, last_event_id: Option<&str>) -> Result<Self> {
        let mut request = api.request("GET", "/api/feed").timeout(PATIENCE);
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        let answer = request.send().await?.error_for_status()?;
        ensure!(answer.headers()["content-type"] == "text/event-stream", "{answer:?}");
        Ok(Self { answer, text: String::new() })
    }

    /// Opens a new stream, without history.
    async fn from_now(api: &Api) -> Result<Self> {
        let mut events = Self::open(api, None).await?;
        events.expect("hello").await?;
        events.expect("recent").await?;
        Ok(events)
    }

    /// Returns the next event, or `None` at the end of the stream.
    async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (parse(event)?, rest.to_owned());
                self.text = rest;
                if event.is_some() {
                    return Ok(event);
                }
            } else if let Some(chunk) = self.answer.chunk().await? {
                self.text.push_str(std::str::from_utf8(&chunk).context("an event is cut within a character")?);
            } else {
                return Ok(None);
            }
        }
    }

    async fn expect(&mut self, name: &str) -> Result<Event> {
        let event = self.next().await?.context("the stream ended")?;
        ensure!(event.name == name, "not {name}: {event:?}");
        Ok(event)
    }
}

/// Parses an event; returns `None` for a comment.
fn parse(text: &str) -> Result<Option<Event>> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let Some(name) = field("event") else { return Ok(None) };
    let data = serde_json::from_str(field("data").context("an event without data")?)?;
    Ok(Some(Event { id: field("id").map(str::to_owned), name: name.to_owned(), data }))
}

impl Event {
    fn number(&self, member: &str) -> u64 {
        self.data[member].as_u64().unwrap_or_else(|| panic!("no {member} in {self:?}"))
    }

    fn order_ids(&self) -> Vec<String> {
        let notifications = self.data["notifications"].as_array().into_iter().flatten();
        notifications.filter_map(|notification| notification["order_id"].as_str().map(str::to_owned)).collect()
    }
}

/// Reads frames until `total` notifications were sent, and checks that none is missing and none sent twice.
async fn read_until(events: &mut Events, mut before: u64, total: u64) -> Result<()> {
    while before < total {
        let frame = events.expect("frame").await?;
        ensure!(frame.number("total") == before + frame.number("count"), "after {before}: {frame:?}");
        before = frame.number("total");
    }
    ensure!(before == total, "{before} notifications, not {total}");
    Ok(())
}

/// The history fills the charts of a page that was just opened.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_stream_begins_with_each_second_of_the_last_minutes() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let _consumer = stack.consumer().start().await?;
    let mut before = Events::from_now(&api).await?;
    api.place_many(20).await?;
    read_until(&mut before, 0, 20).await?;

    let mut events = Events::open(&api, None).await?;
    let hello = events.expect("hello").await?;
    let bins: Vec<(u64, Vec<(i64, u64)>)> = serde_json::from_value(hello.data["history"]["bins"].clone())?;
    ensure!((1..=300).contains(&bins.len()) && hello.data["history"]["from"].is_u64(), "{hello:?}");
    ensure!(bins.iter().map(|(count, _)| count).sum::<u64>() == 20 && hello.number("total") == 20, "{hello:?}");
    for (count, latency) in &bins {
        ensure!(latency.iter().map(|(_, count)| count).sum::<u64>() == *count, "{hello:?}");
    }
    events.expect("recent").await?;
    api.place_many(5).await?;
    read_until(&mut events, 20, 25).await?;

    let frame = before.expect("frame").await?;
    let mut resumed = Events::open(&api, frame.id.as_deref()).await?;
    let hello = resumed.expect("hello").await?;
    ensure!(hello.data["resumed"] == true && hello.data.get("history").is_none(), "{hello:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_counts_its_notifications_by_shard_and_latency_and_shows_them() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let _consumer = stack.consumer().start().await?;
    let mut events = Events::open(&api, None).await?;
    let hello = events.expect("hello").await?;
    assert_eq!((&hello.data["resumed"], &hello.data["total"]), (&json!(false), &json!(0)));
    assert_eq!(events.expect("recent").await?.data, json!({"notifications": []}));

    let placed = [api.place("alice", None).await?.acked(0)?, api.place("zara", None).await?.acked(0)?];
    let (mut shown, mut shards, mut total) = (Vec::new(), [0, 0], 0);
    while total < 2 {
        let frame = events.expect("frame").await?;
        let id = frame.id.clone().context("a frame without an id")?;
        assert!(id.starts_with(hello.data["epoch"].as_str().context("no epoch")?), "{id}");
        total += frame.number("count");
        assert_eq!(frame.number("total"), total);
        shards[0] += frame.data["shards"]["shard1"].as_u64().context("shard1")?;
        shards[1] += frame.data["shards"]["shard2"].as_u64().context("shard2")?;
        let latencies = frame.data["latency"].as_array().context("latency")?;
        let of_all: u64 = latencies.iter().filter_map(|pair| pair[1].as_u64()).sum();
        assert_eq!(of_all, frame.number("count"), "{frame:?}");
        shown.extend(frame.order_ids());
    }
    assert_eq!(shards, [1, 1]);
    shown.sort();
    let mut expected: Vec<_> = placed.iter().map(|order| order.id.clone()).collect();
    expected.sort();
    assert_eq!(shown, expected);

    // A client that comes later first receives the former notifications.
    let mut later = Events::open(&api, None).await?;
    assert_eq!(later.expect("hello").await?.number("total"), 2);
    let mut recent = later.expect("recent").await?.order_ids();
    recent.sort();
    assert_eq!(recent, expected);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_producer_shows_earlier_notifications_and_counts_none() -> Result<()> {
    let stack = Stack::shared().await?;
    let (producer, api) = serving(&stack).await?;
    let _consumer = stack.consumer().start().await?;
    let mut events = Events::from_now(&api).await?;
    api.place_many(30).await?;
    read_until(&mut events, 0, 30).await?;
    producer.stop().await?;

    let (_producer, api) = serving(&stack).await?;
    let mut events = Events::open(&api, None).await?;
    assert_eq!(events.expect("hello").await?.number("total"), 0);
    assert_eq!(events.expect("recent").await?.order_ids().len(), 20);
    api.place("alice", None).await?;
    read_until(&mut events, 0, 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_cut_again_and_again_misses_nothing_and_repeats_nothing() -> Result<()> {
    const ORDERS: u64 = 600;
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let _consumer = stack.consumer().start().await?;
    let mut events = Events::from_now(&api).await?;
    let reading = async {
        let (mut total, mut cuts) = (0, 0);
        while total < ORDERS {
            let frame = events.expect("frame").await?;
            ensure!(frame.number("total") == total + frame.number("count"), "after {total}: {frame:?}");
            total = frame.number("total");
            events = Events::open(&api, frame.id.as_deref()).await?;
            let hello = events.expect("hello").await?;
            ensure!(hello.data["resumed"] == true && hello.number("total") == total, "{hello:?}");
            cuts += 1;
        }
        anyhow::Ok((total, cuts))
    };
    let placing = async {
        for _ in 0..ORDERS / 100 {
            api.place_many(100).await?;
        }
        anyhow::Ok(())
    };
    let (placed, read) = join(placing, reading).await;
    placed?;
    let (total, cuts) = read?;
    assert_eq!(total, ORDERS);
    assert!(cuts > 1, "all came in one frame");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_another_replica_is_told_to_fetch_again() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    for id in ["0190a5d0-0000-7000-8000-000000000000:7", "nonsense", ""] {
        let mut events = Events::open(&api, Some(id)).await?;
        assert_eq!(events.expect("hello").await?.data["resumed"], false);
        assert_eq!(events.expect("reset").await?.data, json!({"reason": "other-replica"}));
        events.expect("recent").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_too_many_is_refused_until_another_ends() -> Result<()> {
    let stack = Stack::shared().await?;
    let producer = stack.producer().env("MAX_FEEDS", "2").start().await?;
    let api = Api::new(&producer)?;
    let (first, _second) = (Events::open(&api, None).await?, Events::open(&api, None).await?);
    let refused = api.get("/api/feed").await?;
    refused.expect_problem(503, "too-many-feeds")?;
    ensure!(refused.header("retry-after").is_some(), "{refused:?}");
    drop(first);
    eventually("a place for a stream", PATIENCE, async || Events::open(&api, None).await).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_stops_ends_its_streams_at_once() -> Result<()> {
    let stack = Stack::shared().await?;
    let (producer, api) = serving(&stack).await?;
    let mut events = Events::from_now(&api).await?;
    let (stopped, next) = join(producer.process().terminate(PATIENCE), events.next()).await;
    assert_eq!(stopped?.code(), Some(0));
    assert!(next?.is_none());
    let log = producer.process().log_since_start();
    assert!(!log.contains("some requests had not ended"), "the streams were waited for");
    Ok(())
}

/// Writes notifications of the largest size, so that buffers fill soon.
async fn notify(stack: &Stack, producer: &FutureProducer, numbers: std::ops::Range<u64>) -> Result<()> {
    let topic = format!("{}.notifications", stack.topic());
    let sent = numbers.map(async |number| {
        let at = format!("2026-01-02T03:04:05.{number:06}Z");
        let id = format!("00000000-0000-7000-8000-{number:012}");
        let value = json!({
            "event_id": id, "order_id": id, "user_id": "alice", "message": "x".repeat(7_500), "accepted_at": at,
            "published_at": at, "notified_at": at, "partition": 0, "offset": number,
        });
        let value = value.to_string();
        let record = FutureRecord::to(&topic).partition(0).key("alice").payload(&value);
        producer.send(record, PATIENCE).await.map(drop).map_err(|(error, _)| error)
    });
    futures_util::future::try_join_all(sent).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unread_stream_learns_what_it_missed_and_disturbs_no_other() -> Result<()> {
    /// The number of rounds. Their frames are more than the ring (4 MiB) and the kernel (some MiB in each direction)
    /// hold.
    const ROUNDS: u64 = 100;
    const IN_A_ROUND: u64 = 25;
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let mut read = Events::from_now(&api).await?;

    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4096)?;
    let address = api.url.strip_prefix("http://").context("the API's address")?;
    let mut unread = socket.connect(address.parse()?).await?;
    unread.write_all(format!("GET /api/feed HTTP/1.1\r\nhost: {address}\r\n\r\n").as_bytes()).await?;

    let producer: FutureProducer = stack.kafka().client().create()?;
    for round in 0..ROUNDS {
        notify(&stack, &producer, round * IN_A_ROUND..(round + 1) * IN_A_ROUND).await?;
        read_until(&mut read, round * IN_A_ROUND, (round + 1) * IN_A_ROUND).await?;
    }

    // HTTP chunk headers may be in between, but an event is one chunk.
    let (mut text, mut buffer) = (Vec::new(), vec![0; 1 << 20]);
    let (mut counted, mut lagged) = (0, 0);
    let mut number = ROUNDS * IN_A_ROUND;
    while counted < number {
        let end = text.windows(2).position(|two| two == b"\n\n");
        let Some(end) = end else {
            let count = unread.read(&mut buffer).await?;
            ensure!(count > 0, "the stream ended");
            text.extend_from_slice(&buffer[..count]);
            continue;
        };
        let event: Vec<u8> = text.drain(..end + 2).collect();
        let Some(event) = parse(std::str::from_utf8(&event)?)? else { continue };
        match event.name.as_str() {
            "frame" => {
                counted += event.number("count");
                assert_eq!(event.number("total"), counted, "after {lagged} lags");
            }
            "lagged" => {
                counted += event.number("missed");
                lagged += 1;
                // It goes on from the newest notification, so one must exist.
                notify(&stack, &producer, number..number + 1).await?;
                number += 1;
            }
            "reset" => assert_eq!(event.data, json!({"reason": "lagged"})),
            _ => {}
        }
    }
    assert_eq!((lagged, counted), (1, number));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_feed_misses_nothing_when_kafka_is_killed_and_comes_back() -> Result<()> {
    let stack = Stack::builder().own().start().await?;
    let (producer, _consumer) = (outages::producer(&stack).start().await?, stack.consumer().start().await?);
    producer.ready(PATIENCE).await?;
    let api = Api::new(&producer)?;
    let mut events = Events::from_now(&api).await?;
    api.place_many(50).await?;
    read_until(&mut events, 0, 50).await?;
    stack.kafka().kill();
    api.place_many(50).await?;
    stack.kafka().start_again().await?;
    api.place_many(50).await?;
    read_until(&mut events, 50, 150).await
}

/// A topic that was created again: the tail's positions are in no log any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_feed_that_lost_its_place_reports_a_reset_and_continues() -> Result<()> {
    let stack = Stack::builder().own().start().await?;
    let (_producer, api) = serving(&stack).await?;
    let mut events = Events::from_now(&api).await?;
    let client: FutureProducer = stack.kafka().client().create()?;
    notify(&stack, &client, 0..5).await?;
    read_until(&mut events, 0, 5).await?;

    let admin: rdkafka::admin::AdminClient<rdkafka::client::DefaultClientContext> = stack.kafka().client().create()?;
    let options = rdkafka::admin::AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
    let topic = format!("{}.notifications", stack.topic());
    for deleted in admin.delete_topics(&[&topic], &options).await? {
        deleted.map_err(|(_, error)| error)?;
    }
    stack.provision().await?;
    let reset = events.expect("reset").await?;
    assert_eq!(reset.data, json!({"reason": "gap"}));
    assert!(reset.id.is_some(), "{reset:?}");

    // A client that resumes from before the gap gets a reset as well.
    let before = reset.id.as_deref().and_then(|id| id.rsplit_once(':')).context("an id")?.0.to_owned();
    let mut resumed = Events::open(&api, Some(&format!("{before}:1"))).await?;
    assert_eq!(resumed.expect("hello").await?.data["resumed"], true);
    notify(&stack, &client, 5..8).await?;
    read_until(&mut events, 5, 8).await
}
