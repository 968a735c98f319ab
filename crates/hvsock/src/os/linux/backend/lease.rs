//! A registration that lasts as long as an endpoint connection.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use hvsock_address::{ElementName, ServiceId};
use hvsock_endpoint::{BrokerMessage, ClientMessage, Register};

use super::broker::{EndpointConnection, Reply, errors};
use super::execute::query;
use crate::{Endpoint, error};

/// The endpoint connection.
#[derive(Debug)]
pub(crate) struct Lease(EndpointConnection);

impl Lease {
    pub(crate) fn register(
        endpoint: &Endpoint,
        id: ServiceId,
        name: &ElementName,
        purpose: &str,
    ) -> io::Result<Self> {
        let request = ClientMessage::Register(Register {
            service: id,
            name: name.as_str().to_owned(),
            purpose: purpose.to_owned(),
        });
        match query(endpoint, &request)? {
            (connection, BrokerMessage::Registered) => Ok(Self(connection)),
            (connection, _) => Err(connection.protocol_error(&"unexpected reply to REGISTER")),
        }
    }

    /// Checks that the registration still exists. The error has the reason.
    pub(crate) fn check(&self) -> io::Result<()> {
        match self.0.try_recv_reply() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => match error::refusal_of(&error).cloned() {
                Some(refusal) => Err(refusal.into_reset_error()),
                None => Err(error),
            },
            Ok(Reply::Refused(refused)) => Err(errors::refusal(&refused).into_reset_error()),
            Ok(_) => Err(self.0.protocol_error(&"unexpected message for a lease")),
        }
    }
}

impl AsFd for Lease {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
