//! Truncates text.

/// The longest start of `text` of at most `max` bytes that ends at a character boundary.
///
/// `str::floor_char_boundary` does the same from Rust 1.91 on.
pub(crate) fn truncated(text: &str, max: usize) -> &str {
    let max = max.min(text.len());
    let end = (0..=max).rfind(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

/// `text`, truncated like [`truncated`].
pub(crate) fn shortened(mut text: String, max: usize) -> String {
    text.truncate(truncated(&text, max).len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_truncated_at_a_character_boundary() {
        assert_eq!(truncated("ab\u{20ac}c", 9), "ab\u{20ac}c");
        assert_eq!(truncated("ab\u{20ac}c", 5), "ab\u{20ac}");
        for max in 2..5 {
            assert_eq!(truncated("ab\u{20ac}c", max), "ab");
        }
        assert_eq!(truncated("\u{20ac}", 1), "");
        assert_eq!(truncated("", 0), "");
    }
}
