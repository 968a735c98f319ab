//! Why a copy ends before its end.

use std::io;
use std::path::{Path, PathBuf};

/// Why a copy ends before its end. What concerns one file only is a [`Note`](super::Note).
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The connection failed.
    #[error("the connection broke: {0}")]
    Broken(#[source] io::Error),
    /// The other end stopped talking before its last word.
    #[error("the connection ended before the copy did")]
    Ended,
    /// The other end did what it must not.
    #[error("the other end does not keep to the rules: {0}")]
    Violation(&'static str),
    /// The other end gave up.
    #[error("the other end gave up: {0}")]
    Failed(String),
    /// This end cannot go on.
    #[error("{}: {error}", path.display())]
    Here {
        /// With what.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
}

impl CopyError {
    /// This end cannot go on with `path`.
    pub(super) fn here(path: &Path, error: impl Into<io::Error>) -> Self {
        let (path, error) = (path.to_owned(), error.into());
        Self::Here { path, error }
    }

    /// Whether to try the same copy again may go on where it stopped.
    pub fn may_go_on(&self) -> bool {
        matches!(self, Self::Broken(_) | Self::Ended)
    }
}
