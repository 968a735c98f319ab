//! The exchange of messages that a request to the broker consists of. It never waits for I/O, so the
//! blocking and the async code share it.
//!
//! Order of use: open an [`EndpointConnection`] and send [`Exchange::options`]. Then send
//! [`Exchange::next`] and pass the reply to [`Exchange::advance`], as long as the [`Step`] that it
//! returns says so.
//!
//! A request with names is one message, which the broker resolves and acts on. A broker of an older
//! version refuses it as a protocol violation, which ends the endpoint connection: then the exchange
//! begins again with a message for each name. Brokers that did so are remembered.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use hvsock_address::{PartitionRef, ServiceId, ServiceRef, SockAddrHv, VmId};
use hvsock_endpoint::{
    BrokerMessage, ClientMessage, Connect, ConnectNamed, Connected, Describe, Flags, IdOrName,
    Listen, ListenNamed, Listening, LookupKind, NamedAddress, SocketOption, Transport, Transports,
    VIOLATION,
};

use super::arena::{AcceptingArenas, Granted, Offer};
use super::endpoint_connection::{EndpointConnection, Reply};
use super::{Listener, Stream, errors, older_brokers, wire};
use crate::backend::{OutcomeOf, Request, RequestKind, Settings};
use crate::{Endpoint, Explanation, Refusal, Verdict, error};

/// The result of a request.
pub(crate) type Outcome = OutcomeOf<Stream, Listener>;

/// What comes after a reply.
#[allow(
    clippy::large_enum_variant,
    reason = "a step is matched where it is returned and is never stored"
)]
pub(crate) enum Step {
    /// The request has its result.
    Done(Outcome),
    /// Send [`Exchange::next`].
    Send,
    /// Open another endpoint connection, and send [`Exchange::options`] and [`Exchange::next`].
    Reopen,
}

/// A request and the state of its exchange.
#[derive(Debug)]
pub(crate) struct Exchange {
    request: Request,
    /// Only messages that a broker of every version knows.
    basic: bool,
    /// The broker refused the message that older ones do not know. If it takes the others, it is
    /// such a broker.
    probing: bool,
    /// What to do with the answer to a connect that may be made in an arena.
    offer: Option<Box<Offer>>,
    /// Where the connections of a listener arrive, if that takes arenas.
    arenas: Option<Box<AcceptingArenas>>,
}

const UNEXPECTED: &str = "the reply does not match the request";

impl Exchange {
    /// An exchange on `connection`.
    pub(crate) fn new(request: Request, connection: &EndpointConnection) -> Self {
        Self {
            basic: older_brokers::contains(connection.path()),
            ..Self::basic(request)
        }
    }

    /// As [`new`](Self::new), for a caller that may block and can use an arena.
    pub(crate) fn with_arenas(
        request: Request,
        connection: &EndpointConnection,
        offer: Option<Offer>,
    ) -> Self {
        let is_listen = matches!(request.kind, RequestKind::Listen { .. });
        let is_special = request.flags.raw_fd
            || request.flags.dry_run
            || request.settings.descriptor_only
            || request.settings.own_memory;
        // Without a descriptor to wait for arenas with, the listener takes none.
        let arenas = (is_listen && !is_special)
            .then(|| AcceptingArenas::new(request.settings.connected_suspend).ok());
        Self {
            offer: offer.map(Box::new),
            arenas: arenas.flatten().map(Box::new),
            ..Self::new(request, connection)
        }
    }

    /// An exchange with messages that every broker knows, which needs one endpoint connection:
    /// [`advance`](Self::advance) never returns [`Step::Reopen`].
    pub(crate) fn basic(request: Request) -> Self {
        Self {
            request,
            basic: true,
            probing: false,
            offer: None,
            arenas: None,
        }
    }

    /// Does what can be done while the broker works on the first message.
    pub(super) fn prepare(&mut self, endpoint: &Endpoint) {
        if let Some(offer) = &mut self.offer {
            offer.read_key(endpoint, &self.request);
        }
    }

    /// The messages that are sent first and have no reply.
    pub(crate) fn options(&self) -> impl Iterator<Item = ClientMessage> + use<> {
        let Request {
            settings, address, ..
        } = &self.request;
        let passthru = settings.container_passthru || address.passthru();
        let Settings {
            connected_suspend,
            high_vtl,
            mut ring_size,
            ..
        } = *settings;
        if !self.transports().contains(Transport::Ring) {
            ring_size = 0;
        }
        let description = self.request.description.as_deref().filter(|_| !self.basic);
        let description = description.map(|description| {
            ClientMessage::Describe(Describe {
                action: description.action.clone(),
                detail: description.detail.clone(),
            })
        });
        [
            (SocketOption::ContainerPassthru, passthru.into()),
            (SocketOption::ConnectedSuspend, connected_suspend.into()),
            (SocketOption::HighVtl, high_vtl.into()),
            (SocketOption::RingSize, ring_size),
        ]
        .into_iter()
        .filter(|(_, value)| *value != 0)
        .map(|(option, value)| ClientMessage::SetOption { option, value })
        .chain(description)
    }

    /// The transports that this end offers.
    fn transports(&self) -> Transports {
        if self.request.flags.raw_fd || self.request.settings.descriptor_only {
            return Transports::DESCRIPTOR | Transports::DIRECT;
        }
        let takes_arena = self
            .offer
            .as_ref()
            .is_some_and(|offer| offer.offers_arena());
        let own = Transports::DESCRIPTOR | Transports::DIRECT | Transports::RING;
        match takes_arena || self.arenas.is_some() {
            true => own | Transports::ARENA,
            false => own,
        }
    }

    fn flags(&self) -> Flags {
        let Flags {
            raw_fd,
            dry_run,
            explain,
        } = self.request.flags;
        Flags {
            raw_fd,
            dry_run,
            explain: explain && !dry_run && !self.basic,
        }
    }

    /// The next message, to which the broker replies.
    pub(crate) fn next(&self) -> ClientMessage {
        let (flags, transports) = (self.flags(), self.transports());
        let address = &self.request.address;
        let address = match (address.partition(), address.service()) {
            (PartitionRef::Id(vm), ServiceRef::Id(service)) => SockAddrHv::new(*vm, *service),
            (PartitionRef::Name(name), _) if self.basic => {
                return lookup(LookupKind::Partition, name.as_str());
            }
            (_, ServiceRef::Name(name)) if self.basic => {
                return lookup(LookupKind::Service, name.as_str());
            }
            (partition, service) => {
                let address = named_address(partition, service);
                return match self.request.kind {
                    RequestKind::Connect { timeout_ms } => {
                        ClientMessage::ConnectNamed(ConnectNamed {
                            flags,
                            timeout_ms,
                            transports,
                            address,
                        })
                    }
                    RequestKind::Listen { backlog } => ClientMessage::ListenNamed(ListenNamed {
                        flags,
                        backlog,
                        transports,
                        address,
                    }),
                };
            }
        };
        match self.request.kind {
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

    /// Handles the reply to the last message of [`Exchange::next`], which `connection` received.
    pub(crate) fn advance(
        &mut self,
        connection: &EndpointConnection,
        reply: Reply,
    ) -> io::Result<Step> {
        let sent = self.next();
        let explains = self.flags().explain;
        let is_newer = explains
            || (self.request.description.is_some() && !self.basic)
            || matches!(
                sent,
                ClientMessage::ConnectNamed(_) | ClientMessage::ListenNamed(_)
            );
        let (message, descriptors) = match reply {
            Reply::Message {
                message,
                descriptors,
            } => (message, descriptors),
            Reply::Refused(refused) => {
                let refusal = errors::refusal(&refused);
                // The cause matters: a guest may have reset the connect, which must not be repeated.
                let is_violation = matches!(&refusal, Refusal::Reset { cause }
                    if cause.contains(VIOLATION));
                if is_newer && is_violation {
                    self.basic = true;
                    self.probing = true;
                    return Ok(Step::Reopen);
                }
                if !is_violation {
                    self.note_older_broker(connection);
                }
                return Err(refused_name(refusal, explains));
            }
        };
        self.note_older_broker(connection);
        let Flags { dry_run, .. } = self.request.flags;
        let socket = connection.socket();
        let outcome = match (message, sent) {
            (BrokerMessage::Found { guid }, ClientMessage::Lookup { kind, .. }) => {
                let address = &self.request.address;
                self.request.address = match kind {
                    LookupKind::Partition | LookupKind::Cid => {
                        address.at(VmId::from_guid_bytes(guid))
                    }
                    LookupKind::Service => address.of(ServiceId::from_guid_bytes(guid)),
                };
                return Ok(Step::Send);
            }
            (_, ClientMessage::Lookup { .. }) => {
                return Err(connection.protocol_error(&UNEXPECTED));
            }
            (BrokerMessage::Explained(explained), _) if dry_run => {
                let verdict = match self.request.kind {
                    RequestKind::Connect { .. } => Verdict::Connect,
                    RequestKind::Listen { .. } => Verdict::Listen,
                };
                Outcome::Explained(wire::explanation(&explained, verdict))
            }
            (BrokerMessage::Explained(explained), _) if explains && explained.code != 0 => {
                let explanation = wire::explanation(&explained, Verdict::Connect);
                let refusal = explanation.refusal().cloned();
                let refusal = refusal.ok_or_else(|| connection.protocol_error(&UNEXPECTED))?;
                return Err(error::explained(refusal.into(), explanation));
            }
            (
                BrokerMessage::Connected(connected),
                ClientMessage::Connect(_) | ClientMessage::ConnectNamed(_),
            ) if !dry_run => {
                if !self.transports().contains(connected.transport) {
                    return Err(connection.protocol_error(&"a transport that was not offered"));
                }
                let stream = self.connected(&connected, descriptors, socket);
                let stream = stream.map_err(|error| match error.kind() {
                    io::ErrorKind::InvalidData => connection.protocol_error(&error),
                    _ => error,
                })?;
                match stream {
                    Some(stream) => Outcome::Connected(stream),
                    None => return Ok(Step::Reopen),
                }
            }
            (BrokerMessage::Listening(listening), ClientMessage::Listen(asked)) if !dry_run => {
                self.listening(&listening, asked.address, connection)?
            }
            (BrokerMessage::Bound(bound), ClientMessage::ListenNamed(_)) if !dry_run => {
                self.listening(&bound.listening, bound.address, connection)?
            }
            _ => return Err(connection.protocol_error(&UNEXPECTED)),
        };
        Ok(Step::Done(outcome))
    }

    /// The connection. `None` if an arena was granted and is revoked already, so that the request must be
    /// made again, without the offer.
    fn connected(
        &mut self,
        connected: &Connected,
        descriptors: Vec<OwnedFd>,
        socket: Arc<OwnedFd>,
    ) -> io::Result<Option<Stream>> {
        let offer = self.offer.take();
        let (Transport::Arena, Some(offer)) = (connected.transport, &offer) else {
            let raw_fd = self.request.flags.raw_fd;
            let stream = Stream::connected(connected, descriptors, socket, raw_fd)?;
            if let Some(offer) = offer
                && stream.ring().is_some()
            {
                offer.connected();
            }
            return Ok(Some(stream));
        };
        match offer.granted(connected, descriptors, socket)? {
            Granted::Connected(arena, end) => {
                end.set_connected_suspend(self.request.settings.connected_suspend);
                Ok(Stream::in_arena(&arena, end))
            }
            Granted::Refused(refusal) => Err(refusal.into()),
            Granted::Again => Ok(None),
        }
    }

    fn listening(
        &mut self,
        listening: &Listening,
        address: SockAddrHv,
        connection: &EndpointConnection,
    ) -> io::Result<Outcome> {
        let (raw_fd, arenas) = (self.request.flags.raw_fd, self.arenas.take());
        let listener = Listener::new(listening, address, connection, raw_fd, arenas)?;
        Ok(Outcome::Listening(listener))
    }

    /// Remembers a broker that took a basic message after it had refused a newer one.
    fn note_older_broker(&mut self, connection: &EndpointConnection) {
        if std::mem::take(&mut self.probing) {
            older_brokers::insert(connection.path());
        }
    }
}

/// The error for a refusal without an explanation of the broker, which has none for a name that it
/// does not know.
fn refused_name(refusal: Refusal, explains: bool) -> io::Error {
    use Refusal::{NotReachable, PartitionUnknown, Unregistered};
    let explanation = Explanation {
        verdict: Err(refusal.clone()),
        steps: Vec::new(),
        fix: None,
    };
    match refusal {
        Unregistered | PartitionUnknown | NotReachable if explains => {
            error::explained(refusal.into(), explanation)
        }
        _ => refusal.into(),
    }
}

fn lookup(kind: LookupKind, name: &str) -> ClientMessage {
    ClientMessage::Lookup {
        kind,
        name: name.to_owned(),
    }
}

fn named_address(partition: &PartitionRef, service: &ServiceRef) -> NamedAddress {
    NamedAddress {
        partition: match partition {
            PartitionRef::Id(vm) => IdOrName::Id(*vm),
            PartitionRef::Name(name) => IdOrName::Name(name.as_str().to_owned()),
        },
        service: match service {
            ServiceRef::Id(service) => IdOrName::Id(*service),
            ServiceRef::Name(name) => IdOrName::Name(name.as_str().to_owned()),
        },
    }
}
