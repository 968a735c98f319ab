//! Errors of guests. They quote the console and output, so that a test's failure explains itself.

use std::io;
use std::time::Duration;

/// A program or kernel that guests need is missing on this machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}; {advice}")]
pub struct Missing {
    /// What is missing.
    pub what: String,
    /// How to install it, if possible as one command.
    pub advice: String,
}

impl Missing {
    /// `what` is missing because `package` is not installed. `all` installs everything for guests. If an
    /// environment variable names it, that is wrong instead.
    pub(crate) fn package(what: String, package: &str, all: &str) -> Self {
        let advice = if is_of_variable(&what) {
            "correct it or unset it".to_owned()
        } else {
            format!("install it with `apt-get install {package}` (everything for guests: `{all}`)")
        };
        Self { what, advice }
    }

    /// Whether a variable of the environment is wrong, so that nothing can be installed for it.
    pub(crate) fn is_misconfigured(&self) -> bool {
        is_of_variable(&self.what)
    }
}

fn is_of_variable(what: &str) -> bool {
    what.starts_with("HVSOCK_")
}

/// An error of a guest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A program or kernel is missing.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// An operation on a file or socket failed.
    #[error("{what}: {error}")]
    Io {
        /// The operation that failed.
        what: String,
        /// The system's error.
        error: io::Error,
    },
    /// A time limit has passed. The guest keeps running.
    #[error("{what} took longer than {limit:?}{seen}")]
    TimedOut {
        /// The operation.
        what: String,
        /// The time limit.
        limit: Duration,
        /// A command's output so far, or the end of the console.
        seen: String,
    },
    /// The VMM has ended, or the guest's kernel has panicked.
    #[error("{what}{seen}")]
    Ended {
        /// What ended, and how.
        what: String,
        /// The VMM's standard error and the end of the console.
        seen: String,
    },
    /// The guest rebooted while a command ran in it.
    #[error("the guest has rebooted")]
    Rebooted,
    /// This kind of guest cannot do it.
    #[error("{what} is not possible in a guest of {vmm}")]
    Unsupported {
        /// The operation.
        what: &'static str,
        /// The kind of guest.
        vmm: &'static str,
    },
    /// QEMU or the guest sent an unexpected or negative reply.
    #[error("{0}")]
    Protocol(String),
}

impl Error {
    /// For `map_err`.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |error| Self::Io { what, error }
    }
}

/// Formats a quotation below a heading; empty if `text` is.
pub(crate) fn quoted(heading: &str, text: &str) -> String {
    let text = text.trim();
    if text.is_empty() {
        return String::new();
    }
    format!("\n--- {heading}\n{text}\n---")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_reported_with_the_command_that_installs_it() {
        let text = Missing::package("busybox is not installed".into(), "busybox-static", "all");
        let text = text.to_string();
        assert!(
            text.contains("busybox is not installed; install it with `apt-get"),
            "{text}"
        );
        assert!(!text.contains('\n'));
    }
}
