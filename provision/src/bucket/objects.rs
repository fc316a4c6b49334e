//! Lists and deletes objects, a thousand at a time, until none of ours remain. Each listing starts after the last
//! object that stays, because the objects before it are deleted by then.

use aws_sdk_s3::{
    error::ProvideErrorMetadata,
    types::{BucketVersioningStatus, Delete, ObjectIdentifier},
};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{
    Error,
    store::{Store, Support, unsupported_or},
};

/// The number of concurrent deletes on a server that does not support batches.
const SINGLE_DELETES: usize = 32;

/// Returns true if the bucket holds no object and no version of a deleted one.
pub(super) async fn is_empty(store: &Store<'_>) -> Result<bool, Error> {
    let found =
        if keeps_versions(store).await? { versions(store, "", None).await? } else { objects(store, "", None).await? };
    Ok(found.is_empty())
}

/// Deletes the objects whose keys begin with `prefix` and are `ours`, with all their versions, and returns their
/// number.
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
                one_by_one = matches!(delete_together(store, &found).await?, Support::Unsupported);
            }
            if one_by_one {
                delete_one_by_one(store, found).await?;
            }
        }
        deleted += count;
        // A page may contain versions and markers, each sorted separately.
        after = others.into_iter().map(|object| object.key).max().or(after);
    }
}

async fn keeps_versions(store: &Store<'_>) -> Result<bool, Error> {
    match store.client.get_bucket_versioning().bucket(store.name).send().await {
        // Suspended: the earlier versions still exist.
        Ok(answer) => {
            Ok(matches!(answer.status, Some(BucketVersioningStatus::Enabled | BucketVersioningStatus::Suspended)))
        }
        Err(error) => unsupported_or::<(), _>("read the bucket's versioning", &error).map(|_| false),
    }
}

/// Lists at most 1000 objects, the limit of AWS.
async fn objects(store: &Store<'_>, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectIdentifier>, Error> {
    let request = store.client.list_objects_v2().bucket(store.name).prefix(prefix);
    let request = request.set_start_after(after.map(ToOwned::to_owned));
    let page = request.send().await.map_err(|error| Error::from_sdk("list the objects", &error))?;
    Ok(page.contents().iter().filter_map(|object| identifier(object.key(), None)).collect())
}

/// Lists at most 1000 versions, including delete markers.
async fn versions(store: &Store<'_>, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectIdentifier>, Error> {
    let request = store.client.list_object_versions().bucket(store.name).prefix(prefix);
    let request = request.set_key_marker(after.map(ToOwned::to_owned));
    let page = request.send().await.map_err(|error| Error::from_sdk("list the objects' versions", &error))?;
    let versions = page.versions().iter().map(|version| (version.key(), version.version_id()));
    let markers = page.delete_markers().iter().map(|marker| (marker.key(), marker.version_id()));
    Ok(versions.chain(markers).filter_map(|(key, version)| identifier(key, version)).collect())
}

fn identifier(key: Option<&str>, version: Option<&str>) -> Option<ObjectIdentifier> {
    let identifier = ObjectIdentifier::builder().key(key?).set_version_id(version.map(ToOwned::to_owned));
    Some(identifier.build().expect("the key is set"))
}

/// Deletes the objects in one request. [`Support::Unsupported`]: the server deletes single objects only.
async fn delete_together(store: &Store<'_>, objects: &[ObjectIdentifier]) -> Result<Support<()>, Error> {
    let what = "delete the objects";
    let delete = Delete::builder().set_objects(Some(objects.to_vec())).quiet(true).build().expect("objects are set");
    match store.client.delete_objects().bucket(store.name).delete(delete).send().await {
        // Quiet: the answer names only the objects that were not deleted.
        Ok(answer) => {
            match answer.errors().iter().find(|error| !matches!(error.code(), Some("NoSuchKey" | "NoSuchVersion"))) {
                Some(error) => Err(Error::from_object(what, error)),
                None => Ok(Support::Supported(())),
            }
        }
        // Some servers require the checksum that AWS used to require, and which the client no longer sends.
        Err(error) if matches!(error.code(), Some("MissingContentMD5" | "InvalidRequest")) => Ok(Support::Unsupported),
        Err(error) => unsupported_or(what, &error),
    }
}

async fn delete_one_by_one(store: &Store<'_>, objects: Vec<ObjectIdentifier>) -> Result<(), Error> {
    let deletes = objects.into_iter().map(|object| async move {
        let request = store.client.delete_object().bucket(store.name).key(object.key);
        match request.set_version_id(object.version_id).send().await {
            Ok(_) => Ok(()),
            Err(error) if matches!(error.code(), Some("NoSuchKey" | "NoSuchVersion")) => Ok(()),
            Err(error) => Err(Error::from_sdk("delete an object", &error)),
        }
    });
    stream::iter(deletes).buffer_unordered(SINGLE_DELETES).try_collect().await
}
