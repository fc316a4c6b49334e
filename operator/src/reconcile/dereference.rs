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
    /// The value as text. White space around it, such as the newline that an editor adds, is refused: the pods get the value
    /// as it is, and what works here would not work there.
    pub fn text(&self, key: &SecretKey) -> Result<&str, Problem> {
        let invalid = |why: &str| Problem::new(Reason::SecretInvalid, format!("{}: {why}", place(key)));
        let text = std::str::from_utf8(self.bytes(key)?).map_err(|_| invalid("not text"))?;
        match text.trim() {
            "" => Err(invalid("empty")),
            trimmed if trimmed != text => Err(invalid("white space (a newline?) before or after the value")),
            text => Ok(text),
        }
    }

    /// The value as certificates in PEM.
    pub fn pem(&self, key: &SecretKey) -> Result<&str, Problem> {
        let text =
            std::str::from_utf8(self.bytes(key)?).ok().filter(|text| text.contains("-----BEGIN CERTIFICATE-----"));
        text.ok_or_else(|| Problem::new(Reason::SecretInvalid, format!("{}: no certificate in PEM", place(key))))
    }

    fn bytes(&self, key: &SecretKey) -> Result<&[u8], Problem> {
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
        Self::of_all(values)
    }

    #[cfg(test)]
    pub fn of_all<'a>(values: impl IntoIterator<Item = (&'a str, &'a str, &'a str)>) -> Self {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_cannot_be_used_is_named_and_not_shown() {
        let secrets = Secrets::of([("s", "fine", "value"), ("s", "newline", "hunter2\n"), ("s", "empty", "")]);
        let text = |secret: &str, key: &str| {
            secrets
                .text(&SecretKey { name: secret.to_owned(), key: key.to_owned() })
                .map_err(|problem| problem.to_string())
        };
        assert_eq!(text("s", "fine"), Ok("value"));
        for (secret, key, message) in [
            ("s", "newline", "Secret s, key newline: white space (a newline?) before or after the value"),
            ("s", "empty", "Secret s, key empty: empty"),
            ("s", "other", "Secret s has no key other"),
            ("t", "fine", "Secret t (key fine) does not exist"),
        ] {
            assert_eq!(text(secret, key), Err(message.to_owned()));
        }
    }
}
