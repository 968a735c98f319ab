//! A registration that lives as long as the process that made it.

use std::io;

use hvsock_address::{ElementName, ServiceId};

use crate::{Endpoint, backend};

/// A service registered for as long as this value lives. It ends when the value is dropped, when
/// the process ends in whatever way, and when the broker ends.
///
/// As with every registration, only the broker's user and root may make one.
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
    /// Registers a service with the broker of [`Endpoint::from_env`].
    ///
    /// A name or id that another registration has is refused, naming its owner.
    pub fn register(name: &str, id: ServiceId) -> io::Result<Self> {
        Self::register_at(&Endpoint::from_env(), name, id, "")
    }

    /// Registers a service with the broker at `endpoint`, and says what it is for.
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

    /// The service.
    pub fn id(&self) -> ServiceId {
        self.id
    }

    /// Its friendly name.
    pub fn name(&self) -> &ElementName {
        &self.name
    }

    /// Whether the registration still stands; the error says why not.
    ///
    /// On Linux the descriptor of `AsFd` becomes readable when this changes.
    pub fn check(&self) -> io::Result<()> {
        self.inner.check()
    }
}
