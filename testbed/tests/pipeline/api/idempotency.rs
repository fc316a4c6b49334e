//! `Idempotency-Key`: the same key of the same user with the same fields is the same order, however often, whenever and
//! through whichever producer it is sent.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use futures_util::future::join_all;
use orderflow_testbed::{
    Producer, Stack,
    api::{Api, Reply, order_of},
};
use reqwest::StatusCode;

use crate::support::{dependencies_up, serving, stored};

/// Starts a producer whose two writers may find one key at the same time.
async fn serving_with_two_writers(stack: &Stack) -> Result<(Producer, Api)> {
    let producer = stack.producer().env("SHARD_WRITERS", "2").start().await?;
    dependencies_up(&producer, &["shard1", "shard2"]).await?;
    let api = Api::new(&producer)?;
    Ok((producer, api))
}

fn is_replay(reply: &Reply) -> bool {
    reply.header("idempotency-replayed") == Some("true")
}

async fn placed(api: &Api, body: &str, key: &str) -> Result<Reply> {
    let reply = api.post(body, Some(key)).await?;
    ensure!(reply.status == StatusCode::CREATED, "{key}: {reply:?}");
    Ok(reply)
}

async fn count(stack: &Stack) -> Result<usize> {
    Ok(stored(stack, 1).await?.len() + stored(stack, 2).await?.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_equal_request_with_the_same_key_gets_the_first_answer_again() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let body = r#"{"user_id":"alice","product_name":"Keyboard","quantity":2,"price":150}"#;
    let first = placed(&api, body, "8e03978e-40d5").await?;
    assert_eq!(first.header("idempotency-replayed"), None);
    let id = first.acked(0)?.id;

    let same_fields = r#" {"price":150.00, "quantity":2, "product_name":"Keyb\u006fard", "user_id":"alice", "x":1} "#;
    for (body, key) in [(body, "8e03978e-40d5"), (body, "\"8e03978e-40d5\""), (same_fields, "  8e03978e-40d5 ")] {
        let again = placed(&api, body, key).await?;
        assert!(is_replay(&again), "{again:?}");
        assert_eq!(again.text, first.text);
    }

    // By now only the order's receipt has changed, and the first response stays the same.
    api.receipt_stored(&id).await?;
    let again = placed(&api, body, "8e03978e-40d5").await?;
    assert!(is_replay(&again), "{again:?}");
    assert_eq!(again.text, first.text);

    let mut now = api.order(&id).await?;
    assert_eq!(now["receipt_status"], "stored");
    now["receipt_status"] = "pending".into();
    assert_eq!(now, first.json()["order"]);
    assert_eq!(count(&stack).await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_of_another_user_is_a_different_order() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    for user in ["alice", "adam", "zara"] {
        let reply = placed(&api, &order_of(user), "key").await?;
        assert!(!is_replay(&reply), "{reply:?}");
        assert_eq!(reply.acked(0)?.user_id, user);
    }
    assert_eq!(count(&stack).await?, 3);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_with_other_fields_is_refused() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let body = order_of("alice");
    let first = placed(&api, &body, "key").await?;
    for (field, other) in [("Keyboard", "keyboard"), (r#""quantity":2"#, r#""quantity":1"#), ("149.99", "150")] {
        let other = body.replace(field, other);
        assert_ne!(other, body, "{field}");
        api.post(other, Some("key")).await?.expect_problem(422, "idempotency-key-reused")?;
    }
    assert_eq!(placed(&api, &body, "key").await?.text, first.text);
    assert_eq!(count(&stack).await?, 1);
    Ok(())
}

/// 64 requests with one key, and 64 with eight others between them, over two producers at once.
#[tokio::test(flavor = "multi_thread")]
async fn concurrent_equal_requests_create_one_order_per_key() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_first, one) = serving_with_two_writers(&stack).await?;
    let (_second, two) = serving_with_two_writers(&stack).await?;
    let requests = (0..128).map(async |number| {
        let api = if number % 4 < 2 { &one } else { &two };
        let (user, key) = if number % 2 == 0 {
            ("alice", "common".to_owned())
        } else {
            let key = number / 2 % 8;
            (if key % 2 == 0 { "alice" } else { "zara" }, format!("key {key}"))
        };
        let reply = placed(api, &order_of(user), &key).await?;
        anyhow::Ok((key, reply))
    });
    let mut replies: BTreeMap<String, Vec<Reply>> = BTreeMap::new();
    for answered in join_all(requests).await {
        let (key, reply) = answered?;
        replies.entry(key).or_default().push(reply);
    }
    assert_eq!(replies.len(), 9);
    for (key, replies) in &replies {
        let firsts = replies.iter().filter(|reply| !is_replay(reply)).count();
        assert_eq!(firsts, 1, "{key}: {firsts} of {} were answered as the first", replies.len());
        assert!(replies.iter().all(|reply| reply.text == replies[0].text), "{key}: {replies:?}");
    }
    assert_eq!(count(&stack).await?, 9);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_concurrent_different_requests_with_one_key_wins() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving_with_two_writers(&stack).await?;
    let requests = (0..64).map(|number| {
        let body = order_of("zara").replace("149.99", ["1", "2"][number % 2]);
        api.post(body, Some("key"))
    });
    let mut won: Option<Reply> = None;
    for reply in join_all(requests).await {
        let reply = reply?;
        if reply.status == StatusCode::CREATED {
            assert_eq!(won.get_or_insert_with(|| reply.clone()).text, reply.text);
        } else {
            reply.expect_problem(422, "idempotency-key-reused")?;
        }
    }
    assert!(won.is_some(), "all were refused");
    assert_eq!(count(&stack).await?, 1);
    Ok(())
}

/// A batch is committed before its known keys are read: a failed read does not mean that nothing is stored.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_read_of_a_known_key_refuses_nothing() -> Result<()> {
    // The next session that stores an order finds the table missing; the one after it does not.
    const BREAK: &str = "CREATE SEQUENCE breaks; \
        CREATE FUNCTION break() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
            IF nextval('breaks') = 1 THEN PERFORM set_config('search_path', 'pg_catalog', false); END IF; RETURN NULL; \
        END $$; \
        CREATE TRIGGER break AFTER INSERT ON idempotency_keys FOR EACH STATEMENT EXECUTE FUNCTION break()";
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let first = placed(&api, &order_of("alice"), "key").await?;
    sqlx::raw_sql(BREAK).execute(&mut stack.shard(1).await?).await?;
    let again = placed(&api, &order_of("alice"), "key").await?;
    assert!(is_replay(&again), "{again:?}");
    assert_eq!(again.text, first.text);
    let broken: bool = sqlx::query_scalar("SELECT is_called FROM breaks").fetch_one(&mut stack.shard(1).await?).await?;
    assert!(broken);
    Ok(())
}

/// The purge compares a key's age with the database's clock. On one machine both clocks agree, so the test shows the
/// source of the time: the order's was taken before its statement began.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_aged_by_the_clock_of_its_database() -> Result<()> {
    const AGED_BY_STATEMENT: &str = "SELECT idempotency_keys.created_at > orders.created_at \
                                     FROM idempotency_keys JOIN orders ON orders.id = order_id";
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    placed(&api, r#"{"user_id":"alice","product_name":"Keyboard","quantity":2,"price":150}"#, "one").await?;
    let by_statement: bool = sqlx::query_scalar(AGED_BY_STATEMENT).fetch_one(&mut stack.shard(1).await?).await?;
    ensure!(by_statement, "the key carries the time of the producer");
    Ok(())
}
