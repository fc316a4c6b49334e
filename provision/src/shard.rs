//! One shard's database: brought to the newest schema, and marked with whose it is and which shard of which map it holds.
//! A database that is somebody else's, or another shard's (a swapped or repointed DSN), is found out before anything is
//! written to it. What was made can be removed again. May run as often as one likes, several at once, and be killed at any
//! point.

mod database;
mod durability;
mod error;

use std::{fmt, time::Duration};

use orderflow_core::{ShardIndex, ShardMap, schema};
use sqlx::postgres::PgConnectOptions;

use crate::Adopt;
use database::{Database, Marking, State};
pub use durability::Note;
pub use error::Error;

/// Bounds a whole call, whatever the server does. Long enough for others to have their turn ([`database::TURN`]) and for a
/// migration whose slowest statement takes all that it may, a minute.
const DEADLINE: Duration = Duration::from_secs(120);

/// What a database is claimed for.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// `<namespace>/<name>` of the OrderFlow.
    pub owner: &'a str,
    pub map: &'a ShardMap,
    /// Which shard of `map` this database is.
    pub index: ShardIndex,
    /// Topic of the order events.
    pub topic: &'a str,
    /// Bucket of the receipts.
    pub bucket: &'a str,
    /// Whose database may be taken over, also one that was made for another topic or bucket. It never makes another
    /// shard's database this shard's: no flag can move users.
    pub adopt: Adopt<'a>,
}

/// What [`ensure`] found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The database was empty, or its creation was interrupted.
    Created {
        version: i64,
    },
    Migrated {
        from: i64,
        to: i64,
    },
    /// It was `from`'s.
    Adopted {
        from: String,
        version: i64,
    },
    /// `version` may be newer than this build knows: migrations only expand, so that is fine.
    Unchanged {
        version: i64,
    },
}

/// What [`check`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Of the schema.
    pub version: i64,
    /// What the server cannot promise about what it has acknowledged.
    pub notes: Vec<Note>,
}

/// What [`remove`] found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// With everything in it; the database itself stays.
    Removed,
    /// The database is not marked as anybody's: it was never set up, or not to the end, or was removed before.
    NothingOfOurs,
}

/// Which shard of which map a database holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub name: String,
    /// From 0.
    pub index: i32,
    /// As [`ShardMap`] prints it.
    pub map: String,
}

/// Makes the database the claimed shard's, with the newest schema. Nothing is written unless it is that already, or is
/// nobody's and has no tables of the same names.
pub async fn ensure(options: &PgConnectOptions, claim: &Claim<'_>) -> Result<Outcome, Error> {
    let work = async {
        let mut database = Database::open_to_write(options).await?;
        database.require_suitable_server().await?;
        database.take_turn().await?;
        let before = database.state().await?;
        require_claimable(&before, claim)?;
        let version = database.migrate().await?;
        database.mark(&claim.marking(), version).await?;
        database.close().await;
        Ok(outcome(before, claim, version))
    };
    tokio::time::timeout(DEADLINE, work).await.unwrap_or(Err(Error::Deadline(DEADLINE)))
}

/// Is the database the claimed shard's, with a schema that this build can work with? Reads only. `adopt` is of no account here.
pub async fn check(options: &PgConnectOptions, claim: &Claim<'_>) -> Result<Found, Error> {
    let work = async {
        let mut database = Database::open_to_read(options).await?;
        database.require_suitable_server().await?;
        let state = database.state().await?;
        let notes = database.durability().await?.notes();
        database.close().await;
        require_claimable(&state, &Claim { adopt: Adopt::Nothing, ..*claim })?;
        match state {
            State::Marked { version, .. } if version < schema::VERSION => {
                Err(Error::Outdated { found: version, expected: schema::VERSION })
            }
            State::Marked { version, marking } if marking == claim.marking() => Ok(Found { version, notes }),
            _ => Err(Error::Missing),
        }
    };
    tokio::time::timeout(DEADLINE, work).await.unwrap_or(Err(Error::Deadline(DEADLINE)))
}

/// Drops the tables of the claimed shard, all orders with them. Only ours (never the database, never a table that the
/// migrations did not make), all or none, and only if the database is marked with exactly this claim; `adopt` is of
/// no account here. A table that somebody keeps locked is not waited for long: that is a transient error.
///
/// The marking goes along, and with it the only thing that says whose the topics are: those go first, see [`is_ours`].
pub async fn remove(options: &PgConnectOptions, claim: &Claim<'_>) -> Result<Removal, Error> {
    let work = async {
        let mut database = Database::open_to_write(options).await?;
        database.require_suitable_server().await?;
        database.take_turn().await?;
        let state = database.state().await?;
        let removal = if is_marked(&state, claim)? {
            database.drop_tables().await?;
            Removal::Removed
        } else {
            Removal::NothingOfOurs
        };
        database.close().await;
        Ok(removal)
    };
    tokio::time::timeout(DEADLINE, work).await.unwrap_or(Err(Error::Deadline(DEADLINE)))
}

/// Is the database marked with exactly this claim? An error if it is marked with another. Reads only. For whoever is about
/// to remove what cannot say itself whose it is, the claimed topic.
pub async fn is_ours(options: &PgConnectOptions, claim: &Claim<'_>) -> Result<bool, Error> {
    let work = async {
        let mut database = Database::open_to_read(options).await?;
        let state = database.state().await?;
        database.close().await;
        is_marked(&state, claim)
    };
    tokio::time::timeout(DEADLINE, work).await.unwrap_or(Err(Error::Deadline(DEADLINE)))
}

/// Errors as [`require_claimable`] for a database that is marked. One with newer tables is refused, too: only the build that
/// made them knows them all, and half of a schema would be in the way of the next one.
fn is_marked(state: &State, claim: &Claim<'_>) -> Result<bool, Error> {
    let State::Marked { version, .. } = state else { return Ok(false) };
    require_claimable(state, &Claim { adopt: Adopt::Nothing, ..*claim })?;
    if *version > schema::VERSION {
        return Err(Error::Newer { found: *version, known: schema::VERSION });
    }
    Ok(true)
}

fn require_claimable(state: &State, claim: &Claim<'_>) -> Result<(), Error> {
    let found = match state {
        State::Empty | State::Unmarked { orders: false } => return Ok(()),
        // With the marking gone nothing says whose it is, so it is not the named owner's either.
        State::Unmarked { orders: true } if claim.adopt == Adopt::Any => return Ok(()),
        State::Unmarked { orders: true } => return Err(Error::NotEmpty { table: "orders".to_owned() }),
        State::Foreign { table } => return Err(Error::NotEmpty { table: table.clone() }),
        State::Marked { marking, .. } => marking,
    };
    let expected = claim.marking();
    // First, as it holds even for those who may adopt.
    if found.identity != expected.identity {
        return Err(Error::ShardMismatch { found: found.identity.clone(), expected: expected.identity });
    }
    if claim.adopt.allows(&found.owner) {
        return Ok(());
    }
    if found.owner != expected.owner {
        return Err(Error::OwnedByAnother { owner: found.owner.clone() });
    }
    // Events that Kafka already has, and receipts that S3 already has, are not in another topic or bucket.
    for (what, found, expected) in
        [("topic", &found.topic, &expected.topic), ("bucket", &found.bucket, &expected.bucket)]
    {
        if let (Some(found), Some(expected)) = (found, expected)
            && found != expected
        {
            return Err(Error::MadeForAnother { what, found: found.clone(), expected: expected.clone() });
        }
    }
    Ok(())
}

fn outcome(before: State, claim: &Claim<'_>, version: i64) -> Outcome {
    match before {
        State::Marked { marking, .. } if marking.owner != claim.owner => {
            Outcome::Adopted { from: marking.owner, version }
        }
        State::Marked { version: from, .. } if from < version => Outcome::Migrated { from, to: version },
        State::Marked { .. } => Outcome::Unchanged { version },
        State::Empty | State::Unmarked { .. } | State::Foreign { .. } => Outcome::Created { version },
    }
}

impl Claim<'_> {
    fn marking(&self) -> Marking {
        let shard = self.map.get(self.index);
        Marking {
            owner: self.owner.to_owned(),
            identity: Identity { name: shard.name.clone(), index: shard.index.get() as i32, map: self.map.to_string() },
            topic: Some(self.topic.to_owned()),
            bucket: Some(self.bucket.to_owned()),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Created { version } => write!(f, "created, schema {version}"),
            Self::Migrated { from, to } => write!(f, "migrated {from} → {to}"),
            Self::Adopted { from, version } => write!(f, "adopted from {from}, schema {version}"),
            Self::Unchanged { version } => write!(f, "unchanged, schema {version}"),
        }
    }
}

impl fmt::Display for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Removed => "removed",
            Self::NothingOfOurs => "nothing of ours",
        })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, number {} of {}", self.name, self.index + 1, self.map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(map: &ShardMap, shard: usize, owner: &'static str, adopt: Adopt<'_>) -> Result<(), Error> {
        let index = map.iter().nth(shard).unwrap().index;
        let wanted = Claim { owner, map, index, topic: "orders", bucket: "order-receipts", adopt };
        let first = map.iter().next().unwrap().index;
        let marking = Claim { owner: "shop/main", index: first, ..wanted }.marking();
        require_claimable(&State::Marked { marking, version: 1 }, &wanted)
    }

    #[test]
    fn only_the_owner_may_have_a_database_unless_it_is_adopted() {
        let map: ShardMap = "shard1=A-M,shard2=N-Z".parse().unwrap();
        claim(&map, 0, "shop/main", Adopt::Nothing).unwrap();
        for adopt in [Adopt::Nothing, Adopt::From("shop/heir"), Adopt::From("shop/other")] {
            let refused = claim(&map, 0, "shop/other", adopt);
            assert!(matches!(refused, Err(Error::OwnedByAnother { owner }) if owner == "shop/main"), "{adopt:?}");
        }
        for adopt in [Adopt::From("shop/main"), Adopt::Any] {
            claim(&map, 0, "shop/other", adopt).unwrap();
        }
    }

    #[test]
    fn nobody_makes_one_shards_database_anothers() {
        let map: ShardMap = "shard1=A-M,shard2=N-Z".parse().unwrap();
        for adopt in [Adopt::Nothing, Adopt::From("shop/main"), Adopt::Any] {
            let error = claim(&map, 1, "shop/main", adopt).unwrap_err();
            assert_eq!(
                error.to_string(),
                "the database is another shard's (shard1, number 1 of shard1=A-M,shard2=N-Z), not this one's \
                 (shard2, number 2 of shard1=A-M,shard2=N-Z); nothing was written: is the DSN right?"
            );
        }
    }

    #[test]
    fn another_topic_needs_an_adoption() {
        let map: ShardMap = "shard1=A-Z".parse().unwrap();
        let index = map.iter().next().unwrap().index;
        let before =
            Claim { owner: "shop/main", map: &map, index, topic: "orders", bucket: "b", adopt: Adopt::Nothing };
        let state = State::Marked { marking: before.marking(), version: 1 };
        let moved = Claim { topic: "orders2", ..before };
        assert!(matches!(require_claimable(&state, &moved), Err(Error::MadeForAnother { what: "topic", .. })));
        require_claimable(&state, &Claim { adopt: Adopt::From("shop/main"), ..moved }).unwrap();
    }

    #[test]
    fn a_database_without_a_marking_is_no_named_owners() {
        let map: ShardMap = "shard1=A-Z".parse().unwrap();
        let index = map.iter().next().unwrap().index;
        let claim = |adopt| Claim { owner: "shop/main", map: &map, index, topic: "orders", bucket: "b", adopt };
        let state = State::Unmarked { orders: true };
        for adopt in [Adopt::Nothing, Adopt::From("shop/main"), Adopt::From("")] {
            assert!(matches!(require_claimable(&state, &claim(adopt)), Err(Error::NotEmpty { .. })), "{adopt:?}");
        }
        require_claimable(&state, &claim(Adopt::Any)).unwrap();
    }

    #[test]
    fn foreign_tables_are_never_touched() {
        let map: ShardMap = "shard1=A-Z".parse().unwrap();
        let index = map.iter().next().unwrap().index;
        let claim = Claim { owner: "shop/main", map: &map, index, topic: "orders", bucket: "b", adopt: Adopt::Any };
        let state = State::Foreign { table: "orders".to_owned() };
        assert!(matches!(require_claimable(&state, &claim), Err(Error::NotEmpty { .. })));
    }
    #[test]
    fn only_what_is_marked_with_exactly_the_claim_is_removed() {
        let map: ShardMap = "shard1=A-M,shard2=N-Z".parse().unwrap();
        let [first, second] = [0, 1].map(|index| map.iter().nth(index).unwrap().index);
        // Whoever may adopt may not remove what is not adopted yet.
        let claim =
            Claim { owner: "shop/main", map: &map, index: first, topic: "orders", bucket: "b", adopt: Adopt::Any };
        let marked = |claim: &Claim<'_>, version| State::Marked { marking: claim.marking(), version };
        let is_marked = |state: &State| super::is_marked(state, &claim);

        assert!(is_marked(&marked(&claim, 1)).unwrap());
        for unmarked in [State::Empty, State::Unmarked { orders: true }, State::Foreign { table: "orders".to_owned() }]
        {
            assert!(!is_marked(&unmarked).unwrap(), "{unmarked:?}");
        }
        let refused = |other: Claim<'_>| is_marked(&marked(&other, 1)).unwrap_err();
        assert!(matches!(refused(Claim { owner: "shop/other", ..claim }), Error::OwnedByAnother { .. }));
        assert!(matches!(refused(Claim { index: second, ..claim }), Error::ShardMismatch { .. }));
        assert!(matches!(refused(Claim { topic: "orders2", ..claim }), Error::MadeForAnother { what: "topic", .. }));
        let newer = is_marked(&marked(&claim, schema::VERSION + 1)).unwrap_err();
        assert!(matches!(newer, Error::Newer { .. }));
    }
}
