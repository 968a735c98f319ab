//! The snapshot of the listeners of the text protocol. [`crate::handover::snapshot`] describes its format.
//!
//! The other end of a listener's channel is a session, and is handed over as one. The bytes of a relay are with the
//! connections of processes.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;

use hvsock_address::VmId;
use hvsock_fabric::{ConnectionId, PartitionKey};
use serde::{Deserialize, Serialize};

use super::{FIRST_ID, LISTENER, MAX_WAITING, RELAY, TextListener, TextListeners};
use crate::budget::{Budget, ChargeSnapshot};
use crate::data_path::ProcessSocket;
use crate::handover::snapshot::{check_limit, check_version, ensure, read_version};
use crate::handover::{Exports, FdIndex, FdRange, HandoverError, Imports};

/// The version of [`TextListenersSnapshot`] that this release writes.
const TEXT_LISTENERS_SNAPSHOT_VERSION: u32 = 1;

/// All listeners of the text protocol.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::core) struct TextListenersSnapshot {
    #[serde(deserialize_with = "read_version::<_, TEXT_LISTENERS_SNAPSHOT_VERSION>")]
    version: u32,
    listeners: Vec<ListenerSnapshot>,
    /// In the order of their ids.
    relays: Vec<RelaySnapshot>,
    last_relay: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct ListenerSnapshot {
    channel: FdIndex,
    client: FdIndex,
    partition: u64,
    /// What its programs accept by.
    token: String,
    /// The socket that is called back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    callback: Option<FdIndex>,
    /// The sockets of ACCEPTs, in order.
    waiting: FdRange,
    answered: bool,
    charge: ChargeSnapshot,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct RelaySnapshot {
    id: u64,
    charge: ChargeSnapshot,
}

impl TextListeners {
    /// The listeners as a value.
    ///
    /// # Errors
    ///
    /// If a descriptor cannot be handed over.
    pub(in crate::core) fn snapshot(
        &self,
        exports: &mut Exports,
    ) -> Result<TextListenersSnapshot, HandoverError> {
        let Self {
            listeners,
            relays,
            last_relay,
        } = self;
        let listeners = listeners.iter().map(|(_, listener)| {
            let TextListener {
                channel,
                client,
                partition,
                // That of its charge.
                owner: _,
                token,
                callback,
                waiting,
                answered,
                charge,
            } = listener;
            Ok(ListenerSnapshot {
                channel: exports.fd(channel)?,
                client: exports.fd(client)?,
                partition: partition.as_u64(),
                token: VmId::from_guid_bytes(*token).to_string(),
                callback: callback.as_ref().map(|fd| exports.fd(fd)).transpose()?,
                waiting: exports.fds(waiting)?,
                answered: *answered,
                charge: charge.snapshot(),
            })
        });
        let listeners = listeners.collect::<Result<_, HandoverError>>()?;
        let relays = relays.iter().map(|(id, charge)| RelaySnapshot {
            id: id.as_u64(),
            charge: charge.snapshot(),
        });
        let mut relays: Vec<_> = relays.collect();
        relays.sort_by_key(|relay| relay.id);
        Ok(TextListenersSnapshot {
            version: TEXT_LISTENERS_SNAPSHOT_VERSION,
            listeners,
            relays,
            last_relay: *last_relay,
        })
    }

    /// The listeners of a snapshot, which nobody watches. `is_known` says which partitions there are.
    ///
    /// # Errors
    ///
    /// If the snapshot is damaged.
    pub(in crate::core) fn restore(
        snapshot: TextListenersSnapshot,
        imports: &mut Imports,
        budget: &Budget,
        is_known: impl Fn(PartitionKey) -> bool,
    ) -> Result<Self, HandoverError> {
        let TextListenersSnapshot {
            version,
            listeners,
            relays,
            last_relay,
        } = snapshot;
        check_version(version, TEXT_LISTENERS_SNAPSHOT_VERSION)?;
        let mut restored = Self::default();
        for listener in listeners {
            let ListenerSnapshot {
                channel,
                client,
                partition,
                token,
                callback,
                waiting,
                answered,
                charge,
            } = listener;
            let partition = PartitionKey::from_u64(partition);
            ensure(is_known(partition), "a listener is of no partition")?;
            let unnamed = || HandoverError::inconsistent("a listener has no token");
            let token: VmId = token.parse().map_err(|_| unnamed())?;
            let token = token.to_guid_bytes();
            let is_new = restored.find(partition, token).is_none();
            ensure(is_new, "two listeners have one token")?;
            check_limit("waiting ACCEPTs", waiting.count() as usize, MAX_WAITING)?;
            let charge = charge.charge(budget, LISTENER);
            let owner = charge.owner();
            let charged = |fd: OwnedFd| ProcessSocket::charged(fd, budget.charge_beyond(owner, 1));
            let mut accepts = imports.fds(waiting)?;
            let waiting = (0..waiting.count()).map(|index| accepts.take(index).map(charged));
            restored.insert(TextListener {
                channel: imports.fd(channel)?,
                client: charged(imports.fd(client)?),
                partition,
                owner,
                token,
                callback: callback.map(|index| imports.fd(index)).transpose()?,
                waiting: waiting.collect::<Result<VecDeque<_>, _>>()?,
                answered,
                charge,
            });
        }
        let mut previous = None;
        for RelaySnapshot { id, charge } in relays {
            let is_own = (FIRST_ID..=FIRST_ID + last_relay % FIRST_ID).contains(&id);
            let in_order = Some(id) > previous;
            ensure(is_own && in_order, "a relay to a program is none")?;
            previous = Some(id);
            let charge = charge.charge(budget, RELAY);
            restored.relays.insert(ConnectionId::from_u64(id), charge);
        }
        restored.last_relay = last_relay % FIRST_ID;
        Ok(restored)
    }

    /// Takes the relays out of the connections of processes.
    ///
    /// # Errors
    ///
    /// If one is missing.
    pub(in crate::core) fn take_relays<T>(
        &self,
        connections: &mut HashMap<ConnectionId, T>,
    ) -> Result<(), HandoverError> {
        for id in self.relays.keys() {
            let is_there = connections.remove(id).is_some();
            ensure(is_there, "a relay to a program has no data")?;
        }
        Ok(())
    }
}
