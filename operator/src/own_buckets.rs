//! The buckets for which the operator uses its own AWS identity.

use crate::condition::{Problem, Reason};

/// The patterns of bucket names, in which `*` stands for any characters.
#[derive(Clone, Debug, Default)]
pub struct OwnBuckets(Vec<String>);

impl OwnBuckets {
    pub fn new(patterns: impl IntoIterator<Item = String>) -> Self {
        Self(patterns.into_iter().filter(|pattern| !pattern.is_empty()).collect())
    }

    /// Requires that the operator may use its own identity for a bucket whose spec names no credentials.
    pub fn require(&self, bucket: &str, endpoint: Option<&str>) -> Result<(), Problem> {
        let refuse = |reason: &str| {
            let text = format!("bucket {bucket}: {reason}, or name a Secret in spec.bucket.credentialsSecretRef");
            Err(Problem::new(Reason::OwnIdentityRefused, text))
        };
        if endpoint.is_some() {
            return refuse("the operator uses its own AWS identity for AWS only: remove the endpoint");
        }
        if !self.0.iter().any(|pattern| matches(pattern, bucket)) {
            return refuse(
                "no --bucket-pattern allows the operator's own AWS identity for this name: add one (in the chart: \
                 bucketPatterns)",
            );
        }
        Ok(())
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, after)) => name.strip_prefix(before).is_some_and(|rest| {
            rest.char_indices().map(|(at, _)| at).chain([rest.len()]).any(|at| matches(after, &rest[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, name, expected) in [
            ("orders", "orders", true),
            ("orders", "orders-2", false),
            ("orders-*", "orders-2", true),
            ("orders-*", "orders-", true),
            ("orders-*", "old-orders-2", false),
            ("*-receipts", "shop-receipts", true),
            ("*-receipts", "shop-receipts-old", false),
            ("shop-*-receipts", "shop-eu-west-receipts", true),
            ("*", "anything", true),
            ("", "", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn the_operators_identity_needs_a_pattern_and_aws() {
        let none = OwnBuckets::new([String::new()]);
        assert!(none.require("orders", None).is_err());
        let some = OwnBuckets::new(["orders".to_owned()]);
        some.require("orders", None).unwrap();
        assert!(some.require("payroll", None).is_err());
        assert!(some.require("orders", Some("http://elsewhere:9000")).is_err());
    }
}
