//! The orders that are sent: users spread over the alphabet, and each order with an idempotency key of its own.

use uuid::Uuid;

/// Names and prices; a price goes out as it stands here, never through a float.
const PRODUCTS: [(&str, &str); 4] =
    [("Wireless Mouse", "29.99"), ("Keyboard", "149.9"), ("Monitor Arm", "89"), ("Lamp", "0.45")];

#[derive(Debug)]
pub(super) struct Orders {
    users: u64,
    run: Uuid,
}

impl Orders {
    pub(super) fn new(users: u64) -> Self {
        Self { users, run: Uuid::now_v7() }
    }

    /// The body of order `number` as JSON.
    pub(super) fn body(&self, number: u64) -> String {
        let (product_name, price) = PRODUCTS[(number % PRODUCTS.len() as u64) as usize];
        let (user_id, quantity) = (user(number % self.users), 1 + number % 5);
        // None of these texts has a character that JSON would escape.
        format!(r#"{{"user_id":"{user_id}","product_name":"{product_name}","quantity":{quantity},"price":{price}}}"#)
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
    fn a_body_is_json() {
        for number in 0..4 {
            let body = Orders::new(1).body(number);
            serde_json::from_str::<serde_json::Value>(&body).unwrap_or_else(|error| panic!("{error} in {body}"));
        }
    }
}
