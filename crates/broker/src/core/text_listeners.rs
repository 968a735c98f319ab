//! Listeners of processes that speak the text protocol.
//!
//! Each is an ordinary listener, whose endpoint connection has its other end here. What arrives on that is a
//! connection for the program: for the next of its ACCEPTs, or for the Unix socket that it has given.

pub(super) mod snapshot;

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;

use hvsock_address::VmId;
use hvsock_endpoint::ListenerToken;
use hvsock_fabric::{ConnectionId, PartitionKey};
use hvsock_sys::stream;
use slab::Slab;

use crate::budget::{Charge, Owner};
use crate::data_path::ProcessSocket;

/// The descriptors of a listener beside its session: its end of the channel, and the socket that is called back.
pub(super) const LISTENER: u64 = 2;
/// Those of a connection to its program, beside those of any connection: the program's socket, and the end
/// that a process would have.
pub(super) const RELAY: u64 = 2;
/// Most ACCEPTs that wait for one listener.
pub(super) const MAX_WAITING: usize = 256;
/// The first id of the broker's own connections between an ACCEPT and what a listener's process receives. Those
/// of connections between partitions are smaller.
const FIRST_ID: u64 = 1 << 63;

/// The listeners by index.
#[derive(Debug, Default)]
pub(super) struct TextListeners {
    listeners: Slab<TextListener>,
    /// The relays to their programs.
    relays: HashMap<ConnectionId, Charge>,
    last_relay: u64,
}

/// One listener.
#[derive(Debug)]
pub(super) struct TextListener {
    /// The other end of its endpoint connection.
    pub(super) channel: OwnedFd,
    /// The connection by which it was requested.
    pub(super) client: ProcessSocket,
    pub(super) partition: PartitionKey,
    pub(super) owner: Owner,
    pub(super) token: ListenerToken,
    pub(super) callback: Option<OwnedFd>,
    /// ACCEPTs that wait for a connection.
    pub(super) waiting: VecDeque<ProcessSocket>,
    /// The broker has answered the request.
    pub(super) answered: bool,
    /// For the descriptors of its channel and of its callback.
    pub(super) charge: Charge,
}

impl TextListener {
    /// Whether a connection can be taken from the channel. Forgets ACCEPTs whose programs are gone.
    pub(super) fn takes_connections(&mut self) -> bool {
        while self.callback.is_none()
            && let Some(first) = self.waiting.front()
            && stream::is_hung_up(first)
        {
            self.waiting.pop_front();
        }
        self.callback.is_some() || !self.waiting.is_empty()
    }

    /// Adds an ACCEPT. Returns it if too many wait.
    pub(super) fn wait(&mut self, accept: ProcessSocket) -> Result<(), ProcessSocket> {
        if self.waiting.len() >= MAX_WAITING {
            self.waiting.retain(|waiting| !stream::is_hung_up(waiting));
        }
        if self.waiting.len() >= MAX_WAITING {
            return Err(accept);
        }
        self.waiting.push_back(accept);
        Ok(())
    }
}

impl TextListeners {
    /// A token that nobody can guess.
    pub(super) fn new_token() -> ListenerToken {
        VmId::random().to_guid_bytes()
    }

    /// All listeners, by index.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &TextListener)> {
        self.listeners.iter()
    }

    /// Adds a listener. Returns its index.
    pub(super) fn insert(&mut self, listener: TextListener) -> usize {
        self.listeners.insert(listener)
    }

    pub(super) fn get(&self, index: usize) -> Option<&TextListener> {
        self.listeners.get(index)
    }

    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut TextListener> {
        self.listeners.get_mut(index)
    }

    pub(super) fn remove(&mut self, index: usize) -> Option<TextListener> {
        self.listeners.try_remove(index)
    }

    /// A partition's listeners whose programs have closed them.
    pub(super) fn gone(&self, partition: PartitionKey) -> Vec<usize> {
        let all = self.listeners.iter();
        let gone =
            all.filter(|(_, one)| one.partition == partition && stream::is_hung_up(&one.client));
        gone.map(|(index, _)| index).collect()
    }

    /// The listener with this token in a partition.
    pub(super) fn find(&self, partition: PartitionKey, token: ListenerToken) -> Option<usize> {
        let mut all = self.listeners.iter();
        let found = all.find(|(_, one)| one.partition == partition && one.token == token);
        found.map(|(index, _)| index)
    }

    /// The id of a new relay, whose descriptors are charged.
    pub(super) fn add_relay(&mut self, charge: Charge) -> ConnectionId {
        self.last_relay = (self.last_relay + 1) % FIRST_ID;
        let id = ConnectionId::from_u64(FIRST_ID + self.last_relay);
        self.relays.insert(id, charge);
        id
    }

    /// Whether this is a relay.
    pub(super) fn has_relay(&self, id: ConnectionId) -> bool {
        self.relays.contains_key(&id)
    }

    /// Forgets a relay that has ended. Returns whether it was one.
    pub(super) fn remove_relay(&mut self, id: ConnectionId) -> bool {
        self.relays.remove(&id).is_some()
    }
}
