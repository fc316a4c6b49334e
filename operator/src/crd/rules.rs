//! CEL rules that are more than a comparison of two fields. Each list and string that they iterate has a bound in the
//! schema, because the API server refuses rules whose cost it cannot bound.

/// The name limit: `NAME-producer` must be a valid Service name, and `NAMESPACE/NAME` must fit a bucket tag (256).
pub const NAME: &str = "self.metadata.name.size() <= 50 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')";

pub const UNIQUE_NAMES: &str = "self.all(a, self.exists_one(b, a.name == b.name))";

/// The order within a range such as `A-M`: its first letter must not come after its last.
pub const ORDERED: &str = "self.users.substring(0, 1) <= self.users.substring(2, 3)";

/// The disjointness of the ranges. Shards with the same name are the matter of [`UNIQUE_NAMES`].
pub const NO_OVERLAP: &str = "self.all(a, self.all(b, a.name == b.name || \
     a.users.substring(2, 3) < b.users.substring(0, 1) || b.users.substring(2, 3) < a.users.substring(0, 1)))";

/// The immutability of the shards, except their references to Secrets. It decides which user is in which shard.
pub const SAME_SHARDS: &str = "self.map(s, s.name + '=' + s.users) == oldSelf.map(s, s.name + '=' + s.users)";

/// The bound on consumers. It contains the default, because a schema default would make `replicas` and `autoscaling`
/// always collide.
pub const CONSUMERS_HAVE_PARTITIONS: &str =
    "(has(self.consumer) && has(self.consumer.replicas) ? self.consumer.replicas : 2) <= self.topic.partitions";

/// The immutability of the group id: it can be neither set, changed nor removed later.
pub const SAME_GROUP: &str =
    "has(self.groupId) == has(oldSelf.groupId) && (!has(self.groupId) || self.groupId == oldSelf.groupId)";

/// The CPU request that autoscaling needs. Without `resources` the operator's defaults request CPU; a limit without a
/// request counts as one.
pub const AUTOSCALING_NEEDS_CPU: &str = "!has(self.autoscaling) || !has(self.resources) || \
     (has(self.resources.requests) && 'cpu' in self.resources.requests) || \
     (has(self.resources.limits) && 'cpu' in self.resources.limits)";
