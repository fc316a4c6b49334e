//! Computes the partition of a user's events, with the hash that Kafka's Java clients and our relay use.

use crate::UserId;

/// Returns the partition of a user's events in a topic with this number of `partitions`, or `None` for a topic without
/// any. Events from before the topic got more partitions may be in another one.
pub fn of_user(user: &UserId, partitions: usize) -> Option<usize> {
    let hash = murmur2(user.as_str().as_bytes()) & 0x7fff_ffff;
    (hash as usize).checked_rem(partitions)
}

/// Kafka's variant of MurmurHash2 (`org.apache.kafka.common.utils.Utils.murmur2`).
fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    let mut hash = SEED ^ data.len() as u32;
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !rest.is_empty() {
        for (position, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * position);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hashes_are_those_of_kafkas_own_tests() {
        for (text, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(text.as_bytes()) as i32, hash, "{text}");
        }
        assert_eq!(of_user(&UserId::from_stored("abc".to_owned()), 0), None);
        assert_eq!(of_user(&UserId::from_stored("abc".to_owned()), 6), Some(479_470_107 % 6));
    }
}
