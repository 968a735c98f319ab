//! What is asked of a broker to get a connection or a listener, as a sequence of messages and
//! answers that knows nothing of waiting: the blocking and the asynchronous side drive the same.
//!
//! Order of use: open a [`Conversation`], send [`Request::options`]; then, until it is done, send
//! [`Request::next`] and hand the answer to [`Request::advance`].

use std::io;
use std::os::fd::OwnedFd;

use hvsock_address::{PartitionRef, ServiceId, ServiceRef, SockAddrHv, VmId};
use hvsock_endpoint::{
    BrokerMessage, ClientMessage, Connect, Flags, Listen, LookupKind, SocketOption, Transports,
};

use super::conversation::{Answer, Conversation};
use super::{Listener, Stream};
use crate::{Explanation, HvAddr};

/// A request for a connection or a listener.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) address: HvAddr,
    pub(crate) kind: RequestKind,
    pub(crate) settings: Settings,
    pub(crate) flags: Flags,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RequestKind {
    Connect { timeout_ms: u32 },
    Listen { backlog: u32 },
}

/// Options that hold for a socket from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) container_passthru: bool,
    pub(crate) connected_suspend: bool,
    pub(crate) high_vtl: bool,
}

/// What became of a request.
pub(crate) enum Outcome {
    Connected(Stream),
    Listening(Listener),
    Explained(Explanation),
}

const ODD: &str = "the answer is not one to what was asked";

impl Request {
    /// The messages that go first and are not answered.
    pub(crate) fn options(&self) -> impl Iterator<Item = ClientMessage> + use<> {
        let passthru = self.settings.container_passthru || self.address.passthru();
        [
            (SocketOption::ContainerPassthru, passthru),
            (
                SocketOption::ConnectedSuspend,
                self.settings.connected_suspend,
            ),
            (SocketOption::HighVtl, self.settings.high_vtl),
        ]
        .into_iter()
        .filter(|(_, on)| *on)
        .map(|(option, _)| ClientMessage::SetOption { option, value: 1 })
    }

    /// The next message, which the broker answers: names are looked up first.
    pub(crate) fn next(&self) -> ClientMessage {
        let address = match (self.address.partition(), self.address.service()) {
            (PartitionRef::Name(name), _) => return lookup(LookupKind::Partition, name.as_str()),
            (_, ServiceRef::Name(name)) => return lookup(LookupKind::Service, name.as_str()),
            (PartitionRef::Id(vm), ServiceRef::Id(service)) => SockAddrHv::new(*vm, *service),
        };
        let (flags, transports) = (self.flags, Transports::DESCRIPTOR);
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

    /// Takes the answer to the last of [`Request::next`]'s messages, which `conversation` sent;
    /// nothing if the next one is to be sent.
    pub(crate) fn advance(
        &mut self,
        conversation: &Conversation,
        answer: Answer,
    ) -> io::Result<Option<Outcome>> {
        let socket = conversation.socket();
        let Flags { plain, dry_run } = self.flags;
        let outcome = match (answer.message, self.next()) {
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
                let [data] = <[OwnedFd; 1]>::try_from(answer.descriptors)
                    .map_err(|_| conversation.fault(&"CONNECTED without exactly one descriptor"))?;
                Outcome::Connected(Stream::connected(&connected, data, socket, plain))
            }
            (BrokerMessage::Listening(listening), ClientMessage::Listen(asked)) if !dry_run => {
                Outcome::Listening(Listener::new(&listening, asked.address, socket, plain))
            }
            _ => return Err(conversation.fault(&ODD)),
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
