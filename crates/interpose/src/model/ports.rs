//! Which addresses the sockets of one supervisor are bound to.

use std::collections::HashMap;
use std::hash::Hash;

use hvsock_address::{ServiceId, SockAddrVm};

use super::{Address, Errno};

/// Ports up to this one need a privilege (`LAST_RESERVED_PORT` of the kernel's af_vsock).
pub const LAST_RESERVED_PORT: u32 = 1023;

/// How often `bind` looks for a free port, as the kernel does.
const MAX_PORT_RETRIES: u32 = 24;

/// The bound addresses, each with the socket that has it.
///
/// A supervisor is not told when a program closes a socket. So before it binds another one, it asks for
/// those that [stand in the way](Self::conflicts) and removes those that are gone.
#[derive(Debug)]
pub struct Ports<K> {
    bound: HashMap<K, Address>,
    by_service: HashMap<ServiceId, Vec<K>>,
    next: u32,
}

impl<K: Copy + Eq + Hash> Ports<K> {
    /// No bound addresses. Ephemeral ports begin somewhere that `random` decides.
    pub fn new(random: u32) -> Self {
        Self {
            bound: HashMap::new(),
            by_service: HashMap::new(),
            next: random.max(LAST_RESERVED_PORT + 1),
        }
    }

    /// A port for a socket that connects or that a connection made. It is unique for long, and not kept.
    pub fn ephemeral(&mut self) -> u32 {
        let port = match self.next {
            0..=LAST_RESERVED_PORT | SockAddrVm::PORT_ANY => LAST_RESERVED_PORT + 1,
            port => port,
        };
        self.next = port.wrapping_add(1);
        port
    }

    /// The sockets that have an address which excludes this one.
    pub fn conflicts(&self, address: &Address) -> Vec<K> {
        let same_service = self.by_service.get(&address.service());
        let conflicts = |key: &&K| {
            self.bound
                .get(key)
                .is_some_and(|other| excludes(other, address))
        };
        let same_service = same_service.into_iter().flatten();
        same_service.filter(conflicts).copied().collect()
    }

    /// The sockets that are bound to a service, from whichever partitions they accept.
    pub fn at_service(&self, service: ServiceId) -> Vec<K> {
        self.by_service.get(&service).cloned().unwrap_or_default()
    }

    /// Binds a socket. [`SockAddrVm::PORT_ANY`] becomes a free port. Returns the address that it has then.
    ///
    /// # Errors
    ///
    /// `EADDRINUSE` if another socket has the address; `EADDRNOTAVAIL` if no free port is found.
    pub fn claim(&mut self, key: K, address: Address) -> Result<Address, Errno> {
        let address = match address {
            Address::Vsock(wanted) if wanted.port == SockAddrVm::PORT_ANY => {
                let mut tries = 0..MAX_PORT_RETRIES;
                loop {
                    tries.next().ok_or(Errno::EADDRNOTAVAIL)?;
                    let port = self.ephemeral();
                    let candidate = Address::Vsock(SockAddrVm { port, ..wanted });
                    if self.is_free(&candidate) {
                        break candidate;
                    }
                }
            }
            address if self.is_free(&address) => address,
            _ => return Err(Errno::EADDRINUSE),
        };
        self.release(key);
        self.bound.insert(key, address);
        let same_service = self.by_service.entry(address.service()).or_default();
        same_service.push(key);
        Ok(address)
    }

    fn is_free(&self, address: &Address) -> bool {
        self.conflicts(address).is_empty()
    }

    /// Forgets the address of a socket.
    pub fn release(&mut self, key: K) {
        let Some(address) = self.bound.remove(&key) else {
            return;
        };
        let service = address.service();
        if let Some(keys) = self.by_service.get_mut(&service) {
            keys.retain(|other| *other != key);
            if keys.is_empty() {
                self.by_service.remove(&service);
            }
        }
    }

    /// How many sockets have an address.
    pub fn count(&self) -> usize {
        self.bound.len()
    }

    /// The sockets that have an address.
    pub fn bound(&self) -> impl Iterator<Item = K> {
        self.bound.keys().copied()
    }

    /// The address of a socket.
    pub fn of(&self, key: K) -> Option<Address> {
        self.bound.get(&key).copied()
    }
}

/// Whether two sockets cannot have these addresses at the same time. As in the kernel, one at any context
/// id excludes every other one at its port.
fn excludes(one: &Address, other: &Address) -> bool {
    match (one, other) {
        (Address::Vsock(one), Address::Vsock(other)) => {
            let any = [one.cid, other.cid].contains(&SockAddrVm::CID_ANY);
            one.port == other.port && (any || one.cid == other.cid)
        }
        (one, other) => one == other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(cid: u32, port: u32) -> Address {
        Address::Vsock(SockAddrVm::new(cid, port))
    }

    const ANY: u32 = u32::MAX;

    #[test]
    fn a_socket_at_any_context_id_has_its_port_alone() {
        let mut ports = Ports::new(5000);
        assert_eq!(ports.claim(1, at(ANY, 99)), Ok(at(ANY, 99)));
        assert_eq!(ports.claim(2, at(2, 99)), Err(Errno::EADDRINUSE));
        assert_eq!(ports.conflicts(&at(1, 99)), [1]);
        assert_eq!(ports.at_service(ServiceId::from_port(99)), [1]);
        assert!(ports.at_service(ServiceId::from_port(98)).is_empty());
        assert_eq!(ports.claim(2, at(2, 98)), Ok(at(2, 98)));
        assert_eq!(ports.claim(3, at(1, 98)), Ok(at(1, 98)));
        assert_eq!(ports.claim(4, at(ANY, 98)), Err(Errno::EADDRINUSE));
        ports.release(1);
        assert_eq!(ports.claim(5, at(2, 99)), Ok(at(2, 99)));
        assert_eq!((ports.of(1), ports.of(5)), (None, Some(at(2, 99))));
        assert_eq!(ports.count(), 3);
    }

    #[test]
    fn ephemeral_ports_are_free_and_never_privileged() {
        let mut ports = Ports::new(u32::MAX - 2);
        let mut seen = Vec::new();
        for key in 0..6 {
            let address = ports.claim(key, at(ANY, ANY)).unwrap();
            let Address::Vsock(address) = address else {
                unreachable!()
            };
            seen.push(address.port);
        }
        let want = [u32::MAX - 2, u32::MAX - 1, 1024, 1025, 1026, 1027];
        assert_eq!(seen, want);
        assert!(Ports::<u8>::new(0).ephemeral() > LAST_RESERVED_PORT);
    }

    #[test]
    fn a_bind_without_a_free_port_gives_up() {
        let mut ports = Ports::new(2000);
        for port in 2000..2024 {
            ports.claim(port, at(ANY, port)).unwrap();
        }
        assert_eq!(ports.claim(1, at(ANY, ANY)), Err(Errno::EADDRNOTAVAIL));
        assert_eq!(ports.claim(1, at(ANY, ANY)), Ok(at(ANY, 2024)));
    }
}
