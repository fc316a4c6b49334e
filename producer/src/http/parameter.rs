//! What a request says in its path and its query. A value that cannot be read is a problem that names its parameter.

use axum::{
    extract::{FromRequestParts, Path, Query},
    http::request::Parts,
};
use orderflow_core::OrderId;

use super::problem::Problem;

/// The `{id}` of a path.
pub struct IdOfPath(pub OrderId);

/// The query of a list of orders, each value still as it came.
pub struct ListParameters {
    pub user_id: Option<String>,
    pub limit: Option<String>,
    pub cursor: Option<String>,
}

/// The query of a list of dead letters, each value still as it came.
pub struct DeadLetterParameters {
    pub limit: Option<String>,
    pub before: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for IdOfPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        // A segment that is not UTF-8 is refused by the path itself.
        let id = Path::<String>::from_request_parts(parts, state).await.ok().and_then(|Path(id)| id.parse().ok());
        id.map(Self).ok_or_else(|| Problem::invalid_parameter("id", "must be a UUID"))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for ListParameters {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let [user_id, limit, cursor] = query(parts, ["user_id", "limit", "cursor"])?;
        Ok(Self { user_id, limit, cursor })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for DeadLetterParameters {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let [limit, before] = query(parts, ["limit", "before"])?;
        Ok(Self { limit, before })
    }
}

/// The values of these names; others are ignored.
fn query<const N: usize>(parts: &Parts, names: [&str; N]) -> Result<[Option<String>; N], Problem> {
    let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
        .map_err(|_| Problem::invalid_parameter("query", "must be URL-encoded"))?;
    let mut values = [const { None }; N];
    for (name, value) in pairs {
        let Some(position) = names.iter().position(|known| *known == name) else { continue };
        // Which of the two was meant is not ours to guess.
        if values[position].replace(value).is_some() {
            return Err(Problem::invalid_parameter(&name, "must stand once"));
        }
    }
    Ok(values)
}
