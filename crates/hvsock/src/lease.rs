//! A registration that lives as long as the process that made it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use hvsock_address::{ElementName, ServiceId};
use hvsock_endpoint::{BrokerMessage, ClientMessage, Register};

use crate::backend::{self, Conversation};
use crate::{Endpoint, error};

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
    conversation: Conversation,
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
        let request = ClientMessage::Register(Register {
            service: id,
            name: name.as_str().to_owned(),
            purpose: purpose.to_owned(),
        });
        match backend::ask(endpoint, &request)? {
            (conversation, BrokerMessage::Registered) => Ok(Self {
                conversation,
                id,
                name,
            }),
            (conversation, _) => Err(conversation.fault(&"REGISTER is answered by REGISTERED")),
        }
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
    /// The descriptor of [`AsFd`] becomes readable when this changes.
    pub fn check(&self) -> io::Result<()> {
        match self.conversation.answer() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => match error::refusal_of(&error).cloned() {
                Some(refusal) => Err(refusal.into_cut_error()),
                None => Err(error),
            },
            Ok(_) => Err(self.conversation.fault(&"a lease is not answered twice")),
        }
    }
}

impl AsFd for Lease {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.conversation.as_fd()
    }
}
