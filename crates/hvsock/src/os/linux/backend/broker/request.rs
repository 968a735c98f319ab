//! The sequence of messages that a request to the broker consists of. It never waits for I/O, so
//! the blocking and the async code share it.
//!
//! Order of use: open an [`EndpointConnection`] and send [`Request::options`]. Then send
//! [`Request::next`] and pass the reply to [`Request::advance`], until that returns an outcome.

use std::io;

use hvsock_address::{PartitionRef, ServiceId, ServiceRef, SockAddrHv, VmId};
use hvsock_endpoint::{
    BrokerMessage, ClientMessage, Connect, Flags, Listen, LookupKind, SocketOption, Transport,
    Transports,
};

use super::endpoint_connection::{EndpointConnection, Reply};
use super::{Listener, Stream, wire};
use crate::backend::{Request, RequestKind, Settings};
use crate::{Explanation, Verdict};

/// The result of a request.
pub(crate) enum Outcome {
    Connected(Stream),
    Listening(Listener),
    Explained(Explanation),
}

const UNEXPECTED: &str = "the reply does not match the request";

impl Request {
    /// The messages that are sent first and have no reply.
    pub(crate) fn options(&self) -> impl Iterator<Item = ClientMessage> + use<> {
        let passthru = self.settings.container_passthru || self.address.passthru();
        let Settings {
            connected_suspend,
            high_vtl,
            mut ring_size,
            ..
        } = self.settings;
        if !self.transports().contains(Transport::Ring) {
            ring_size = 0;
        }
        [
            (SocketOption::ContainerPassthru, passthru.into()),
            (SocketOption::ConnectedSuspend, connected_suspend.into()),
            (SocketOption::HighVtl, high_vtl.into()),
            (SocketOption::RingSize, ring_size),
        ]
        .into_iter()
        .filter(|(_, value)| *value != 0)
        .map(|(option, value)| ClientMessage::SetOption { option, value })
    }

    /// The transports that this end offers.
    fn transports(&self) -> Transports {
        if self.flags.raw_fd || self.settings.descriptor_only {
            Transports::DESCRIPTOR
        } else {
            Transports::DESCRIPTOR | Transports::RING
        }
    }

    /// The next message, to which the broker replies. Names are resolved first.
    pub(crate) fn next(&self) -> ClientMessage {
        let address = match (self.address.partition(), self.address.service()) {
            (PartitionRef::Name(name), _) => return lookup(LookupKind::Partition, name.as_str()),
            (_, ServiceRef::Name(name)) => return lookup(LookupKind::Service, name.as_str()),
            (PartitionRef::Id(vm), ServiceRef::Id(service)) => SockAddrHv::new(*vm, *service),
        };
        let (flags, transports) = (self.flags, self.transports());
        match self.kind {
            RequestKind::Connect { timeout_ms } => ClientMessage::Connect(Connect {
                flags,
                timeout_ms,
                transports,
                address,
            }),
            RequestKind::Listen { backlog } => ClientMessage::Listen(Listen {
                flags,
                backlog,
                transports,
                address,
            }),
        }
    }

    /// Handles the reply to the last message of [`Request::next`], which `connection` received.
    /// Returns `None` if another message has to be sent.
    pub(crate) fn advance(
        &mut self,
        connection: &EndpointConnection,
        reply: Reply,
    ) -> io::Result<Option<Outcome>> {
        let socket = connection.socket();
        let Flags { raw_fd, dry_run } = self.flags;
        let outcome = match (reply.message, self.next()) {
            (BrokerMessage::Found { guid }, ClientMessage::Lookup { kind, .. }) => {
                self.address = match kind {
                    LookupKind::Partition => self.address.at(VmId::from_guid_bytes(guid)),
                    LookupKind::Service => self.address.of(ServiceId::from_guid_bytes(guid)),
                };
                return Ok(None);
            }
            (BrokerMessage::Explained(explained), ClientMessage::Connect(_)) if dry_run => {
                Outcome::Explained(wire::explanation(&explained, Verdict::Connect))
            }
            (BrokerMessage::Explained(explained), ClientMessage::Listen(_)) if dry_run => {
                Outcome::Explained(wire::explanation(&explained, Verdict::Listen))
            }
            (BrokerMessage::Connected(connected), ClientMessage::Connect(_)) if !dry_run => {
                if !self.transports().contains(connected.transport) {
                    return Err(connection.protocol_error(&"a transport that was not offered"));
                }
                let stream = Stream::connected(&connected, reply.descriptors, socket, raw_fd);
                Outcome::Connected(stream.map_err(|error| match error.kind() {
                    io::ErrorKind::InvalidData => connection.protocol_error(&error),
                    _ => error,
                })?)
            }
            (BrokerMessage::Listening(listening), ClientMessage::Listen(asked)) if !dry_run => {
                Outcome::Listening(Listener::new(&listening, asked.address, socket, raw_fd))
            }
            _ => return Err(connection.protocol_error(&UNEXPECTED)),
        };
        Ok(Some(outcome))
    }
}

fn lookup(kind: LookupKind, name: &str) -> ClientMessage {
    ClientMessage::Lookup {
        kind,
        name: name.to_owned(),
    }
}
