//! The key of a receipt in the bucket: a pure function of the user and the order's id.

use std::fmt::Write;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::{Digest, Sha256};

use crate::field::{OrderId, UserId};

/// The characters to escape: all but letters, digits, `-`, `_`, `~` and `.`. [`key`] also escapes a leading `.`.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'~').remove(b'.');

/// The longest escaped user id, in bytes. A longer one is cut and ends in a digest: stores that keep objects as files
/// allow 255 bytes between slashes, and 100 characters can take 1,200 bytes when escaped.
const MAX_SEGMENT: usize = 200;

/// Returns `receipts/{user}/{id}.txt`, with the user id escaped so that it is one path segment and never `.` or `..`.
pub fn key(user: &UserId, id: OrderId) -> String {
    let mut segment = utf8_percent_encode(user.as_str(), ESCAPED).to_string();
    if segment.starts_with('.') {
        segment.replace_range(..1, "%2E");
    }
    if segment.len() > MAX_SEGMENT {
        let digest = Sha256::digest(user.as_str());
        // Do not cut between a '%' and its two digits.
        let cut =
            segment[..MAX_SEGMENT - 40].rfind('%').filter(|at| *at > MAX_SEGMENT - 43).unwrap_or(MAX_SEGMENT - 40);
        segment.truncate(cut);
        segment.push('~');
        for byte in &digest[..16] {
            write!(segment, "{byte:02x}").expect("a String takes any text");
        }
    }
    format!("receipts/{segment}/{id}.txt")
}

/// Returns true if [`key`] makes this key for some user and order.
pub fn is_key(text: &str) -> bool {
    let parts = text.strip_prefix("receipts/").and_then(|rest| rest.strip_suffix(".txt")?.split_once('/'));
    let Some((segment, id)) = parts else { return false };
    let Ok(id) = id.parse::<OrderId>() else { return false };
    // Not `parse`: older users, stored before ids were checked for invisible characters, have receipts as well.
    let user = percent_decode_str(segment).decode_utf8().ok().map(|user| UserId::from_stored(user.into_owned()));
    let is_user = |user: &UserId| (1..=UserId::MAX_CHARACTERS).contains(&user.as_str().chars().count());
    // The id of a user whose segment was cut cannot be read from it.
    user.filter(is_user).is_some_and(|user| key(&user, id) == text)
        || (is_cut(segment) && text.ends_with(&format!("/{id}.txt")))
}

/// Returns true if a segment has the form of a cut user id: its beginning, `~`, and 16 bytes as hexadecimal digits.
fn is_cut(segment: &str) -> bool {
    let Some((beginning, digest)) = segment.rsplit_once('~') else { return false };
    let escapes = beginning.split('%').skip(1);
    (MAX_SEGMENT - 42..=MAX_SEGMENT - 40).contains(&beginning.len())
        && digest.len() == 32
        && digest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        && !beginning.starts_with('.')
        && beginning.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_~.%".contains(&byte))
        && escapes
            .map(str::as_bytes)
            .all(|escape| escape.len() >= 2 && escape[..2].iter().all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F')))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn segment_of(user: &str) -> String {
        let key = key(&UserId::parse(user).unwrap(), OrderId::nil());
        let segment =
            key.strip_prefix("receipts/").and_then(|rest| rest.strip_suffix(&format!("/{}.txt", OrderId::nil())));
        segment.unwrap_or_else(|| panic!("{key} has another form")).to_owned()
    }

    #[test]
    fn known_users_have_known_segments() {
        for (user, segment) in [
            ("alice", "alice"),
            ("a.b@c.d", "a.b%40c.d"),
            ("..", "%2E."),
            ("../../etc", "%2E.%2F..%2Fetc"),
            ("50%", "50%25"),
            ("é", "%C3%A9"),
            ("a b", "a%20b"),
        ] {
            assert_eq!(segment_of(user), segment);
        }
    }

    #[test]
    fn long_users_that_begin_alike_have_different_segments() {
        let (one, two) = (segment_of(&("😀".repeat(99) + "a")), segment_of(&("😀".repeat(99) + "b")));
        assert_ne!(one, two);
        assert!(one.len() <= MAX_SEGMENT, "{one}");
    }

    #[test]
    fn a_key_that_we_would_not_make_is_rejected() {
        let id = OrderId::nil();
        for key in [
            format!("receipts/alice/{id}"),
            format!("receipts/alice/{id}.pdf"),
            format!("receipts/alice/{id}.txt.bak"),
            format!("receipts/{id}.txt"),
            format!("receipts//{id}.txt"),
            format!("receipts/alice/2024/{id}.txt"),
            format!("Receipts/alice/{id}.txt"),
            format!("old/receipts/alice/{id}.txt"),
            format!("receipts/alice/{}.txt", id.to_string().replace('-', "")),
            format!("receipts/alice/{{{id}}}.txt"),
            "receipts/alice/1.txt".to_owned(),
            // Escaped differently.
            format!("receipts/a b/{id}.txt"),
            format!("receipts/%61lice/{id}.txt"),
            format!("receipts/a%2fb/{id}.txt"),
            format!("receipts/.alice/{id}.txt"),
            format!("receipts/a%ZZ/{id}.txt"),
            // Too long, or cut in another place.
            format!("receipts/{}/{id}.txt", "a".repeat(MAX_SEGMENT + 1)),
            format!("receipts/{}~{}/{id}.txt", "a".repeat(MAX_SEGMENT - 39), "0".repeat(32)),
            format!("receipts/{}~{}/{id}.txt", "a".repeat(MAX_SEGMENT - 40), "Z".repeat(32)),
        ] {
            assert!(!is_key(&key), "{key}");
        }
    }

    proptest! {
        #[test]
        fn every_key_that_we_make_is_recognized(user in "[\\PC]{1,100}|[./%~]{1,100}|😀{1,100}|[a-z%]{60,100}", id: u128) {
            let id = OrderId::from_u128(id);
            if let Ok(user) = UserId::parse(&user) {
                let key = key(&user, id);
                prop_assert!(is_key(&key), "{key}");
            }
        }

        #[test]
        fn a_key_never_leaves_its_folder(user in "[\\PC]{1,100}|[./%]{1,8}") {
            let segment = segment_of(&user);
            prop_assert!(segment.len() <= MAX_SEGMENT);
            prop_assert!(!segment.contains('/') && segment != "." && segment != "..");
            prop_assert!(segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_~.%".contains(&byte)));
            // Each escape is complete: '%' and two hexadecimal digits.
            for escape in segment.split('%').skip(1) {
                prop_assert!(escape.len() >= 2 && escape.bytes().take(2).all(|byte| byte.is_ascii_hexdigit()));
            }
        }
    }
}
