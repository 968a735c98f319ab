//! Errors of commands: one line on stderr, a second one with a command that helps, and exit status
//! 1 (2 for wrong usage).

use std::fmt;
use std::io;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};

use crate::fix;
use crate::hint::Help;
use crate::os;

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

/// The reader of standard output closed the pipe. The command ends with success.
#[derive(Debug, thiserror::Error)]
#[error("standard output is closed")]
pub struct OutputGone;

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
    let red = AnsiColor::Red.on_default().bold();
    print(red, "error", &format!("{error:#}"));
    let failure = error.downcast_ref::<Failure>();
    if let Some(help) = failure
        .and_then(|failure| failure.help.clone())
        .or_else(|| advice(error))
    {
        print(AnsiColor::Cyan.on_default().bold(), "help", &help);
    }
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

/// Prints one line on stderr. A failure to print is ignored, because it cannot be reported.
pub fn print(style: Style, label: &str, text: &str) {
    use io::Write;

    let mut stderr = anstream::stderr().lock();
    let _ = writeln!(stderr, "{style}{label}:{style:#} {}", printable(text));
}

/// Replaces control characters, so that untrusted text cannot control the terminal.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() && c != '\n' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_elsewhere_cannot_drive_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\nc\r"), "a\u{fffd}[2Jb\nc\u{fffd}");
    }
}
