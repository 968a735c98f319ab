//! Text of others in records: escaped as on every output, and bounded.

use hvsock_text::printable;

/// `text` with everything that is not printable as escapes. What is beyond `max` bytes is replaced by its
/// length.
pub(crate) fn visible(text: &str, max: usize) -> String {
    printable(text).at_most(max).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_cannot_forge_a_line_or_hide_itself() {
        assert_eq!(
            visible("a\nb\x1b[2J\u{202e}c\u{200b}\u{2028}\u{feff}é", 100),
            "a\\nb\\u{1b}[2J\\u{202e}c\\u{200b}\\u{2028}\\u{feff}é"
        );
    }

    #[test]
    fn a_long_text_is_truncated_and_says_so() {
        assert_eq!(visible("abcdef", 6), "abcdef");
        let long = visible(&"\n".repeat(1_000_000), 1024);
        assert!(long.len() < 1100, "{}", long.len());
        assert!(long.ends_with("(999488 more bytes)"), "{long}");
    }
}
