//! From the text of a file to its keys and values.

use super::{ImportError, VERSION_4, VERSION_5};
use crate::text::shown;

/// A file's lines, each read as what it is.
pub(super) struct Lines<'a> {
    rest: std::iter::Enumerate<std::str::Lines<'a>>,
    /// Whether the file is of version 4, whose bytes are in the language's own encoding.
    pub version_4: bool,
}

/// One key or value, and the line it begins on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub line: usize,
    pub kind: Kind,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `[path]`, under which the values that follow are.
    Key(String),
    /// `[-path]`: the key and all under it are to go.
    DeletedKey(String),
    /// `"name"=data` or `@=data`, whose name is empty.
    Value(String, Data),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Data {
    /// A string.
    Text(String),
    /// `dword:`.
    Number(u32),
    /// `hex:`, which is type 3, or `hex(type):`.
    Bytes(u32, Vec<u8>),
    /// `-`: the value is to go.
    Deleted,
}

impl<'a> Lines<'a> {
    /// Reads the first line, which says what kind of file it is.
    pub fn new(text: &'a str) -> Result<Self, ImportError> {
        let mut rest = text.lines().enumerate();
        let first = rest.by_ref().find(|(_, line)| !line.trim().is_empty());
        let (number, line) = first.unwrap_or_default();
        let version_4 = match line.trim() {
            VERSION_5 => false,
            VERSION_4 => true,
            other => {
                let what = format!(
                    "not a registry file: it begins with `{}`, not `{VERSION_5}` or `{VERSION_4}`",
                    shown(other)
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
                        wrong("the quote of this value's name is not closed".to_owned())
                    })?;
                    self.value(number, name, rest)?
                }
                Some(_) => {
                    return Err(wrong(format!(
                        "`{}` is not a `[key]`, a `\"name\"=value` or a `; comment`",
                        shown(line)
                    )));
                }
            };
            return Ok(Some(Item { line: number, kind }));
        }
        Ok(None)
    }

    /// Reads a value from behind its name, and the lines that it goes on in.
    fn value(&mut self, number: usize, name: String, rest: &'a str) -> Result<Kind, ImportError> {
        let wrong = |what: &str| ImportError::new(number, what);
        let data = rest
            .trim_start_matches(BLANK)
            .strip_prefix('=')
            .ok_or_else(|| wrong("a value's name is followed by `=`"))?
            .trim_start_matches(BLANK);
        let (data, rest) = if let Some(rest) = data.strip_prefix('"') {
            let (text, rest) = self
                .text(rest)
                .ok_or_else(|| wrong("the quote that is opened here is not closed"))?;
            (Data::Text(text), rest)
        } else if let Some(rest) = strip_word(data, "hex") {
            let (kind, digits) = match rest.strip_prefix('(') {
                None => (3, rest),
                Some(rest) => {
                    let (kind, rest) = rest.split_once(')').unwrap_or_default();
                    let kind = u32::from_str_radix(kind, 16).ok();
                    let kind = kind.filter(|_| rest.starts_with(':'));
                    (
                        kind.ok_or_else(|| wrong("`hex(` is followed by a type and `):`"))?,
                        rest,
                    )
                }
            };
            let digits = digits.strip_prefix(':');
            let digits = digits.ok_or_else(|| wrong("`hex` is followed by `:`"))?;
            (Data::Bytes(kind, self.bytes(number, digits)?), "")
        } else if let Some(digits) = strip_word(data, "dword:") {
            let (digits, rest) = split_comment(digits);
            let number = u32::from_str_radix(digits, 16).ok();
            let number = number.filter(|_| !digits.starts_with('+'));
            let number = number
                .ok_or_else(|| wrong("`dword:` is followed by up to 8 hexadecimal digits"))?;
            (Data::Number(number), rest)
        } else if let Some(rest) = data.strip_prefix('-') {
            (Data::Deleted, rest)
        } else {
            return Err(wrong(&format!(
                "`{}` is not a value: those are \"text\", dword:, hex: and -",
                shown(data)
            )));
        };
        match split_comment(rest) {
            ("", _) => Ok(Kind::Value(name, data)),
            (more, _) => Err(wrong(&format!("`{}` follows the value", shown(more)))),
        }
    }

    /// Reads a text from behind its opening quote, over line ends if it must; gives what follows.
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

    /// Reads bytes from behind the colon, over every line that ends in a backslash.
    fn bytes(&mut self, first: usize, digits: &str) -> Result<Vec<u8>, ImportError> {
        let mut bytes = Vec::new();
        let (mut number, mut line) = (first, digits);
        loop {
            let text = split_comment(line).0;
            let (text, goes_on) = match text.strip_suffix('\\') {
                Some(text) => (text.trim_end_matches(BLANK), true),
                None => (text, false),
            };
            let text = text.trim_start_matches(BLANK);
            let wrong = |what: String| ImportError::new(number, what);
            if !text.is_empty() {
                let text = text.strip_suffix(',').filter(|_| goes_on).unwrap_or(text);
                for pair in text.split(',') {
                    let pair = pair.trim_matches(BLANK);
                    let digits = (1..=2).contains(&pair.len())
                        && pair.bytes().all(|b| b.is_ascii_hexdigit());
                    let byte = u8::from_str_radix(pair, 16).ok().filter(|_| digits);
                    let what = || format!("`{}` is not two hexadecimal digits", shown(pair));
                    bytes.push(byte.ok_or_else(|| wrong(what()))?);
                }
            }
            if !goes_on {
                return Ok(bytes);
            }
            let next = self.rest.next();
            let (next, text) =
                next.ok_or_else(|| wrong("the file ends where bytes go on".to_owned()))?;
            (number, line) = (next + 1, text);
        }
    }
}

const BLANK: [char; 2] = [' ', '\t'];

fn key(line: &str) -> Result<Kind, String> {
    let inner = &line[1..];
    // A key may hold `]`: it ends at the last one, or at the first one before a comment.
    let end = match inner.strip_suffix(']') {
        Some(path) => Some(path.len()),
        None => inner.char_indices().map(|(at, _)| at).find(|at| {
            let rest = inner[*at..].strip_prefix(']');
            rest.is_some_and(|rest| rest.trim_start_matches(BLANK).starts_with(';'))
        }),
    };
    let path = end.map(|end| &inner[..end]);
    match path {
        None => Err("the bracket of this key is not closed".to_owned()),
        Some(path) => Ok(match path.strip_prefix('-') {
            Some(path) => Kind::DeletedKey(path.to_owned()),
            None => Kind::Key(path.to_owned()),
        }),
    }
}

/// Reads a text from behind its opening quote; gives what follows the closing one, if there is
/// one in this line.
fn unquote<'a>(line: &'a str, text: &mut String) -> Option<&'a str> {
    let mut chars = line.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some(&line[at + 1..]),
            '\\' => match chars.next() {
                Some((_, escaped @ ('"' | '\\'))) => text.push(escaped),
                // Not an escape: people forget to double the backslash in a path.
                Some((_, other)) => text.extend(['\\', other]),
                None => text.push('\\'),
            },
            other => text.push(other),
        }
    }
    None
}

/// Text without a word at its start, in whatever case.
fn strip_word<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let (head, rest) = text.split_at_checked(word.len())?;
    head.eq_ignore_ascii_case(word).then_some(rest)
}

/// What comes before a comment, without blanks around it; and the comment.
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
    fn keys_and_values_are_read_in_every_spelling() {
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
    fn mistakes_are_named_by_line() {
        for (text, want) in [
            ("[A", "line 3: the bracket of this key is not closed"),
            ("[A]\nx=1", "line 4: `x=1` is not a `[key]`"),
            ("\"x", "line 3: the quote of this value's name"),
            ("\"x\"", "line 3: a value's name is followed by `=`"),
            ("\"x\"=\"y", "line 3: the quote that is opened here"),
            ("\"x\"=\"y\" z", "line 3: `z` follows the value"),
            ("\"x\"=y", "line 3: `y` is not a value"),
            ("\"x\"=dword:+1", "line 3: `dword:` is followed by"),
            (
                "\"x\"=hex:0,\\\n\n\"y\"=hex:xyz",
                "line 5: `xyz` is not two",
            ),
            ("\"x\"=hex:00,,", "line 3: `` is not two"),
            ("\"x\"=hex(z):", "line 3: `hex(` is followed by"),
            ("\"x\"=hex(1)", "line 3: `hex(` is followed by"),
            ("\"x\"=hex 1", "line 3: `hex` is followed by `:`"),
            ("\"x\"=hex:00,\\", "line 3: the file ends where"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(want), "{text}: {error}");
        }
        assert!(Lines::new("").is_err());
        assert!(Lines::new("\n[A]").is_err_and(|e| e.line == 2));
        assert!(Lines::new("\r\nREGEDIT4 \r\n").is_ok_and(|lines| lines.version_4));
    }
}
