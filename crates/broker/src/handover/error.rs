//! Why a broker's state cannot be handed over, or taken over.

use std::io;
use std::time::Duration;

use super::snapshot::SnapshotError;

/// Why a broker's state cannot be handed over, or taken over. The broker that has the state goes on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandoverError {
    /// The state of an object cannot leave its process.
    #[error("{what} cannot be handed over")]
    NotSupported {
        /// The object, as in "a link of this kind".
        what: String,
    },
    /// The broker runs in a virtual machine and has an uplink to its host.
    #[error(
        "the uplink to this machine's host cannot be handed over: restart the broker, which announces its \
         containers to the host again"
    )]
    OwnUplink,
    /// A part of the state, by the object that it is of.
    #[error("{object}: {error}")]
    Of {
        /// The object, as in "the VM web".
        object: String,
        /// What is wrong with it.
        error: Box<HandoverError>,
    },
    /// A table cannot be saved or restored.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The fabric cannot be restored.
    #[error(transparent)]
    Fabric(#[from] hvsock_fabric::SnapshotError),
    /// The state is damaged, or of an unknown format.
    #[error("the state is damaged: {what}")]
    Damaged {
        /// What is wrong.
        what: String,
    },
    /// The state is of a release that this one does not know.
    #[error("the state has version {found}; this release reads version {supported}")]
    UnsupportedVersion {
        /// The version of the state.
        found: u32,
        /// The newest version that this release reads.
        supported: u32,
    },
    /// There is more than a limit allows.
    #[error("the state has {found} {which}; the limit is {limit}")]
    TooLarge {
        /// What there is too much of.
        which: &'static str,
        /// How many.
        found: u64,
        /// How many are allowed.
        limit: u64,
    },
    /// A step was not done in time.
    #[error("{what} took longer than {} ms", limit.as_millis())]
    TimedOut {
        /// The step.
        what: String,
        /// Its time.
        limit: Duration,
    },
    /// The system refuses something.
    #[error("cannot {what}: {error}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's error.
        error: io::Error,
    },
}

impl HandoverError {
    /// Names the object that an error is about.
    #[must_use]
    pub fn of(self, object: impl Into<String>) -> Self {
        Self::Of {
            object: object.into(),
            error: Box::new(self),
        }
    }

    /// No sequence of operations leads to this state.
    pub fn inconsistent(what: &'static str) -> Self {
        SnapshotError::Inconsistent { what }.into()
    }

    /// For `map_err`: an error of the system, with what was tried.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |error| Self::Io { what, error }
    }

    /// Damage, with what is wrong.
    pub(crate) fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged { what: what.into() }
    }
}
