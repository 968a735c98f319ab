//! The error of reading or changing registrations in the Windows registry.

use std::io;

use hvsock_address::ServiceId;

use crate::{Clash, Registration};

/// Why registrations in the Windows registry cannot be read or changed.
///
/// After an error each service has its old or its new state. The one exception is
/// [`Store::replace`](super::Store::replace), which may have written some of the texts.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The user has no access to the key (`ERROR_ACCESS_DENIED`).
    #[error(
        "access to {key} is denied; run this as administrator, from a terminal opened with \"Run \
         as administrator\""
    )]
    Denied {
        /// The full path of the key.
        key: String,
    },
    /// The GUID, name or port is taken.
    #[error(transparent)]
    Clash(#[from] Clash),
    /// The service is not registered.
    #[error("no service {0} is registered on this machine")]
    NotRegistered(ServiceId),
    /// The service is one that Windows ships, which cannot be changed.
    #[error("\"{}\" is a service of Windows itself and cannot be changed", .0.name)]
    InBox(Box<Registration>),
    /// The service's key has an unexpected content.
    #[error("{0}; correct it with regedit, or unregister the service first")]
    Broken(String),
    /// The registration has settings that the Windows registry cannot represent.
    #[error("this registration cannot be stored on Windows: {0}")]
    Unstorable(String),
    /// The maximum number of services is reached.
    #[error("there are {0} services, which is the limit; unregister one first")]
    Limit(usize),
    /// Another process held the write lock for this many seconds.
    #[error("another process has been changing the registrations for {0} seconds; try again")]
    Busy(u64),
    /// A system call failed.
    #[error("cannot {doing} {key}: {error}")]
    System {
        /// The operation: a verb.
        doing: &'static str,
        /// The full path of the key.
        key: String,
        /// The system's error.
        error: io::Error,
    },
}

impl KeyError {
    /// Converts the error of a system call: [`Denied`](Self::Denied) for
    /// [`PermissionDenied`](io::ErrorKind::PermissionDenied), else [`System`](Self::System).
    pub fn from_system(doing: &'static str, key: impl Into<String>, error: io::Error) -> Self {
        let key = key.into();
        match error.kind() {
            io::ErrorKind::PermissionDenied => Self::Denied { key },
            _ => Self::System { doing, key, error },
        }
    }
}
