//! The key of the config hashes, in a Secret of the operator's own. With a key, a hash on a pod, which many may read, tells
//! nothing about the passwords that went into it.

use anyhow::Context;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};

use crate::{build::config_hash::Key, kubernetes::is_conflict};

const BYTES: usize = 32;

/// The key in `<lease>-hash-key`, made if there is none. Without it (somebody removed it) all pods are replaced once.
pub async fn read_or_make(client: &Client, namespace: &str, lease: &str) -> anyhow::Result<Key> {
    let name = format!("{lease}-hash-key");
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    if let Some(secret) = api.get_opt(&name).await.context("read the key of the config hashes")? {
        return of(&secret);
    }
    let mut bytes = [0; BYTES];
    aws_lc_rs::rand::fill(&mut bytes).ok().context("make random bytes")?;
    let secret = Secret {
        metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
        data: Some([("key".to_owned(), ByteString(bytes.to_vec()))].into()),
        immutable: Some(true),
        ..Secret::default()
    };
    match api.create(&PostParams::default(), &secret).await {
        Ok(secret) => of(&secret),
        // Somebody else made it in the meantime.
        Err(error) if is_conflict(&error) => of(&api.get(&name).await.context("read the key of the config hashes")?),
        Err(error) => Err(error).context("make the key of the config hashes"),
    }
}

fn of(secret: &Secret) -> anyhow::Result<Key> {
    let bytes = secret.data.as_ref().and_then(|data| data.get("key")).filter(|bytes| bytes.0.len() >= BYTES);
    let bytes = bytes.with_context(|| {
        let name = secret.metadata.name.as_deref().unwrap_or_default();
        format!("Secret {name}: it has no `key` of {BYTES} bytes; remove it, and a new one is made (all pods are then replaced once)")
    })?;
    Ok(Key::new(bytes.0.clone()))
}
