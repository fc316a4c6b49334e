//! The CEL rules that are more than a comparison of two fields. Each list and string that they walk has a bound in the
//! schema, because the API server refuses rules whose cost it cannot bound.

/// A name that, with `-producer` behind it, can name a Service, and with a namespace before it fits a bucket's tag (256).
pub const NAME: &str = "self.metadata.name.size() <= 50 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')";

pub const UNIQUE_NAMES: &str = "self.all(a, self.exists_one(b, a.name == b.name))";

/// `A-M`: neither may a range's first letter come after its last …
pub const ORDERED: &str = "self.users.substring(0, 1) <= self.users.substring(2, 3)";

/// … nor may two ranges name one letter. Shards of one name are another rule's business.
pub const NO_OVERLAP: &str = "self.all(a, self.all(b, a.name == b.name || \
     a.users.substring(2, 3) < b.users.substring(0, 1) || b.users.substring(2, 3) < a.users.substring(0, 1)))";

/// Everything of a shard but where its Secrets are: which user is where follows from it.
pub const SAME_SHARDS: &str = "self.map(s, s.name + '=' + s.users) == oldSelf.map(s, s.name + '=' + s.users)";

/// Both defaults stand here, because a schema default would make `replicas` and `autoscaling` always collide.
pub const CONSUMERS_HAVE_PARTITIONS: &str =
    "(has(self.consumer) && has(self.consumer.replicas) ? self.consumer.replicas : 2) <= self.topic.partitions";

/// Neither set, nor changed, nor taken away.
pub const SAME_GROUP: &str =
    "has(self.groupId) == has(oldSelf.groupId) && (!has(self.groupId) || self.groupId == oldSelf.groupId)";

/// Without `resources` the operator's defaults ask for CPU; a limit without a request is one.
pub const AUTOSCALING_NEEDS_CPU: &str = "!has(self.autoscaling) || !has(self.resources) || \
     (has(self.resources.requests) && 'cpu' in self.resources.requests) || \
     (has(self.resources.limits) && 'cpu' in self.resources.limits)";
