//! Repeats one step of an order's parsing and encoding, for `make instructions`: `codec STEP TIMES`.

use std::{env, hint::black_box};

use orderflow_core::{Fingerprint, NewOrder, Notification, OrderCreated, ShardMap, Timestamp, receipt};
use serde::Deserialize;
use uuid::Uuid;

const BODY: &[u8] = br#"{"user_id":"alice-4711","product_name":"Mechanical Keyboard","quantity":2,"price":149.99}"#;

/// The yardstick: the same fields without any rule.
#[derive(Deserialize)]
#[expect(dead_code, reason = "only parsed, never read")]
struct Bare {
    user_id: String,
    product_name: String,
    quantity: i32,
    price: serde_json::Number,
}

fn main() {
    let arguments: Vec<String> = env::args().collect();
    let (step, times) = (arguments[1].as_str(), arguments[2].parse::<u32>().expect("a number of times"));
    let map: ShardMap = "shard1=A-M,shard2=N-Z".parse().expect("a map");
    // Fixed, because the lengths of ids and times differ.
    let now = Timestamp::from_unix_microseconds(1_700_000_000_123_456).expect("a time");
    let id = Uuid::from_u128(0x0189_0a5d_ac96_774b_bcce_b302_099a_8057);
    let new = NewOrder::parse(BODY).expect("a valid order");
    let order = new.clone().into_order(id, now);
    let shard = map.shard_of(&order.user_id);
    let event = OrderCreated::new(&order, shard);
    let payload = event.encode();
    let notification = Notification {
        event_id: event.event_id(),
        order_id: event.order_id,
        user_id: event.user_id.as_str().to_owned(),
        message: Notification::message_for(&event),
        accepted_at: now,
        published_at: now,
        notified_at: now,
        partition: 5,
        offset: 123_456,
    };
    let run: &dyn Fn() = match step {
        "parse-bare" => &|| drop(black_box(serde_json::from_slice::<Bare>(black_box(BODY)))),
        "parse" => &|| drop(black_box(NewOrder::parse(black_box(BODY)))),
        "fingerprint" => &|| {
            black_box(Fingerprint::new(black_box(&new)));
        },
        "event" => &|| drop(black_box(OrderCreated::new(black_box(&order), shard).encode())),
        "decode" => &|| {
            drop(black_box(OrderCreated::decode(
                black_box(Some(&payload)),
                Some(OrderCreated::SCHEMA_VERSION.as_bytes()),
            )));
        },
        "notification" => &|| drop(black_box(serde_json::to_vec(black_box(&notification)))),
        "receipt" => &|| drop(black_box(receipt::text(black_box(&order), shard))),
        other => panic!("no step {other}"),
    };
    for _ in 0..times {
        run();
    }
}
