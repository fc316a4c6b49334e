//! Settings with invisible characters: a program that gets one does not start, and names the setting.

use anyhow::{Result, ensure};
use orderflow_testbed::{
    Stack, folder,
    process::{Launch, Process},
    tools,
    wait::PATIENCE,
};

/// Starts a program with its usual environment except one variable, and returns its log once it has ended.
async fn refused(stack: &Stack, program: &str, variable: &str, value: &str) -> Result<String> {
    let name = format!("refused-{program}-{variable}");
    let folder = folder::for_test_process()?;
    let launch = Launch::new(&name, tools::product_binary(program)?, folder::log(folder, &name)?);
    let environment = stack.env().into_iter().chain([(variable.to_owned(), value.to_owned())]);
    let process = Process::start(environment.fold(launch, |launch, (name, value)| launch.env(name, value)))?;
    let status = process.wait_for_exit(PATIENCE).await?;
    ensure!(status.code().is_some_and(|code| code == 1 || code == 2), "{program} {variable}: {status}");
    Ok(process.log_since_start())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setting_with_invisible_characters_is_named_and_shown_escaped() -> Result<()> {
    let stack = Stack::shared().await?;
    for (program, variable, value, shown) in [
        ("orderflow-producer", "KAFKA_TOPIC", "orders\r", r#""orders\r""#),
        ("orderflow-producer", "KAFKA_BROKERS", " localhost:9092", r#"" localhost:9092""#),
        ("orderflow-producer", "KAFKA_CA_FILE", "/etc/ca.crt\n", r#""/etc/ca.crt\n""#),
        ("orderflow-producer", "AWS_REGION", "us-east-1 ", r#""us-east-1 ""#),
        ("orderflow-producer", "S3_ENDPOINT", "http://localhost:4566\n", r#""http://localhost:4566\n""#),
        ("orderflow-producer", "S3_BUCKET", "receipts\t", r#""receipts\t""#),
        ("orderflow-producer", "PG_SHARD1_CA_FILE", "/etc/ca.crt\r", r#""/etc/ca.crt\r""#),
        ("orderflow-producer", "PORT", "8080\n", r#""8080\n""#),
        ("orderflow-consumer", "KAFKA_GROUP_ID", "group\u{200b}", r#""group\u{200b}""#),
        ("orderflow-provision", "KAFKA_TOPIC", "\u{feff}orders", r#""\u{feff}orders""#),
    ] {
        let log = refused(&stack, program, variable, value).await?;
        let named = format!("{variable}: must have no control");
        let is_named = log.lines().any(|line| line.contains(&named) && line.ends_with(shown));
        ensure!(is_named, "{program} {variable}: {log}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_with_invisible_characters_is_named_and_not_shown() -> Result<()> {
    let stack = Stack::shared().await?;
    for (program, variable) in [
        ("orderflow-producer", "AWS_ACCESS_KEY_ID"),
        ("orderflow-producer", "AWS_SECRET_ACCESS_KEY"),
        ("orderflow-producer", "AWS_SESSION_TOKEN"),
        ("orderflow-producer", "AWS_CONTAINER_AUTHORIZATION_TOKEN"),
        ("orderflow-producer", "KAFKA_SASL_PASSWORD"),
        ("orderflow-producer", "PG_SHARD2_DSN"),
        ("orderflow-provision", "PG_SHARD1_DSN"),
        ("orderflow-consumer", "KAFKA_SASL_PASSWORD"),
    ] {
        let log = refused(&stack, program, variable, "hunter2\nsecond line").await?;
        ensure!(log.contains(&format!("{variable}: must have no control")), "{program} {variable}: {log}");
        ensure!(log.contains(r"'\n' as character 8"), "{program} {variable}: {log}");
        ensure!(!log.contains("hunter2") && !log.contains("second line"), "{program} {variable}: {log}");
    }
    Ok(())
}
