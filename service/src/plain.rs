//! Refuses values with invisible characters, because libraries may panic on them, truncate them or send them on.

use orderflow_core::plain;

/// Checks one value. The error has its name, the rule and the first line of the value with invisible characters
/// escaped. A pasted second line may be a secret. For a secret, the error has only the wrong character and its
/// position.
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
