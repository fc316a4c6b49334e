//! The bucket of the receipts: there, private, and tagged with whose it is. Several runs may make it at once. S3 has no
//! compare-and-swap for tags, so of two OrderFlows that claim one untagged bucket in the same instant the later one has it,
//! and the earlier one finds out at its next look. A bucket that holds objects is claimed only if somebody says so. What was
//! made can be removed again, with the receipts.

mod error;
mod objects;
mod store;

use std::{fmt, time::Duration};

use aws_sdk_s3::Client;
use orderflow_core::receipt;

use crate::Adopt;
pub use error::Error;
use store::{Answer, Created, Privacy, Store, Tags};

/// The tag that says whose the bucket is. Its value holds at most 256 characters.
pub const OWNER_TAG: &str = "orderflow.dev/owner";

/// The tag that says that an OrderFlow created the bucket. Without it the bucket is never deleted.
pub const CREATED_TAG: &str = "orderflow.dev/created";

/// All receipts are below it; see [`receipt::key`].
const RECEIPTS: &str = "receipts/";

/// Bounds a whole call of [`ensure`] or [`check`]: 10 requests, each bounded by the client, some of them twice.
const DEADLINE: Duration = Duration::from_secs(60);

/// What [`ensure`] found and did, and what this server cannot do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub change: Change,
    pub notes: Vec<Note>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Created,
    /// It was there, and nobody's.
    Claimed,
    /// It was `from`'s.
    Adopted {
        from: String,
    },
    /// It was ours, but not private.
    MadePrivate,
    Unchanged,
}

/// What cannot be promised on this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// It knows no public access block: whether the bucket is private is up to its policies.
    NoPublicAccessBlock,
    /// It knows no tags: nobody can see whose the bucket is.
    NoTags,
}

/// What [`remove`] found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// The bucket, and that many receipts (versions of them, if the bucket keeps versions) which this call deleted.
    Removed { receipts: u64 },
    /// Other objects are in it: the receipts are gone, the bucket is nobody's now.
    NotEmpty { receipts: u64 },
    /// Nothing says that we created it: the receipts are gone, the bucket is nobody's now.
    NotCreated { receipts: u64 },
    /// The bucket is tagged as nobody's: it was not claimed yet, or kept by a removal before. Nothing was touched.
    NothingOfOurs,
    /// There is no such bucket.
    Missing,
}

/// Makes the bucket exist, be `owner`'s and be private. A bucket that is another's, or nobody's and holds objects, is not
/// touched, unless `adopt` allows it and the credentials allow it.
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

/// Does the bucket exist, is it `owner`'s and private? Reads only.
pub async fn check(client: &Client, name: &str, owner: &str) -> Result<Vec<Note>, Error> {
    let work = async {
        let store = Store { client, name };
        if !store.exists().await? {
            return Err(Error::Missing);
        }
        let mut notes = Vec::new();
        match store.tags().await? {
            Answer::Unknown => notes.push(Note::NoTags),
            Answer::Known(tags) => match tags.owner() {
                Some(found) if found == owner => {}
                Some(found) => return Err(Error::OwnedByAnother { owner: Some(found.to_owned()) }),
                None => return Err(Error::Unclaimed),
            },
        }
        match store.privacy().await? {
            Answer::Unknown => notes.push(Note::NoPublicAccessBlock),
            Answer::Known(Privacy::Private) => {}
            Answer::Known(Privacy::MaybePublic) => return Err(Error::NotPrivate),
        }
        Ok(notes)
    };
    tokio::time::timeout(DEADLINE, work).await.unwrap_or(Err(Error::Deadline(DEADLINE)))
}

/// Deletes all receipts, then the bucket if we created it and nothing else is in it; otherwise the bucket stays and loses its
/// owner. Only if the bucket is tagged as `owner`'s: on a server that knows no tags nobody can tell, so nothing is removed
/// there.
///
/// Takes as long as there are receipts, 1000 with each request, but not longer than `deadline`. What was deleted until then,
/// or until any other error, stays deleted, and the next call goes on from there.
pub async fn remove(client: &Client, name: &str, owner: &str, deadline: Duration) -> Result<Removal, Error> {
    let work = async {
        let store = Store { client, name };
        if !store.exists().await? {
            return Ok(Removal::Missing);
        }
        let Some(tags) = tags_of_owner(&store, owner).await? else {
            return Ok(Removal::NothingOfOurs);
        };
        let receipts = objects::delete(&store, RECEIPTS, receipt::is_key).await?;
        let created = tags.created();
        if created && store.delete().await? {
            return Ok(Removal::Removed { receipts });
        }
        release(&store, owner).await?;
        Ok(if created { Removal::NotEmpty { receipts } } else { Removal::NotCreated { receipts } })
    };
    tokio::time::timeout(deadline, work).await.unwrap_or(Err(Error::Deadline(deadline)))
}

/// None: nobody's. An error if it is another's, or nobody can tell.
async fn tags_of_owner(store: &Store<'_>, owner: &str) -> Result<Option<Tags>, Error> {
    match store.tags().await? {
        Answer::Unknown => Err(Error::NoTags),
        Answer::Known(tags) => match tags.owner() {
            Some(found) if found == owner => Ok(Some(tags)),
            Some(found) => Err(Error::OwnedByAnother { owner: Some(found.to_owned()) }),
            None => Ok(None),
        },
    }
}

/// Takes our tags away, unless somebody else has tagged it by now.
async fn release(store: &Store<'_>, owner: &str) -> Result<(), Error> {
    match store.tags().await? {
        Answer::Known(tags) if tags.owner() == Some(owner) => match store.put_tags(tags.without_owner()).await? {
            Answer::Known(()) => Ok(()),
            Answer::Unknown => Err(Error::NoTags),
        },
        _ => Ok(()),
    }
}

/// True if it was this call that made it.
async fn create(store: &Store<'_>, region: &str) -> Result<bool, Error> {
    match store.create(region).await? {
        Created::ByUs => Ok(true),
        // By another run, in between.
        Created::Before => Ok(false),
        // Some servers say this about one's own bucket, too; whoever may look at it has it.
        Created::ByAnother if store.exists().await? => Ok(false),
        Created::ByAnother => Err(Error::OwnedByAnother { owner: None }),
    }
}

/// `created`: by this call.
async fn claim(
    store: &Store<'_>,
    owner: &str,
    adopt: Adopt<'_>,
    created: bool,
    notes: &mut Vec<Note>,
) -> Result<Option<Change>, Error> {
    let Answer::Known(tags) = store.tags().await? else {
        notes.push(Note::NoTags);
        return Ok(None);
    };
    let change = match tags.owner() {
        Some(found) if found == owner => return Ok(None),
        Some(found) if adopt.allows(found) => Change::Adopted { from: found.to_owned() },
        Some(found) => return Err(Error::OwnedByAnother { owner: Some(found.to_owned()) }),
        // Nothing says whose the objects are, so they are not a named owner's either.
        None if created || adopt == Adopt::Any || objects::is_empty(store).await? => Change::Claimed,
        None => return Err(Error::NotEmpty { owner: owner.to_owned() }),
    };
    let tags = if created { tags.with_created() } else { tags };
    match store.put_tags(tags.with_owner(owner)).await? {
        Answer::Known(()) => {}
        Answer::Unknown => {
            notes.push(Note::NoTags);
            return Ok(None);
        }
    }
    // Somebody else may have tagged it in the same instant.
    match store.tags().await? {
        Answer::Known(tags) if tags.owner() != Some(owner) => {
            Err(Error::OwnedByAnother { owner: tags.owner().map(ToOwned::to_owned) })
        }
        _ => Ok(Some(change)),
    }
}

/// True if it was this call that made it so.
async fn make_private(store: &Store<'_>, notes: &mut Vec<Note>) -> Result<bool, Error> {
    match store.privacy().await? {
        Answer::Known(Privacy::Private) => return Ok(false),
        Answer::Known(Privacy::MaybePublic) => {
            if let Answer::Known(()) = store.block_public_access().await? {
                return Ok(true);
            }
        }
        Answer::Unknown => {}
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
                write!(f, "kept, as other objects are in it; {receipts} receipt{} removed", plural(receipts))
            }
            Self::NotCreated { receipts } => {
                let plural = plural(receipts);
                write!(f, "kept, as nothing says that an OrderFlow created it; {receipts} receipt{plural} removed")
            }
            Self::NothingOfOurs => f.write_str("nothing of ours"),
            Self::Missing => f.write_str("not there"),
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoPublicAccessBlock => "the server knows no public access block",
            Self::NoTags => "the server knows no tags",
        })
    }
}

#[cfg(test)]
mod tests {
    use orderflow_core::{OrderId, UserId};

    use super::*;

    #[test]
    fn all_receipts_are_where_they_are_looked_for_to_be_removed() {
        let key = receipt::key(&UserId::parse("alice").unwrap(), OrderId::nil());
        assert!(key.starts_with(RECEIPTS), "{key}");
    }
}
