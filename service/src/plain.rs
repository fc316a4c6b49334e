//! Refuses values with invisible characters. No library gets such a value: some panic on it, some truncate it, some send it on.

use orderflow_core::plain;

/// Checks one value. The error has its name, the rule and the value with invisible characters escaped, up to the end of its
/// first line: a pasted second line may be a secret. Of a secret it shows only the wrong character and its position.
pub fn check_plain(name: &str, value: &str, is_secret: bool) -> Result<(), String> {
    plain::check(value).map_err(|error| {
        let line = value.split_inclusive(['\n', '\r']).next().unwrap_or_default();
        let rest = if line.len() < value.len() { "…" } else { "" };
        if is_secret {
            format!("{name}: {error}")
        } else {
            format!("{name}: {error}: \"{}\"{rest}", plain::escape(line))
        }
    })
}
