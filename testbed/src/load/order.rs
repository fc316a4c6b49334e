//! The requests of a load: of any kind, and orders whose users are spread over the alphabet, each with an idempotency
//! key.

use std::{
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
};

use http_body_util::Full;
use hyper::{body::Bytes, header};
use serde::Deserialize;
use tokio::time::Instant;
use uuid::Uuid;

/// Makes the requests of a load.
pub trait Request: Debug + Send + Sync {
    /// Returns request `number` without its Host header.
    fn make(&self, number: u64) -> hyper::Request<Full<Bytes>>;

    /// Receives the body of each response.
    fn answered(&self, _body: &[u8]) {}
}

impl<R: Request + ?Sized> Request for Arc<R> {
    fn make(&self, number: u64) -> hyper::Request<Full<Bytes>> {
        (**self).make(number)
    }

    fn answered(&self, body: &[u8]) {
        (**self).answered(body);
    }
}

/// The ids of accepted orders, with the time of their responses.
#[derive(Debug, Default)]
pub struct Accepted(Mutex<Vec<(Uuid, Instant)>>);

/// Names and prices; a price is sent exactly like this, never through a float.
const PRODUCTS: [(&str, &str); 4] =
    [("Wireless Mouse", "29.99"), ("Keyboard", "149.9"), ("Monitor Arm", "89"), ("Lamp", "0.45")];

#[derive(Debug)]
pub struct Orders {
    users: u64,
    run: Uuid,
    accepted: Option<Accepted>,
}

impl Orders {
    pub fn new(users: u64) -> Self {
        Self { users, run: Uuid::now_v7(), accepted: None }
    }

    /// Records every response.
    #[must_use]
    pub fn noting(self) -> Self {
        Self { accepted: Some(Accepted::default()), ..self }
    }

    /// Returns what was recorded since the last call.
    pub fn take_accepted(&self) -> Vec<(Uuid, Instant)> {
        self.accepted.as_ref().map(Accepted::take).unwrap_or_default()
    }

    /// Returns the body of order `number` as JSON.
    fn body(&self, number: u64) -> String {
        let (product_name, price) = PRODUCTS[(number % PRODUCTS.len() as u64) as usize];
        let (user_id, quantity) = (user(number % self.users), 1 + number % 5);
        // JSON would escape no character of these texts.
        format!(r#"{{"user_id":"{user_id}","product_name":"{product_name}","quantity":{quantity},"price":{price}}}"#)
    }

    /// Returns a key that was never sent before.
    fn idempotency_key(&self, number: u64) -> String {
        format!("load-{}-{number}", self.run)
    }
}

impl Request for Orders {
    fn make(&self, number: u64) -> hyper::Request<Full<Bytes>> {
        hyper::Request::post("/api/orders")
            .header(header::CONTENT_TYPE, "application/json")
            .header("idempotency-key", self.idempotency_key(number))
            .body(Full::from(self.body(number)))
            .expect("these headers are valid")
    }

    fn answered(&self, body: &[u8]) {
        #[derive(Deserialize)]
        struct Answer {
            order: Order,
        }
        #[derive(Deserialize)]
        struct Order {
            id: Uuid,
        }
        if let Some(accepted) = &self.accepted
            && let Ok(answer) = serde_json::from_slice::<Answer>(body)
        {
            accepted.note(answer.order.id);
        }
    }
}

impl Accepted {
    fn note(&self, id: Uuid) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((id, Instant::now()));
    }

    fn take(&self) -> Vec<(Uuid, Instant)> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Returns user `index`. Neighbours begin with different letters, so any number of users is spread over the shards.
fn user(index: u64) -> String {
    // 15 has no factor in common with 26: the letters alternate between the halves, and all letters occur.
    let letter = char::from(b'a' + (index * 15 % 26) as u8);
    format!("{letter}-load-{index}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_users_are_on_both_sides_of_the_alphabet() {
        assert!(user(0).as_bytes()[0] <= b'm' && user(1).as_bytes()[0] > b'm');
    }

    #[test]
    fn users_are_spread_evenly() {
        let first_half = (0..26).filter(|index| user(*index).as_bytes()[0] <= b'm').count();
        assert_eq!(first_half, 13);
    }

    #[test]
    fn a_body_is_json() {
        for number in 0..4 {
            let body = Orders::new(1).body(number);
            serde_json::from_str::<serde_json::Value>(&body).unwrap_or_else(|error| panic!("{error} in {body}"));
        }
    }
}
