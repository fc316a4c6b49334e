//! A keyed hash of the values that a program's pods get from Secrets, for an annotation of the pods. A changed value
//! replaces the pods; a changed label does not. The key prevents a reader of Deployments from guessing passwords.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::pipeline::Pipeline;

/// The operator's own secret. It has no `Debug`, so that it is never printed.
pub struct Key(Vec<u8>);

impl Key {
    pub fn new(key: Vec<u8>) -> Self {
        Self(key)
    }
}

/// Hashes everything that the producer gets from Secrets.
pub fn producer(key: &Key, pipeline: &Pipeline) -> String {
    let shards = pipeline
        .shards
        .iter()
        .filter_map(|shard| Some((pipeline.map.get(shard.index).number, shard.access.as_ref().ok()?)));
    let shards = shards.flat_map(|(number, access)| {
        access.secret_values.iter().map(move |value| (format!("shard {}", number.get()), value.as_slice()))
    });
    let bucket = pipeline.bucket.access.iter().flat_map(|access| &access.secret_values);
    let bucket = bucket.map(|value| ("bucket".to_owned(), value.as_slice()));
    let topic = topic(pipeline).map(|(what, value)| (what.to_owned(), value));
    let values: Vec<(String, &[u8])> = shards.chain(bucket).chain(topic).collect();
    hash(key, values.iter().map(|(what, value)| (what.as_str(), *value)))
}

/// Hashes everything that the consumer gets from Secrets.
pub fn consumer(key: &Key, pipeline: &Pipeline) -> String {
    hash(key, topic(pipeline))
}

fn topic(pipeline: &Pipeline) -> impl Iterator<Item = (&str, &[u8])> {
    let values = pipeline.topic.access.iter().flat_map(|access| &access.secret_values);
    values.map(|value| ("topic", value.as_slice()))
}

/// Hashes labelled values in their order: 128 bits in hex. The length precedes each text, so that two different lists
/// never give the same bytes.
pub fn hash<'a>(key: &Key, values: impl Iterator<Item = (&'a str, &'a [u8])>) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(&key.0).expect("an HMAC takes a key of any length");
    for (what, value) in values {
        for text in [what.as_bytes(), value] {
            mac.update(&(text.len() as u64).to_be_bytes());
            mac.update(text);
        }
    }
    let hash: [u8; 32] = mac.finalize().into_bytes().into();
    let (first, _) = hash.split_first_chunk().expect("16 of 32 bytes");
    format!("{:032x}", u128::from_be_bytes(*first))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;
    use crate::{build::fixture, reconcile::dereference::Secrets};

    #[test]
    fn the_hash_is_an_hmac_of_lengths_labels_and_values() {
        // printf '\0\0\0\0\0\0\0\5topic\0\0\0\0\0\0\0\6secret' | openssl dgst -sha256 -hmac key
        let hash = hash(&Key::new(b"key".to_vec()), [("topic", b"secret".as_slice())].into_iter());
        assert_eq!(hash, "30a03b06738dce3494a253da45206c24");
    }

    #[test]
    fn different_lists_have_different_hashes() {
        let listings: [&[(&str, &[u8])]; 7] = [
            &[],
            &[("", b"")],
            &[("a", b"b")],
            &[("ab", b"")],
            &[("", b"ab")],
            &[("a", b"b"), ("a", b"b")],
            &[("a", b""), ("b", b"")],
        ];
        let hashes_with = |key: &[u8]| listings.map(|listing| hash(&Key::new(key.to_vec()), listing.iter().copied()));
        let hashes: BTreeSet<String> = hashes_with(b"key").into_iter().chain(hashes_with(b"another")).collect();
        assert_eq!(hashes.len(), 14);
    }

    #[test]
    fn a_rotated_value_replaces_only_the_pods_that_use_it() {
        let hashes = |secrets: &Secrets| {
            let pipeline = fixture::pipeline_with(&fixture::everything_changes(), secrets);
            assert_eq!(pipeline.unresolved(), None);
            let key = fixture::key();
            (producer(&key, &pipeline), consumer(&key, &pipeline))
        };
        let before = hashes(&Secrets::new(fixture::SECRETS));
        for (secret, key, _) in fixture::SECRETS {
            let rotated = fixture::SECRETS.map(|(other_secret, other_key, value)| match (secret, key) {
                _ if (other_secret, other_key) != (secret, key) => (other_secret, other_key, value.to_owned()),
                // A certificate must stay readable.
                (_, "ca.crt") => (other_secret, other_key, format!("{value}\n{value}")),
                _ => (other_secret, other_key, format!("{value}2")),
            });
            let after =
                hashes(&Secrets::new(rotated.each_ref().map(|(secret, key, value)| (*secret, *key, value.as_str()))));
            let is_kafka = secret.starts_with("kafka");
            assert_ne!(before.0, after.0, "producer: {secret}, key {key}");
            assert_eq!(before.1 != after.1, is_kafka, "consumer: {secret}, key {key}");
        }
    }

    #[test]
    fn a_change_of_the_spec_alone_keeps_the_hash() {
        let hash = |changes| producer(&fixture::key(), &fixture::pipeline(&changes));
        assert_eq!(hash(json!({})), hash(json!({"producer": {"replicas": 5}})));
    }
}
