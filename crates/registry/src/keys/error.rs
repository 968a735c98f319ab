//! Why keys cannot be read or changed.

use std::io;

use hvsock_address::ServiceId;

use crate::{Clash, Registration};

/// Why registrations in the registry of Windows cannot be read or changed. Each service is then as
/// it was or as it was to be, but for texts of a replaced one, of which some may be set.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Windows keeps this user from the key.
    #[error(
        "access to {key} is denied; run this as administrator, from a terminal opened with \"Run \
         as administrator\""
    )]
    Denied {
        /// The key, in full.
        key: String,
    },
    /// What must be unique is not.
    #[error(transparent)]
    Clash(#[from] Clash),
    /// No such service is registered.
    #[error(
        "no service {0} is registered on this machine; `hvsock service list` shows those that are"
    )]
    NotRegistered(ServiceId),
    /// The service is one that Windows ships.
    #[error("\"{}\" is a service of Windows itself, and is left as it is", .0.name)]
    InBox(Box<Registration>),
    /// The service's key is not as it must be for this.
    #[error("{0}; mend it with regedit, or unregister the service first")]
    Broken(String),
    /// The registration holds something that the registry of Windows has no place for.
    #[error("this registration cannot be stored on Windows: {0}")]
    Unstorable(String),
    /// There are as many services as there may be.
    #[error("there are {0} services, the most that are kept; unregister one first")]
    Limit(usize),
    /// Another process has been writing all the while.
    #[error(
        "another process is changing the registrations, and has been for {0} seconds; try again"
    )]
    Busy(u64),
    /// Windows could not do it.
    #[error("cannot {doing} {key}: {error}")]
    System {
        /// What was tried: a verb.
        doing: &'static str,
        /// The key, in full.
        key: String,
        /// Why not.
        #[source]
        error: io::Error,
    },
}

impl KeyError {
    /// From what the system answered: [`Denied`](Self::Denied) for `ERROR_ACCESS_DENIED`, on
    /// whatever system the test runs.
    pub fn from_system(doing: &'static str, key: impl Into<String>, error: io::Error) -> Self {
        let key = key.into();
        match error.kind() {
            io::ErrorKind::PermissionDenied => Self::Denied { key },
            _ => Self::System { doing, key, error },
        }
    }
}
