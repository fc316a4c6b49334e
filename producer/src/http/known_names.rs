//! The query parameters that each operation has.

use std::collections::HashMap;

use axum::http::Method;
use utoipa::openapi::{OpenApi, RefOr, path::ParameterIn};

/// The query parameters of each operation, from the OpenAPI document.
pub struct KnownNames(HashMap<(Method, String), Vec<String>>);

impl KnownNames {
    pub fn from_document(document: &OpenApi) -> Self {
        let mut known = HashMap::new();
        for (path, item) in &document.paths.paths {
            for (method, operation) in [(Method::GET, &item.get), (Method::POST, &item.post)] {
                let Some(operation) = operation else { continue };
                let of_query = operation.parameters.iter().flatten().filter_map(|parameter| match parameter {
                    RefOr::T(parameter) if matches!(parameter.parameter_in, ParameterIn::Query) => {
                        Some(parameter.name.clone())
                    }
                    _ => None,
                });
                known.insert((method, path.clone()), of_query.collect());
            }
        }
        Self(known)
    }

    /// Returns the names of an operation, or `None` if the document does not have it.
    pub fn of_operation(&self, method: &Method, route: &str) -> Option<&[String]> {
        let method = if method == Method::HEAD { &Method::GET } else { method };
        self.0.get(&(method.clone(), route.to_owned())).map(Vec::as_slice)
    }
}
