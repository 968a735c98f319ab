//! TOML parsing with precise error messages.
//!
//! [`parse`] deserializes any serde type (use `deny_unknown_fields` if the keys are fixed). It converts
//! the first error to a [`Problem`] with file, line and column. The message does not use serde's
//! terms, and suggests the nearest known key for a misspelt one.

mod decode;
mod spelling;

use std::path::Path;

use serde::de::DeserializeOwned;
use toml::de::DeTable;

use self::decode::Table;
use crate::store::Problem;

/// A problem at a byte offset in the text of a file.
pub fn at(path: &Path, text: &str, byte: usize, what: impl Into<String>) -> Problem {
    Problem {
        path: path.to_owned(),
        position: Some(position(text, byte)),
        what: what.into(),
    }
}

/// Decodes a file as UTF-8, with or without a byte order mark.
///
/// # Errors
/// [`Problem`] with the position of the first invalid byte.
pub fn text<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a str, Problem> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.strip_prefix('\u{feff}').unwrap_or(text)),
        Err(error) => {
            let (good, bad) = bytes.split_at(error.valid_up_to());
            let good = String::from_utf8_lossy(good);
            let what = format!("the byte {:#04x} is not UTF-8", bad.first().unwrap_or(&0));
            Err(at(path, &good, good.len(), what))
        }
    }
}

/// Parses `text`, the content of the file at `path`.
///
/// # Errors
/// [`Problem`] with the position of the first error.
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, Problem> {
    let document = DeTable::parse(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start);
        at(path, text, offset, error.message())
    })?;
    T::deserialize(Table(document.get_ref())).map_err(|error| match error.offset() {
        Some(offset) => at(path, text, offset, error.message()),
        None => Problem::whole(path, error.message()),
    })
}

fn position(text: &str, byte: usize) -> (usize, usize) {
    let mut byte = byte.min(text.len());
    while !text.is_char_boundary(byte) {
        byte -= 1;
    }
    let before = &text[..byte];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (
        before.matches('\n').count() + 1,
        before[line_start..].chars().count() + 1,
    )
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[allow(dead_code, reason = "only the error matters")]
        name: String,
        #[allow(dead_code, reason = "only the error matters")]
        enabled: Option<bool>,
    }

    fn error(text: &str) -> String {
        let path = Path::new("x.toml");
        parse::<Sample>(path, text).unwrap_err().to_string()
    }

    #[test]
    fn a_misspelt_key_is_reported_with_position_and_suggestion() {
        assert_eq!(
            error("name = \"é\"\n  enabeld = true\n"),
            "x.toml:2:3: unknown key `enabeld`; did you mean `enabled`? (known here: `name`, \
             `enabled`)"
        );
        assert_eq!(
            error("colour = 1\n"),
            "x.toml:1:1: unknown key `colour`; known here: `name`, `enabled`"
        );
    }

    #[test]
    fn common_mistakes_have_plain_messages() {
        assert_eq!(
            error("enabled = true\n"),
            "x.toml: the key `name` is missing"
        );
        assert_eq!(
            error("name = \"a\"\nenabled = \"yes\"\n"),
            "x.toml:2:11: expected a boolean, found the string \"yes\""
        );
        assert!(error("name = \"a\"\nname = \"b\"\n").starts_with("x.toml:2:1: "));
        assert!(error("name = \"a\n").starts_with("x.toml:1:"));
        assert!(error("name\n").starts_with("x.toml:1:"));
    }

    #[test]
    fn an_error_has_the_position_of_the_innermost_value() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Nested {
            #[allow(dead_code, reason = "only the error matters")]
            lists: std::collections::BTreeMap<String, Vec<u8>>,
        }
        let error = |text| {
            let problem = parse::<Nested>(Path::new("x.toml"), text).unwrap_err();
            problem.to_string()
        };
        assert_eq!(
            error("[lists]\na = [1, 0x2]\nb = [3,\n  'four']\n"),
            "x.toml:4:3: expected u8, found the string \"four\""
        );
        assert_eq!(
            error("lists.a = [1, 1979-05-27]\n"),
            "x.toml:1:15: expected u8, found the date or time"
        );
        assert!(error("lists.a = [ 300 ]").starts_with("x.toml:1:13: "));
        assert!(error("lists.a = [ 99999999999999999999 ]").starts_with("x.toml:1:13: "));
    }

    #[test]
    fn a_message_is_short_and_has_no_control_characters() {
        let key = format!("\"\\u001b{}\" = 1", "k".repeat(60_000));
        let message = error(&key);
        assert!(message.len() < 300, "{message}");
        assert!(!message.contains(char::is_control), "{message}");
    }

    #[test]
    fn invalid_utf8_has_a_position_and_a_byte_order_mark_is_allowed() {
        let path = Path::new("x.toml");
        let problem = text(path, b"name = \"a\"\n# \xff\n").unwrap_err();
        assert_eq!(
            problem.to_string(),
            "x.toml:2:3: the byte 0xff is not UTF-8"
        );
        assert_eq!(text(path, b"\xef\xbb\xbfname").unwrap(), "name");
    }
}
