//! Failpoints: named places in the code where a test stops, delays or kills this process, and defects that a test has it
//! make on purpose, so that the proof's checker has something to find. Nothing of this is in a build without the feature
//! `failpoints`; with it all of them are inert until `FAILPOINTS` or [`routes`] says otherwise.

/// Whether this process is to make the mistake of that name. Always false in a build without failpoints.
#[cfg(feature = "failpoints")]
pub fn defect(name: &str) -> bool {
    fail::eval(name, |_| ()).is_some()
}

/// Whether this process is to make the mistake of that name. Always false in a build without failpoints.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn defect(_name: &str) -> bool {
    false
}

/// A place of that name, at which a test may delay this process or end it (`return`), just as `kill -9` would.
pub fn reached(name: &str) {
    if defect(name) {
        std::process::abort();
    }
}

/// Panics if a test has set the failpoint `name`: always with `return`, and only for one `subject` with `return(SUBJECT)`.
#[cfg(feature = "failpoints")]
pub fn panics(name: &str, subject: &str) {
    let is_meant = fail::eval(name, |wanted| wanted.is_none_or(|wanted| wanted == subject));
    assert!(is_meant != Some(true), "the failpoint {name} panics for {subject}");
}

/// Does nothing in a build without failpoints.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn panics(_name: &str, _subject: &str) {}

/// A place of that name, at which a test may hold a task up, for as long as it says `return` there. The action `pause` would hold up
/// the thread, and with it other tasks.
pub async fn held_up(name: &str) {
    while defect(name) {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// `PUT /failpoints/NAME` with actions as the crate `fail` knows them (`return`, `pause`, `off`, …), on the admin port: the
/// one that a test means may be known only while it runs, such as the relay that leads.
#[cfg(feature = "failpoints")]
pub fn routes<S: Clone + Send + Sync + 'static>() -> axum::Router<S> {
    use axum::{extract::Path, http::StatusCode, routing::put};

    let configure = async |Path(name): Path<String>, actions: String| match fail::cfg(name, &actions) {
        Ok(()) => (StatusCode::NO_CONTENT, String::new()),
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")),
    };
    axum::Router::new().route("/failpoints/{name}", put(configure))
}
