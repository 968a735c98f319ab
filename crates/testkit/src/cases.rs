//! How many cases a property test tries.

/// `PROPTEST_CASES`, or `default` if it is not set.
///
/// proptest itself reads the variable for tests that set no number only.
///
/// # Panics
///
/// If the variable is not a number.
pub fn cases(default: u32) -> u32 {
    std::env::var("PROPTEST_CASES").map_or(default, |text| {
        text.parse().expect("PROPTEST_CASES is a number")
    })
}
