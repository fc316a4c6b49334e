//! Each backing service starts, is killed and comes back with its data, is frozen and resumes.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;
use aws_sdk_s3::primitives::ByteStream;
use orderflow_testbed::{
    Isolation, Kafka, LocalStack, Postgres, Service, Versitygw, eventually, folder, postgres, read_topic,
};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    producer::{BaseRecord, Producer, ThreadedProducer},
};
use sqlx::Connection;

/// Far longer than a response of a service that is not frozen.
const FROZEN: Duration = Duration::from_millis(400);

fn folder() -> Result<&'static Path> {
    folder::for_test_process()
}

#[tokio::test]
async fn a_killed_postgres_comes_back_with_all_committed_rows() -> Result<()> {
    let started = Instant::now();
    let postgres = Postgres::start(folder()?, "killed-postgres").await?;
    println!("Postgres, new cluster: {:?}", started.elapsed());
    let dsn = postgres.create_database("orders").await?;
    let mut connection = postgres::connect(&dsn).await?;
    sqlx::raw_sql("CREATE TABLE word (text text); INSERT INTO word VALUES ('kept')").execute(&mut connection).await?;

    postgres.kill();
    assert!(!postgres.is_running());
    sqlx::query("SELECT 1").execute(&mut connection).await.expect_err("the killed Postgres answered");
    let started = Instant::now();
    postgres.start_again().await?;
    println!("Postgres, after a kill: {:?}", started.elapsed());

    let mut connection = postgres::connect(&dsn).await?;
    let word: String = sqlx::query_scalar("SELECT text FROM word").fetch_one(&mut connection).await?;
    assert_eq!(word, "kept");
    connection.close().await?;
    Ok(())
}

#[tokio::test]
async fn a_frozen_postgres_answers_no_connection_until_it_is_resumed() -> Result<()> {
    let postgres = Postgres::start(folder()?, "frozen-postgres").await?;
    let mut connection = postgres::connect(&postgres.dsn("postgres")).await?;

    postgres.pause();
    let asked = tokio::time::timeout(FROZEN, sqlx::query("SELECT 1").execute(&mut connection)).await;
    assert!(asked.is_err(), "a backend of the frozen Postgres answered");
    postgres.resume();

    postgres::probe(postgres.port()).await?;
    postgres.stop().await?;
    assert!(!postgres.is_running());
    Ok(())
}

#[tokio::test]
async fn a_frozen_service_can_be_killed() -> Result<()> {
    let postgres = Postgres::start(folder()?, "frozen-then-killed-postgres").await?;
    postgres.pause();
    postgres.kill();
    assert!(!postgres.is_running());
    postgres.start_again().await
}

#[tokio::test]
async fn a_killed_kafka_comes_back_with_its_topics_and_records() -> Result<()> {
    let started = Instant::now();
    let kafka = Kafka::start(folder()?, "killed-kafka").await?;
    println!("Kafka, new storage: {:?}", started.elapsed());
    create_topic(&kafka, "words").await?;
    send(&kafka, "words", "kept")?;

    kafka.kill();
    let started = Instant::now();
    kafka.start_again().await?;
    println!("Kafka, after a kill: {:?}", started.elapsed());

    let bootstrap = kafka.bootstrap();
    let records = eventually("the topic to be read", Duration::from_secs(20), || {
        read_topic(&bootstrap, "words", Isolation::ReadCommitted)
    })
    .await?;
    let words: Vec<String> = records.iter().map(orderflow_testbed::Record::text).collect();
    assert_eq!(words, ["kept"]);

    kafka.pause();
    let asked = orderflow_testbed::kafka::probe(&bootstrap).await;
    assert!(asked.is_err(), "the frozen Kafka answered");
    kafka.resume();
    eventually("Kafka to answer again", Duration::from_secs(20), || orderflow_testbed::kafka::probe(&bootstrap))
        .await?;

    let started = Instant::now();
    kafka.stop().await?;
    println!("Kafka, stop: {:?}", started.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_killed_localstack_comes_back_empty_on_its_port() -> Result<()> {
    let started = Instant::now();
    let localstack = LocalStack::start(folder()?, "killed-localstack").await?;
    println!("LocalStack, new: {:?}", started.elapsed());
    localstack.s3().create_bucket().bucket("receipts").send().await?;

    localstack.kill();
    let started = Instant::now();
    localstack.start_again().await?;
    println!("LocalStack, after a kill: {:?}", started.elapsed());
    let buckets = localstack.s3().list_buckets().send().await?;
    assert!(buckets.buckets().is_empty(), "LocalStack kept a bucket: {buckets:?}");

    localstack.pause();
    let client = localstack.s3();
    let asked = tokio::time::timeout(FROZEN, client.list_buckets().send()).await;
    assert!(asked.is_err(), "the frozen LocalStack answered");
    localstack.resume();
    localstack.s3().list_buckets().send().await?;
    Ok(())
}

#[tokio::test]
async fn versitygw_keeps_objects_when_it_is_killed() -> Result<()> {
    let started = Instant::now();
    let versitygw = Versitygw::start(folder()?, "killed-versitygw").await?;
    println!("versitygw, new: {:?}", started.elapsed());
    let client = versitygw.s3();
    client.create_bucket().bucket("receipts").send().await?;
    let put = client.put_object().bucket("receipts").key("2024/05/word.json").content_type("application/json");
    put.body(ByteStream::from_static(br#""kept""#)).send().await?;

    versitygw.kill();
    assert!(!versitygw.is_running());
    let started = Instant::now();
    versitygw.start_again().await?;
    println!("versitygw, after a kill: {:?}", started.elapsed());

    let object = versitygw.s3().get_object().bucket("receipts").key("2024/05/word.json").send().await?;
    assert_eq!(object.content_type(), Some("application/json"));
    assert_eq!(object.body.collect().await?.into_bytes(), r#""kept""#);

    let started = Instant::now();
    versitygw.stop().await?;
    println!("versitygw, stop: {:?}", started.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_service_that_dies_while_it_starts_is_reported_with_its_log() -> Result<()> {
    let holder = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = holder.local_addr()?.port();
    let error = Postgres::start_on(folder()?, "refused-postgres", port).await.expect_err("two listen on one port");
    assert!(format!("{error:#}").contains("Address already in use"), "{error:#}");
    Ok(())
}

async fn create_topic(kafka: &Kafka, topic: &str) -> Result<()> {
    let admin: AdminClient<_> = ClientConfig::new().set("bootstrap.servers", kafka.bootstrap()).create()?;
    let new = NewTopic::new(topic, 2, TopicReplication::Fixed(1));
    for outcome in admin.create_topics([&new], &AdminOptions::new()).await? {
        outcome.map_err(|(topic, code)| anyhow::anyhow!("create topic {topic}: {code}"))?;
    }
    Ok(())
}

fn send(kafka: &Kafka, topic: &str, value: &str) -> Result<()> {
    let producer: ThreadedProducer<_> = ClientConfig::new().set("bootstrap.servers", kafka.bootstrap()).create()?;
    producer.send(BaseRecord::<(), str>::to(topic).payload(value)).map_err(|(error, _)| error)?;
    producer.flush(Duration::from_secs(10))?;
    Ok(())
}
