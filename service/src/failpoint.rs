//! Failpoints: named places in the code where a test stops, delays or kills this process, and deliberate defects that
//! the proof's checker has to find. A build without the feature `failpoints` contains none of them. In a build with it
//! they do nothing until `FAILPOINTS` or [`routes`] activates them.

/// Returns true if a test has activated the defect `name`. Always returns false in a build without failpoints.
#[cfg(feature = "failpoints")]
pub fn defect(name: &str) -> bool {
    fail::eval(name, |_| ()).is_some()
}

/// Returns false in a build without failpoints.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn defect(_name: &str) -> bool {
    false
}

/// Marks the place `name`, at which a test may delay this process or abort it (`return`), as `kill -9` would.
pub fn reached(name: &str) {
    if defect(name) {
        std::process::abort();
    }
}

/// Panics if a test has set the failpoint `name`: always with `return`, and only for one `subject` with
/// `return(SUBJECT)`.
#[cfg(feature = "failpoints")]
pub fn panics(name: &str, subject: &str) {
    let is_meant = fail::eval(name, |wanted| wanted.is_none_or(|wanted| wanted == subject));
    assert!(is_meant != Some(true), "the failpoint {name} panics for {subject}");
}

/// Does nothing in a build without failpoints.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn panics(_name: &str, _subject: &str) {}

/// Marks the place `name`, at which a test may block a task for as long as the action is `return`. The action `pause`
/// would block the thread, and with it other tasks.
pub async fn held_up(name: &str) {
    while defect(name) {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// Adds `PUT /failpoints/NAME` to the admin port. The body has actions of the crate `fail` (`return`, `pause`, `off`,
/// …). A test needs this for a process that it knows only at run time, such as the relay that leads.
#[cfg(feature = "failpoints")]
pub fn routes<S: Clone + Send + Sync + 'static>() -> axum::Router<S> {
    use axum::{extract::Path, http::StatusCode, routing::put};

    let configure = async |Path(name): Path<String>, actions: String| match fail::cfg(name, &actions) {
        Ok(()) => (StatusCode::NO_CONTENT, String::new()),
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")),
    };
    axum::Router::new().route("/failpoints/{name}", put(configure))
}
