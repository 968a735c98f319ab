//! The connections of a guest, by slot and by key.

use std::collections::HashMap;

use crate::connection::{Connection, Phase};
use crate::{Handle, Key};

/// Connections in numbered slots, with a map from [`Key`] to slot.
///
/// The guest chooses the keys, so the map uses the standard library's randomly keyed hash: a hostile
/// guest cannot choose keys that collide.
#[derive(Debug, Default)]
pub(super) struct Table {
    slots: Vec<Option<Connection>>,
    free: Vec<u32>,
    by_key: HashMap<Key, u32>,
    /// The key of the last packet, as a cache: packets of one connection come in runs.
    recent: Option<(Key, u32)>,
    last_serial: u64,
    live: usize,
}

impl Table {
    /// Number of connections, including those whose RST waits to be sent.
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Number of connections that have a handle.
    pub(super) fn live(&self) -> usize {
        self.live
    }

    pub(super) fn find(&mut self, key: &Key) -> Option<u32> {
        match self.recent {
            Some((recent, index)) if recent == *key => Some(index),
            _ => {
                let index = *self.by_key.get(key)?;
                self.recent = Some((*key, index));
                Some(index)
            }
        }
    }

    pub(super) fn at(&mut self, index: u32) -> Option<&mut Connection> {
        self.slots.get_mut(index as usize)?.as_mut()
    }

    pub(super) fn get(&self, handle: Handle) -> Option<&Connection> {
        let connection = self.slots.get(handle.index())?.as_ref()?;
        (connection.serial == handle.serial).then_some(connection)
    }

    pub(super) fn get_mut(&mut self, handle: Handle) -> Option<&mut Connection> {
        let connection = self.at(handle.index)?;
        (connection.serial == handle.serial).then_some(connection)
    }

    /// Inserts a connection. The key must be unused.
    pub(super) fn insert(&mut self, key: Key, phase: Phase, first: u32, alloc: u32) -> Handle {
        self.last_serial += 1;
        let connection = Connection::new(key, self.last_serial, phase, first, alloc);
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.slots.push(None);
                (self.slots.len() - 1) as u32
            }
        };
        let handle = connection.handle(index);
        self.slots[index as usize] = Some(connection);
        self.by_key.insert(key, index);
        self.live += 1;
        handle
    }

    /// Invalidates the connection's handle; the connection stays until its RST is sent.
    pub(super) fn release_handle(&mut self, index: u32) {
        if let Some(connection) = self.slots.get_mut(index as usize).and_then(Option::as_mut)
            && connection.serial != 0
        {
            connection.serial = 0;
            self.live -= 1;
        }
    }

    pub(super) fn remove(&mut self, index: u32) {
        self.release_handle(index);
        let Some(connection) = self.slots.get_mut(index as usize).and_then(Option::take) else {
            return;
        };
        self.by_key.remove(&connection.key);
        self.recent = None;
        self.free.push(index);
    }

    /// Indices of the occupied slots.
    pub(super) fn indices(&self) -> Vec<u32> {
        let taken =
            |(index, slot): (usize, &Option<Connection>)| slot.as_ref().map(|_| index as u32);
        self.slots.iter().enumerate().filter_map(taken).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cid, SocketKind};

    fn key(guest_port: u32) -> Key {
        Key {
            guest_port,
            peer: Cid::HOST,
            peer_port: 1,
            kind: SocketKind::Stream,
        }
    }

    #[test]
    fn a_handle_does_not_refer_to_a_later_connection_in_its_slot() {
        let mut table = Table::default();
        let first = table.insert(key(1), Phase::Open, 0, 0);
        assert_eq!(table.find(&key(1)), Some(first.index));
        table.remove(first.index);
        assert_eq!(
            (table.find(&key(1)), table.len(), table.live()),
            (None, 0, 0)
        );
        let second = table.insert(key(1), Phase::Open, 0, 0);
        assert_eq!(first.index(), second.index());
        assert!(table.get(first).is_none() && table.get(second).is_some());
        assert_eq!(table.find(&key(1)), Some(second.index));
    }

    #[test]
    fn after_release_a_connection_is_found_by_key_but_not_by_handle() {
        let mut table = Table::default();
        let handle = table.insert(key(1), Phase::Open, 0, 0);
        table.release_handle(handle.index);
        table.release_handle(handle.index);
        assert!(table.get(handle).is_none());
        assert_eq!(
            (table.find(&key(1)), table.len(), table.live()),
            (Some(0), 1, 0)
        );
        table.remove(handle.index);
        assert_eq!((table.len(), table.live()), (0, 0));
    }

    #[test]
    fn slots_are_reused() {
        let mut table = Table::default();
        for round in 0..10 {
            for port in 0..100 {
                assert!(table.insert(key(port), Phase::Open, round, 0).index() < 100);
            }
            assert_eq!(table.indices().len(), 100);
            for index in table.indices() {
                table.remove(index);
            }
        }
    }

    #[test]
    fn an_idle_connection_takes_little_memory() {
        // About 200 bytes with the hash map's entry (33 bytes, at a load of 7/16 or more) and 16 bytes
        // in the queues.
        assert!(
            size_of::<Option<Connection>>() <= 128,
            "{}",
            size_of::<Option<Connection>>()
        );
    }
}
