//! Why a copy is aborted.

use std::io;
use std::path::{Path, PathBuf};

/// Why a copy is aborted. A failure of one entry is a [`Note`](super::Note) instead.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(io::Error),
    /// The peer closed the connection before the copy was complete.
    #[error("the connection ended before the copy did")]
    Ended,
    /// Protocol violation by the peer.
    #[error("protocol violation by the other end: {0}")]
    Violation(&'static str),
    /// The peer aborted the copy.
    #[error("the other end aborted the copy: {0}")]
    Failed(String),
    /// This end failed.
    #[error("{}: {error}", path.display())]
    Local {
        /// The path concerned.
        path: PathBuf,
        /// The reason.
        error: io::Error,
    },
}

impl CopyError {
    /// This end failed with `path`.
    pub(super) fn local(path: &Path, error: impl Into<io::Error>) -> Self {
        let (path, error) = (path.to_owned(), error.into());
        Self::Local { path, error }
    }

    /// Returns true if the same copy may be resumed by starting it again.
    pub fn is_resumable(&self) -> bool {
        matches!(self, Self::Broken(_) | Self::Ended)
    }
}
