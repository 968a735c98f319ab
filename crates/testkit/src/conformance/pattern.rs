//! A byte pattern that reveals lost, duplicated and reordered bytes.

/// The byte at `offset` of the pattern with this seed.
fn byte(seed: u64, offset: u64) -> u8 {
    // Knuth's multiplicative hash, 2^64 divided by the golden ratio: neighbours differ in the top byte.
    ((offset ^ (seed << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

/// `count` bytes of the pattern, starting at `offset`.
pub fn bytes(seed: u64, offset: u64, count: usize) -> Vec<u8> {
    (offset..).take(count).map(|at| byte(seed, at)).collect()
}

/// Asserts that `found` is the pattern from `offset` on. The panic names the first wrong offset.
pub fn check(seed: u64, offset: u64, found: &[u8]) {
    for (at, &found) in (offset..).zip(found) {
        let expected = byte(seed, at);
        assert_eq!(found, expected, "wrong byte at offset {at} of the stream");
    }
}
