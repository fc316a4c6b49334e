//! The bucket for receipts: ensures that it exists, is private and is tagged with its owner. Several runs may create it
//! at once. S3 has no compare-and-swap for tags: if two OrderFlows claim an untagged bucket at the same moment, the
//! later one gets it and the earlier one notices at its next check. A bucket that holds objects is claimed only with an
//! explicit adoption. A removal deletes the receipts and what an OrderFlow created.

mod error;
mod objects;
mod store;

use std::{fmt, time::Duration};

use aws_sdk_s3::Client;
use orderflow_core::receipt_key;

use crate::Adopt;
pub use error::Error;
use store::{Created, Privacy, Store, Support, Tags};

/// The tag with the owner of the bucket. A tag's value has at most 256 characters.
pub const OWNER_TAG: &str = "orderflow.dev/owner";

/// The tag of a bucket that an OrderFlow created. A bucket without it is never deleted.
pub const CREATED_TAG: &str = "orderflow.dev/created";

/// The prefix of all receipts; see [`receipt_key::key`].
const RECEIPTS: &str = "receipts/";

/// The deadline of a call of [`ensure`] or [`check`]: 10 requests, each bounded by the client, some of them sent twice.
const DEADLINE: Duration = Duration::from_secs(60);

/// The result of [`ensure`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub change: Change,
    pub notes: Vec<Note>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Created,
    /// The bucket existed without an owner.
    Claimed,
    /// The bucket belonged to `from`.
    Adopted {
        from: String,
    },
    /// The bucket was ours, but not private.
    MadePrivate,
    Unchanged,
}

/// A guarantee that this server lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// The public access block is not supported: only the bucket's policies decide whether it is private.
    NoPublicAccessBlock,
    /// Tags are not supported, so the bucket's owner is unknown.
    NoTags,
}

/// The result of [`remove`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// The bucket is deleted, with that many receipts by this call. In a versioned bucket each version counts.
    Removed { receipts: u64 },
    /// The bucket holds other objects: the receipts are deleted, and the bucket has no owner now.
    NotEmpty { receipts: u64 },
    /// No tag shows that an OrderFlow created it: the receipts are deleted, and the bucket has no owner now.
    NotCreated { receipts: u64 },
    /// The bucket has no owner tag: it was never claimed, or an earlier removal kept it. Nothing was changed.
    NotOwned,
    /// The bucket does not exist.
    Missing,
}

/// Ensures that the bucket exists, belongs to `owner` and is private. A bucket of another owner, or one that holds
/// objects and has no owner, is not changed unless `adopt` and the credentials allow it.
pub async fn ensure(
    client: &Client,
    name: &str,
    region: &str,
    owner: &str,
    adopt: Adopt<'_>,
) -> Result<Outcome, Error> {
    let work = async {
        let store = Store { client, name };
        let created = !store.exists().await? && create(&store, region).await?;
        let mut notes = Vec::new();
        let ownership = claim(&store, owner, adopt, created, &mut notes).await?;
        let made_private = make_private(&store, &mut notes).await?;
        let change = match ownership {
            Some(adopted @ Change::Adopted { .. }) => adopted,
            _ if created => Change::Created,
            Some(other) => other,
            None if made_private => Change::MadePrivate,
            None => Change::Unchanged,
        };
        Ok(Outcome { change, notes })
    };
    tokio::time::timeout(DEADLINE, work).await.unwrap_or(Err(Error::Deadline(DEADLINE)))
}

/// Checks that the bucket exists, belongs to `owner` and is private. Reads only.
pub async fn check(client: &Client, name: &str, owner: &str) -> Result<Vec<Note>, Error> {
    let work = async {
        let store = Store { client, name };
        if !store.exists().await? {
            return Err(Error::Missing);
        }
        let mut notes = Vec::new();
        match store.tags().await? {
            Support::Unsupported => notes.push(Note::NoTags),
            Support::Supported(tags) => match tags.owner() {
                Some(found) if found == owner => {}
                Some(found) => return Err(Error::OwnedByAnother { owner: Some(found.to_owned()) }),
                None => return Err(Error::Unclaimed),
            },
        }
        match store.privacy().await? {
            Support::Unsupported => notes.push(Note::NoPublicAccessBlock),
            Support::Supported(Privacy::Private) => {}
            Support::Supported(Privacy::MaybePublic) => return Err(Error::NotPrivate),
        }
        Ok(notes)
    };
    tokio::time::timeout(DEADLINE, work).await.unwrap_or(Err(Error::Deadline(DEADLINE)))
}

/// Deletes all receipts, then the bucket if an OrderFlow created it and it is empty. Otherwise the bucket stays and
/// loses its owner. Removes nothing unless the bucket is tagged with `owner`; on a server without tags it always fails.
///
/// Sends a request for each 1000 receipts, until `deadline`. Whatever was deleted until then or until another error
/// stays deleted, and the next call continues from there.
pub async fn remove(client: &Client, name: &str, owner: &str, deadline: Duration) -> Result<Removal, Error> {
    let work = async {
        let store = Store { client, name };
        if !store.exists().await? {
            return Ok(Removal::Missing);
        }
        let Some(tags) = tags_of_owner(&store, owner).await? else {
            return Ok(Removal::NotOwned);
        };
        let receipts = objects::delete(&store, RECEIPTS, receipt_key::is_key).await?;
        let created = tags.created();
        if created && store.delete().await? {
            return Ok(Removal::Removed { receipts });
        }
        release(&store, owner).await?;
        Ok(if created { Removal::NotEmpty { receipts } } else { Removal::NotCreated { receipts } })
    };
    tokio::time::timeout(deadline, work).await.unwrap_or(Err(Error::Deadline(deadline)))
}

/// Returns the tags if the bucket belongs to `owner`, `None` if it has no owner, and an error if it has another owner
/// or the owner is unknown.
async fn tags_of_owner(store: &Store<'_>, owner: &str) -> Result<Option<Tags>, Error> {
    match store.tags().await? {
        Support::Unsupported => Err(Error::NoTags),
        Support::Supported(tags) => match tags.owner() {
            Some(found) if found == owner => Ok(Some(tags)),
            Some(found) => Err(Error::OwnedByAnother { owner: Some(found.to_owned()) }),
            None => Ok(None),
        },
    }
}

/// Removes our tags, unless another owner has tagged the bucket in between.
async fn release(store: &Store<'_>, owner: &str) -> Result<(), Error> {
    match store.tags().await? {
        Support::Supported(tags) if tags.owner() == Some(owner) => match store.put_tags(tags.without_owner()).await? {
            Support::Supported(()) => Ok(()),
            Support::Unsupported => Err(Error::NoTags),
        },
        _ => Ok(()),
    }
}

/// Returns true if this call created the bucket.
async fn create(store: &Store<'_>, region: &str) -> Result<bool, Error> {
    match store.create(region).await? {
        Created::ByUs => Ok(true),
        // Another run created it in between.
        Created::Before => Ok(false),
        // Some servers return this for one's own bucket as well. A HEAD request succeeds only for an accessible one.
        Created::ByAnother if store.exists().await? => Ok(false),
        Created::ByAnother => Err(Error::OwnedByAnother { owner: None }),
    }
}

/// Tags the bucket with `owner`, if that is allowed. `created` is true if this call created it.
async fn claim(
    store: &Store<'_>,
    owner: &str,
    adopt: Adopt<'_>,
    created: bool,
    notes: &mut Vec<Note>,
) -> Result<Option<Change>, Error> {
    let Support::Supported(tags) = store.tags().await? else {
        notes.push(Note::NoTags);
        return Ok(None);
    };
    let change = match tags.owner() {
        Some(found) if found == owner => return Ok(None),
        Some(found) if adopt.allows(found) => Change::Adopted { from: found.to_owned() },
        Some(found) => return Err(Error::OwnedByAnother { owner: Some(found.to_owned()) }),
        // The objects have no recorded owner, so they do not belong to a named one either.
        None if created || adopt == Adopt::Any || objects::is_empty(store).await? => Change::Claimed,
        None => return Err(Error::NotEmpty { owner: owner.to_owned() }),
    };
    let tags = if created { tags.with_created() } else { tags };
    match store.put_tags(tags.with_owner(owner)).await? {
        Support::Supported(()) => {}
        Support::Unsupported => {
            notes.push(Note::NoTags);
            return Ok(None);
        }
    }
    // Another owner may have tagged it at the same moment.
    match store.tags().await? {
        Support::Supported(tags) if tags.owner() != Some(owner) => {
            Err(Error::OwnedByAnother { owner: tags.owner().map(ToOwned::to_owned) })
        }
        _ => Ok(Some(change)),
    }
}

/// Blocks public access. Returns true if this call changed it.
async fn make_private(store: &Store<'_>, notes: &mut Vec<Note>) -> Result<bool, Error> {
    match store.privacy().await? {
        Support::Supported(Privacy::Private) => return Ok(false),
        Support::Supported(Privacy::MaybePublic) => {
            if let Support::Supported(()) = store.block_public_access().await? {
                return Ok(true);
            }
        }
        Support::Unsupported => {}
    }
    notes.push(Note::NoPublicAccessBlock);
    Ok(false)
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.change {
            Change::Created => f.write_str("created")?,
            Change::Claimed => f.write_str("existed, claimed")?,
            Change::Adopted { from } => write!(f, "adopted from {from}")?,
            Change::MadePrivate => f.write_str("made private")?,
            Change::Unchanged => f.write_str("unchanged")?,
        }
        self.notes.iter().try_for_each(|note| write!(f, ", {note}"))
    }
}

impl fmt::Display for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |receipts: &u64| if *receipts == 1 { "" } else { "s" };
        match self {
            Self::Removed { receipts } => write!(f, "removed, with {receipts} receipt{}", plural(receipts)),
            Self::NotEmpty { receipts } => {
                write!(f, "kept, because other objects are in it; {receipts} receipt{} removed", plural(receipts))
            }
            Self::NotCreated { receipts } => {
                let plural = plural(receipts);
                write!(f, "kept, because no tag shows that an OrderFlow created it; {receipts} receipt{plural} removed")
            }
            Self::NotOwned => f.write_str("has no owner, nothing removed"),
            Self::Missing => f.write_str("does not exist"),
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoPublicAccessBlock => "the server does not support the public access block",
            Self::NoTags => "the server does not support tags",
        })
    }
}

#[cfg(test)]
mod tests {
    use orderflow_core::{OrderId, UserId};

    use super::*;

    #[test]
    fn a_removal_covers_the_keys_of_all_receipts() {
        let key = receipt_key::key(&UserId::parse("alice").unwrap(), OrderId::nil());
        assert!(key.starts_with(RECEIPTS), "{key}");
    }
}
