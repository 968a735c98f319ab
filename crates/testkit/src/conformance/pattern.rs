//! A stream of bytes in which a lost, doubled or moved byte shows.

/// The byte at this offset of the stream that starts with `seed`.
fn byte(seed: u64, offset: u64) -> u8 {
    // The multiplier is Knuth's, 2^64 over the golden ratio: neighbours differ in the top byte.
    ((offset ^ (seed << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

/// This many bytes from this offset on.
pub fn bytes(seed: u64, offset: u64, count: usize) -> Vec<u8> {
    (offset..).take(count).map(|at| byte(seed, at)).collect()
}

/// Fails with the offset of the first byte that is not as it should be.
pub fn check(seed: u64, offset: u64, found: &[u8]) {
    for (at, &found) in (offset..).zip(found) {
        let wanted = byte(seed, at);
        assert_eq!(found, wanted, "the byte at offset {at} of the stream");
    }
}
