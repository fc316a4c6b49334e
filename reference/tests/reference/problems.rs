//! Compares the table of problem types with the calls that create problems.

use std::collections::BTreeMap;

use orderflow_reference::problems::PROBLEMS;
use syn::{Expr, ExprCall, visit::Visit};

use crate::common;

const FILE: &str = "producer/src/http/problem.rs";

/// Statuses by the names of their constants in `http::StatusCode`.
const STATUSES: [(&str, u16); 12] = [
    ("BAD_REQUEST", 400),
    ("CONFLICT", 409),
    ("FORBIDDEN", 403),
    ("INTERNAL_SERVER_ERROR", 500),
    ("METHOD_NOT_ALLOWED", 405),
    ("NOT_FOUND", 404),
    ("NOT_IMPLEMENTED", 501),
    ("PAYLOAD_TOO_LARGE", 413),
    ("REQUEST_TIMEOUT", 408),
    ("SERVICE_UNAVAILABLE", 503),
    ("UNPROCESSABLE_ENTITY", 422),
    ("UNSUPPORTED_MEDIA_TYPE", 415),
];

/// Collects the status and the titles of each type from `Self::new(status, type, title, …)` and
/// `Self::overload(type, title, …)`.
#[derive(Default)]
struct Created(BTreeMap<String, (u16, Vec<Option<String>>)>);

impl<'ast> Visit<'ast> for Created {
    fn visit_expr_call(&mut self, call: &'ast ExprCall) {
        syn::visit::visit_expr_call(self, call);
        let Expr::Path(function) = &*call.func else { return };
        let path: Vec<String> = function.path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        let arguments: Vec<&Expr> = call.args.iter().collect();
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        let (status, name, title) = match (&path[..], &arguments[..]) {
            (["Self", "new"], [Expr::Path(status), name, title, _]) => {
                let constant = status.path.segments.last().expect("a path has a segment").ident.to_string();
                let status = STATUSES.iter().find(|(name, _)| *name == constant);
                (status.unwrap_or_else(|| panic!("{constant} is not listed in {}", file!())).1, name, title)
            }
            (["Self", "overload"], [name, title, _]) => (503, name, title),
            _ => return,
        };
        // The body of `overload` itself passes its arguments on.
        let Some(name) = common::string(name) else { return };
        let (_, titles) = self.0.entry(name).or_insert((status, Vec::new()));
        titles.push(common::string(title));
    }
}

#[test]
fn the_table_of_problems_matches_those_that_are_created() {
    let mut created = Created::default();
    created.visit_file(&common::parse(FILE));
    assert!(created.0.len() > 15, "only {} types are created in {FILE}", created.0.len());
    let listed: BTreeMap<String, u16> =
        PROBLEMS.iter().map(|problem| (problem.name.to_owned(), problem.status)).collect();
    let found: BTreeMap<String, u16> = created.0.iter().map(|(name, (status, _))| (name.clone(), *status)).collect();
    assert_eq!(listed, found, "the table is in reference/src/problems.rs");
    for problem in PROBLEMS {
        let (_, titles) = &created.0[problem.name];
        let expected = problem.title.map(str::to_owned);
        match expected {
            // A title that is no literal in the call is a variable with one.
            Some(_) => assert!(
                titles.iter().flatten().all(|title| Some(title) == expected.as_ref()),
                "{}: {titles:?}",
                problem.name
            ),
            None => assert!(titles.iter().any(Option::is_none), "{} has the title {titles:?}", problem.name),
        }
    }
}
