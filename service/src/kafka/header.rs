//! Reads headers of records from unknown writers. rdkafka panics on a header whose name is not UTF-8; here such a
//! header is `None`.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rdkafka::message::{Header, Headers};

/// A header, or `None` if its name is not UTF-8.
pub type Readable<'headers> = Option<Header<'headers, &'headers [u8]>>;

/// Returns all headers in their order.
pub fn all<H: Headers>(headers: Option<&H>) -> impl Iterator<Item = Readable<'_>> {
    let count = headers.map_or(0, Headers::count);
    (0..count).map(move |index| {
        catch_unwind(AssertUnwindSafe(|| headers.and_then(|headers| headers.try_get(index)))).unwrap_or_default()
    })
}

/// Returns the value of the last header with this name, since each program that handles a record appends its headers.
pub fn last<'headers, H: Headers>(headers: Option<&'headers H>, name: &str) -> Option<&'headers [u8]> {
    all(headers).flatten().filter(|header| header.key == name).last().and_then(|header| header.value)
}

/// Returns the value of the last header with this name, if it is UTF-8.
pub fn last_text<'headers, H: Headers>(headers: Option<&'headers H>, name: &str) -> Option<&'headers str> {
    last(headers, name).and_then(|value| std::str::from_utf8(value).ok())
}

#[cfg(test)]
mod tests {
    use rdkafka::message::OwnedHeaders;

    use super::*;

    #[test]
    fn the_last_header_with_a_name_counts() {
        let headers = OwnedHeaders::new()
            .insert(Header { key: "a", value: Some("1") })
            .insert(Header { key: "b", value: None::<&str> })
            .insert(Header { key: "a", value: Some("2") });
        assert_eq!(last_text(Some(&headers), "a"), Some("2"));
        assert_eq!(last_text(Some(&headers), "b"), None);
        assert_eq!(last_text(None::<&OwnedHeaders>, "a"), None);
        assert_eq!(all(Some(&headers)).count(), 3);
    }
}
