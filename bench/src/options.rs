//! Parsers of values that the benches' command lines share.

use std::time::Duration;

/// Where the results of a bench are saved by default.
pub const OUT: &str = "target/bench";

/// Parses a number of at least 1.
pub fn positive(value: &str) -> Result<usize, &'static str> {
    let number = value.parse().ok().filter(|number| *number > 0);
    number.ok_or("expected a number of at least 1")
}

/// Parses milliseconds, at least 1.
pub fn milliseconds(value: &str) -> Result<Duration, &'static str> {
    positive(value).map(|number| Duration::from_millis(number as u64))
}

/// Parses microseconds.
pub fn microseconds(value: &str) -> Result<Duration, &'static str> {
    let number = value.parse().map_err(|_| "expected a number")?;
    Ok(Duration::from_micros(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_and_a_slice_are_at_least_one() {
        assert_eq!(positive("7"), Ok(7));
        assert_eq!(milliseconds("60"), Ok(Duration::from_millis(60)));
        assert_eq!(microseconds("0"), Ok(Duration::ZERO));
        for wrong in ["0", "-1", "", "many"] {
            assert!(positive(wrong).is_err(), "{wrong}");
            assert!(milliseconds(wrong).is_err(), "{wrong}");
        }
        assert!(microseconds("-1").is_err());
    }
}
