//! The resources of a connection between two processes: descriptors of the processes and of the
//! broker.
//!
//! A relayed connection has two socket pairs for data. A direct one has one, and the broker duplicates of
//! both ends, with which it can close them. A ring connection has shared memory and two
//! doorbells; the broker keeps only a [`Monitor`], which maps the control words of that memory. Both
//! kinds have a control connection for the accepting process. The connecting process uses its
//! endpoint connection as its control connection.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use hvsock_fabric::Refusal;
use hvsock_ring::{ArenaLimits, ArenaMonitor, ArenaParts, Doorbells, Grant, Monitor, Parts};
use hvsock_sys::{seqpacket, set_nonblocking, stream};

use super::limits::{descriptor_limit, mmap_limit};
use super::preference::ChosenTransport;
use crate::data_path::{ByteCounters, ProcessSocket};
use crate::pump::{Connection, DirectEnd, RelayEnd, SEND_BUFFER};

/// The resources of a connection before its processes have received theirs.
pub(super) struct ConnectionResources {
    pub(super) broker: BrokerPart,
    /// The processes' descriptors. The broker closes its copies once they are sent: a ring end
    /// detects a dead peer by the hang-up of its doorbell, which needs all other copies closed.
    pub(super) client: ClientPart,
    /// Those of the accepting process, in the order of the endpoint protocol.
    pub(super) server: Vec<OwnedFd>,
}

/// The descriptors for the connecting process.
pub(super) enum ClientPart {
    Descriptor(OwnedFd),
    /// The memory is the accepting process's first descriptor.
    Ring(Doorbells),
    /// The memory and the grant page are the accepting process's first descriptors.
    Arena(Doorbells),
    /// It has its own socket.
    Attached,
}

/// The broker's part of a connection. Its descriptors are non-blocking.
pub(super) struct BrokerPart {
    /// The control connection of the accepting process.
    pub(super) control: OwnedFd,
    data: BrokerData,
}

enum BrokerData {
    Descriptor {
        client: OwnedFd,
        server: OwnedFd,
    },
    /// Duplicates of both ends.
    Direct {
        client: OwnedFd,
        server: OwnedFd,
    },
    /// The connecting process's end comes when that has connected its socket.
    Attached {
        server: OwnedFd,
    },
    Ring {
        memory: OwnedFd,
        monitor: Monitor,
    },
    Arena(Arc<ArenaMonitor>),
}

impl ConnectionResources {
    /// Those of an arena.
    pub(super) fn of_arena(
        limits: ArenaLimits,
        granted: u32,
        backlog: u32,
    ) -> Result<Self, Refusal> {
        let (control, control_sent) = control_pair()?;
        let parts = ArenaParts::new(limits, granted, backlog);
        let ArenaParts {
            memory,
            grant,
            client,
            server,
            monitor,
        } = parts.map_err(|error| descriptor_limit(&error))?;
        Ok(Self {
            broker: BrokerPart {
                control,
                data: BrokerData::Arena(Arc::new(monitor)),
            },
            client: ClientPart::Arena(client),
            server: vec![memory, grant, server.own, server.peer, control_sent],
        })
    }

    /// Those of a connection that is being made.
    pub(super) fn new(transport: ChosenTransport) -> Result<Self, Refusal> {
        Self::with(transport, |_| {})
    }

    /// Those of a connection that may be made later, with the memory that both processes need at once.
    pub(super) fn ahead(transport: ChosenTransport) -> Result<Self, Refusal> {
        // Without it the processes allocate it.
        Self::with(transport, |parts| drop(parts.allocate_header()))
    }

    fn with(transport: ChosenTransport, prepare: impl FnOnce(&Parts)) -> Result<Self, Refusal> {
        let (control, control_sent) = control_pair()?;
        let (data, client, server) = match transport {
            ChosenTransport::Descriptor => {
                let (data, client, server) =
                    data_pairs().map_err(|error| descriptor_limit(&error))?;
                (
                    data,
                    ClientPart::Descriptor(client),
                    vec![server, control_sent],
                )
            }
            ChosenTransport::Attached => {
                let (data, server) = data_pair().map_err(|error| descriptor_limit(&error))?;
                let data = BrokerData::Attached { server: data };
                (data, ClientPart::Attached, vec![server, control_sent])
            }
            ChosenTransport::Direct => {
                let (data, client, server) =
                    direct_pair().map_err(|error| descriptor_limit(&error))?;
                (
                    data,
                    ClientPart::Descriptor(client),
                    vec![server, control_sent],
                )
            }
            ChosenTransport::Ring(size) => {
                let parts = Parts::new(size).map_err(|error| descriptor_limit(&error))?;
                prepare(&parts);
                let monitor =
                    Monitor::of_unused(&parts.memory).map_err(|error| mmap_limit(&error))?;
                let Parts {
                    memory,
                    first,
                    second,
                } = parts;
                let own = memory
                    .try_clone()
                    .map_err(|error| descriptor_limit(&error))?;
                let ring = BrokerData::Ring {
                    memory: own,
                    monitor,
                };
                let server = vec![memory, second.own, second.peer, control_sent];
                (ring, ClientPart::Ring(first), server)
            }
        };
        Ok(Self {
            broker: BrokerPart { control, data },
            client,
            server,
        })
    }
}

impl ClientPart {
    /// The descriptors that only the connecting process receives.
    pub(super) fn own(self) -> impl Iterator<Item = OwnedFd> {
        let (one, two) = match self {
            ClientPart::Attached => (None, None),
            ClientPart::Descriptor(client) => (Some(client), None),
            ClientPart::Ring(Doorbells { own, peer })
            | ClientPart::Arena(Doorbells { own, peer }) => (Some(own), Some(peer)),
        };
        one.into_iter().chain(two)
    }

    /// The descriptors in the order of the endpoint protocol. `server` are those for the accepting
    /// process.
    pub(super) fn descriptors<'a>(&'a self, server: &'a [OwnedFd]) -> Vec<BorrowedFd<'a>> {
        match self {
            ClientPart::Attached => Vec::new(),
            ClientPart::Descriptor(client) => vec![client.as_fd()],
            ClientPart::Ring(doorbells) => {
                let memory = server.first().map(AsFd::as_fd);
                let doorbells = [doorbells.own.as_fd(), doorbells.peer.as_fd()];
                memory.into_iter().chain(doorbells).collect()
            }
            ClientPart::Arena(doorbells) => {
                let shared = server.iter().take(2).map(AsFd::as_fd);
                shared
                    .chain([doorbells.own.as_fd(), doorbells.peer.as_fd()])
                    .collect()
            }
        }
    }
}

impl BrokerPart {
    /// Builds the connection and its counters. `client_control` is the connecting process's control
    /// connection, `raw_fd` the flag of the client and of the server. `None` if the client brings its own
    /// socket: see [`attached`](Self::attached).
    pub(super) fn connection(
        self,
        client_control: ProcessSocket,
        raw_fd: [bool; 2],
    ) -> Option<(Connection, Arc<ByteCounters>)> {
        Some(match self.data {
            BrokerData::Attached { .. } => return None,
            BrokerData::Descriptor { client, server } => {
                let from = RelayEnd::new(client_control, client, raw_fd[0]);
                let to = RelayEnd::new(self.control, server, raw_fd[1]);
                (Connection::relay(from, to), Arc::default())
            }
            BrokerData::Direct { client, server } => {
                let from = DirectEnd::new(client_control, client, raw_fd[0]);
                let to = DirectEnd::new(self.control, server, raw_fd[1]);
                let counters = ByteCounters::uncounted();
                (Connection::direct(from, to), Arc::new(counters))
            }
            BrokerData::Ring { memory, monitor } => {
                let monitor = Arc::new(monitor);
                let counters = ByteCounters::of_ring(Arc::clone(&monitor));
                let controls = [client_control, self.control.into()];
                let connection = Connection::ring(controls, memory, monitor);
                (connection, Arc::new(counters))
            }
            BrokerData::Arena(monitor) => {
                let controls = [client_control, self.control.into()];
                let connection = Connection::arena(controls, monitor);
                (connection, Arc::default())
            }
        })
    }

    /// Builds the connection of a client that has connected its own socket; `None` for another one. `raw_fd` is
    /// the server's flag.
    pub(super) fn attached(
        self,
        client_control: ProcessSocket,
        socket: OwnedFd,
        raw_fd: bool,
    ) -> Option<Connection> {
        let BrokerData::Attached { server } = self.data else {
            return None;
        };
        let from = RelayEnd::attached(client_control, socket);
        let to = RelayEnd::new(self.control, server, raw_fd);
        Some(Connection::relay(from, to))
    }

    /// As [`attached`](Self::attached), for a client without a control connection.
    pub(super) fn plain(self, socket: OwnedFd, raw_fd: bool) -> Option<Connection> {
        let BrokerData::Attached { server } = self.data else {
            return None;
        };
        let to = RelayEnd::new(self.control, server, raw_fd);
        Some(Connection::relay(RelayEnd::plain(socket), to))
    }

    /// Builds an arena and its monitor; `None` for a connection.
    pub(super) fn arena(
        self,
        client_control: ProcessSocket,
    ) -> Option<(Connection, Arc<ArenaMonitor>)> {
        let BrokerData::Arena(monitor) = self.data else {
            return None;
        };
        let controls = [client_control, self.control.into()];
        let connection = Connection::arena(controls, Arc::clone(&monitor));
        Some((connection, monitor))
    }

    /// Resets a connection that does not end by itself when the broker drops its part, for a process that
    /// has received its own part and the reason.
    pub(super) fn reset(&self) {
        match &self.data {
            BrokerData::Descriptor { .. } | BrokerData::Attached { .. } => {}
            BrokerData::Direct { client, .. } => {
                let _ = stream::shutdown(client, std::net::Shutdown::Both);
            }
            BrokerData::Ring { monitor, .. } => monitor.reset(),
            BrokerData::Arena(monitor) => monitor.set_grant(Grant::Revoked),
        }
    }
}

/// The control connection of an accepting process: the broker's end, and its own.
fn control_pair() -> Result<(OwnedFd, OwnedFd), Refusal> {
    let (control, sent) = seqpacket::pair().map_err(|error| descriptor_limit(&error))?;
    set_nonblocking(&control, true).map_err(|error| descriptor_limit(&error))?;
    Ok((control, sent))
}

/// Duplicates of both ends of a socket pair for the broker, the connecting process's end, and the
/// accepting one's.
fn direct_pair() -> std::io::Result<(BrokerData, OwnedFd, OwnedFd)> {
    let (client, server) = stream::pair()?;
    let data = BrokerData::Direct {
        client: client.try_clone()?,
        server: server.try_clone()?,
    };
    Ok((data, client, server))
}

/// The broker's descriptor, and a process's.
fn data_pair() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let (own, sent) = stream::pair()?;
    set_nonblocking(&own, true)?;
    // Refused beyond the system's limit, which then applies.
    let _ = stream::set_send_buffer(&sent, SEND_BUFFER);
    Ok((own, sent))
}

/// The broker's two descriptors, the connecting process's, and the accepting one's.
fn data_pairs() -> std::io::Result<(BrokerData, OwnedFd, OwnedFd)> {
    let (client, client_sent) = data_pair()?;
    let (server, server_sent) = data_pair()?;
    let data = BrokerData::Descriptor { client, server };
    Ok((data, client_sent, server_sent))
}
