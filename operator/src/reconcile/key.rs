//! The key of the config hashes, in a Secret of the operator. With a key, the hash on a pod, which many users can read,
//! reveals nothing about the passwords in it.

use anyhow::Context;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};

use crate::{build::config_hash::Key, kubernetes::is_conflict};

const BYTES: usize = 32;

/// Reads the key in `<lease>-hash-key`, or creates it. A new key replaces all pods once.
pub async fn read_or_create(client: &Client, namespace: &str, lease: &str) -> anyhow::Result<Key> {
    let name = format!("{lease}-hash-key");
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    if let Some(secret) = api.get_opt(&name).await.context("read the key of the config hashes")? {
        return key_from(&secret);
    }
    let mut bytes = [0; BYTES];
    aws_lc_rs::rand::fill(&mut bytes).ok().context("generate random bytes")?;
    let secret = Secret {
        metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
        data: Some([("key".to_owned(), ByteString(bytes.to_vec()))].into()),
        immutable: Some(true),
        ..Secret::default()
    };
    match api.create(&PostParams::default(), &secret).await {
        Ok(secret) => key_from(&secret),
        // Another process created it in between.
        Err(error) if is_conflict(&error) => {
            key_from(&api.get(&name).await.context("read the key of the config hashes")?)
        }
        Err(error) => Err(error).context("create the key of the config hashes"),
    }
}

fn key_from(secret: &Secret) -> anyhow::Result<Key> {
    let bytes = secret.data.as_ref().and_then(|data| data.get("key")).filter(|bytes| bytes.0.len() >= BYTES);
    let bytes = bytes.with_context(|| {
        let name = secret.metadata.name.as_deref().unwrap_or_default();
        format!("Secret {name} has no `key` of {BYTES} bytes: delete it, and the operator creates a new one (which replaces all pods once)")
    })?;
    Ok(Key::new(bytes.0.clone()))
}
