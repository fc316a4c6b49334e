//! The migrations of a shard's schema. They are listed here rather than read by sqlx's macro, which would compile the
//! whole Postgres driver a second time, for the compiler.

use std::borrow::Cow;

use sqlx::{
    SqlSafeStr,
    migrate::{Migration, MigrationType, Migrator},
};

macro_rules! migration {
    ($folder:literal, $name:literal) => {
        ($name, include_str!(concat!("../../", $folder, "/", $name, ".sql")))
    };
}

/// The name and the SQL of each. A name begins with the version.
const ALL: &[(&str, &str)] = &[
    migration!("migrations", "0001_orders"),
    migration!("migrations", "0002_receipt_trace"),
    migration!("migrations", "0003_map_epoch"),
    migration!("migrations", "0004_gate"),
    #[cfg(feature = "next-schema")]
    migration!("tests/next-schema", "0005_gift_note"),
];

/// The first line of a migration that runs outside a transaction, such as `CREATE INDEX CONCURRENTLY`.
const NO_TRANSACTION: &str = "-- no-transaction";

pub(super) fn all() -> Migrator {
    let migration = |(name, sql): &(&'static str, &'static str)| {
        let (version, description) = name.split_once('_').expect("a name is VERSION_DESCRIPTION");
        Migration::new(
            version.parse().expect("a version is a number"),
            Cow::Owned(description.replace('_', " ")),
            MigrationType::Simple,
            (*sql).into_sql_str(),
            sql.starts_with(NO_TRANSACTION),
        )
    };
    let mut migrations = Migrator::with_migrations(ALL.iter().map(migration).collect());
    // A newer build may have added migrations, which only expand.
    migrations.set_ignore_missing(true);
    // Our own lock covers the reads before and the marking after as well, which the migrator's would not.
    migrations.set_locking(false);
    migrations
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path};

    use orderflow_core::schema;

    use super::*;

    #[test]
    fn every_file_is_listed() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
        let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        let files: BTreeSet<String> = files.filter_map(|file| Some(file.strip_suffix(".sql")?.to_owned())).collect();
        let listed = ALL.iter().map(|(name, _)| (*name).to_owned()).filter(|name| !name.ends_with("gift_note"));
        assert_eq!(listed.collect::<BTreeSet<_>>(), files);
    }

    #[test]
    fn migrations_are_numbered_without_gaps_up_to_the_version_that_the_code_expects() {
        let versions: Vec<i64> = all().iter().map(|migration| migration.version).collect();
        assert_eq!(versions, (1..=schema::VERSION).collect::<Vec<_>>());
    }

    /// Databases keep the name and the checksum of each applied migration, and refuse another one.
    #[test]
    fn applied_migrations_are_those_of_earlier_releases() {
        for (migration, description, beginning) in [
            (0, "orders", [0xc8, 0xc2, 0x17, 0xa3, 0x05, 0xd9, 0x27, 0x7c]),
            (1, "receipt trace", [0x51, 0x2a, 0x25, 0x62, 0x62, 0xc1, 0xce, 0x5d]),
        ] {
            let migration = &all().migrations[migration];
            assert_eq!((migration.description.as_ref(), &migration.checksum[..8]), (description, &beginning[..]));
        }
    }
}
