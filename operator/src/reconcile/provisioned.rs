//! The result of provisioning, for each part.

use crate::{
    condition::{Class, Problem, Reason},
    pipeline::Part,
};

/// The result for each part.
#[derive(Clone, Debug)]
pub struct Provisioned {
    /// The version of each schema, in the order of the shards.
    pub shards: Vec<Part<i64>>,
    /// The guarantees that the server lacks.
    pub bucket: Part<Vec<String>>,
    /// The differences from the spec that do not prevent use.
    pub topic: Part<Vec<String>>,
    pub notes: Notes,
    /// True if a transient failure of a part that was ready was suppressed. The next probe comes soon and reports it if
    /// it persists: a server that is slow for a moment should alert nobody.
    pub suppressed: bool,
}

/// Facts about the servers that no part depends on.
#[derive(Clone, Debug, Default)]
pub struct Notes {
    /// The guarantees that the shards' servers lack for acknowledged commits, each with the shard's name.
    pub shards: Vec<String>,
    /// The guarantees that the brokers lack.
    pub brokers: Vec<String>,
    pub kafka_cluster_id: Option<String>,
}

impl Provisioned {
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        let shards = self.shards.iter().filter_map(|shard| shard.as_ref().err());
        shards.chain(self.bucket.as_ref().err()).chain(self.topic.as_ref().err())
    }

    /// Adds `reason` to each problem that an adoption could solve.
    pub fn explain_adoption(&mut self, reason: &str) {
        let shards = self.shards.iter_mut().filter_map(|shard| shard.as_mut().err());
        for problem in shards.chain(self.bucket.as_mut().err()).chain(self.topic.as_mut().err()) {
            if matches!(problem.reason, Reason::OwnedByAnother | Reason::MadeForAnother | Reason::DatabaseNotEmpty) {
                problem.message = format!("{}; {reason}", problem.message);
            }
        }
    }

    /// Replaces transient failures of parts that were ready in `before`, unless they were suppressed then.
    pub fn suppress_once(&mut self, before: &Self) {
        if before.suppressed {
            return;
        }
        let shards = std::iter::zip(&mut self.shards, &before.shards).map(|(now, before)| suppress(now, before));
        let suppressed = shards.fold(false, |any, one| any | one);
        self.suppressed =
            suppressed | suppress(&mut self.bucket, &before.bucket) | suppress(&mut self.topic, &before.topic);
        if self.suppressed {
            self.notes.clone_from(&before.notes);
        }
    }
}

fn suppress<T: Clone>(now: &mut Part<T>, before: &Part<T>) -> bool {
    let transient = now.as_ref().is_err_and(|problem| problem.class() == Class::Transient);
    if transient && before.is_ok() {
        now.clone_from(before);
        return true;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_unanswered_probe_is_suppressed_and_the_second_is_reported() {
        let answer = |shard: Part<i64>| Provisioned {
            shards: vec![Ok(1), shard],
            bucket: Ok(Vec::new()),
            topic: Ok(Vec::new()),
            notes: Notes::default(),
            suppressed: false,
        };
        let silent = || Err(Problem::new(Reason::Unreachable, "no answer"));
        let refused = || Err(Problem::new(Reason::ShardMismatch, "belongs to another shard"));
        let (well, mut first, mut second) = (answer(Ok(1)), answer(silent()), answer(silent()));
        first.suppress_once(&well);
        assert!(first.suppressed && first.problems().next().is_none());
        second.suppress_once(&first);
        assert!(!second.suppressed && second.problems().count() == 1);
        // A problem that needs the user is reported at once.
        let mut other = answer(refused());
        other.suppress_once(&well);
        assert!(!other.suppressed && other.problems().count() == 1);
    }
}
