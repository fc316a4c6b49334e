//! Reads the Secrets that a spec names, all of them, each once. One that is missing is an answer, not an error: which part
//! it belongs to is found out when that part is put together.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::try_join_all;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};

use crate::{
    condition::{Problem, Reason},
    crd::{OrderFlowSpec, SecretKey},
};

/// The values of the Secrets that a spec names.
#[derive(Default)]
pub struct Secrets(BTreeMap<String, Option<BTreeMap<String, Vec<u8>>>>);

/// Names of all Secrets that a spec names.
pub fn names(spec: &OrderFlowSpec) -> BTreeSet<&str> {
    let shards = spec.shards.iter().flat_map(|shard| [Some(&shard.dsn_secret_ref), shard.ca_secret_ref.as_ref()]);
    let kafka_ca = spec.topic.tls.as_ref().and_then(|tls| tls.ca_secret_ref.as_ref());
    let keys = shards.chain([kafka_ca]).flatten().map(|key| key.name.as_str());
    let sasl = spec.topic.sasl.as_ref().map(|sasl| sasl.secret_ref.name.as_str());
    let s3 = spec.bucket.credentials_secret_ref.as_ref().map(|secret| secret.name.as_str());
    keys.chain(sasl).chain(s3).collect()
}

pub async fn dereference(client: &Client, namespace: &str, spec: &OrderFlowSpec) -> Result<Secrets, kube::Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let reads = names(spec).into_iter().map(|name| {
        let api = &api;
        async move {
            let secret = api.get_opt(name).await?;
            let values = secret
                .map(|secret| secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0)).collect());
            Ok::<_, kube::Error>((name.to_owned(), values))
        }
    });
    Ok(Secrets(try_join_all(reads).await?.into_iter().collect()))
}

impl Secrets {
    /// The value as text, without white space around it: a newline at its end is the most common mistake in a Secret.
    pub fn text(&self, key: &SecretKey) -> Result<&str, Problem> {
        let value = self.bytes(key)?;
        let text = std::str::from_utf8(value).map(str::trim).ok().filter(|text| !text.is_empty());
        text.ok_or_else(|| Problem::new(Reason::SecretInvalid, format!("{}: not text, or empty", place(key))))
    }

    pub fn bytes(&self, key: &SecretKey) -> Result<&[u8], Problem> {
        let Some(Some(secret)) = self.0.get(&key.name) else {
            return Err(Problem::new(
                Reason::SecretMissing,
                format!("Secret {} (key {}) does not exist", key.name, key.key),
            ));
        };
        let value = secret.get(&key.key).ok_or_else(|| {
            Problem::new(Reason::SecretKeyMissing, format!("Secret {} has no key {}", key.name, key.key))
        })?;
        Ok(value)
    }

    /// None also if the Secret is missing.
    pub fn optional(&self, secret: &str, key: &str) -> Option<&[u8]> {
        self.0.get(secret)?.as_ref()?.get(key).map(Vec::as_slice)
    }

    #[cfg(test)]
    pub fn of<const N: usize>(values: [(&str, &str, &str); N]) -> Self {
        let mut secrets = Self::default();
        for (secret, key, value) in values {
            let values = secrets.0.entry(secret.to_owned()).or_insert_with(|| Some(BTreeMap::new()));
            values.get_or_insert_default().insert(key.to_owned(), value.as_bytes().to_vec());
        }
        secrets
    }
}

/// How messages name a value.
pub fn place(key: &SecretKey) -> String {
    format!("Secret {}, key {}", key.name, key.key)
}
