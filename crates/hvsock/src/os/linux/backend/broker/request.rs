//! What is asked of a broker to get a connection or a listener, as a sequence of messages and
//! answers that knows nothing of waiting: the blocking and the asynchronous side drive the same.
//!
//! Order of use: open a [`EndpointConnection`], send [`Request::options`]; then, until it is done, send
//! [`Request::next`] and hand the answer to [`Request::advance`].

use std::io;

use hvsock_address::{PartitionRef, ServiceId, ServiceRef, SockAddrHv, VmId};
use hvsock_endpoint::{
    BrokerMessage, ClientMessage, Connect, Flags, Listen, LookupKind, SocketOption, Transport,
    Transports,
};

use super::endpoint_connection::{EndpointConnection, Reply};
use super::{Listener, Stream};
use crate::Explanation;
use crate::backend::{Request, RequestKind, Settings};

/// What became of a request.
pub(crate) enum Outcome {
    Connected(Stream),
    Listening(Listener),
    Explained(Explanation),
}

const UNEXPECTED: &str = "the reply does not match the request";

impl Request {
    /// The messages that go first and are not answered.
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

    /// What the bytes may go through.
    fn transports(&self) -> Transports {
        if self.flags.plain || self.settings.descriptor_only {
            Transports::DESCRIPTOR
        } else {
            Transports::DESCRIPTOR | Transports::RING
        }
    }

    /// The next message, which the broker answers: names are looked up first.
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

    /// Takes the answer to the last of [`Request::next`]'s messages, which `connection` sent;
    /// nothing if the next one is to be sent.
    pub(crate) fn advance(
        &mut self,
        connection: &EndpointConnection,
        reply: Reply,
    ) -> io::Result<Option<Outcome>> {
        let socket = connection.socket();
        let Flags { plain, dry_run } = self.flags;
        let outcome = match (reply.message, self.next()) {
            (BrokerMessage::Found { guid }, ClientMessage::Lookup { kind, .. }) => {
                self.address = match kind {
                    LookupKind::Partition => self.address.at(VmId::from_guid_bytes(guid)),
                    LookupKind::Service => self.address.of(ServiceId::from_guid_bytes(guid)),
                };
                return Ok(None);
            }
            (
                BrokerMessage::Explained(explained),
                ClientMessage::Connect(_) | ClientMessage::Listen(_),
            ) if dry_run => Outcome::Explained(Explanation::of_wire(&explained)),
            (BrokerMessage::Connected(connected), ClientMessage::Connect(_)) if !dry_run => {
                if !self.transports().contains(connected.transport) {
                    return Err(connection.protocol_error(&"a transport that was not offered"));
                }
                let stream = Stream::connected(&connected, reply.descriptors, socket, plain);
                Outcome::Connected(stream.map_err(|error| match error.kind() {
                    io::ErrorKind::InvalidData => connection.protocol_error(&error),
                    _ => error,
                })?)
            }
            (BrokerMessage::Listening(listening), ClientMessage::Listen(asked)) if !dry_run => {
                Outcome::Listening(Listener::new(&listening, asked.address, socket, plain))
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
