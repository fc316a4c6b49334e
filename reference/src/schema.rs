//! Describes what a JSON schema allows.

/// Returns the range of a number or a count, or `None` if it has no end.
pub fn range<T: ToString>(least: Option<T>, most: Option<T>, unit: &str) -> Option<String> {
    let (least, most) = (least.map(|least| least.to_string()), most.map(|most| most.to_string()));
    let unit =
        if most.as_ref().or(least.as_ref()).is_some_and(|end| end == "1") { unit.trim_end_matches('s') } else { unit };
    match (least, most) {
        (Some(least), Some(most)) => Some(format!("{least} to {most}{unit}")),
        (Some(least), None) => Some(format!("at least {least}{unit}")),
        (None, Some(most)) => Some(format!("at most {most}{unit}")),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_in_words() {
        assert_eq!(range(Some(1), Some(3), " items").as_deref(), Some("1 to 3 items"));
        assert_eq!(range(Some(1), None, " items").as_deref(), Some("at least 1 item"));
        assert_eq!(range(None, Some(3), "").as_deref(), Some("at most 3"));
        assert_eq!(range::<i64>(None, None, " items"), None);
    }
}
