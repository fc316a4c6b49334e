//! The orders that are sent: users spread over the alphabet, and each order with an idempotency key of its own.

use serde::Serialize;
use uuid::Uuid;

const PRODUCTS: [(&str, u32); 4] =
    [("Wireless Mouse", 2999), ("Keyboard", 14_990), ("Monitor Arm", 8900), ("Lamp", 45)];

#[derive(Debug)]
pub(super) struct Orders {
    users: u64,
    run: Uuid,
}

#[derive(Debug, Serialize)]
struct Body {
    user_id: String,
    product_name: &'static str,
    quantity: u64,
    price: f64,
}

impl Orders {
    pub(super) fn new(users: u64) -> Self {
        Self { users, run: Uuid::now_v7() }
    }

    /// The body of order `number` as JSON.
    pub(super) fn body(&self, number: u64) -> String {
        let (product_name, cents) = PRODUCTS[(number % PRODUCTS.len() as u64) as usize];
        let body = Body {
            user_id: user(number % self.users),
            product_name,
            quantity: 1 + number % 5,
            price: f64::from(cents) / 100.0,
        };
        serde_json::to_string(&body).expect("texts and numbers are JSON")
    }

    /// Equal for nothing that was ever sent.
    pub(super) fn idempotency_key(&self, number: u64) -> String {
        format!("load-{}-{number}", self.run)
    }
}

/// User `index`: neighbours begin with different letters, so any number of users is spread over the shards.
fn user(index: u64) -> String {
    // 15 has no factor in common with 26: the letters alternate between the halves and all of them come.
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
    fn a_price_is_sent_with_its_cents_and_nothing_more() {
        let bodies: Vec<String> = (0..4).map(|number| Orders::new(1).body(number)).collect();
        assert!(bodies[0].ends_with("\"price\":29.99}") && bodies[3].ends_with("\"price\":0.45}"), "{bodies:?}");
    }
}
