//! The resources of a connection between two processes: descriptors of the processes and of the
//! broker.
//!
//! A relayed connection has two socket pairs for data. A ring connection has shared memory and two
//! doorbells; the broker keeps only a [`Monitor`], which maps the control words of that memory. Both
//! kinds have a control connection for the accepting process. The connecting process uses its
//! endpoint connection as its control connection.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use hvsock_fabric::Refusal;
use hvsock_ring::{Monitor, Parts};
use hvsock_sys::{seqpacket, set_nonblocking, stream};

use super::limits::{descriptor_limit, mmap_limit};
use super::preference::ChosenTransport;
use crate::data_path::ByteCounters;
use crate::pump::{Connection, RelayEnd};

/// The resources of a connection before its processes have received theirs.
pub(super) struct ConnectionResources {
    pub(super) transport: ChosenTransport,
    pub(super) broker: BrokerPart,
    /// The processes' descriptors. The broker closes its copies once they are sent: a ring end
    /// detects a dead peer by the hang-up of its doorbell, which needs all other copies closed.
    processes: ProcessPart,
    control_sent: OwnedFd,
}

/// The broker's part of a connection. Its descriptors are non-blocking.
pub(super) struct BrokerPart {
    /// The control connection of the accepting process.
    pub(super) control: OwnedFd,
    data: BrokerData,
}

enum BrokerData {
    Descriptor { client: OwnedFd, server: OwnedFd },
    Ring(Monitor),
}

enum ProcessPart {
    Descriptor { client: OwnedFd, server: OwnedFd },
    Ring(Parts),
}

impl ConnectionResources {
    pub(super) fn new(transport: ChosenTransport) -> Result<Self, Refusal> {
        let (control, control_sent) = seqpacket::pair().map_err(|e| descriptor_limit(&e))?;
        let (data, processes) = match transport {
            ChosenTransport::Descriptor => {
                data_pairs().map_err(|error| descriptor_limit(&error))?
            }
            ChosenTransport::Ring(size) => {
                let parts = Parts::new(size).map_err(|error| descriptor_limit(&error))?;
                let monitor =
                    Monitor::of_unused(&parts.memory).map_err(|error| mmap_limit(&error))?;
                (BrokerData::Ring(monitor), ProcessPart::Ring(parts))
            }
        };
        set_nonblocking(&control, true).map_err(|error| descriptor_limit(&error))?;
        Ok(Self {
            transport,
            broker: BrokerPart { control, data },
            processes,
            control_sent,
        })
    }

    /// The descriptors for the connecting process, in the order of the endpoint protocol.
    pub(super) fn for_client(&self) -> Vec<BorrowedFd<'_>> {
        match &self.processes {
            ProcessPart::Descriptor { client, .. } => vec![client.as_fd()],
            ProcessPart::Ring(parts) => vec![
                parts.memory.as_fd(),
                parts.first.own.as_fd(),
                parts.first.peer.as_fd(),
            ],
        }
    }

    /// The descriptors for the accepting process, in the order of the endpoint protocol.
    pub(super) fn for_server(&self) -> Vec<BorrowedFd<'_>> {
        let control = self.control_sent.as_fd();
        match &self.processes {
            ProcessPart::Descriptor { server, .. } => vec![server.as_fd(), control],
            ProcessPart::Ring(parts) => vec![
                parts.memory.as_fd(),
                parts.second.own.as_fd(),
                parts.second.peer.as_fd(),
                control,
            ],
        }
    }
}

impl BrokerPart {
    /// Builds the connection and its counters. `client_control` is the connecting process's control
    /// connection, `raw_fd` the flag of the client and of the server.
    pub(super) fn connection(
        self,
        client_control: OwnedFd,
        raw_fd: [bool; 2],
    ) -> (Connection, Arc<ByteCounters>) {
        match self.data {
            BrokerData::Descriptor { client, server } => {
                let from = RelayEnd::new(client_control, client, raw_fd[0]);
                let to = RelayEnd::new(self.control, server, raw_fd[1]);
                (Connection::relay(from, to), Arc::default())
            }
            BrokerData::Ring(monitor) => {
                let monitor = Arc::new(monitor);
                let counters = ByteCounters::of_ring(Arc::clone(&monitor));
                let controls = [client_control, self.control];
                (Connection::ring(controls, monitor), Arc::new(counters))
            }
        }
    }

    /// Resets a ring for a process that has received its part and the reason.
    pub(super) fn reset(&self) {
        if let BrokerData::Ring(monitor) = &self.data {
            monitor.reset();
        }
    }
}

fn data_pairs() -> std::io::Result<(BrokerData, ProcessPart)> {
    let (client, client_sent) = stream::pair()?;
    let (server, server_sent) = stream::pair()?;
    for own in [&client, &server] {
        set_nonblocking(own, true)?;
    }
    let processes = ProcessPart::Descriptor {
        client: client_sent,
        server: server_sent,
    };
    Ok((BrokerData::Descriptor { client, server }, processes))
}
