//! A shard's database: migrates it to the newest schema and marks it with its owner, its shard and its map. A database
//! of another owner or another shard (a swapped or repointed DSN) is detected before any write. Its tables can be
//! removed again. Safe to run repeatedly and concurrently, and to kill at any point.

mod database;
mod durability;
mod error;
mod migrations;

use std::{fmt, time::Duration};

use orderflow_core::{RangeId, Routes, ShardIndex, ShardMap, schema};
use sqlx::postgres::PgConnectOptions;

use crate::Adopt;
use database::{Database, Marking, State};
pub use durability::Note;
pub use error::Error;

/// The deadline of a call. It is long enough to wait for other runs ([`database::LOCK_TIMEOUT`]) and for a migration
/// whose slowest statement takes its full minute.
const DEADLINE: Duration = Duration::from_secs(120);

/// A claim on a database.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// The OrderFlow, `<namespace>/<name>`.
    pub owner: &'a str,
    pub map: &'a ShardMap,
    /// The shard of `map` that this database holds.
    pub index: ShardIndex,
    /// The topic for order events.
    pub topic: &'a str,
    /// The bucket for receipts.
    pub bucket: &'a str,
    /// The owner whose database may be taken over, even if it was set up for another topic or bucket. It never allows a
    /// database of another shard, because no flag can move users.
    pub adopt: Adopt<'a>,
}

/// The result of [`ensure`].
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
    /// The database belonged to `from`.
    Adopted {
        from: String,
        version: i64,
    },
    /// `version` may be newer than this build knows, which is fine because migrations only expand.
    Unchanged {
        version: i64,
    },
}

/// The result of [`check`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The version of the schema.
    pub version: i64,
    /// The guarantees that the server lacks for acknowledged commits.
    pub notes: Vec<Note>,
}

/// The result of [`remove`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// The tables are dropped; the database itself stays.
    Removed,
    /// The database has no owner: it was never set up completely, or was removed before.
    NotOwned,
}

/// The shard and the map that a database holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub name: String,
    /// The shard's index in the map, from 0.
    pub index: i32,
    /// The map in the format of [`ShardMap`].
    pub map: String,
}

/// Sets up the database for the claimed shard, with the newest schema. Writes only if it belongs to the claim already,
/// or has no owner and no tables of the same names.
pub async fn ensure(options: &PgConnectOptions, claim: &Claim<'_>) -> Result<Outcome, Error> {
    let work = async {
        let mut database = Database::open_to_write(options).await?;
        database.require_suitable_server().await?;
        database.lock().await?;
        let before = database.state().await?;
        require_claimable(&before, claim)?;
        let version = database.migrate().await?;
        database.mark(&claim.marking(), &claim.ranges(), version).await?;
        database.close().await;
        Ok(outcome(before, claim, version))
    };
    tokio::time::timeout(DEADLINE, work).await.unwrap_or(Err(Error::Deadline(DEADLINE)))
}

/// Checks that the database belongs to the claim and has a schema that this build can use. Reads only and ignores
/// `adopt`.
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

/// Drops the tables of the claimed shard with all orders. Drops all or none of the tables that the migrations created,
/// never others and never the database, and only if the database is marked with exactly this claim; ignores `adopt`. A
/// table that another session keeps locked causes a transient error.
///
/// Also drops the marking, the only record of the topics' owner: remove the topics first, see [`is_ours`].
pub async fn remove(options: &PgConnectOptions, claim: &Claim<'_>) -> Result<Removal, Error> {
    let work = async {
        let mut database = Database::open_to_write(options).await?;
        database.require_suitable_server().await?;
        database.lock().await?;
        let state = database.state().await?;
        let removal = if is_marked(&state, claim)? {
            database.drop_tables().await?;
            Removal::Removed
        } else {
            Removal::NotOwned
        };
        database.close().await;
        Ok(removal)
    };
    tokio::time::timeout(DEADLINE, work).await.unwrap_or(Err(Error::Deadline(DEADLINE)))
}

/// Returns true if the database is marked with exactly this claim, and an error if it is marked with another. Reads
/// only. Callers use it before they remove the claimed topic, which may have no recorded owner itself.
pub async fn is_ours(options: &PgConnectOptions, claim: &Claim<'_>) -> Result<bool, Error> {
    let work = async {
        let mut database = Database::open_to_read(options).await?;
        let state = database.state().await?;
        database.close().await;
        is_marked(&state, claim)
    };
    tokio::time::timeout(DEADLINE, work).await.unwrap_or(Err(Error::Deadline(DEADLINE)))
}

/// Returns whether the database is marked with the claim, with the errors of [`require_claimable`]. Refuses a newer
/// schema, because only the build that created its tables knows all of them, and a half of a schema would block the
/// next one.
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
        // Without the marking the owner is unknown, so it is not the named owner either.
        State::Unmarked { orders: true } if claim.adopt == Adopt::Any => return Ok(()),
        State::Unmarked { orders: true } => return Err(Error::NotEmpty { table: "orders".to_owned() }),
        State::Foreign { table } => return Err(Error::NotEmpty { table: table.clone() }),
        State::Marked { marking, .. } => marking,
    };
    let expected = claim.marking();
    // Checked first, because it applies even to adoptions.
    if found.identity != expected.identity {
        return Err(Error::ShardMismatch { found: found.identity.clone(), expected: expected.identity });
    }
    if claim.adopt.allows(&found.owner) {
        return Ok(());
    }
    if found.owner != expected.owner {
        return Err(Error::OwnedByAnother { owner: found.owner.clone() });
    }
    // Events in Kafka and receipts in S3 do not move to another topic or bucket.
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
    fn ranges(&self) -> Vec<RangeId> {
        Routes::first(self.map.clone()).ranges_of(self.map.get(self.index).number)
    }

    fn marking(&self) -> Marking {
        let shard = self.map.get(self.index);
        Marking {
            owner: self.owner.to_owned(),
            identity: Identity {
                name: shard.name.clone(),
                index: shard.number.get() as i32 - 1,
                map: self.map.to_string(),
            },
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
            Self::NotOwned => "has no owner, nothing removed",
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
    fn a_database_of_another_owner_needs_an_adoption() {
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
    fn no_adoption_moves_a_database_to_another_shard() {
        let map: ShardMap = "shard1=A-M,shard2=N-Z".parse().unwrap();
        for adopt in [Adopt::Nothing, Adopt::From("shop/main"), Adopt::Any] {
            let error = claim(&map, 1, "shop/main", adopt).unwrap_err();
            assert_eq!(
                error.to_string(),
                "the database belongs to another shard (shard1, number 1 of shard1=A-M,shard2=N-Z), not to this one \
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
    fn a_database_without_a_marking_cannot_be_adopted_from_a_named_owner() {
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
    fn a_removal_requires_a_marking_with_exactly_the_claim() {
        let map: ShardMap = "shard1=A-M,shard2=N-Z".parse().unwrap();
        let [first, second] = [0, 1].map(|index| map.iter().nth(index).unwrap().index);
        // Adopt::Any does not permit a removal of what is not adopted yet.
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
