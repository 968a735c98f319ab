//! A registration that lives as long as the process, in the Windows registry.

use std::io;

use hvsock_address::{ElementName, ServiceId};
use hvsock_fabric::Refusal;
use hvsock_registry::Registration;
use hvsock_registry::key_store::{self, KeyError, KeyLease, KeyStore};

use super::endpoint::require_no_endpoint;
use crate::Endpoint;

/// A registry key that names its process.
#[derive(Debug)]
pub(crate) struct Lease(KeyLease);

impl Lease {
    pub(crate) fn register(
        endpoint: &Endpoint,
        id: ServiceId,
        name: &ElementName,
        purpose: &str,
    ) -> io::Result<Self> {
        require_no_endpoint(endpoint)?;
        let registration = Registration {
            lease: true,
            owner: Some(key_store::user()),
            creator: Some(format!("process {}", std::process::id())),
            purpose: Some(purpose.to_owned()).filter(|purpose| !purpose.is_empty()),
            ..Registration::new(id, name.clone())
        };
        let lease = KeyStore::open().and_then(|store| store.lease(&registration));
        lease.map(Self).map_err(error)
    }

    /// Checks that the registration still exists. The error has the reason.
    pub(crate) fn check(&self) -> io::Result<()> {
        self.0.check().map_err(|failed| match failed {
            KeyError::NotRegistered(_) => Refusal::Unregistered.into_reset_error(),
            failed => error(failed),
        })
    }
}

fn error(failed: KeyError) -> io::Error {
    let kind = match &failed {
        KeyError::Denied { .. } => io::ErrorKind::PermissionDenied,
        KeyError::Clash(_) => io::ErrorKind::AddrInUse,
        KeyError::System { error, .. } => error.kind(),
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, failed)
}
