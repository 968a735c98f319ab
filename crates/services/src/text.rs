//! Truncates and quotes text.

use std::ffi::OsStr;

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

/// Quotes `text` as one word of a POSIX shell, for people to read. Bytes that are not UTF-8 become the
/// replacement character.
pub(crate) fn shell_word(text: &OsStr) -> String {
    let text = text.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/:@%+=,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
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

    #[test]
    fn a_word_of_a_command_line_stays_one() {
        let word = |text: &str| shell_word(text.as_ref());
        assert_eq!(word("--user=a,b"), "--user=a,b");
        assert_eq!(word("a b"), "'a b'");
        assert_eq!(word("it's"), r"'it'\''s'");
        assert_eq!(word(""), "''");
        assert_eq!(word("$HOME"), "'$HOME'");
    }
}
