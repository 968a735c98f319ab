//! Errors of commands: one line on stderr, a second one with a command that helps, and exit status
//! 1 (2 for wrong usage).

use std::fmt;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};

use crate::fix;
use crate::hint::Help;
use crate::os;
use crate::output::Lines;
pub use crate::output::OutputGone;

/// The exit status of wrong usage. clap has the same.
const USAGE: u8 = 2;

/// An error with the next step.
#[derive(Debug)]
pub struct Failure {
    message: String,
    help: Option<String>,
    status: u8,
}

impl Failure {
    /// An operation that was refused or failed.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: None,
            status: 1,
        }
    }

    /// Wrong usage, which clap cannot find.
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            status: USAGE,
            ..Self::new(message)
        }
    }

    /// Sets the exit status.
    #[cfg(target_os = "linux")]
    pub fn with_status(self, status: u8) -> Self {
        Self { status, ..self }
    }

    /// Adds the command that fixes it, or another next step.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// A command that was run ended with this exit status, which becomes this process's own. Nothing is
/// printed.
#[derive(Debug, thiserror::Error)]
#[error("the command ended with exit status {0}")]
pub struct Ended(pub u8);

/// Prints an error and returns its exit status.
pub fn report(error: &anyhow::Error) -> ExitCode {
    if error.is::<OutputGone>() {
        return ExitCode::SUCCESS;
    }
    if let Some(Ended(status)) = error.downcast_ref() {
        return ExitCode::from(*status);
    }
    let mut lines = Lines::default();
    let red = AnsiColor::Red.on_default().bold();
    labelled(&mut lines, red, "error", &causes(error.chain()));
    let failure = error.downcast_ref::<Failure>();
    if let Some(help) = failure
        .and_then(|failure| failure.help.clone())
        .or_else(|| advice(error))
    {
        let cyan = AnsiColor::Cyan.on_default().bold();
        labelled(&mut lines, cyan, "help", &help);
    }
    lines.print_to_stderr();
    ExitCode::from(failure.map_or(1, |failure| failure.status))
}

/// The help for an error that has none of its own.
fn advice(error: &anyhow::Error) -> Option<String> {
    let of_library = || {
        let mut errors = error.chain().filter_map(|cause| cause.downcast_ref());
        Some(fix::help(&errors.find_map(hvsock::fix_of)?))
    };
    let help = os::advice(error).or_else(of_library);
    help.map(|(Help::Command(text) | Help::Sentence(text))| text)
}

/// Prints one line on stderr.
pub fn print(style: Style, label: &str, text: &str) {
    let mut lines = Lines::default();
    labelled(&mut lines, style, label, text);
    lines.print_to_stderr();
}

fn labelled(lines: &mut Lines, style: Style, label: &str, text: &str) {
    lines.push(format_args!("{style}{label}:{style:#} {}", printable(text)));
}

/// Untrusted text as one line, with visible escapes.
pub fn printable(text: &str) -> String {
    hvsock_text::printable(text).to_string()
}

/// The texts of an error and its sources, each once: some types of other crates have the text of their
/// source in their own.
fn causes<'a>(chain: impl Iterator<Item = &'a (dyn std::error::Error + 'static)>) -> String {
    let mut text = String::new();
    for cause in chain {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !(cause.is_empty() || text.ends_with(&cause)) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn text_from_elsewhere_cannot_drive_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\nc\r"), r"a\u{1b}[2Jb\nc\r");
    }

    #[test]
    fn a_cause_is_printed_once() {
        /// A type as some crates have them, whose text ends with that of its source.
        #[derive(Debug)]
        struct Read(io::Error);

        impl fmt::Display for Read {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "cannot read x: {}", self.0)
            }
        }

        impl std::error::Error for Read {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(&self.0)
            }
        }

        let denied = || io::Error::other("Permission denied");
        let error = anyhow::Error::new(Read(denied())).context("cannot start");
        let text = causes(error.chain());
        assert_eq!(text, "cannot start: cannot read x: Permission denied");
        let error = anyhow::Error::new(denied()).context("cannot read x");
        assert_eq!(causes(error.chain()), "cannot read x: Permission denied");
    }
}
