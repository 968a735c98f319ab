//! Endpoints: the sockets by which processes reach the broker, and accepting from them, round robin
//! with a bounded number per endpoint. The hybrid vsock socket of a VM is one of them, with another protocol.
//!
//! Endpoints are watched edge-triggered, so an endpoint stays in the busy list until `accept` would
//! block. When the process runs out of descriptors (`EMFILE`), it closes one reserve descriptor to
//! accept and refuse the next client. If that fails too (`ENFILE`), the endpoints are retried after
//! a delay.

pub(super) mod snapshot;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hvsock_endpoint::BrokerMessage;
use hvsock_fabric::{PartitionKey, Refusal};
use hvsock_sys::{message, seqpacket, stream};
use mio::unix::SourceFd;
use mio::{Interest, Registry};
use slab::Slab;

use super::hybrid_answers::send_refused;
use super::limits::descriptor_limit;
use super::text_answers::send_text_refusal;
use super::tokens::endpoint_token;
use crate::StartError;
use crate::reply::refused;

/// Listen backlog of an endpoint socket.
const ENDPOINT_BACKLOG: u32 = 4096;
/// Most clients accepted from all endpoints in one round.
const ACCEPTS_PER_ROUND: usize = 256;
/// Most clients accepted from one endpoint in one round.
const ACCEPTS_PER_ENDPOINT: usize = 64;
/// Delay before the next try when even the reserve descriptor did not help.
const RETRY_DELAY: Duration = Duration::from_millis(100);
/// A shortage is over when no client was refused for this time.
const SHORTAGE: Duration = Duration::from_secs(10);

/// The endpoint sockets.
#[derive(Debug)]
pub(super) struct Endpoints {
    registry: Arc<Registry>,
    endpoints: Slab<Endpoint>,
    /// Endpoints with clients that may be pending.
    busy: Vec<usize>,
    shortage: Shortage,
}

/// Which socket of a partition it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndpointKind {
    /// For the processes in the partition, which speak the endpoint protocol.
    Endpoint,
    /// For the processes in the partition, which speak the text protocol.
    Text,
    /// For processes of the host, which reach the partition, a VM, by hybrid vsock.
    Hybrid,
}

/// An endpoint socket.
#[derive(Debug)]
struct Endpoint {
    socket: OwnedFd,
    kind: EndpointKind,
    partition: PartitionKey,
    path: PathBuf,
    /// It is in [`Endpoints::busy`].
    busy: bool,
}

/// State of a shortage of descriptors.
#[derive(Debug, Default)]
struct Shortage {
    reserve: Option<OwnedFd>,
    /// When to retry the endpoints.
    retry_at: Option<Instant>,
    /// The error of the last refused client, and its time.
    last: Option<(String, Instant)>,
}

/// The outcome of [`Endpoints::accept`].
#[derive(Debug)]
pub(super) enum Accepted {
    /// A client, and the socket that it connected to.
    Client(OwnedFd, EndpointKind, PartitionKey),
    /// A client was refused, because the broker has no descriptor for it.
    Refused(Refusal),
    /// No client is pending, or none can be accepted for now.
    Nothing,
}

impl Endpoints {
    /// No endpoints. They are watched with `registry`.
    pub(super) fn new(registry: Arc<Registry>) -> Self {
        Self {
            registry,
            endpoints: Slab::new(),
            busy: Vec::new(),
            shortage: Shortage::default(),
        }
    }

    /// Opens a socket of `partition`.
    pub(super) fn open(
        &mut self,
        kind: EndpointKind,
        partition: PartitionKey,
        path: PathBuf,
    ) -> Result<(), StartError> {
        // Every process that can reach the path may connect. Access rules decide what it may do.
        let (mode, backlog) = (0o666, ENDPOINT_BACKLOG);
        let socket = match kind {
            EndpointKind::Endpoint => seqpacket::listen(&path, mode, backlog),
            EndpointKind::Text | EndpointKind::Hybrid => stream::listen(&path, mode, None, backlog),
        };
        let socket = socket.map_err(StartError::io(format!("listen at {}", path.display())))?;
        let endpoint = Endpoint {
            socket,
            kind,
            partition,
            path,
            busy: false,
        };
        self.add(endpoint).map_err(|(endpoint, error)| {
            let _ = std::fs::remove_file(&endpoint.path);
            StartError::io("watch an endpoint")(error)
        })
    }

    /// Adds a socket, and watches it. Waiting clients cause an event.
    fn add(&mut self, endpoint: Endpoint) -> Result<(), (Endpoint, io::Error)> {
        let entry = self.endpoints.vacant_entry();
        let watched = self.registry.register(
            &mut SourceFd(&endpoint.socket.as_raw_fd()),
            endpoint_token(entry.key()),
            Interest::READABLE,
        );
        match watched {
            Ok(()) => {
                entry.insert(endpoint);
                Ok(())
            }
            Err(error) => Err((endpoint, error)),
        }
    }

    /// Opens a socket of `partition` again if its path leads to no socket. Clients that have one stay.
    pub(super) fn repair(
        &mut self,
        kind: EndpointKind,
        partition: PartitionKey,
    ) -> Result<(), StartError> {
        let Some(path) = self.path_of(kind, partition).map(Path::to_owned) else {
            return Ok(());
        };
        let found = std::fs::symlink_metadata(&path);
        if found.is_ok_and(|found| found.file_type().is_socket()) {
            return Ok(());
        }
        let wanted = (kind, partition);
        let is_old = |one: &Endpoint| (one.kind, one.partition) == wanted;
        let old = self.endpoints.iter().find(|(_, one)| is_old(one));
        let old = old.map(|(index, _)| index);
        self.open(kind, partition, path)?;
        old.and_then(|index| self.endpoints.try_remove(index));
        Ok(())
    }

    /// Closes the endpoints of a partition, and removes their sockets.
    pub(super) fn close_of(&mut self, partition: PartitionKey) {
        self.endpoints.retain(|_, endpoint| {
            if endpoint.partition != partition {
                return true;
            }
            let _ = std::fs::remove_file(&endpoint.path);
            false
        });
    }

    /// Closes all endpoints and removes their sockets.
    pub(super) fn close_all(&mut self) {
        for endpoint in self.endpoints.drain() {
            let _ = std::fs::remove_file(&endpoint.path);
        }
    }

    /// The path of a partition's socket of a kind.
    pub(super) fn path_of(&self, kind: EndpointKind, partition: PartitionKey) -> Option<&Path> {
        let mut all = self.endpoints.iter();
        let wanted = (kind, partition);
        let (_, endpoint) = all.find(|(_, one)| (one.kind, one.partition) == wanted)?;
        Some(&endpoint.path)
    }

    /// Marks an endpoint as having clients to accept.
    pub(super) fn mark(&mut self, index: usize) {
        if let Some(endpoint) = self.endpoints.get_mut(index)
            && !endpoint.busy
        {
            endpoint.busy = true;
            self.busy.push(index);
        }
    }

    /// Whether an endpoint may have clients to accept.
    pub(super) fn has_busy(&self) -> bool {
        !self.busy.is_empty()
    }

    /// The error of the last client that was refused for want of a descriptor, and when to regard the
    /// shortage as over.
    pub(super) fn shortage(&self) -> Option<(&str, Instant)> {
        let (error, at) = self.shortage.last.as_ref()?;
        Some((error, *at + SHORTAGE))
    }

    /// Records that a request was refused for want of a descriptor.
    pub(super) fn note_shortage(&mut self, error: String) {
        self.shortage.last = Some((error, Instant::now()));
    }

    /// Forgets a shortage that is over.
    pub(super) fn end_shortage(&mut self) {
        self.shortage.last = None;
    }

    /// When to start the next round, if a shortage of descriptors delays it.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.shortage.retry_at
    }

    /// Starts a round: returns the busy endpoints, and the most clients to accept from each.
    /// [`end_turn`](Self::end_turn) must follow for each.
    pub(super) fn start_round(&mut self) -> (Vec<usize>, usize) {
        let retry_at = self.shortage.retry_at;
        if retry_at.is_some_and(|retry_at| retry_at <= Instant::now()) {
            self.shortage.retry_at = None;
            let all: Vec<usize> = self.endpoints.iter().map(|(index, _)| index).collect();
            all.into_iter().for_each(|index| self.mark(index));
        }
        if self.busy.is_empty() {
            return (Vec::new(), 0);
        }
        self.shortage.refill_reserve();
        let busy = std::mem::take(&mut self.busy);
        let limit = (ACCEPTS_PER_ROUND / busy.len()).clamp(1, ACCEPTS_PER_ENDPOINT);
        (busy, limit)
    }

    /// Accepts a client from an endpoint.
    pub(super) fn accept(&mut self, index: usize) -> Accepted {
        let Some(endpoint) = self.endpoints.get(index) else {
            return Accepted::Nothing;
        };
        match seqpacket::accept(&endpoint.socket) {
            Ok(Some(socket)) => Accepted::Client(socket, endpoint.kind, endpoint.partition),
            Ok(None) => Accepted::Nothing,
            Err(error) => self.shortage.refuse_next(endpoint, &error),
        }
    }

    /// Ends an endpoint's turn of a round. `more` clients may be pending.
    pub(super) fn end_turn(&mut self, index: usize, more: bool) {
        if let Some(endpoint) = self.endpoints.get_mut(index) {
            endpoint.busy = more;
            self.busy.extend(more.then_some(index));
        }
    }
}

/// Sends a refusal to a client that has no session. A client with a full receive queue misses it.
pub(super) fn send_refusal(client: impl AsFd, kind: EndpointKind, refusal: &Refusal) {
    match kind {
        EndpointKind::Endpoint => {
            let mut bytes = Vec::new();
            BrokerMessage::Refused(refused(refusal)).encode(&mut bytes);
            let _ = message::send(&client, &bytes, &[]);
        }
        EndpointKind::Text => send_text_refusal(&client, refusal),
        EndpointKind::Hybrid => {
            send_refused(&client, &refusal.to_string());
        }
    }
}

impl Shortage {
    /// Opens the reserve descriptor if it is closed; `false` on failure. An unbound socket is the
    /// cheapest kind.
    fn refill_reserve(&mut self) -> bool {
        if self.reserve.is_none() {
            self.reserve = UnixDatagram::unbound().ok().map(OwnedFd::from);
        }
        self.reserve.is_some()
    }

    /// Accepts the next client with the reserve descriptor and refuses it. `error` is why it cannot be
    /// accepted otherwise.
    fn refuse_next(&mut self, endpoint: &Endpoint, error: &io::Error) -> Accepted {
        let now = Instant::now();
        self.last = Some((error.to_string(), now));
        // This frees the descriptor that `accept` needs.
        drop(self.reserve.take());
        let (accepted, has_descriptor) = match seqpacket::accept(&endpoint.socket) {
            Ok(Some(client)) => {
                let refusal = descriptor_limit(error);
                send_refusal(&client, endpoint.kind, &refusal);
                (Accepted::Refused(refusal), true)
            }
            // The kernel allocates a descriptor before it looks for a client, so `accept` can have
            // failed with no client pending.
            Ok(None) => (Accepted::Nothing, true),
            Err(_) => (Accepted::Nothing, false),
        };
        if !self.refill_reserve() || !has_descriptor {
            self.retry_at = Some(now + RETRY_DELAY);
        }
        accepted
    }
}
