//! `/docs`: the interactive reference of the API, Swagger UI over `/openapi.json`. Its files are embedded in the binary.

use axum::{
    Router,
    http::{HeaderValue, StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
};
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::problem::Problem;

/// The page runs its own files alone and calls this producer alone. Swagger UI shows icons from `data:` URLs and adds one style
/// element, which its hash allows; the browser test names the hash of another version.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self' 'sha256-RL3ie0nH+Lzz2YNqQN83mnU0J1ot4QL7b99vMdIX99w='; \
     img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

/// Returns the routes of the page.
pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    // Swagger UI would send the document to a validator on the internet otherwise.
    let config = Config::from("/openapi.json").validator_url("none");
    let files = Router::from(SwaggerUi::new("/docs").config(config));
    files.layer(middleware::map_response(async |mut response: Response| {
        if response.status() == StatusCode::NOT_FOUND {
            response = Problem::not_found("the reference has no such file").into_response();
        }
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_SECURITY_POLICY, POLICY);
        headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        response
    }))
}
