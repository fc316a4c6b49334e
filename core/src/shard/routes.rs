//! The routes of an epoch: which range, on which shard, stores the orders of a user.

use serde::{Deserialize, Serialize};

use super::{FIRST_EPOCH, MapEpoch, Shard, ShardMap, ShardNumber, term};
use crate::UserId;

/// Identifies users whose orders are stored, and move, together. A database's gate lists the ranges that it may store.
/// An id is never given to other users.
pub type RangeId = i32;

/// The range of the users that no term of the first map names.
const OTHERS: RangeId = 0;

/// The folded ids from `from` to that of the next route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Route {
    from: String,
    range: RangeId,
    shard: ShardNumber,
}

/// A map in its epoch, with the ranges that it cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routes {
    pub epoch: MapEpoch,
    pub map: ShardMap,
    routes: Vec<Route>,
}

/// The reason why a list of ranges is unusable.
#[derive(Debug, thiserror::Error)]
pub enum InvalidRoutes {
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error("the ranges do not begin with the empty text, or are not in order")]
    Order,
    #[error("a range is on shard {0}, which the map does not have")]
    Shard(u32),
}

impl Routes {
    /// Returns the routes of a map that was never changed: the users that a shard's terms name are the range of its
    /// number, and all others are range 0.
    pub fn first(map: ShardMap) -> Self {
        let route = |segment: &super::Segment| {
            let shard = map.get(segment.shard).number;
            let range = if segment.is_named { shard.get() as RangeId } else { OTHERS };
            Route { from: segment.lower.clone(), range, shard }
        };
        Self { epoch: FIRST_EPOCH, routes: map.segments.iter().map(route).collect(), map }
    }

    /// Reads the routes of a later epoch from the form of [`Self::to_json`].
    pub fn from_json(epoch: MapEpoch, map: ShardMap, json: &str) -> Result<Self, InvalidRoutes> {
        let routes: Vec<Route> = serde_json::from_str(json)?;
        let is_ordered = routes.first().is_some_and(|first| first.from.is_empty())
            && routes.windows(2).all(|pair| pair[0].from < pair[1].from);
        if !is_ordered {
            return Err(InvalidRoutes::Order);
        }
        match routes.iter().find(|route| map.numbered(route.shard).is_none()) {
            Some(route) => Err(InvalidRoutes::Shard(route.shard.get())),
            None => Ok(Self { epoch, map, routes }),
        }
    }

    /// Returns a JSON list of objects with `from`, `range` and `shard`.
    pub fn to_json(&self) -> String {
        serde_json::to_string(&self.routes).expect("routes have only text and numbers")
    }

    /// Returns the range and the shard of a user.
    pub fn of(&self, user: &UserId) -> (RangeId, &Shard) {
        let above = self.routes.partition_point(|route| term::compare(user, &route.from).is_ge());
        // The first route begins with the empty text, which no id is less than.
        let route = &self.routes[above - 1];
        (route.range, self.map.numbered(route.shard).expect("a route leads to a shard of the map"))
    }

    pub fn shard_of(&self, user: &UserId) -> &Shard {
        self.of(user).1
    }

    /// Returns the ranges of a shard, in order.
    pub fn ranges_of(&self, shard: ShardNumber) -> Vec<RangeId> {
        let own = self.routes.iter().filter(|route| route.shard == shard);
        let mut ranges: Vec<RangeId> = own.map(|route| route.range).collect();
        ranges.sort_unstable();
        ranges.dedup();
        ranges
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn first(map: &str) -> Routes {
        Routes::first(map.parse().unwrap())
    }

    #[test]
    fn the_first_ranges_are_the_shards_numbers_and_0_for_all_others() {
        let routes = first("one=A-M,three:3=N-Z+@42");
        let of = |user: &str| {
            let user = UserId::parse(user).unwrap();
            let (range, shard) = routes.of(&user);
            (range, shard.name.clone())
        };
        assert_eq!(of("alice"), (1, "one".to_owned()));
        assert_eq!(of("nina"), (3, "three".to_owned()));
        assert_eq!(of("42"), (3, "three".to_owned()));
        assert_eq!(of("43"), (0, "three".to_owned()));
        let numbers: Vec<_> = routes.map.iter().map(|shard| routes.ranges_of(shard.number)).collect();
        assert_eq!(numbers, [vec![1], vec![0, 3]]);
    }

    #[test]
    fn routes_survive_json_and_those_of_another_map_are_refused() {
        let routes = first("one=A-M,two=N-Z");
        let read = |json: &str| Routes::from_json(FIRST_EPOCH, routes.map.clone(), json);
        assert_eq!(read(&routes.to_json()).unwrap(), routes);
        for json in [
            "[]",
            r#"[{"from":"A","range":1,"shard":1}]"#,
            r#"[{"from":"","range":1,"shard":1},{"from":"","range":2,"shard":2}]"#,
            r#"[{"from":"","range":1,"shard":3}]"#,
            r#"[{"from":"","range":1,"shard":0}]"#,
            "{}",
        ] {
            assert!(read(json).is_err(), "{json}");
        }
    }

    proptest! {
        #[test]
        fn the_first_routes_follow_the_map(user in "\\PC{1,20}") {
            let routes = first("one=A-M+@zoe,two=GA-GM+0-9,three=N-Z");
            let user = UserId::parse(&user).unwrap();
            prop_assert_eq!(routes.shard_of(&user), routes.map.shard_of(&user));
        }
    }
}
