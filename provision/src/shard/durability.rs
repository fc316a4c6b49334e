//! The guarantees that a shard's server lacks for acknowledged orders. They are reported and are no failure.

use std::fmt;

/// The server's settings for new connections (the writers set their own `synchronous_commit`), and its standbys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Durability {
    pub fsync: String,
    pub full_page_writes: String,
    pub synchronous_commit: String,
    pub synchronous_standby_names: String,
    /// The number of asynchronous standbys that this role can see.
    pub asynchronous_standbys: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    FsyncOff,
    FullPageWritesOff,
    SynchronousCommitOff,
    AsynchronousStandby,
}

impl Durability {
    pub(super) fn notes(&self) -> Vec<Note> {
        let asynchronous = self.asynchronous_standbys > 0 && self.synchronous_standby_names.is_empty();
        [
            (self.fsync == "off", Note::FsyncOff),
            (self.full_page_writes == "off", Note::FullPageWritesOff),
            (self.synchronous_commit == "off", Note::SynchronousCommitOff),
            (asynchronous, Note::AsynchronousStandby),
        ]
        .into_iter()
        .filter_map(|(holds, note)| holds.then_some(note))
        .collect()
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FsyncOff => "fsync is off: a crash of the server can lose acknowledged orders and corrupt the database",
            Self::FullPageWritesOff => "full_page_writes is off: a crash of the server can corrupt the database",
            Self::SynchronousCommitOff => "synchronous_commit is off: a crash of the server can lose acknowledged work",
            Self::AsynchronousStandby => {
                "the standby is asynchronous (synchronous_standby_names is empty): a failover can lose acknowledged orders"
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn safe() -> Durability {
        Durability {
            fsync: "on".to_owned(),
            full_page_writes: "on".to_owned(),
            synchronous_commit: "on".to_owned(),
            synchronous_standby_names: String::new(),
            asynchronous_standbys: 0,
        }
    }

    #[test]
    fn each_unsafe_setting_is_a_note() {
        let off = || "off".to_owned();
        assert_eq!(safe().notes(), []);
        assert_eq!(Durability { fsync: off(), ..safe() }.notes(), [Note::FsyncOff]);
        assert_eq!(Durability { full_page_writes: off(), ..safe() }.notes(), [Note::FullPageWritesOff]);
        assert_eq!(Durability { synchronous_commit: off(), ..safe() }.notes(), [Note::SynchronousCommitOff]);
    }

    #[test]
    fn an_asynchronous_standby_is_a_note_unless_another_is_synchronous() {
        let standby = Durability { asynchronous_standbys: 1, ..safe() };
        assert_eq!(standby.notes(), [Note::AsynchronousStandby]);
        assert_eq!(Durability { synchronous_standby_names: "other".to_owned(), ..standby }.notes(), []);
    }
}
