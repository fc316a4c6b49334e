//! Refusals of the database. If it refuses one order, with any SQLSTATE, the others are stored. If it refuses every
//! order, the shard is down. A migration in progress refuses no order and no read.

use anyhow::{Result, ensure};
use futures_util::future::join_all;
use orderflow_testbed::{Service, Stack, eventually, wait::PATIENCE};
use reqwest::StatusCode;

use crate::support::{readiness, serving, stored};

/// Refuses each order of the product `Poison SQLSTATE` with that SQLSTATE.
const POISON: &str = "
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF NEW.product_name LIKE 'Poison %' THEN
            RAISE EXCEPTION 'no poison here' USING ERRCODE = split_part(NEW.product_name, ' ', 2);
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION refuse()";

fn order(user: &str, product: &str) -> String {
    format!(r#"{{"user_id":"{user}","product_name":"{product}","quantity":1,"price":1}}"#)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_refused_with_any_sqlstate_fails_alone() -> Result<()> {
    let stack = Stack::shared().await?;
    let (producer, api) = serving(&stack).await?;
    sqlx::raw_sql(POISON).execute(&mut stack.shard(1).await?).await?;
    let codes = ["P0001", "42501", "44000", "54000", "22000", "23514", "XX000", "55000", "P0002"];
    // Placed at the same time, so that they share statements.
    let poisoned = codes.iter().enumerate().map(|(number, code)| (format!("a-{number}"), format!("Poison {code}")));
    let good = (0..40).map(|number| (format!("b-{number}"), "Lamp".to_owned()));
    let orders: Vec<_> = poisoned.chain(good).collect();
    let replies = join_all(orders.iter().map(|(user, product)| api.post(order(user, product), None))).await;
    for ((user, product), reply) in orders.iter().zip(replies) {
        let reply = reply?;
        if product == "Lamp" {
            ensure!(reply.status == StatusCode::CREATED, "{user}: {reply:?}");
        } else {
            let problem = reply.expect_problem(500, "refused")?;
            ensure!(!problem["detail"].to_string().contains("sent again"), "{product}: {problem}");
        }
    }
    assert_eq!(stored(&stack, 1).await?.len(), 40);
    let ready = readiness(&producer).await?.json();
    assert_eq!(ready["dependencies"]["shard1"]["status"], "up", "{ready}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_one_client_do_not_take_its_shard_down() -> Result<()> {
    let stack = Stack::shared().await?;
    let (producer, api) = serving(&stack).await?;
    sqlx::raw_sql(POISON).execute(&mut stack.shard(1).await?).await?;
    for round in 0..20 {
        let user = format!("a-{}", round % 3);
        api.post(order(&user, "Poison P0001"), None).await?.expect_problem(500, "refused")?;
        let ready = readiness(&producer).await?.json();
        ensure!(ready["dependencies"]["shard1"]["status"] == "up", "after {round} refusals: {ready}");
    }
    let reply = api.post(order("bob", "Lamp"), None).await?;
    assert_eq!(reply.status, StatusCode::CREATED, "{reply:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_refuses_unrelated_orders_is_down_until_it_stores_one() -> Result<()> {
    const ALL: &str = "
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'closed'; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION refuse()";
    let stack = Stack::shared().await?;
    let (producer, api) = serving(&stack).await?;
    sqlx::raw_sql(ALL).execute(&mut stack.shard(1).await?).await?;
    api.post(order("alice", "Lamp"), None).await?.expect_problem(500, "refused")?;
    eventually("the shard to be down", PATIENCE, async || {
        // Two orders that share nothing with each other.
        api.post(order("alice", "Lamp"), None).await?;
        let problem = api.post(order("bob", "Chair"), None).await?.expect_problem(503, "not-accepted")?;
        let detail = problem["detail"].to_string();
        ensure!(detail.contains("the shard takes no orders") && !detail.contains("closed"), "{problem}");
        let ready = readiness(&producer).await?.json();
        let reason = ready["dependencies"]["shard1"]["reason"].to_string();
        ensure!(reason.contains("takes no orders") && reason.contains("closed"), "{ready}");
        Ok(())
    })
    .await?;

    sqlx::raw_sql("DROP TRIGGER refuse ON orders").execute(&mut stack.shard(1).await?).await?;
    eventually("the shard to take orders again", PATIENCE, async || {
        let reply = api.post(order("carol", "Table"), None).await?;
        ensure!(reply.status == StatusCode::CREATED, "{reply:?}");
        let ready = readiness(&producer).await?.json();
        ensure!(ready["dependencies"]["shard1"]["status"] == "up", "{ready}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_that_break_a_constraint_never_take_their_shard_down() -> Result<()> {
    let stack = Stack::shared().await?;
    let (producer, api) = serving(&stack).await?;
    let constraint = "ALTER TABLE orders ADD CONSTRAINT small CHECK (quantity <= 1000)";
    sqlx::raw_sql(constraint).execute(&mut stack.shard(1).await?).await?;
    for number in 0..20 {
        let large = format!(r#"{{"user_id":"a-{number}","product_name":"Lamp {number}","quantity":5000,"price":1}}"#);
        api.post(large, None).await?.expect_problem(500, "refused")?;
        let ready = readiness(&producer).await?.json();
        ensure!(ready["dependencies"]["shard1"]["status"] == "up", "after {number} refusals: {ready}");
    }
    let reply = api.post(order("bob", "Lamp"), None).await?;
    assert_eq!(reply.status, StatusCode::CREATED, "{reply:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_beside_a_client_with_hundreds_of_refused_ones_are_stored() -> Result<()> {
    let stack = Stack::shared().await?;
    let (producer, api) = serving(&stack).await?;
    sqlx::raw_sql(POISON).execute(&mut stack.shard(1).await?).await?;
    let poison = (0..300).map(|_| ("a-flood".to_owned(), "Poison P0001"));
    let good = (0..60).map(|number| (format!("b-{number}"), "Lamp"));
    let orders: Vec<_> = poison.chain(good).collect();
    let replies = join_all(orders.iter().map(|(user, product)| api.post(order(user, product), None))).await;
    for ((user, product), reply) in orders.iter().zip(replies) {
        let reply = reply?;
        match (*product, reply.status.as_u16()) {
            ("Lamp", 201) | ("Poison P0001", 500 | 503) => {}
            (product, _) => anyhow::bail!("{user} {product}: {reply:?}"),
        }
    }
    assert_eq!(stored(&stack, 1).await?.len(), 60);
    let ready = readiness(&producer).await?.json();
    assert_eq!(ready["dependencies"]["shard1"]["status"], "up", "{ready}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_whose_row_a_trigger_skips_is_not_answered_201() -> Result<()> {
    const LEAVE_OUT: &str = "
        CREATE FUNCTION leave_out() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.product_name = 'Ghost' THEN RETURN NULL; END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER leave_out BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION leave_out()";
    let stack = Stack::shared().await?;
    let (producer, api) = serving(&stack).await?;
    sqlx::raw_sql(LEAVE_OUT).execute(&mut stack.shard(1).await?).await?;
    let problem = api.post(order("alice", "Ghost"), None).await?.expect_problem(500, "refused")?;
    // The log is written by a thread of its own.
    eventually("the reason in the log", PATIENCE, async || {
        let log = producer.process().log_since_start();
        ensure!(log.contains("its row was not inserted"), "{problem}: {log}");
        Ok(())
    })
    .await?;
    let reply = api.post(order("alice", "Lamp"), None).await?;
    assert_eq!(reply.status, StatusCode::CREATED, "{reply:?}");
    assert_eq!(stored(&stack, 1).await?.len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_in_progress_refuses_neither_a_read_nor_an_order() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let placed = api.place("alice", Some("key")).await?.acked(0)?;
    for width in [300, 400, 500] {
        // Connections and plans from before the change of the table.
        for reply in join_all((0..8).map(|_| api.order(&placed.id))).await {
            reply?;
        }
        let again = api.place("alice", Some("key")).await?;
        ensure!(again.status == StatusCode::CREATED, "{again:?}");
        let widen = format!("ALTER TABLE orders ALTER COLUMN product_name TYPE varchar({width})");
        sqlx::raw_sql(sqlx::AssertSqlSafe(widen)).execute(&mut stack.shard(1).await?).await?;
        for reply in join_all((0..8).map(|_| api.get("/api/orders?user_id=alice"))).await {
            let reply = reply?;
            ensure!(reply.status == StatusCode::OK, "{reply:?}");
        }
        let again = api.place("alice", Some("key")).await?;
        ensure!(again.status == StatusCode::CREATED, "{again:?}");
        let new = api.place("alice", None).await?;
        ensure!(new.status == StatusCode::CREATED, "{new:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_query_is_not_reported_as_an_outage() -> Result<()> {
    let stack = Stack::shared().await?;
    let (producer, api) = serving(&stack).await?;
    let order = api.place("alice", None).await?.acked(0)?;
    sqlx::raw_sql("ALTER TABLE receipt_jobs RENAME TO hidden").execute(&mut stack.shard(1).await?).await?;
    let problem = api.get("/api/orders?user_id=alice").await?.expect_problem(503, "shard-unavailable")?;
    let detail = problem["detail"].to_string();
    ensure!(detail.contains("shard1 could not answer") && !detail.contains("receipt_jobs"), "{problem}");
    let ready = readiness(&producer).await?.json();
    ensure!(ready["dependencies"]["shard1"]["status"] == "up", "{ready}");
    sqlx::raw_sql("ALTER TABLE hidden RENAME TO receipt_jobs").execute(&mut stack.shard(1).await?).await?;
    api.order(&order.id).await.map(drop)
}
