//! Reading a TOML file so that its author is told exactly what to mend.
//!
//! [`parse`] reads any serde type (with `deny_unknown_fields` where keys are fixed) and turns
//! the first mistake into a [`FileProblem`]: file, line, column, and what is wrong in words that
//! need no knowledge of serde, with the nearest known key for a misspelt one.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// What is wrong with a file, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileProblem {
    /// The file.
    pub path: PathBuf,
    /// The line and column, both from 1, unless it is the file as a whole.
    pub place: Option<(usize, usize)>,
    /// What is wrong, as the end of a sentence about the place.
    pub what: String,
}

impl FileProblem {
    /// A problem of the file as a whole.
    pub fn whole(path: &Path, what: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            place: None,
            what: what.into(),
        }
    }

    /// A problem at a byte of the file's text.
    pub fn at(path: &Path, text: &str, byte: usize, what: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            place: Some(place(text, byte)),
            what: what.into(),
        }
    }
}

impl fmt::Display for FileProblem {
    /// `file:line:column: what`, as compilers print it and editors read it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.path.display())?;
        if let Some((line, column)) = self.place {
            write!(f, "{line}:{column}:")?;
        }
        write!(f, " {}", self.what)
    }
}

impl std::error::Error for FileProblem {}

/// The text of a file: UTF-8, with or without a byte order mark.
pub fn text<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a str, FileProblem> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.strip_prefix('\u{feff}').unwrap_or(text)),
        Err(error) => {
            let (good, bad) = bytes.split_at(error.valid_up_to());
            let good = String::from_utf8_lossy(good);
            let what = format!("the byte {:#04x} is not UTF-8", bad.first().unwrap_or(&0));
            Err(FileProblem::at(path, &good, good.len(), what))
        }
    }
}

/// Reads `text`, the contents of the file at `path`.
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, FileProblem> {
    toml::from_str(text).map_err(|error| {
        let what = plain_words(error.message());
        match error.span().filter(|_| !what.ends_with("is missing")) {
            Some(span) => FileProblem::at(path, text, span.start, what),
            None => FileProblem::whole(path, what),
        }
    })
}

fn place(text: &str, byte: usize) -> (usize, usize) {
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

/// serde's message for people. The forms are those of `serde::de::Error`'s provided methods; one
/// that is not known stays as it is.
fn plain_words(message: &str) -> String {
    // A key may be as long as the file and hold anything, and this goes to terminals and logs.
    let message: String = message
        .chars()
        .take(500)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if message.starts_with("unknown field `") {
        let mut quoted = message.split('`').skip(1).step_by(2);
        let unknown = quoted.next().unwrap_or_default();
        let known: Vec<&str> = quoted.collect();
        let unknown_key = format!("unknown key `{unknown}`");
        let all = known.iter().map(|key| format!("`{key}`"));
        let all = all.collect::<Vec<_>>().join(", ");
        return match nearest(unknown, &known) {
            Some(near) => format!("{unknown_key}; did you mean `{near}`? (known here: {all})"),
            None => format!("{unknown_key}; known here: {all}"),
        };
    }
    if let Some(field) = message.strip_prefix("missing field ") {
        return format!("the key {field} is missing");
    }
    message
        .strip_prefix("invalid type: ")
        .and_then(|rest| rest.split_once(", expected "))
        .map(|(have, want)| format!("{want} is expected here, not the {have}"))
        .unwrap_or(message)
}

/// The known key that the unknown one is most likely meant to be.
fn nearest<'a>(unknown: &str, known: &[&'a str]) -> Option<&'a str> {
    let folded = unknown.to_lowercase().replace('-', "_");
    let bound = (folded.chars().count() / 3).clamp(1, 4);
    known
        .iter()
        .map(|key| (distance(&folded, key, bound), *key))
        .filter(|(distance, _)| *distance <= bound)
        .min()
        .map(|(_, key)| key)
}

/// How many letters must be put in, left out, changed, or swapped with the next one (optimal
/// string alignment); any number over `bound` if more than `bound`.
fn distance(a: &str, b: &str, bound: usize) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().abs_diff(b.len()) > bound {
        return bound + 1;
    }
    let mut before = vec![0; b.len() + 1];
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let change = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = change.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
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
    fn a_misspelt_key_is_named_with_its_place_and_the_nearest_known_one() {
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
    fn every_usual_mistake_reads_as_plain_words() {
        assert_eq!(
            error("enabled = true\n"),
            "x.toml: the key `name` is missing"
        );
        assert_eq!(
            error("name = \"a\"\nenabled = \"yes\"\n"),
            "x.toml:2:11: a boolean is expected here, not the string \"yes\""
        );
        assert!(error("name = \"a\"\nname = \"b\"\n").starts_with("x.toml:2:1: "));
        assert!(error("name = \"a\n").starts_with("x.toml:1:"));
        assert!(error("name\n").starts_with("x.toml:1:"));
    }

    #[test]
    fn text_that_is_not_utf8_is_refused_at_its_line_and_a_byte_order_mark_is_not() {
        let path = Path::new("x.toml");
        let problem = text(path, b"name = \"a\"\n# \xff\n").unwrap_err();
        assert_eq!(
            problem.to_string(),
            "x.toml:2:3: the byte 0xff is not UTF-8"
        );
        assert_eq!(text(path, b"\xef\xbb\xbfname").unwrap(), "name");
    }

    #[test]
    fn the_distance_counts_a_swap_once() {
        assert_eq!(distance("enabeld", "enabled", 4), 1);
        assert_eq!(distance("kitten", "sitting", 4), 3);
        assert_eq!(distance("", "abc", 4), 3);
        assert!(distance("", "abcdef", 4) > 4);
    }
}
