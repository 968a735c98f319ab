//! Parses the text of a file into keys and values.

use super::{ImportError, VERSION_4, VERSION_5};
use crate::text::escaped;

/// The parser of a file's lines.
pub(super) struct Lines<'a> {
    rest: std::iter::Enumerate<std::str::Lines<'a>>,
    /// Whether the file has version 4, where string bytes are in the ANSI code page.
    pub version_4: bool,
}

/// One key or value, and its first line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub line: usize,
    pub kind: Kind,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `[path]`; the values that follow belong to it.
    Key(String),
    /// `[-path]`: deletes the key and its subkeys.
    DeletedKey(String),
    /// `"name"=data`, or `@=data` with an empty name.
    Value(String, Data),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Data {
    /// A string.
    Text(String),
    /// `dword:`.
    Number(u32),
    /// `hex:` (type 3, REG_BINARY) or `hex(type):`.
    Bytes(u32, Vec<u8>),
    /// `-`: deletes the value.
    Deleted,
}

impl<'a> Lines<'a> {
    /// Reads the first line, which identifies the format version.
    pub fn new(text: &'a str) -> Result<Self, ImportError> {
        let mut rest = text.lines().enumerate();
        let first = rest.by_ref().find(|(_, line)| !line.trim().is_empty());
        let (number, line) = first.unwrap_or_default();
        let version_4 = match line.trim() {
            VERSION_5 => false,
            VERSION_4 => true,
            other => {
                let what = format!(
                    "not a registry file: starts with `{}` instead of `{VERSION_5}` or \
                     `{VERSION_4}`",
                    escaped(other)
                );
                return Err(ImportError::new(number + 1, what));
            }
        };
        Ok(Self { rest, version_4 })
    }

    /// The next key or value.
    pub fn next(&mut self) -> Result<Option<Item>, ImportError> {
        for (number, line) in self.rest.by_ref() {
            let number = number + 1;
            let line = line.trim_matches(BLANK);
            let wrong = |what: String| ImportError::new(number, what);
            let kind = match line.chars().next() {
                None | Some(';') => continue,
                Some('[') => key(line).map_err(wrong)?,
                Some('@') => self.value(number, String::new(), &line[1..])?,
                Some('"') => {
                    let mut name = String::new();
                    let rest = unquote(&line[1..], &mut name).ok_or_else(|| {
                        wrong("the name of this value has no closing quote".to_owned())
                    })?;
                    self.value(number, name, rest)?
                }
                Some(_) => {
                    return Err(wrong(format!(
                        "`{}` is not a `[key]`, a `\"name\"=value` or a `; comment`",
                        escaped(line)
                    )));
                }
            };
            return Ok(Some(Item { line: number, kind }));
        }
        Ok(None)
    }

    /// Parses a value after its name, including continuation lines.
    fn value(&mut self, number: usize, name: String, rest: &'a str) -> Result<Kind, ImportError> {
        let wrong = |what: &str| ImportError::new(number, what);
        let data = rest
            .trim_start_matches(BLANK)
            .strip_prefix('=')
            .ok_or_else(|| wrong("expected `=` after the name of a value"))?
            .trim_start_matches(BLANK);
        let (data, rest) = if let Some(rest) = data.strip_prefix('"') {
            let (text, rest) = self
                .text(rest)
                .ok_or_else(|| wrong("the string that starts here has no closing quote"))?;
            (Data::Text(text), rest)
        } else if let Some(rest) = strip_keyword(data, "hex") {
            let (kind, digits) = match rest.strip_prefix('(') {
                None => (3, rest),
                Some(rest) => {
                    let (kind, rest) = rest.split_once(')').unwrap_or_default();
                    let kind = u32::from_str_radix(kind, 16).ok();
                    let kind = kind.filter(|_| rest.starts_with(':'));
                    (
                        kind.ok_or_else(|| wrong("expected a type and `):` after `hex(`"))?,
                        rest,
                    )
                }
            };
            let digits = digits.strip_prefix(':');
            let digits = digits.ok_or_else(|| wrong("expected `:` after `hex`"))?;
            (Data::Bytes(kind, self.bytes(number, digits)?), "")
        } else if let Some(digits) = strip_keyword(data, "dword:") {
            let (digits, rest) = split_comment(digits);
            let number = u32::from_str_radix(digits, 16).ok();
            let number = number.filter(|_| !digits.starts_with('+'));
            let number = number
                .ok_or_else(|| wrong("expected up to 8 hexadecimal digits after `dword:`"))?;
            (Data::Number(number), rest)
        } else if let Some(rest) = data.strip_prefix('-') {
            (Data::Deleted, rest)
        } else {
            return Err(wrong(&format!(
                "`{}` is not a value; expected \"text\", dword:, hex: or -",
                escaped(data)
            )));
        };
        match split_comment(rest) {
            ("", _) => Ok(Kind::Value(name, data)),
            (more, _) => Err(wrong(&format!(
                "unexpected `{}` after the value",
                escaped(more)
            ))),
        }
    }

    /// Parses a string after its opening quote; it may span lines. Returns it with the rest of the line.
    fn text(&mut self, first: &'a str) -> Option<(String, &'a str)> {
        let mut text = String::new();
        let mut line = first;
        loop {
            if let Some(rest) = unquote(line, &mut text) {
                return Some((text, rest));
            }
            line = self.rest.next()?.1;
            text.push('\n');
        }
    }

    /// Parses bytes after the colon, across lines that end in a backslash.
    fn bytes(&mut self, first: usize, digits: &str) -> Result<Vec<u8>, ImportError> {
        let mut bytes = Vec::new();
        let (mut number, mut line) = (first, digits);
        loop {
            let text = split_comment(line).0;
            let (text, continues) = match text.strip_suffix('\\') {
                Some(text) => (text.trim_end_matches(BLANK), true),
                None => (text, false),
            };
            let text = text.trim_start_matches(BLANK);
            let wrong = |what: String| ImportError::new(number, what);
            if !text.is_empty() {
                let text = text.strip_suffix(',').filter(|_| continues).unwrap_or(text);
                for pair in text.split(',') {
                    let pair = pair.trim_matches(BLANK);
                    let digits = (1..=2).contains(&pair.len())
                        && pair.bytes().all(|b| b.is_ascii_hexdigit());
                    let byte = u8::from_str_radix(pair, 16).ok().filter(|_| digits);
                    let what = || format!("`{}` is not two hexadecimal digits", escaped(pair));
                    bytes.push(byte.ok_or_else(|| wrong(what()))?);
                }
            }
            if !continues {
                return Ok(bytes);
            }
            let next = self.rest.next();
            let (next, text) =
                next.ok_or_else(|| wrong("the file ends after a line continuation".to_owned()))?;
            (number, line) = (next + 1, text);
        }
    }
}

const BLANK: [char; 2] = [' ', '\t'];

fn key(line: &str) -> Result<Kind, String> {
    let inner = &line[1..];
    // A key may contain `]`: it ends at the last one, or at the first one before a comment.
    let end = match inner.strip_suffix(']') {
        Some(path) => Some(path.len()),
        None => inner.char_indices().map(|(at, _)| at).find(|at| {
            let rest = inner[*at..].strip_prefix(']');
            rest.is_some_and(|rest| rest.trim_start_matches(BLANK).starts_with(';'))
        }),
    };
    let path = end.map(|end| &inner[..end]);
    match path {
        None => Err("this key has no closing bracket".to_owned()),
        Some(path) => Ok(match path.strip_prefix('-') {
            Some(path) => Kind::DeletedKey(path.to_owned()),
            None => Kind::Key(path.to_owned()),
        }),
    }
}

/// Parses a string after its opening quote. Returns the text after the closing quote, or `None` if
/// the line has none.
fn unquote<'a>(line: &'a str, text: &mut String) -> Option<&'a str> {
    let mut chars = line.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some(&line[at + 1..]),
            '\\' => match chars.next() {
                Some((_, escaped @ ('"' | '\\'))) => text.push(escaped),
                // Not an escape sequence: people forget to double the backslash in a path.
                Some((_, other)) => text.extend(['\\', other]),
                None => text.push('\\'),
            },
            other => text.push(other),
        }
    }
    None
}

/// Removes a keyword at the start of a text, ignoring case.
fn strip_keyword<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let (head, rest) = text.split_at_checked(word.len())?;
    head.eq_ignore_ascii_case(word).then_some(rest)
}

/// Splits a text at a comment: the trimmed part before it, and the comment.
fn split_comment(text: &str) -> (&str, &str) {
    let (before, comment) = text.split_at(text.find(';').unwrap_or(text.len()));
    (before.trim_matches(BLANK), comment)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Kind>, String> {
        let text = format!("{VERSION_5}\r\n\r\n{text}");
        let mut lines = Lines::new(&text).map_err(|e| e.to_string())?;
        let mut kinds = Vec::new();
        while let Some(item) = lines.next().map_err(|e| e.to_string())? {
            kinds.push(item.kind);
        }
        Ok(kinds)
    }

    fn value(name: &str, data: Data) -> Kind {
        Kind::Value(name.to_owned(), data)
    }

    #[test]
    fn keys_and_values_are_parsed_in_every_spelling() {
        let text = "; a comment\n[A\\b] ; why\n[-C]d]\n  \"n\\\"\\\\\" = \"v;\\\"\" ; c\n@=\"C:\\d\"\n\
                    \"x\"=-\n\"d\"=DWORD:0000000A;\n\"h\"=hex:01,2,\\\n  ff\n\"e\"=hex(2):\n\
                    \"m\"=\"two\nlines\"\n";
        assert_eq!(
            read(text).unwrap(),
            [
                Kind::Key("A\\b".to_owned()),
                Kind::DeletedKey("C]d".to_owned()),
                value("n\"\\", Data::Text("v;\"".to_owned())),
                value("", Data::Text("C:\\d".to_owned())),
                value("x", Data::Deleted),
                value("d", Data::Number(10)),
                value("h", Data::Bytes(3, vec![1, 2, 255])),
                value("e", Data::Bytes(2, vec![])),
                value("m", Data::Text("two\nlines".to_owned())),
            ]
        );
        assert_eq!(read(&text.replace('\n', "\r\n")).unwrap().len(), 9);
    }

    #[test]
    fn syntax_errors_have_a_line() {
        for (text, want) in [
            ("[A", "line 3: this key has no closing bracket"),
            ("[A]\nx=1", "line 4: `x=1` is not a `[key]`"),
            ("\"x", "line 3: the name of this value has no"),
            ("\"x\"", "line 3: expected `=` after the name"),
            ("\"x\"=\"y", "line 3: the string that starts here"),
            ("\"x\"=\"y\" z", "line 3: unexpected `z` after the value"),
            ("\"x\"=y", "line 3: `y` is not a value"),
            ("\"x\"=dword:+1", "line 3: expected up to 8"),
            (
                "\"x\"=hex:0,\\\n\n\"y\"=hex:xyz",
                "line 5: `xyz` is not two",
            ),
            ("\"x\"=hex:00,,", "line 3: `` is not two"),
            ("\"x\"=hex(z):", "line 3: expected a type and `):`"),
            ("\"x\"=hex(1)", "line 3: expected a type and `):`"),
            ("\"x\"=hex 1", "line 3: expected `:` after `hex`"),
            ("\"x\"=hex:00,\\", "line 3: the file ends after"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(want), "{text}: {error}");
        }
        assert!(Lines::new("").is_err());
        assert!(Lines::new("\n[A]").is_err_and(|e| e.line == 2));
        assert!(Lines::new("\r\nREGEDIT4 \r\n").is_ok_and(|lines| lines.version_4));
    }
}
