//! The connections of a guest, by slot and by key.

use std::collections::{HashMap, HashSet};

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

    /// A table of these connections with their slots, and the free slots, the next one to use last.
    ///
    /// # Errors
    ///
    /// What is wrong: the slots are not numbered from 0 on, each once; two connections have one key or
    /// one serial number; or a serial number was never given.
    pub(super) fn restore(
        connections: Vec<(u32, Connection)>,
        free: Vec<u32>,
        last_serial: u64,
    ) -> Result<Self, &'static str> {
        let len = connections.len() + free.len();
        let mut is_taken = vec![false; len];
        for index in connections
            .iter()
            .map(|it| it.0)
            .chain(free.iter().copied())
        {
            match is_taken.get_mut(index as usize) {
                Some(is_taken) if !*is_taken => *is_taken = true,
                _ => return Err("its slots are not numbered from 0 on, each once"),
            }
        }
        let mut table = Self {
            slots: Vec::new(),
            free,
            by_key: HashMap::with_capacity(connections.len()),
            recent: None,
            last_serial,
            live: 0,
        };
        table.slots.resize_with(len, || None);
        let mut serials = HashSet::with_capacity(connections.len());
        for (index, connection) in connections {
            if table.by_key.insert(connection.key, index).is_some() {
                return Err("two connections have one key");
            }
            if connection.serial > last_serial {
                return Err("a handle was never given");
            }
            if connection.serial != 0 {
                table.live += 1;
                if !serials.insert(connection.serial) {
                    return Err("two connections have one handle");
                }
            }
            table.slots[index as usize] = Some(connection);
        }
        Ok(table)
    }

    /// The connections with their slots, in the order of the slots.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Connection)> {
        let slots = self.slots.iter().enumerate();
        slots.filter_map(|(index, slot)| Some((index as u32, slot.as_ref()?)))
    }

    /// The free slots, the next one to use last.
    pub(super) fn free(&self) -> &[u32] {
        &self.free
    }

    /// The serial number of the newest connection.
    pub(super) fn last_serial(&self) -> u64 {
        self.last_serial
    }

    /// Indices of the occupied slots.
    pub(super) fn indices(&self) -> Vec<u32> {
        self.iter().map(|(index, _)| index).collect()
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
