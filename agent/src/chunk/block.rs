//! One block looked at: is it zero, is it the end of a file, what is its hash.
//!
//! Speed matters here and nowhere else in the chunker: every byte of every disk passes.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// True where every byte is zero. Data is found out at its first word, mostly.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // Written so that it becomes wide vector loads: no branch inside a stride, one between them.
    const STRIDE_BYTES: usize = 256;
    let (strides, rest) = bytes.as_chunks::<STRIDE_BYTES>();
    for stride in strides {
        let (words, _) = stride.as_chunks::<8>();
        // The first word alone settles it for nearly every block of data.
        if u64::from_ne_bytes(words[0]) != 0 {
            return false;
        }
        let or = words
            .iter()
            .fold(0, |or, word| or | u64::from_ne_bytes(*word));
        if or != 0 {
            return false;
        }
    }
    rest.iter().all(|&byte| byte == 0)
}

/// True where the last eight bytes are zero: most files end inside their last block, and what
/// follows their end is zero.
pub(super) fn ends_in_zeros(block: &[u8]) -> bool {
    matches!(block.last_chunk::<8>(), Some(&[0, 0, 0, 0, 0, 0, 0, 0]))
}

/// The hash that decides on cuts: XXH3-64. Seeded from the repository's secret, so that the sizes
/// of chunks do not betray known files; not relied upon for identity.
pub(super) fn cut_hash(block: &[u8], seed: u64) -> u64 {
    xxh3_64_with_seed(block, seed)
}
