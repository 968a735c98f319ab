//! The connections of a guest, by place and by key.

use std::collections::HashMap;

use super::{Handle, Key};
use crate::connection::{Connection, Phase};

/// Connections in numbered places, each found by its [`Key`], too.
///
/// The guest chooses the keys, so the map's hash is the standard library's, which is keyed by
/// chance: nobody can choose keys that collide.
#[derive(Debug, Default)]
pub(super) struct Table {
    places: Vec<Option<Connection>>,
    vacant: Vec<u32>,
    by_key: HashMap<Key, u32>,
    /// The key of the packet before: packets of one connection come in runs.
    recent: Option<(Key, u32)>,
    last_serial: u64,
    live: usize,
}

impl Table {
    /// Connections, those included that only wait for their RST to be sent.
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Connections that the owner knows.
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
        self.places.get_mut(index as usize)?.as_mut()
    }

    pub(super) fn get(&self, handle: Handle) -> Option<&Connection> {
        let connection = self.places.get(handle.index())?.as_ref()?;
        (connection.serial == handle.serial).then_some(connection)
    }

    pub(super) fn get_mut(&mut self, handle: Handle) -> Option<&mut Connection> {
        let connection = self.at(handle.index)?;
        (connection.serial == handle.serial).then_some(connection)
    }

    /// Adds a connection under a key that has none.
    pub(super) fn insert(&mut self, key: Key, phase: Phase, first: u32, alloc: u32) -> Handle {
        self.last_serial += 1;
        let connection = Connection::new(key, self.last_serial, phase, first, alloc);
        let index = match self.vacant.pop() {
            Some(index) => index,
            None => {
                self.places.push(None);
                (self.places.len() - 1) as u32
            }
        };
        let handle = connection.handle(index);
        self.places[index as usize] = Some(connection);
        self.by_key.insert(key, index);
        self.live += 1;
        handle
    }

    /// Takes the connection's handle from it: the owner knows it no more.
    pub(super) fn disown(&mut self, index: u32) {
        if let Some(connection) = self.places.get_mut(index as usize).and_then(Option::as_mut)
            && connection.serial != 0
        {
            connection.serial = 0;
            self.live -= 1;
        }
    }

    pub(super) fn remove(&mut self, index: u32) {
        self.disown(index);
        let Some(connection) = self.places.get_mut(index as usize).and_then(Option::take) else {
            return;
        };
        self.by_key.remove(&connection.key);
        self.recent = None;
        self.vacant.push(index);
    }

    /// The places that are taken.
    pub(super) fn indices(&self) -> Vec<u32> {
        let taken =
            |(index, place): (usize, &Option<Connection>)| place.as_ref().map(|_| index as u32);
        self.places.iter().enumerate().filter_map(taken).collect()
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
    fn a_handle_never_means_the_connection_that_has_its_place_later() {
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
    fn a_disowned_connection_is_found_by_its_key_but_not_by_its_handle() {
        let mut table = Table::default();
        let handle = table.insert(key(1), Phase::Open, 0, 0);
        table.disown(handle.index);
        table.disown(handle.index);
        assert!(table.get(handle).is_none());
        assert_eq!(
            (table.find(&key(1)), table.len(), table.live()),
            (Some(0), 1, 0)
        );
        table.remove(handle.index);
        assert_eq!((table.len(), table.live()), (0, 0));
    }

    #[test]
    fn places_are_small_numbers() {
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
        // With the hash map's entry (33 bytes, at 7/16 of its places or more) and 16 bytes in the
        // queues, some 200.
        assert!(
            size_of::<Option<Connection>>() <= 128,
            "{}",
            size_of::<Option<Connection>>()
        );
    }
}
