//! `orderflow-provision`: safe to repeat and to run concurrently. It neither creates nor removes anything that belongs
//! to another owner.

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::{
    error::ProvideErrorMetadata,
    types::{BucketVersioningStatus, Tag, Tagging, VersioningConfiguration},
};
use futures_util::{
    StreamExt, TryStreamExt,
    future::{join_all, try_join_all},
    stream,
};
use orderflow_testbed::{
    Authority, Launch, Postgres, Process, Service, Stack, Store, eventually, folder, postgres, product::Environment,
    provision, tools, wait::PATIENCE,
};
use sqlx::{AssertSqlSafe, Connection, Row};
use uuid::Uuid;

/// Returns the environment of a new OrderFlow on the stack's services, of which only two empty databases exist.
async fn fresh(stack: &Stack) -> Result<Environment> {
    let tag = Uuid::now_v7().simple().to_string().split_off(24);
    let mut environment = stack.env();
    for (name, value) in &mut environment {
        match name.as_str() {
            "PG_SHARD1_DSN" => *value = stack.postgres(1).create_database(&format!("fresh_{tag}")).await?,
            "PG_SHARD2_DSN" => *value = stack.postgres(2).create_database(&format!("fresh_{tag}")).await?,
            "KAFKA_TOPIC" | "S3_BUCKET" => *value = format!("fresh-{tag}"),
            _ => {}
        }
    }
    // It has no consumers.
    environment.retain(|(name, _)| name != "KAFKA_GROUP_ID");
    environment.push(("OWNER".to_owned(), format!("test/{tag}")));
    Ok(environment)
}

fn with(environment: &Environment, name: &str, value: &str) -> Environment {
    let mut environment = environment.clone();
    environment.retain(|(other, _)| other != name);
    environment.push((name.to_owned(), value.to_owned()));
    environment
}

fn value<'env>(environment: &'env Environment, name: &str) -> &'env str {
    environment.iter().find(|(other, _)| other == name).map_or("", |(_, value)| value)
}

/// The output of a run, and whether it succeeded.
#[derive(Debug)]
struct Run {
    succeeded: bool,
    text: String,
}

impl Run {
    /// Returns its line about `target`: `shard1`, `bucket …`, `topic orders`.
    fn line(&self, target: &str) -> &str {
        let line = self.text.lines().find_map(|line| line.strip_prefix(target));
        line.map_or("", str::trim)
    }
}

/// Runs `orderflow-provision` with `arguments` to its end.
async fn run(environment: &Environment, arguments: &[&str]) -> Result<Run> {
    let log = folder::for_test_process()?.join(format!("provision-{}.log", Uuid::now_v7()));
    let launch = Launch::new("provision", tools::product_binary("orderflow-provision")?, &log);
    let launch = environment.iter().fold(launch, |launch, (name, value)| launch.env(name, value));
    let process = Process::start(launch.arguments(arguments.iter().copied()))?;
    let status = process.wait_for_exit(PATIENCE).await?;
    Ok(Run { succeeded: status.success(), text: std::fs::read_to_string(&log)? })
}

/// Removes everything; fails unless all could be removed.
async fn remove(environment: &Environment) -> Result<Run> {
    let run = run(environment, &["--remove"]).await?;
    ensure!(run.succeeded, "{}", run.text);
    Ok(run)
}

/// Tries to remove; fails unless the removal failed without showing a secret.
async fn refuse_to_remove(environment: &Environment) -> Result<Run> {
    let run = run(environment, &["--remove"]).await?;
    ensure!(!run.succeeded && !run.text.contains("orderpass"), "{}", run.text);
    Ok(run)
}

/// Writes objects, 64 at once.
async fn put(stack: &Stack, environment: &Environment, keys: impl IntoIterator<Item = String>) -> Result<()> {
    let (client, bucket) = (stack.s3(), value(environment, "S3_BUCKET"));
    let puts = keys.into_iter().map(|key| client.put_object().bucket(bucket).key(key).send());
    stream::iter(puts).buffer_unordered(64).map_ok(drop).try_collect::<()>().await.context("put an object")
}

/// Returns the key of a new receipt.
fn receipt(user: &str) -> String {
    format!("receipts/{user}/{}.txt", Uuid::now_v7())
}

/// Returns the tables outside the system's schemas.
async fn tables(dsn: &str) -> Result<Vec<String>> {
    const QUERY: &str = "SELECT schemaname || '.' || tablename FROM pg_tables
        WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1";
    let mut connection = postgres::connect(dsn).await?;
    Ok(sqlx::query_scalar(QUERY).fetch_all(&mut connection).await?)
}

async fn execute(dsn: &str, statements: &str) -> Result<()> {
    let mut connection = postgres::connect(dsn).await?;
    sqlx::raw_sql(AssertSqlSafe(statements.to_owned())).execute(&mut connection).await?;
    Ok(connection.close().await?)
}

/// Returns owner and shard of a database, and the transaction that wrote them.
async fn meta(dsn: &str) -> Result<(String, String, String)> {
    let mut connection = orderflow_testbed::postgres::connect(dsn).await?;
    let row =
        sqlx::query("SELECT owner, shard_name, xmin::text FROM orderflow_meta").fetch_one(&mut connection).await?;
    Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_and_repeated_runs_succeed() -> Result<()> {
    let stack = Stack::shared().await?;
    let (environment, folder) = (fresh(&stack).await?, folder::for_test_process()?);
    try_join_all((0..4).map(|_| provision(folder, environment.clone()))).await?;
    let before = meta(value(&environment, "PG_SHARD1_DSN")).await?;
    ensure!(before.1 == "shard1", "{before:?}");
    provision(folder, environment.clone()).await?;
    ensure!(meta(value(&environment, "PG_SHARD1_DSN")).await? == before, "a second run wrote something");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_another_owner_or_shard_is_refused_and_unchanged() -> Result<()> {
    let stack = Stack::shared().await?;
    let (environment, folder) = (fresh(&stack).await?, folder::for_test_process()?);
    provision(folder, environment.clone()).await?;
    let dsns = ["PG_SHARD1_DSN", "PG_SHARD2_DSN"].map(|name| value(&environment, name).to_owned());
    let before = join_all(dsns.iter().map(|dsn| meta(dsn))).await;

    let swapped = with(&with(&environment, "PG_SHARD1_DSN", &dsns[1]), "PG_SHARD2_DSN", &dsns[0]);
    for (what, wrong) in
        [("swapped databases", swapped), ("another owner", with(&environment, "OWNER", "test/another"))]
    {
        let refused = provision(folder, wrong).await;
        let message = refused.err().map(|error| format!("{error:#}")).unwrap_or_default();
        ensure!(message.contains("FAILED") && !message.contains("orderpass"), "{what}: {message:?}");
    }
    let after = join_all(dsns.iter().map(|dsn| meta(dsn))).await;
    for (before, after) in before.into_iter().zip(after) {
        ensure!(before? == after?, "a refused run wrote something");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn removal_keeps_other_data_and_can_be_repeated_and_undone() -> Result<()> {
    let stack = Stack::builder().store(Store::Localstack).start().await?;
    let (environment, folder) = (fresh(&stack).await?, folder::for_test_process()?);
    provision(folder, environment.clone()).await?;
    let (dsn, bucket) = (value(&environment, "PG_SHARD1_DSN"), value(&environment, "S3_BUCKET"));

    // A table with one of our names where it would be found first, created after the shard.
    execute(dsn, "CREATE TABLE theirs (id int); CREATE SCHEMA orderuser; CREATE TABLE orderuser.outbox (id int)")
        .await?;
    let client = stack.s3();
    let mut tags = client.get_bucket_tagging().bucket(bucket).send().await?.tag_set;
    tags.push(Tag::builder().key("cost-center").value("7").build()?);
    let tagging = Tagging::builder().set_tag_set(Some(tags)).build()?;
    client.put_bucket_tagging().bucket(bucket).tagging(tagging).send().await?;
    // More keys than one request may delete.
    let receipts = (0..1001).map(|_| receipt("alice"));
    // Our keys come before, between and after these.
    let theirs = ["receipts", "receipts/2024.csv", "receipts/alice/scan.pdf", "receipts/bob/1.txt", "theirs.txt"];
    put(&stack, &environment, receipts.chain(theirs.map(ToOwned::to_owned)).chain([receipt("zoe")])).await?;

    let first = remove(&environment).await?;
    ensure!(first.line("shard1") == "removed" && first.line("shard2") == "removed", "{first:?}");
    let kept = "kept, because other objects are in it; 1002 receipts removed";
    ensure!(first.line(&format!("bucket {bucket}")) == kept, "{first:?}");
    ensure!(first.text.lines().filter(|line| line.starts_with("topic ")).count() == 4, "{first:?}");
    let left = tables(dsn).await?;
    ensure!(left == ["orderuser.outbox", "public.theirs"], "{left:?}");
    ensure!(tables(value(&environment, "PG_SHARD2_DSN")).await?.is_empty());
    let objects = client.list_objects_v2().bucket(bucket).send().await?;
    let keys: Vec<_> = objects.contents().iter().filter_map(|object| object.key()).collect();
    ensure!(keys == theirs, "{keys:?}");
    let tags = client.get_bucket_tagging().bucket(bucket).send().await?.tag_set;
    ensure!(tags.len() == 1 && tags[0].key() == "cost-center", "{tags:?}");
    let checked = run(&environment, &["--check"]).await?;
    ensure!(checked.text.matches("FAILED: the topic does not exist").count() == 4, "{checked:?}");

    let second = remove(&environment).await?;
    ensure!(second.text.matches("has no owner, nothing removed").count() == 4, "{second:?}");

    execute(dsn, "DROP SCHEMA orderuser CASCADE").await?;
    let adopted = run(&environment, &["--adopt"]).await?;
    ensure!(adopted.succeeded, "{adopted:?}");
    let checked = run(&environment, &["--check"]).await?;
    ensure!(checked.succeeded, "{checked:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_another_owner_or_shard_is_removed() -> Result<()> {
    let stack = Stack::shared().await?;
    let (environment, folder) = (fresh(&stack).await?, folder::for_test_process()?);
    provision(folder, environment.clone()).await?;
    let object = receipt("alice");
    put(&stack, &environment, [object.clone()]).await?;
    let dsns = ["PG_SHARD1_DSN", "PG_SHARD2_DSN"].map(|name| value(&environment, name).to_owned());
    let bucket = value(&environment, "S3_BUCKET");

    let another = refuse_to_remove(&with(&environment, "OWNER", "test/another")).await?;
    let owner = value(&environment, "OWNER");
    for target in ["shard1", "shard2", &format!("bucket {bucket}")] {
        ensure!(another.line(target).contains(&format!("belongs to {owner}; nothing was")), "{another:?}");
    }

    // The bucket does not matter here, so another one is named that does not exist.
    let swapped = with(&with(&environment, "PG_SHARD1_DSN", &dsns[1]), "PG_SHARD2_DSN", &dsns[0]);
    let swapped = refuse_to_remove(&with(&swapped, "S3_BUCKET", &format!("{bucket}-not"))).await?;
    ensure!(swapped.text.matches("the database belongs to another shard").count() == 2, "{swapped:?}");

    let elsewhere = with(&with(&environment, "KAFKA_TOPIC", "another"), "S3_BUCKET", &format!("{bucket}-not"));
    let elsewhere = refuse_to_remove(&elsewhere).await?;
    ensure!(elsewhere.text.matches("the database was set up for topic").count() == 2, "{elsewhere:?}");

    let checked = run(&environment, &["--check"]).await?;
    ensure!(checked.succeeded, "{checked:?}");
    stack.s3().head_object().bucket(bucket).key(object).send().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn locked_or_needed_tables_are_all_kept() -> Result<()> {
    let stack = Stack::shared().await?;
    let (environment, folder) = (fresh(&stack).await?, folder::for_test_process()?);
    provision(folder, environment.clone()).await?;
    let dsn = value(&environment, "PG_SHARD1_DSN");
    let before = tables(dsn).await?;

    // The last table: those before it could have been dropped.
    let mut stuck = postgres::connect(dsn).await?;
    sqlx::raw_sql("BEGIN; SELECT FROM orderflow_meta").execute(&mut stuck).await?;
    let locked = refuse_to_remove(&environment).await?;
    ensure!(locked.line("shard1").contains("lock timeout"), "{locked:?}");
    ensure!(locked.line("shard2") == "removed", "{locked:?}");
    ensure!(tables(dsn).await? == before, "{:?}", tables(dsn).await?);
    stuck.close().await?;

    execute(dsn, "CREATE VIEW report AS SELECT count(*) FROM orders").await?;
    let needed = refuse_to_remove(&environment).await?;
    let reason = "FAILED: drop the tables: other objects depend on them: view report depends on table orders";
    ensure!(needed.line("shard1") == reason, "{needed:?}");
    ensure!(tables(dsn).await? == before, "{:?}", tables(dsn).await?);

    execute(dsn, "DROP VIEW report").await?;
    remove(&environment).await?;
    ensure!(tables(dsn).await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn other_migrations_recorded_in_the_same_table_stay() -> Result<()> {
    let stack = Stack::shared().await?;
    let (environment, folder) = (fresh(&stack).await?, folder::for_test_process()?);
    provision(folder, environment.clone()).await?;
    let dsn = value(&environment, "PG_SHARD1_DSN");
    execute(dsn, "INSERT INTO _sqlx_migrations VALUES (20240102030405, 'theirs', now(), true, '', 1)").await?;
    remove(&environment).await?;
    ensure!(tables(dsn).await? == ["public._sqlx_migrations"], "{:?}", tables(dsn).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_keeps_versions_is_removed_with_all_of_them() -> Result<()> {
    let stack = Stack::builder().store(Store::Localstack).start().await?;
    let (environment, folder) = (fresh(&stack).await?, folder::for_test_process()?);
    provision(folder, environment.clone()).await?;
    let (client, bucket) = (stack.s3(), value(&environment, "S3_BUCKET"));
    let enabled = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled).build();
    client.put_bucket_versioning().bucket(bucket).versioning_configuration(enabled).send().await?;
    let (alices, bobs) = (receipt("alice"), receipt("bob"));
    for _ in 0..2 {
        put(&stack, &environment, [alices.clone(), bobs.clone()]).await?;
    }
    client.delete_object().bucket(bucket).key(bobs).send().await?;

    let removed = remove(&environment).await?;
    ensure!(removed.line(&format!("bucket {bucket}")) == "removed, with 5 receipts", "{removed:?}");
    let gone = client.head_bucket().bucket(bucket).send().await;
    ensure!(gone.is_err_and(|error| error.into_service_error().is_not_found()), "the bucket still exists");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_kept_while_their_group_has_members() -> Result<()> {
    let stack = Stack::shared().await?;
    let consumer = stack.consumer().start().await?;
    consumer.ready(PATIENCE).await?;
    let mut environment = stack.env();
    let tag = stack.topic().replace("orders-", "");
    environment.push(("OWNER".to_owned(), format!("test/{tag}")));

    let refused = refuse_to_remove(&environment).await?;
    let group = format!("group {}", stack.group());
    ensure!(refused.line(&group) == "FAILED: the consumer group still has members", "{refused:?}");
    ensure!(refused.line("shard1").contains("kept until the topics are removed"), "{refused:?}");
    let checked = run(&environment, &["--check"]).await?;
    ensure!(checked.text.matches("exists").count() == 4, "{checked:?}");

    consumer.stop().await?;
    // The group may keep a lost member for a while.
    let removed = run(&with(&environment, "WAIT", "60"), &["--remove"]).await?;
    ensure!(removed.succeeded && removed.line(&group) == "removed", "{removed:?}");
    ensure!(removed.line(&format!("topic {}", stack.topic())) == "removed", "{removed:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_trusted_only_by_the_ca_file_of_its_dsn() -> Result<()> {
    let stack = Stack::shared().await?;
    let folder = folder::for_test_process()?;
    let postgres =
        Postgres::start_secured(folder, "tls-postgres", &Authority::new("right")?.loopback("postgres")?).await?;
    let right = postgres.ca_file().context("a secured Postgres has an authority")?;
    let wrong = folder.join("wrong-authority.crt");
    std::fs::write(&wrong, Authority::new("wrong")?.pem())?;
    let dsns = [postgres.create_database("tls1").await?, postgres.create_database("tls2").await?];

    let fresh = fresh(&stack).await?;
    let environment = |query: &str, ca: &str| {
        let environment = with(&fresh, "PG_SHARD1_DSN", &format!("{}{query}", dsns[0]));
        let environment = with(&environment, "PG_SHARD2_DSN", &format!("{}{query}", dsns[1]));
        with(&with(&environment, "PG_SHARD1_CA_FILE", ca), "PG_SHARD2_CA_FILE", ca)
    };
    let (right, wrong) = (right.display().to_string(), wrong.display().to_string());
    let made = run(&environment("", &right), &[]).await?;
    ensure!(made.succeeded, "{made:?}");
    for (query, ca) in [("", &wrong), ("?sslmode=disable", &wrong), ("?sslmode=verify-full", &String::new())] {
        let refused = run(&environment(query, ca), &["--check"]).await?;
        ensure!(refused.line("shard1").contains("certificate"), "{query:?}, {ca:?}: {refused:?}");
    }
    let misplaced = run(&environment("", "/nowhere/ca.crt"), &["--check"]).await?;
    ensure!(misplaced.text.contains("PG_SHARD1_DSN: its CA file /nowhere/ca.crt: No such file"), "{misplaced:?}");
    Ok(())
}

/// Returns the bucket's tags of ours: key and value.
async fn tags(stack: &Stack, bucket: &str) -> Result<Vec<(String, String)>> {
    let answer = stack.s3().get_bucket_tagging().bucket(bucket).send().await;
    let tags = match answer {
        Ok(answer) => answer.tag_set,
        Err(error) if error.code() == Some("NoSuchTagSet") => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    Ok(tags.into_iter().map(|tag| (tag.key, tag.value)).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_with_objects_is_claimed_only_on_request() -> Result<()> {
    let stack = Stack::builder().store(Store::Localstack).start().await?;
    let environment = fresh(&stack).await?;
    let (client, bucket) = (stack.s3(), value(&environment, "S3_BUCKET"));
    client.create_bucket().bucket(bucket).send().await?;
    client.delete_public_access_block().bucket(bucket).send().await?;
    put(&stack, &environment, ["payroll.csv".to_owned(), receipt("alice")]).await?;

    let refused = run(&environment, &[]).await?;
    let line = refused.line(&format!("bucket {bucket}"));
    ensure!(!refused.succeeded && line.contains("holds objects and has no owner tag"), "{refused:?}");
    let (tagged, private) =
        (tags(&stack, bucket).await?, client.get_public_access_block().bucket(bucket).send().await.is_ok());
    ensure!(tagged.is_empty() && !private, "the bucket was changed: {tagged:?}");
    let nothing = run(&environment, &["--remove"]).await?;
    ensure!(nothing.line(&format!("bucket {bucket}")) == "has no owner, nothing removed", "{nothing:?}");

    // Claimed by name: with a tag, or with the flag.
    let owner = value(&environment, "OWNER");
    let tag = Tag::builder().key("orderflow.dev/owner").value(owner).build()?;
    let tagging = Tagging::builder().tag_set(tag).build()?;
    client.put_bucket_tagging().bucket(bucket).tagging(tagging).send().await?;
    let claimed = run(&environment, &[]).await?;
    ensure!(claimed.succeeded, "{claimed:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adopted_bucket_is_emptied_of_receipts_and_kept() -> Result<()> {
    let stack = Stack::builder().store(Store::Localstack).start().await?;
    let environment = fresh(&stack).await?;
    let (client, bucket) = (stack.s3(), value(&environment, "S3_BUCKET"));
    client.create_bucket().bucket(bucket).send().await?;
    let made = run(&environment, &[]).await?;
    ensure!(made.line(&format!("bucket {bucket}")) == "existed, claimed", "{made:?}");
    put(&stack, &environment, [receipt("alice")]).await?;

    let removed = remove(&environment).await?;
    let kept = "kept, because no tag shows that an OrderFlow created it; 1 receipt removed";
    ensure!(removed.line(&format!("bucket {bucket}")) == kept, "{removed:?}");
    client.head_bucket().bucket(bucket).send().await?;
    ensure!(tags(&stack, bucket).await?.is_empty(), "{:?}", tags(&stack, bucket).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_from_before_are_kept() -> Result<()> {
    let stack = Stack::shared().await?;
    let mut environment = fresh(&stack).await?;
    let topic = value(&environment, "KAFKA_TOPIC").to_owned();
    let relay = format!("{topic}.relay");
    // Created as in an earlier version: without a partition that names the topics' owner.
    stack.create_topic(&topic, 6).await?;
    stack.create_topic(&relay, 2).await?;
    let group = value(&environment, "OWNER").replacen('/', ".", 1);
    environment.push(("KAFKA_GROUP_ID".to_owned(), group.clone()));
    let unclaimed = run(&environment, &["--check"]).await?;
    ensure!(unclaimed.line(&format!("topic {relay}")).contains("the topics have no owner yet"), "{unclaimed:?}");
    let made = run(&environment, &[]).await?;
    ensure!(made.succeeded && made.line(&format!("topic {relay}")).starts_with("exists, 3 partitions"), "{made:?}");

    let removed = remove(&environment).await?;
    let kept = "kept, because no record shows that an OrderFlow created it";
    for (name, line) in [
        (topic.clone(), kept),
        (format!("{topic}.notifications"), "removed"),
        (format!("{topic}.dlq"), "removed"),
        (relay.clone(), kept),
    ] {
        ensure!(removed.line(&format!("topic {name} ")) == line, "{name}: {removed:?}");
    }
    // Without its offsets the next group of that name would notify every user again.
    let kept = format!("kept, because the topic {topic} stays");
    ensure!(removed.line(&format!("group {group}")) == kept, "{removed:?}");
    // The topics have no owner again.
    let next = with(&fresh(&stack).await?, "KAFKA_TOPIC", &topic);
    let next = run(&next, &[]).await?;
    ensure!(next.succeeded, "{next:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_have_one_owner_by_any_name_of_their_brokers() -> Result<()> {
    let stack = Stack::shared().await?;
    let environment = fresh(&stack).await?;
    let first = run(&environment, &[]).await?;
    ensure!(first.succeeded, "{first:?}");
    let topic = value(&environment, "KAFKA_TOPIC");

    let alias = value(&environment, "KAFKA_BROKERS").replace("127.0.0.1", "localhost");
    let second = with(&with(&fresh(&stack).await?, "KAFKA_TOPIC", topic), "KAFKA_BROKERS", &alias);
    let expected = format!("FAILED: the topics belong to {}; nothing was written", value(&environment, "OWNER"));
    // Its databases belong to it by now, so only the topics refuse their removal.
    for arguments in [&[][..], &["--check"], &["--remove"]] {
        let refused = run(&second, arguments).await?;
        ensure!(
            !refused.succeeded && refused.line(&format!("topics {topic}…")) == expected,
            "{arguments:?}: {refused:?}"
        );
    }
    let checked = run(&environment, &["--check"]).await?;
    ensure!(checked.succeeded, "{checked:?}");

    let adopted = run(&second, &["--adopt"]).await?;
    ensure!(adopted.succeeded, "{adopted:?}");
    let lost = run(&environment, &["--check"]).await?;
    let owner = value(&second, "OWNER");
    ensure!(lost.text.contains(&format!("the topics are {owner}'s")), "{lost:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_concurrent_claims_of_topics_wins() -> Result<()> {
    let stack = Stack::shared().await?;
    let first = fresh(&stack).await?;
    let topic = value(&first, "KAFKA_TOPIC").to_owned();
    let mut rivals = vec![first];
    for _ in 0..3 {
        rivals.push(with(&fresh(&stack).await?, "KAFKA_TOPIC", &topic));
    }
    let runs = try_join_all(rivals.iter().map(|rival| run(rival, &[]))).await?;
    let winners = runs.iter().filter(|run| run.succeeded).count();
    ensure!(winners == 1, "{winners}: {runs:?}");
    let winner = runs.iter().position(|run| run.succeeded).context("no run has them")?;
    let removed = remove(&rivals[winner]).await?;
    ensure!(removed.line(&format!("topic {topic} ")) == "removed", "{removed:?}");
    Ok(())
}

/// Weaker settings cause a note and no failure, because they work.
#[tokio::test(flavor = "multi_thread")]
async fn a_check_reports_weak_settings_of_the_servers() -> Result<()> {
    let stack = Stack::shared().await?;
    let postgres = Postgres::start(folder::for_test_process()?, "careless-postgres").await?;
    let careless = postgres.create_database("careless").await?;
    let environment = with(&fresh(&stack).await?, "PG_SHARD1_DSN", &careless);
    let made = run(&environment, &[]).await?;
    ensure!(made.succeeded, "{made:?}");
    let safe = run(&environment, &["--check"]).await?;
    ensure!(safe.succeeded && !safe.line("shard1").contains(" is off"), "{safe:?}");
    // One line for all topics.
    ensure!(safe.line("brokers") == "one broker has the only copy of each record", "{safe:?}");
    ensure!(safe.text.lines().filter(|line| line.contains("broker")).count() == 1, "{safe:?}");

    for setting in ["fsync", "full_page_writes", "synchronous_commit"] {
        execute(&careless, &format!("ALTER SYSTEM SET {setting} = off")).await?;
    }
    execute(&careless, "SELECT pg_reload_conf()").await?;
    // The server reads its settings a moment later.
    let reported = eventually("the settings to be reported", PATIENCE, async || {
        let checked = run(&environment, &["--check"]).await?;
        ensure!(checked.text.contains("fsync is off"), "{checked:?}");
        Ok(checked)
    })
    .await?;
    ensure!(reported.succeeded, "{reported:?}");
    for note in ["fsync is off", "full_page_writes is off", "synchronous_commit is off"] {
        ensure!(
            reported.line("shard1").contains(note) && !reported.line("shard2").contains(note),
            "{note}: {reported:?}"
        );
    }
    Ok(())
}
