//! Postgres over TLS only and Kafka over TLS with a login only, with certificates of a private authority. The pipeline
//! works with them. When it cannot, producer, consumer and provisioning report why.

use anyhow::{Context, Result, ensure};
use orderflow_testbed::{
    Authority, Consumer, Producer, Service, Stack, api::Api, eventually, folder, http, kafka, postgres,
    product::Environment, provision, wait::PATIENCE,
};
use serde_json::Value;

use crate::support::{dependencies_up, expect_each_exactly_once, serving};

const NOT_ACCEPTED: &str = "certificate is not accepted: it is signed by none of the trusted authorities";

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_notified_over_tls_and_logins() -> Result<()> {
    let stack = Stack::builder().secured().start().await?;
    let (_producer, api) = serving(&stack).await?;
    let consumer = stack.consumer().start().await?;
    consumer.ready(PATIENCE).await?;

    let orders = api.place_many(40).await?;
    expect_each_exactly_once(&stack, &orders).await?;
    let verified = stack.verify(&[]).await?;
    ensure!(verified.status.success(), "{}", verified.output);
    every_session_of_postgres_is_encrypted(&stack).await?;
    kafka_accepts_no_client_without_tls(&stack).await
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

async fn kafka_accepts_no_client_without_tls(stack: &Stack) -> Result<()> {
    kafka::probe(&stack.kafka().bootstrap()).await.err().context("a client without TLS was answered")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_another_authority_is_not_trusted() -> Result<()> {
    let stack = Stack::builder().secured().start().await?;
    let file = folder::for_test_process()?.join("another-authority.crt");
    std::fs::write(&file, Authority::new("another")?.pem())?;
    let file = file.to_str().context("a path of text")?;
    let expected = Expected { postgres: Some(NOT_ACCEPTED), kafka: NOT_ACCEPTED };
    expected.with(&stack, &[("PG_SHARD1_CA_FILE", file), ("KAFKA_CA_FILE", file)]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_must_be_named_by_its_certificate() -> Result<()> {
    let stack = Stack::builder().secured().start().await?;
    let dsn = stack.dsn(1).replace("127.0.0.1", "localhost");
    let brokers = stack.kafka().bootstrap().replace("127.0.0.1", "localhost");
    let expected = Expected {
        postgres: Some("certificate is not accepted: certificate not valid for name \"localhost\""),
        kafka: "does not name the host",
    };
    expected.with(&stack, &[("PG_SHARD1_DSN", &dsn), ("KAFKA_BROKERS", &brokers)]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_not_reported_as_an_outage() -> Result<()> {
    let stack = Stack::builder().secured().start().await?;
    let dsn = stack.dsn(1).replace(postgres::PASSWORD, WRONG_PASSWORD);
    let expected = Expected {
        postgres: Some("password authentication failed for user"),
        kafka: "the brokers refuse the login: SASL authentication error: Authentication failed",
    };
    expected.with(&stack, &[("PG_SHARD1_DSN", &dsn), ("KAFKA_SASL_PASSWORD", WRONG_PASSWORD)]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsupported_mechanism_is_reported_with_the_supported_ones() -> Result<()> {
    let stack = Stack::builder().secured().start().await?;
    let expected = Expected { postgres: None, kafka: "broker's supported mechanisms: SCRAM-SHA-512" };
    expected.with(&stack, &[("KAFKA_SASL_MECHANISM", "PLAIN")]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_tls_setting_is_reported() -> Result<()> {
    let stack = Stack::builder().secured().start().await?;
    let dsn = format!("{}?sslmode=disable", stack.dsn(1));
    let expected = Expected { postgres: Some("no encryption"), kafka: "they may require TLS" };
    let plain = [("PG_SHARD1_DSN", dsn.as_str()), ("PG_SHARD1_CA_FILE", ""), ("KAFKA_TLS", "false")];
    expected.with(&stack, &plain).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_login_is_reported() -> Result<()> {
    let stack = Stack::builder().secured().start().await?;
    let of_sasl = |name: &str| name.starts_with("KAFKA_SASL_");
    let environment = stack.env().into_iter().filter(|(name, _)| !of_sasl(name)).collect();
    let expected = Expected { postgres: None, kafka: "they may require a login" };
    expected.in_environment(environment).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrected_ca_file_is_used_without_a_restart() -> Result<()> {
    let stack = Stack::builder().secured().start().await?;
    let file = folder::for_test_process()?.join("mended-authority.crt");
    std::fs::write(&file, Authority::new("another")?.pem())?;
    let path = file.to_str().context("a path of text")?;
    let variables = ["PG_SHARD1_CA_FILE", "PG_SHARD2_CA_FILE", "KAFKA_CA_FILE"];
    let producer = variables.iter().fold(stack.producer(), |producer, name| producer.env(*name, path)).start().await?;
    let consumer = stack.consumer().env("KAFKA_CA_FILE", path).start().await?;
    for (dependency, admin) in [("shard1", producer.admin_url()?), ("kafka", consumer.admin_url()?)] {
        expect_reason(&admin, dependency, NOT_ACCEPTED).await?;
    }

    // A renewal of an authority adds the new one beside the old one.
    let right = std::fs::read(stack.postgres(1).ca_file().context("a secured stack has an authority")?)?;
    std::fs::write(&file, [std::fs::read(&file)?, right].concat())?;
    dependencies_up(&producer, &["shard1", "shard2", "kafka"]).await?;
    consumer.ready(PATIENCE).await?;
    let orders = Api::new(&producer)?.place_many(8).await?;
    expect_each_exactly_once(&stack, &orders).await
}

const WRONG_PASSWORD: &str = "a-wrong-password";

/// The expected reports about a server that cannot be used.
struct Expected {
    /// The report about shard 1, by the producer and by provisioning; `None` if it can be used.
    postgres: Option<&'static str>,
    /// The report about Kafka, by all three programs.
    kafka: &'static str,
}

impl Expected {
    /// Runs the programs with these variables changed, and checks their reports.
    async fn with(&self, stack: &Stack, changed: &[(&str, &str)]) -> Result<()> {
        let changed = changed.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
        self.in_environment(stack.env().into_iter().chain(changed).collect()).await
    }

    async fn in_environment(&self, environment: Environment) -> Result<()> {
        let folder = folder::for_test_process()?;
        let provisioning =
            environment.iter().cloned().chain([("OWNER".to_owned(), "test/reported".to_owned())]).collect();
        let of_kafka = environment.iter().filter(|(name, _)| name.starts_with("KAFKA_")).cloned().collect();
        let producer = Producer::builder(folder, environment).start().await?;
        let consumer = Consumer::builder(folder, of_kafka).start().await?;

        let mut texts = vec![
            expect_reason(&producer.admin_url()?, "kafka", self.kafka).await?,
            expect_reason(&consumer.admin_url()?, "kafka", self.kafka).await?,
        ];
        let refused = provision(folder, provisioning).await.err().context("provisioning went well")?.to_string();
        ensure!(refused.contains(self.kafka), "{refused}");
        if let Some(postgres) = self.postgres {
            texts.push(expect_reason(&producer.admin_url()?, "shard1", postgres).await?);
            ensure!(refused.contains(postgres), "{refused}");
        }
        texts.extend([refused, producer.process().log_since_start(), consumer.process().log_since_start()]);
        for secret in [postgres::PASSWORD, kafka::PASSWORD, WRONG_PASSWORD, "BEGIN CERTIFICATE"] {
            ensure!(!texts.iter().any(|text| text.contains(secret)), "{secret} is shown in {texts:?}");
        }
        Ok(())
    }
}

/// Waits until `/readyz` reports this reason for a dependency, and returns the whole detail.
async fn expect_reason(admin_url: &str, dependency: &str, reason: &str) -> Result<String> {
    eventually(&format!("{dependency}: {reason}"), PATIENCE, async || {
        let readiness: Value = http::client().get(format!("{admin_url}/readyz")).send().await?.json().await?;
        let reported = readiness["dependencies"][dependency]["reason"].as_str().unwrap_or_default();
        ensure!(reported.contains(reason), "{readiness}");
        Ok(readiness.to_string())
    })
    .await
}
