//! Reads each Secret that a spec names once. A missing Secret is not an error here; validation reports it as the
//! problem of the part that needs it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use futures_util::future::try_join_all;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use orderflow_core::plain;

use crate::{
    condition::{Problem, Reason},
    crd::{OrderFlowSpec, SecretKey},
};

/// The values of the Secrets that a spec names.
#[derive(Default)]
pub struct Secrets(BTreeMap<String, Option<BTreeMap<String, Vec<u8>>>>);

/// Returns the names of all Secrets that a spec names.
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
    /// Returns the value as one line of text. Refuses an invisible character, such as the newline that an editor adds or
    /// that separates two pasted lines. Some libraries panic on it, and the pods get the value unchanged.
    pub fn text(&self, key: &SecretKey) -> Result<&str, Problem> {
        let text = std::str::from_utf8(self.bytes(key)?).map_err(|_| invalid(key, "not UTF-8 text"))?;
        if text.trim().is_empty() {
            return Err(invalid(key, "empty"));
        }
        plain::check(text).map_err(|error| invalid(key, error)).map(|()| text)
    }

    /// Returns the value as certificates in PEM.
    pub fn pem(&self, key: &SecretKey) -> Result<&str, Problem> {
        let text =
            std::str::from_utf8(self.bytes(key)?).ok().filter(|text| text.contains("-----BEGIN CERTIFICATE-----"));
        let text = text.ok_or_else(|| invalid(key, "no certificate in PEM"))?;
        plain::check_lines(text).map_err(|error| invalid(key, error)).map(|()| text)
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

    /// Returns the value, or `None` if the key or the Secret is missing.
    pub fn optional(&self, secret: &str, key: &str) -> Option<&[u8]> {
        self.0.get(secret)?.as_ref()?.get(key).map(Vec::as_slice)
    }

    #[cfg(test)]
    pub fn new<const N: usize>(values: [(&str, &str, &str); N]) -> Self {
        Self::from_values(values)
    }

    #[cfg(test)]
    pub fn from_values<'a>(values: impl IntoIterator<Item = (&'a str, &'a str, &'a str)>) -> Self {
        let mut secrets = Self::default();
        for (secret, key, value) in values {
            let values = secrets.0.entry(secret.to_owned()).or_insert_with(|| Some(BTreeMap::new()));
            values.get_or_insert_default().insert(key.to_owned(), value.as_bytes().to_vec());
        }
        secrets
    }
}

fn invalid(key: &SecretKey, reason: impl fmt::Display) -> Problem {
    Problem::new(Reason::SecretInvalid, format!("{}: {reason}", place(key)))
}

/// Returns the text by which messages name a value.
pub fn place(key: &SecretKey) -> String {
    format!("Secret {}, key {}", key.name, key.key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: &str = "must have no control or invisible characters and no white space around it, and has";

    #[test]
    fn a_certificate_may_have_newlines_but_no_other_invisible_characters() {
        let pem = "-----BEGIN CERTIFICATE-----\r\nAA==\r\n-----END CERTIFICATE-----\n";
        let secrets = Secrets::new([("s", "fine", pem), ("s", "nul", &format!("{pem}\0"))]);
        let pem = |key: &str| secrets.pem(&SecretKey { name: "s".to_owned(), key: key.to_owned() });
        assert!(pem("fine").is_ok());
        assert_eq!(pem("nul").unwrap_err().message, format!("Secret s, key nul: {RULE} '\\0' as character 62"));
    }

    #[test]
    fn an_unusable_value_is_named_and_not_shown() {
        let secrets = Secrets::new([
            ("s", "fine", "value"),
            ("s", "newline", "hunter2\n"),
            ("s", "inside", "hunter2\r\nhunter3"),
            ("s", "empty", ""),
        ]);
        let text = |secret: &str, key: &str| {
            secrets
                .text(&SecretKey { name: secret.to_owned(), key: key.to_owned() })
                .map_err(|problem| problem.to_string())
        };
        assert_eq!(text("s", "fine"), Ok("value"));
        let (newline, inside) = (
            format!("Secret s, key newline: {RULE} '\\n' as character 8"),
            format!("Secret s, key inside: {RULE} '\\r' as character 8"),
        );
        for (secret, key, message) in [
            ("s", "newline", newline.as_str()),
            ("s", "inside", inside.as_str()),
            ("s", "empty", "Secret s, key empty: empty"),
            ("s", "other", "Secret s has no key other"),
            ("t", "fine", "Secret t (key fine) does not exist"),
        ] {
            assert_eq!(text(secret, key), Err(message.to_owned()));
        }
    }
}
