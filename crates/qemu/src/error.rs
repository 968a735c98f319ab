//! What can go wrong with a guest, said so that a test's failure explains itself.

use std::io;
use std::time::Duration;

/// Something that a guest is made of is not on this machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}; {advice}")]
pub struct Missing {
    /// What is missing.
    pub what: String,
    /// What to install, as one command where there is one.
    pub advice: String,
}

/// Why a guest did not do what it should.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Something that it is made of is not there.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// A file or a socket of its own.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// What was waited for did not come in time. The guest runs on.
    #[error("{what} took longer than {limit:?}{seen}")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
        /// What had come by then: a command's output or the end of the console.
        seen: String,
    },
    /// QEMU has ended, or the guest's kernel has.
    #[error("{what}{seen}")]
    Ended {
        /// What ended, and how.
        what: String,
        /// What QEMU said, and the end of the console.
        seen: String,
    },
    /// The guest began anew while a command ran in it.
    #[error("the guest has begun anew")]
    Rebooted,
    /// QEMU or the guest said something that nobody understands.
    #[error("{0}")]
    Protocol(String),
}

impl Error {
    /// For `map_err`.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// A heading and what is quoted below it; nothing if there is nothing.
pub(crate) fn quoted(heading: &str, text: &str) -> String {
    let text = text.trim();
    if text.is_empty() {
        return String::new();
    }
    format!("\n--- {heading}\n{text}\n---")
}
