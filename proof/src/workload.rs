//! The orders to place: pure, from a seed and a number. Many users on both shards, short and long texts, with and
//! without Idempotency-Keys, keys that are used again, and orders that must be refused.

use std::fmt::Write;

use fastrand::Rng;
use serde::Serialize;

/// The first characters of users: both shards, and characters outside all ranges.
const FIRST: [&str; 14] = ["a", "B", "f", "k", "M", "n", "Q", "v", "z", "7", "é", "_", "😀", "日"];

/// Users per first character: few enough that a user orders again while an earlier order is in flight.
const USERS_EACH: u64 = 8;

/// An order that a client wants to place, and how it sends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    pub number: u64,
    pub user_id: String,
    /// Ends in the plan's number, which identifies all that results from it.
    pub product_name: String,
    pub quantity: i32,
    /// The unit price.
    pub cents: i64,
    pub idempotency_key: Option<String>,
    pub manner: Manner,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Manner {
    /// Sent until a response arrives; an unknown outcome is left alone.
    Once,
    /// Sent until its outcome is known. It has a key, or it could be stored twice.
    Insisting,
    /// Sent until its outcome is known, by several clients at once.
    Together,
    /// Sent again after its response.
    Again,
    /// Sent again after its response with another quantity, which must be refused.
    Conflicting,
    /// Sent with an invalid field.
    Invalid,
}

impl Plan {
    pub fn new(seed: u64, number: u64) -> Self {
        let mut rng = Rng::with_seed(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let first = FIRST[rng.usize(..FIRST.len())];
        let user_id = format!("{first}-{}{}", rng.u64(..USERS_EACH), unusual(&mut rng));
        let manner = match rng.u8(..100) {
            0..45 => Manner::Once,
            45..80 => Manner::Insisting,
            80..87 => Manner::Together,
            87..94 => Manner::Again,
            94..98 => Manner::Conflicting,
            _ => Manner::Invalid,
        };
        let keyless = manner == Manner::Invalid || (manner == Manner::Once && rng.u8(..10) < 6);
        Self {
            number,
            user_id,
            product_name: product_name(&mut rng, number),
            quantity: if manner == Manner::Invalid { 0 } else { rng.i32(1..1000) },
            cents: rng.i64(1..1_000_000),
            idempotency_key: (!keyless).then(|| format!("proof-{seed}-{number}")),
            manner,
        }
    }

    /// Returns the number in a product's name, if the name is a plan's.
    pub fn number_in(product_name: &str) -> Option<u64> {
        product_name.rsplit_once('#')?.1.parse().ok()
    }

    /// Returns the request's body as JSON; the price is written as a decimal, never as a float.
    pub fn body(&self, conflicting: bool) -> String {
        let text = |text: &str| serde_json::Value::from(text).to_string();
        format!(
            r#"{{"user_id":{},"product_name":{},"quantity":{},"price":{}.{:02}}}"#,
            text(&self.user_id),
            text(&self.product_name),
            self.quantity + i32::from(conflicting),
            self.cents / 100,
            self.cents % 100,
        )
    }

    /// Returns the shard of the user, from 1: A to M, and all others. A second implementation on purpose.
    pub fn shard(&self) -> usize {
        let first = self.user_id.chars().next().unwrap_or('?').to_ascii_uppercase();
        if first.is_ascii_uppercase() && first <= 'M' { 1 } else { 2 }
    }
}

/// Returns text that paths, headers and parsers may handle wrongly; mostly none.
fn unusual(rng: &mut Rng) -> &'static str {
    match rng.u8(..20) {
        0 => " b/../c",
        1 => "%2F?x=\"1\"",
        _ => "",
    }
}

fn product_name(rng: &mut Rng, number: u64) -> String {
    let mut name = String::from(["Keyboard", "Lampe <b>ä</b>", "椅子", "Mouse \\\"x\\\""][rng.usize(..4)]);
    let end = format!(" #{number}");
    if rng.u8(..10) == 0 {
        // Fills the name up to the longest that is allowed, in characters.
        let room = 255 - name.chars().count() - end.chars().count();
        name.extend(std::iter::repeat_n(if rng.bool() { 'x' } else { 'ö' }, room));
    }
    write!(name, "{end}").expect("a String takes any text");
    name
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use orderflow_core::NewOrder;

    use super::*;

    #[test]
    fn a_plan_is_valid_unless_its_manner_is_invalid() {
        for number in 0..3000 {
            let plan = Plan::new(7, number);
            let parsed = NewOrder::parse(plan.body(false).as_bytes());
            assert_eq!(parsed.is_ok(), plan.manner != Manner::Invalid, "{plan:?}: {parsed:?}");
            assert_eq!(Plan::number_in(&plan.product_name), Some(number));
            assert!(plan.manner == Manner::Once || plan.manner == Manner::Invalid || plan.idempotency_key.is_some());
        }
    }

    #[test]
    fn equal_seeds_give_equal_plans_and_other_seeds_others() {
        let plans = |seed| (0..50).map(|number| Plan::new(seed, number)).collect::<Vec<_>>();
        assert_eq!(plans(1), plans(1));
        assert_ne!(plans(1), plans(2));
    }

    #[test]
    fn both_shards_and_all_manners_occur() {
        let plans: Vec<_> = (0..1000).map(|number| Plan::new(3, number)).collect();
        assert_eq!(plans.iter().map(Plan::shard).collect::<HashSet<_>>().len(), 2);
        let manners: HashSet<_> = plans.iter().map(|plan| format!("{:?}", plan.manner)).collect();
        assert_eq!(manners.len(), 6);
    }
}
