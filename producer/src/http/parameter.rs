//! Reads the parameters in the path and the query of a request. A value that cannot be read gets a problem that names
//! its parameter. So does an unknown name: `?userId=alice` would otherwise list the orders of all users.

use axum::{
    extract::{FromRequestParts, MatchedPath, Path, Request, State},
    http::request::Parts,
    middleware::Next,
    response::{IntoResponse, Response},
};
use orderflow_core::{OrderId, plain};
use percent_encoding::percent_decode_str;

use super::{app::Shared, problem::Problem};

/// Most characters of an unknown name that a problem shows.
const MOST_NAME: usize = 100;

/// The `{id}` of a path.
pub struct IdOfPath(pub OrderId);

/// The query of a list of orders, with unparsed values.
pub struct ListParameters {
    pub user_id: Option<String>,
    pub limit: Option<String>,
    pub cursor: Option<String>,
    pub progress: bool,
}

/// The query of one order.
pub struct OrderParameters {
    pub progress: bool,
}

/// The query of a list of dead letters, with unparsed values.
pub struct DeadLetterParameters {
    pub limit: Option<String>,
    pub before: Option<String>,
}

/// A parsed query. Each name in it is known and appears once.
#[derive(Clone, Debug)]
struct Query(Vec<(String, String)>);

/// Parses the query of each API operation before its handler runs.
pub async fn read_query(
    State(app): State<Shared>,
    route: Option<MatchedPath>,
    mut request: Request,
    next: Next,
) -> Response {
    let query = request.uri().query().filter(|query| !query.is_empty());
    let known = route.as_ref().and_then(|route| app.parameters.of_operation(request.method(), route.as_str()));
    if let (Some(query), Some(known)) = (query, known) {
        match parse(query, known) {
            Ok(query) => request.extensions_mut().insert(query),
            Err(problem) => return problem.into_response(),
        };
    }
    next.run(request).await
}

fn parse(query: &str, known: &[String]) -> Result<Query, Problem> {
    let mut read: Vec<(String, String)> = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decode(name).ok_or_else(|| Problem::invalid_parameter("query", NOT_DECODABLE))?;
        if !known.contains(&name) {
            let shown = plain::escape(&name.chars().take(MOST_NAME).collect::<String>());
            let takes = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(Problem::invalid_parameter(
                &shown,
                format!("is not a parameter of this operation, which takes {takes}"),
            ));
        }
        let value = decode(value).ok_or_else(|| Problem::invalid_parameter(&name, NOT_DECODABLE))?;
        // The API does not guess which of two values the client meant.
        if read.iter().any(|(other, _)| *other == name) {
            return Err(Problem::invalid_parameter(&name, "must appear only once"));
        }
        read.push((name, value));
    }
    Ok(Query(read))
}

const NOT_DECODABLE: &str = "must be percent-encoded UTF-8";

/// Decodes a name or value as a form does, but strictly: two hexadecimal digits follow each `%`, and the bytes are
/// UTF-8.
fn decode(text: &str) -> Option<String> {
    let digits = |escape: &str| escape.len() >= 2 && escape.as_bytes()[..2].iter().all(u8::is_ascii_hexdigit);
    if !text.split('%').skip(1).all(digits) {
        return None;
    }
    let text = text.replace('+', " ");
    percent_decode_str(&text).decode_utf8().ok().map(Into::into)
}

/// Parses a whole number without a sign.
pub fn whole<T: TryFrom<u64>>(text: &str) -> Option<T> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse::<u64>().ok()).flatten().and_then(|number| number.try_into().ok())
}

fn values<const N: usize>(parts: &Parts, names: [&str; N]) -> [Option<String>; N] {
    let query = parts.extensions.get::<Query>();
    let value = |name: &str| query?.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    names.map(value)
}

fn progress(value: Option<&str>) -> Result<bool, Problem> {
    match value {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(Problem::invalid_parameter("progress", "must be true or false")),
    }
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
        let [user_id, limit, cursor, asked] = values(parts, ["user_id", "limit", "cursor", "progress"]);
        Ok(Self { user_id, limit, cursor, progress: progress(asked.as_deref())? })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for OrderParameters {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let [asked] = values(parts, ["progress"]);
        Ok(Self { progress: progress(asked.as_deref())? })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for DeadLetterParameters {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let [limit, before] = values(parts, ["limit", "before"]);
        Ok(Self { limit, before })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<Vec<(String, String)>, String> {
        let known = ["user_id", "limit"].map(str::to_owned);
        parse(query, &known).map(|query| query.0).map_err(|problem| problem.to_string())
    }

    #[test]
    fn a_query_is_read_as_a_form_writes_it() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(read("user_id=al+ice%26%C3%A9&limit=5"), Ok(vec![pair("user_id", "al ice&é"), pair("limit", "5")]));
        assert_eq!(read("&user%5Fid=&"), Ok(vec![pair("user_id", "")]));
    }

    #[test]
    fn nothing_in_a_query_is_guessed_or_ignored() {
        for (query, problem) in [
            ("user_id=%ff", "user_id must be percent-encoded UTF-8"),
            ("user_id=%C3", "user_id must be percent-encoded UTF-8"),
            ("user_id=%2", "user_id must be percent-encoded UTF-8"),
            ("user_id=%zz", "user_id must be percent-encoded UTF-8"),
            ("user_id=100%", "user_id must be percent-encoded UTF-8"),
            ("%ff=1", "query must be percent-encoded UTF-8"),
            ("userId=a", "userId is not a parameter of this operation, which takes user_id, limit"),
            ("a%0d=a", r"a\r is not a parameter of this operation, which takes user_id, limit"),
            ("user_id=a&user_id=b", "user_id must appear only once"),
        ] {
            assert_eq!(read(query), Err(problem.to_owned()), "{query}");
        }
        assert!(parse("x=1", &[]).unwrap_err().to_string().ends_with("which takes none"));
    }

    #[test]
    fn a_whole_number_has_digits_alone() {
        assert_eq!([whole::<i64>("0"), whole("007"), whole("500")], [Some(0), Some(7), Some(500)]);
        for text in ["", "+5", "-5", "5.0", " 5", "1e2", "9223372036854775808"] {
            assert_eq!(whole::<i64>(text), None, "{text}");
        }
    }
}
