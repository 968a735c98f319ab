//! How a command fails: one sentence on stderr, the command that would help, and exit status 1
//! (2 for wrong usage).

use std::fmt;
use std::io;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};

use crate::os;

/// Exit status for what was asked in a wrong way.
const USAGE: u8 = 2;

/// A failure with what would help.
#[derive(Debug)]
pub struct Failure {
    sentence: String,
    help: Option<String>,
    status: u8,
}

impl Failure {
    /// Refused or failed.
    pub fn new(sentence: impl Into<String>) -> Self {
        Self {
            sentence: sentence.into(),
            help: None,
            status: 1,
        }
    }

    /// Asked in a wrong way.
    pub fn usage(sentence: impl Into<String>) -> Self {
        Self {
            status: USAGE,
            ..Self::new(sentence)
        }
    }

    /// The command that would fix it.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for Failure {}

/// Whoever reads our standard output has enough: the end, and no failure.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads the output any more")]
pub struct OutputGone;

/// What was run elsewhere ended with this exit status, which becomes our own; there is nothing to
/// say about it.
#[derive(Debug, thiserror::Error)]
#[error("it ended with exit status {0}")]
pub struct Ended(pub u8);

/// Tells the failure and says which exit status it has.
pub fn report(error: &anyhow::Error) -> ExitCode {
    if error.is::<OutputGone>() {
        return ExitCode::SUCCESS;
    }
    if let Some(Ended(status)) = error.downcast_ref() {
        return ExitCode::from(*status);
    }
    let red = AnsiColor::Red.on_default().bold();
    say(red, "error", &format!("{error:#}"));
    let failure = error.downcast_ref::<Failure>();
    if let Some(help) = failure
        .and_then(|failure| failure.help.clone())
        .or_else(|| os::advice(error))
    {
        say(AnsiColor::Cyan.on_default().bold(), "help", &help);
    }
    ExitCode::from(failure.map_or(1, |failure| failure.status))
}

/// One line on stderr; nobody is there to hear of a failure to print it.
pub fn say(style: Style, label: &str, text: &str) {
    use io::Write;

    let mut stderr = anstream::stderr().lock();
    let _ = writeln!(stderr, "{style}{label}:{style:#} {}", printable(text));
}

/// Text from elsewhere without what would move a terminal's cursor or change its colours.
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
