//! Postgres over TLS only and Kafka over TLS with a log-in only, both with certificates that a private authority has
//! signed: the pipeline works on them, and when it cannot, producer, consumer and provisioning say why.

use anyhow::{Context, Result, ensure};
use orderflow_testbed::product::Environment;
use orderflow_testbed::{
    Authority, Consumer, Producer, Service, Stack, eventually, folder, http, kafka, postgres, provision,
};
use serde_json::Value;

use crate::support::{Api, PATIENCE, dependencies_up, expect_each_exactly_once, serving};

const NOT_ACCEPTED: &str = "certificate is not accepted: it is signed by none of the trusted authorities";

#[tokio::test(flavor = "multi_thread")]
async fn orders_go_all_the_way_over_tls_and_log_ins() -> Result<()> {
    let stack = Stack::secured().await?;
    let (_producer, api) = serving(&stack).await?;
    let consumer = stack.consumer().start().await?;
    consumer.ready(PATIENCE).await?;

    let orders = api.place_many(40).await?;
    expect_each_exactly_once(&stack, &orders).await?;
    let verified = stack.verify(&[]).await?;
    ensure!(verified.status.success(), "{}", verified.output);
    every_session_of_postgres_is_encrypted(&stack).await?;
    kafka_takes_nobody_without_tls(&stack).await
}

async fn every_session_of_postgres_is_encrypted(stack: &Stack) -> Result<()> {
    const SESSIONS: &str = "SELECT count(*), count(*) FILTER (WHERE ssl AND version >= 'TLSv1.2') \
                            FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) \
                            WHERE datname = current_database() AND application_name LIKE 'orderflow-%'";
    for shard in [1, 2] {
        let (sessions, encrypted): (i64, i64) =
            sqlx::query_as(SESSIONS).fetch_one(&mut stack.shard(shard).await?).await?;
        ensure!(sessions > 0 && encrypted == sessions, "shard {shard}: {encrypted} of {sessions}");
        let plain = format!("{}?sslmode=disable", stack.dsn(shard));
        let refused = postgres::connect(&plain).await.err().context("a connection without TLS was taken")?;
        ensure!(format!("{refused:#}").contains("no encryption"), "{refused:#}");
    }
    Ok(())
}

async fn kafka_takes_nobody_without_tls(stack: &Stack) -> Result<()> {
    kafka::probe(&stack.kafka().bootstrap()).await.err().context("a client without TLS was answered")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_another_authority_is_not_trusted() -> Result<()> {
    let stack = Stack::secured().await?;
    let file = folder::of_this_test_process()?.join("another-authority.crt");
    std::fs::write(&file, Authority::new("another")?.pem())?;
    let file = file.to_str().context("a path of text")?;
    let told = Told { postgres: Some(NOT_ACCEPTED), kafka: NOT_ACCEPTED };
    told.with(&stack, &[("PG_SHARD1_CA_FILE", file), ("KAFKA_CA_FILE", file)]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_must_be_named_by_its_certificate() -> Result<()> {
    let stack = Stack::secured().await?;
    let dsn = stack.dsn(1).replace("127.0.0.1", "localhost");
    let brokers = stack.kafka().bootstrap().replace("127.0.0.1", "localhost");
    let told = Told {
        postgres: Some("certificate is not accepted: certificate not valid for name \"localhost\""),
        kafka: "does not name the host",
    };
    told.with(&stack, &[("PG_SHARD1_DSN", &dsn), ("KAFKA_BROKERS", &brokers)]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_told_from_a_server_that_is_down() -> Result<()> {
    let stack = Stack::secured().await?;
    let dsn = stack.dsn(1).replace(postgres::PASSWORD, WRONG_PASSWORD);
    let told = Told {
        postgres: Some("password authentication failed for user"),
        kafka: "the brokers refuse the login: SASL authentication error: Authentication failed",
    };
    told.with(&stack, &[("PG_SHARD1_DSN", &dsn), ("KAFKA_SASL_PASSWORD", WRONG_PASSWORD)]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mechanism_that_the_brokers_do_not_have_is_told_with_those_that_they_have() -> Result<()> {
    let stack = Stack::secured().await?;
    let told = Told { postgres: None, kafka: "broker's supported mechanisms: SCRAM-SHA-512" };
    told.with(&stack, &[("KAFKA_SASL_MECHANISM", "PLAIN")]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_wants_tls_is_told_to_who_speaks_none() -> Result<()> {
    let stack = Stack::secured().await?;
    let dsn = format!("{}?sslmode=disable", stack.dsn(1));
    let told = Told { postgres: Some("no encryption"), kafka: "they may require TLS" };
    let plain = [("PG_SHARD1_DSN", dsn.as_str()), ("PG_SHARD1_CA_FILE", ""), ("KAFKA_TLS", "false")];
    told.with(&stack, &plain).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_wants_a_log_in_is_told_to_who_does_not_log_in() -> Result<()> {
    let stack = Stack::secured().await?;
    let of_sasl = |name: &str| name.starts_with("KAFKA_SASL_");
    let environment = stack.env().into_iter().filter(|(name, _)| !of_sasl(name)).collect();
    let told = Told { postgres: None, kafka: "they may require a login" };
    told.in_environment(environment).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_file_that_is_mended_is_used_without_a_restart() -> Result<()> {
    let stack = Stack::secured().await?;
    let file = folder::of_this_test_process()?.join("mended-authority.crt");
    std::fs::write(&file, Authority::new("another")?.pem())?;
    let path = file.to_str().context("a path of text")?;
    let variables = ["PG_SHARD1_CA_FILE", "PG_SHARD2_CA_FILE", "KAFKA_CA_FILE"];
    let producer = variables.iter().fold(stack.producer(), |producer, name| producer.env(*name, path)).start().await?;
    let consumer = stack.consumer().env("KAFKA_CA_FILE", path).start().await?;
    for (dependency, admin) in [("shard1", producer.admin_url()?), ("kafka", consumer.admin_url()?)] {
        is_told(&admin, dependency, NOT_ACCEPTED).await?;
    }

    // As whoever renews an authority does it: the new one beside the old one.
    let right = std::fs::read(stack.postgres(1).ca_file().context("a secured stack has an authority")?)?;
    std::fs::write(&file, [std::fs::read(&file)?, right].concat())?;
    dependencies_up(&producer, &["shard1", "shard2", "kafka"]).await?;
    consumer.ready(PATIENCE).await?;
    let orders = Api::of(&producer)?.place_many(8).await?;
    expect_each_exactly_once(&stack, &orders).await
}

const WRONG_PASSWORD: &str = "a-wrong-password";

/// What is told of a server that cannot be used.
struct Told {
    /// Of shard 1, by the producer and by provisioning. None: it can be used.
    postgres: Option<&'static str>,
    /// By all three.
    kafka: &'static str,
}

impl Told {
    /// With these variables changed.
    async fn with(&self, stack: &Stack, changed: &[(&str, &str)]) -> Result<()> {
        let changed = changed.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
        self.in_environment(stack.env().into_iter().chain(changed).collect()).await
    }

    async fn in_environment(&self, environment: Environment) -> Result<()> {
        let folder = folder::of_this_test_process()?;
        let provisioning = environment.iter().cloned().chain([("OWNER".to_owned(), "test/told".to_owned())]).collect();
        let of_kafka = environment.iter().filter(|(name, _)| name.starts_with("KAFKA_")).cloned().collect();
        let producer = Producer::builder(folder, environment).start().await?;
        let consumer = Consumer::builder(folder, of_kafka).start().await?;

        let mut texts = vec![
            is_told(&producer.admin_url()?, "kafka", self.kafka).await?,
            is_told(&consumer.admin_url()?, "kafka", self.kafka).await?,
        ];
        let refused = provision(folder, provisioning).await.err().context("provisioning went well")?.to_string();
        ensure!(refused.contains(self.kafka), "{refused}");
        if let Some(postgres) = self.postgres {
            texts.push(is_told(&producer.admin_url()?, "shard1", postgres).await?);
            ensure!(refused.contains(postgres), "{refused}");
        }
        texts.extend([refused, producer.process().log_since_start(), consumer.process().log_since_start()]);
        for secret in [postgres::PASSWORD, kafka::PASSWORD, WRONG_PASSWORD, "BEGIN CERTIFICATE"] {
            ensure!(!texts.iter().any(|text| text.contains(secret)), "{secret} is shown in {texts:?}");
        }
        Ok(())
    }
}

/// Waits until `/readyz` says this of a dependency, and returns all that it says.
async fn is_told(admin_url: &str, dependency: &str, reason: &str) -> Result<String> {
    eventually(&format!("{dependency}: {reason}"), PATIENCE, async || {
        let readiness: Value = http::client().get(format!("{admin_url}/readyz")).send().await?.json().await?;
        let told = readiness["dependencies"][dependency]["reason"].as_str().unwrap_or_default();
        ensure!(told.contains(reason), "{readiness}");
        Ok(readiness.to_string())
    })
    .await
}
