//! The result of a command, with the same rules for exit status and streams on every system.

use std::process::Output;

/// The exit status and output of a command that has ended.
#[derive(Debug)]
pub struct Completed {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Completed {
    /// Asserts success. Returns stdout.
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self.stdout
    }

    /// Asserts a refusal or failure, without output on stdout. Returns stderr.
    pub fn failed(self) -> String {
        assert_eq!(self.code, Some(1), "{self:#?}");
        assert_eq!(self.stdout, "", "{}", self.stderr);
        self.stderr
    }

    /// Asserts wrong usage, without output on stdout. Returns stderr.
    pub fn usage_error(self) -> String {
        assert_eq!(self.code, Some(2), "{self:#?}");
        assert_eq!(self.stdout, "", "{}", self.stderr);
        self.stderr
    }
}

impl From<Output> for Completed {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}
