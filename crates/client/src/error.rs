//! The errors of a call.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use hvsock_control::FixReport;

/// Why a call of the control API failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No server listens on the socket.
    #[error("no broker runs here: no server listens at {}", path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// The broker responded with an error.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The broker's error message.
        message: String,
        /// What would help, if the broker knows that.
        fix: Option<FixReport>,
    },
    /// The broker did not respond in time.
    #[error("timed out: the broker did not respond within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The connection broke, or the response is not what this version expects.
    #[error("invalid response from the broker: {0}")]
    Protocol(String),
    /// A system call failed.
    #[error("{path}: {error}", path = path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// The error.
        error: io::Error,
    },
}

impl ClientError {
    pub(crate) fn protocol(error: impl std::fmt::Display) -> Self {
        Self::Protocol(error.to_string())
    }
}

pub(crate) type Result<T> = std::result::Result<T, ClientError>;
