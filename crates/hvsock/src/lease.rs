//! A registration that lives as long as the process that made it.

use std::io;

use hvsock_address::{ElementName, ServiceId};

use crate::{Endpoint, backend};

/// A service registration that lasts as long as this value.
///
/// It ends when the value is dropped, when the process ends in any way, and when the broker ends.
/// Only root and the broker's user may register a service.
///
/// ```no_run
/// use hvsock::{HvListener, Lease, ServiceId};
///
/// # fn main() -> std::io::Result<()> {
/// let id = ServiceId::random();
/// let _lease = Lease::register("HV Socket Demo", id)?;
/// let listener = HvListener::bind(("any", id))?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Lease {
    pub(crate) inner: backend::Lease,
    id: ServiceId,
    name: ElementName,
}

impl Lease {
    /// Registers a service with the broker of [`Endpoint::from_env`]. Blocks up to 5 seconds.
    ///
    /// # Errors
    ///
    /// As [`Lease::register_at`].
    pub fn register(name: &str, id: ServiceId) -> io::Result<Self> {
        Self::register_at(&Endpoint::from_env(), name, id, "")
    }

    /// Registers a service with the broker at `endpoint`, with a text that says what it is for.
    /// Blocks up to 5 seconds.
    ///
    /// # Errors
    ///
    /// - `InvalidInput`: `name` is no valid element name; the source is an
    ///   [`InvalidName`](crate::InvalidName);
    /// - a [`Refusal`](crate::Refusal): another registration has the name or the id (the text names
    ///   its owner), or the user may not register services;
    /// - `NotFound`: no broker runs, or this process is in a virtual machine without one.
    pub fn register_at(
        endpoint: &Endpoint,
        name: &str,
        id: ServiceId,
        purpose: &str,
    ) -> io::Result<Self> {
        let name = ElementName::new(name)
            .map_err(|invalid| io::Error::new(io::ErrorKind::InvalidInput, invalid))?;
        let inner = backend::Lease::register(endpoint, id, &name, purpose)?;
        Ok(Self { inner, id, name })
    }

    /// Returns the id of the service.
    pub fn id(&self) -> ServiceId {
        self.id
    }

    /// Returns the friendly name of the service.
    pub fn name(&self) -> &ElementName {
        &self.name
    }

    /// Checks that the registration still exists. Does not block.
    ///
    /// On Linux the descriptor of `AsFd` becomes readable when the registration ends.
    ///
    /// # Errors
    ///
    /// `ConnectionReset` if the registration or the broker is gone, with the
    /// [`Refusal`](crate::Refusal) that says why.
    pub fn check(&self) -> io::Result<()> {
        self.inner.check()
    }
}
