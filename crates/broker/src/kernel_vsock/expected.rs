//! Ports of the host at which a guest is expected once, for a connection of a container in it.

use std::collections::HashMap;

/// The most ports at which guests are expected: each is a listening socket, for which the core charges the VM.
pub(super) const MAX_EXPECTED: usize = 4096;

/// The ports by number, each with the CID of its guest and its listening socket.
#[derive(Debug)]
pub(super) struct ExpectedPorts<S> {
    ports: HashMap<u32, (u32, S)>,
}

impl<S> Default for ExpectedPorts<S> {
    fn default() -> Self {
        Self {
            ports: HashMap::new(),
        }
    }
}

impl<S> ExpectedPorts<S> {
    /// Whether there may be one more.
    pub(super) fn has_room(&self) -> bool {
        self.ports.len() < MAX_EXPECTED
    }

    /// Whether a guest is expected at this port.
    pub(super) fn contains(&self, port: u32) -> bool {
        self.ports.contains_key(&port)
    }

    /// Adds a port.
    pub(super) fn insert(&mut self, cid: u32, port: u32, listener: S) {
        self.ports.insert(port, (cid, listener));
    }

    /// The ports of a guest, with their listening sockets.
    pub(super) fn of(&self, cid: u32) -> impl Iterator<Item = (u32, &S)> {
        let of_guest = self.ports.iter().filter(move |(_, (of, _))| *of == cid);
        of_guest.map(|(port, (_, listener))| (*port, listener))
    }

    /// Removes the port of this guest.
    pub(super) fn remove(&mut self, cid: u32, port: u32) {
        if self.ports.get(&port).is_some_and(|(of, _)| *of == cid) {
            self.ports.remove(&port);
        }
    }

    /// Removes all ports of a guest.
    pub(super) fn remove_of(&mut self, cid: u32) {
        self.ports.retain(|_, (of, _)| *of != cid);
    }

    /// The listening socket of a port.
    pub(super) fn listener(&self, port: u32) -> Option<&S> {
        self.ports.get(&port).map(|(_, listener)| listener)
    }

    /// The guest that is expected at a port; `None` if it is the port of a service.
    pub(super) fn guest(&self, port: u32) -> Option<u32> {
        self.ports.get(&port).map(|(cid, _)| *cid)
    }
}
