//! Objects by the thousand: found and deleted, until none of ours is found. Always the first page after the last object that
//! stays is asked for, since what it showed before is gone by then.

use aws_sdk_s3::{
    error::ProvideErrorMetadata,
    types::{BucketVersioningStatus, Delete, ObjectIdentifier},
};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{
    Error,
    store::{Answer, Store, unknown_or},
};

/// Deletes in flight on a server that takes them one by one.
const SINGLE_DELETES: usize = 32;

/// Whether nothing is in the bucket, no version of what was deleted either.
pub(super) async fn is_empty(store: &Store<'_>) -> Result<bool, Error> {
    let found =
        if keeps_versions(store).await? { versions(store, "", None).await? } else { objects(store, "", None).await? };
    Ok(found.is_empty())
}

/// Deletes the objects whose keys begin with `prefix` and are `ours`, with all their versions, and answers how many those
/// were.
pub(super) async fn delete(store: &Store<'_>, prefix: &str, ours: impl Fn(&str) -> bool) -> Result<u64, Error> {
    let versioned = keeps_versions(store).await?;
    let (mut deleted, mut one_by_one, mut after) = (0, false, None::<String>);
    loop {
        let page = if versioned {
            versions(store, prefix, after.as_deref()).await?
        } else {
            objects(store, prefix, after.as_deref()).await?
        };
        if page.is_empty() {
            return Ok(deleted);
        }
        let (found, others): (Vec<_>, Vec<_>) = page.into_iter().partition(|object| ours(&object.key));
        let count = found.len() as u64;
        if !found.is_empty() {
            if !one_by_one {
                one_by_one = matches!(delete_together(store, &found).await?, Answer::Unknown);
            }
            if one_by_one {
                delete_one_by_one(store, found).await?;
            }
        }
        deleted += count;
        // Its page may show versions and markers, which are sorted each for themselves.
        after = others.into_iter().map(|object| object.key).max().or(after);
    }
}

async fn keeps_versions(store: &Store<'_>) -> Result<bool, Error> {
    match store.client.get_bucket_versioning().bucket(store.name).send().await {
        // Suspended: those from before are still there.
        Ok(answer) => {
            Ok(matches!(answer.status, Some(BucketVersioningStatus::Enabled | BucketVersioningStatus::Suspended)))
        }
        Err(error) => unknown_or::<(), _>("read the bucket's versioning", &error).map(|_| false),
    }
}

/// At most 1000, as AWS gives no more at once.
async fn objects(store: &Store<'_>, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectIdentifier>, Error> {
    let request = store.client.list_objects_v2().bucket(store.name).prefix(prefix);
    let request = request.set_start_after(after.map(ToOwned::to_owned));
    let page = request.send().await.map_err(|error| Error::of("list the objects", &error))?;
    Ok(page.contents().iter().filter_map(|object| identifier(object.key(), None)).collect())
}

/// At most 1000, markers of what was deleted included.
async fn versions(store: &Store<'_>, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectIdentifier>, Error> {
    let request = store.client.list_object_versions().bucket(store.name).prefix(prefix);
    let request = request.set_key_marker(after.map(ToOwned::to_owned));
    let page = request.send().await.map_err(|error| Error::of("list the objects' versions", &error))?;
    let versions = page.versions().iter().map(|version| (version.key(), version.version_id()));
    let markers = page.delete_markers().iter().map(|marker| (marker.key(), marker.version_id()));
    Ok(versions.chain(markers).filter_map(|(key, version)| identifier(key, version)).collect())
}

fn identifier(key: Option<&str>, version: Option<&str>) -> Option<ObjectIdentifier> {
    let identifier = ObjectIdentifier::builder().key(key?).set_version_id(version.map(ToOwned::to_owned));
    Some(identifier.build().expect("the key is set"))
}

/// [`Answer::Unknown`]: the server takes deletes one by one only.
async fn delete_together(store: &Store<'_>, objects: &[ObjectIdentifier]) -> Result<Answer<()>, Error> {
    let what = "delete the objects";
    let delete = Delete::builder().set_objects(Some(objects.to_vec())).quiet(true).build().expect("objects are set");
    match store.client.delete_objects().bucket(store.name).delete(delete).send().await {
        // Quiet: only what was not deleted is named.
        Ok(answer) => {
            match answer.errors().iter().find(|error| !matches!(error.code(), Some("NoSuchKey" | "NoSuchVersion"))) {
                Some(error) => Err(Error::of_object(what, error)),
                None => Ok(Answer::Known(())),
            }
        }
        // Some servers want the checksum that AWS used to want, which the client no longer sends.
        Err(error) if matches!(error.code(), Some("MissingContentMD5" | "InvalidRequest")) => Ok(Answer::Unknown),
        Err(error) => unknown_or(what, &error),
    }
}

async fn delete_one_by_one(store: &Store<'_>, objects: Vec<ObjectIdentifier>) -> Result<(), Error> {
    let deletes = objects.into_iter().map(|object| async move {
        let request = store.client.delete_object().bucket(store.name).key(object.key);
        match request.set_version_id(object.version_id).send().await {
            Ok(_) => Ok(()),
            Err(error) if matches!(error.code(), Some("NoSuchKey" | "NoSuchVersion")) => Ok(()),
            Err(error) => Err(Error::of("delete an object", &error)),
        }
    });
    stream::iter(deletes).buffer_unordered(SINGLE_DELETES).try_collect().await
}
