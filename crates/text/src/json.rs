//! JSON that can be shown on a terminal.

use std::borrow::Cow;
use std::fmt::Write as _;

use crate::class::is_printable;

/// Escapes in serialized JSON what [`is_printable`] excludes, as `\u202e`. The value stays the same.
///
/// `text` is JSON. Outside of strings JSON is ASCII, so every other character is inside one.
///
/// ```
/// let text = "{\"name\":\"a\u{202e}b\"}";
/// assert_eq!(hvsock_text::json(text), r#"{"name":"a\u202eb"}"#);
/// ```
pub fn json(text: &str) -> Cow<'_, str> {
    // Line breaks and tabs are white space between values: a serializer escapes them in strings.
    let is_safe = |c: char| is_printable(c) || matches!(c, '\n' | '\t');
    let Some(first) = text.find(|c| !is_safe(c)) else {
        return Cow::Borrowed(text);
    };
    let mut safe = String::with_capacity(text.len() + 16);
    safe.push_str(&text[..first]);
    for c in text[first..].chars() {
        if is_safe(c) {
            safe.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(safe, "\\u{unit:04x}");
        }
    }
    Cow::Owned(safe)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn json_stays_the_same_value_and_becomes_printable(text in any::<String>(), other in any::<String>()) {
            let value = serde_json::json!({ text: [other, 1, null] });
            for written in [value.to_string(), format!("{value:#}")] {
                let safe = json(&written);
                prop_assert!(safe.chars().all(|c| is_printable(c) || c == '\n'), "{safe:?}");
                let read: serde_json::Value = serde_json::from_str(&safe).unwrap();
                prop_assert_eq!(&read, &value);
            }
        }
    }

    #[test]
    fn characters_beyond_the_basic_plane_are_surrogate_pairs() {
        assert_eq!(json("\"\u{e0041}\u{7f}\""), r#""\udb40\udc41\u007f""#);
    }
}
