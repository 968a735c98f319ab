//! Standard output and standard error: text for people, JSON for programs, and no error when the reader
//! closes it.
//!
//! All that the command prints passes through here, except for the bytes of connections and of commands
//! in guests, and progress bars. A line stays one line, whatever is in it: what is not printable
//! becomes a visible escape, apart from the colours of this program. Each call writes once, so the
//! lines of processes that share a terminal or a file do not mix.

use std::borrow::Cow;
use std::fmt::{Display, Write as _};
use std::io::{self, Write as _};

use anstream::{AutoStream, ColorChoice};
use anyhow::Result;
use hvsock_text::printable;
use serde::Serialize;

use crate::os::stdio;

/// The reader of standard output closed the pipe. The command ends with success.
#[derive(Debug, thiserror::Error)]
#[error("standard output is closed")]
pub struct OutputGone;

/// The option `--json`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Json {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Lines to print at once.
#[derive(Debug, Default)]
pub struct Lines(String);

impl Lines {
    /// Adds one line. A line break in it is escaped.
    pub fn push(&mut self, line: impl Display) {
        escape_into(&mut self.0, &line.to_string());
        self.0.push('\n');
    }

    /// Adds one line with a label, as in `name          web`.
    pub fn fact(&mut self, label: &str, fact: impl Display) {
        self.push(format_args!("{label:<14}{}", printable(&fact)));
    }

    #[cfg(test)]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Prints the lines on standard output.
    pub fn print(&self) -> Result<()> {
        text(&self.0)
    }

    /// Prints the lines on standard error. A failure is ignored, because it cannot be reported.
    pub fn print_to_stderr(&self) {
        text_to_stderr(&self.0);
    }
}

/// Prints text of this program on standard output, with colours only on a terminal.
///
/// What others may have written belongs into [`Lines`].
pub fn text(text: &str) -> Result<()> {
    let text = for_choice(text, AutoStream::choice(&io::stdout()));
    gone(stdio::print_styled(&text))
}

/// Prints text of this program on standard error, with colours only on a terminal.
pub fn text_to_stderr(text: &str) {
    let text = for_choice(text, AutoStream::choice(&io::stderr()));
    let _ = anstream::stderr().lock().write_all(text.as_bytes());
}

/// `text` without styles where the stream has none: the stream would write what is between two styles in
/// a call of its own.
fn for_choice(text: &str, choice: ColorChoice) -> Cow<'_, str> {
    match choice {
        ColorChoice::Never => anstream::adapter::strip_str(text).to_string().into(),
        _ => text.into(),
    }
}

/// Prints one line on standard output. A line break in it is escaped.
pub fn line(line: impl Display) -> Result<()> {
    let mut lines = Lines::default();
    lines.push(line);
    lines.print()
}

/// Prints bytes unchanged.
pub fn bytes(bytes: &[u8]) -> Result<()> {
    gone(stdio::print(bytes))
}

/// Prints a value as indented JSON.
pub fn json(value: &(impl Serialize + ?Sized)) -> Result<()> {
    json_text(&serde_json::to_string_pretty(value)?)
}

/// Prints serialized JSON. What is not printable is escaped in it.
pub fn json_text(text: &str) -> Result<()> {
    let mut line = hvsock_text::json(text).into_owned();
    line.push('\n');
    bytes(line.as_bytes())
}

/// Escapes `text` except for the sequences that set colours (SGR), which this program's styles are.
fn escape_into(escaped: &mut String, text: &str) {
    let mut rest = text;
    while let Some(at) = rest.find(STYLE) {
        let style = &rest[at..];
        let parameters = &style[STYLE.len()..];
        let end = parameters.find(|c: char| !c.is_ascii_digit() && c != ';');
        let end = end.filter(|end| parameters[*end..].starts_with('m'));
        let len = STYLE.len() + end.map_or(0, |end| end + 1);
        push_printable(escaped, &rest[..at]);
        match end {
            Some(_) => escaped.push_str(&style[..len]),
            None => push_printable(escaped, STYLE),
        }
        rest = &style[len..];
    }
    push_printable(escaped, rest);
}

/// How a style begins.
const STYLE: &str = "\x1b[";

fn push_printable(escaped: &mut String, text: &str) {
    let _ = write!(escaped, "{}", printable(text).at_most(usize::MAX));
}

/// Turns a broken pipe into [`OutputGone`], which is not an error.
fn gone(written: io::Result<()>) -> Result<()> {
    written.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => OutputGone.into(),
        _ => anyhow::Error::new(error).context("cannot write the output"),
    })
}

#[cfg(test)]
mod tests {
    use anstyle::AnsiColor;

    use super::*;

    #[test]
    fn a_line_stays_one_line_and_keeps_only_its_colours() {
        let red = AnsiColor::Red.on_default().bold();
        let mut lines = Lines::default();
        lines.push(format_args!(
            "{red}web{red:#}\nforged \x1b[2J\x1b[1;2\u{202e}\x1b"
        ));
        lines.fact("name", "\x1b[31mred\r\n");
        let (first, second) = lines.as_str().split_once('\n').unwrap();
        let want = format!(
            "{red}web{red:#}{}",
            r"\nforged \u{1b}[2J\u{1b}[1;2\u{202e}\u{1b}"
        );
        assert_eq!(first, want);
        assert_eq!(second, "name          \\u{1b}[31mred\\r\\n\n");
    }

    #[test]
    fn a_stream_without_colours_gets_text_without_styles() {
        let red = AnsiColor::Red.on_default();
        let text = format!("{red}a{red:#} b\n\tc\n");
        assert_eq!(for_choice(&text, ColorChoice::Never), "a b\n\tc\n");
        assert_eq!(for_choice(&text, ColorChoice::Always), text);
    }
}
