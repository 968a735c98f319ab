//! Making a connection's memory and bells, for others to use.

use std::io;
use std::os::fd::OwnedFd;

use hvsock_sys::{doorbell, shared_memory};

use crate::RingSize;
use crate::memory::Memory;

/// What a connection between two processes is made of. To make an [`End`](crate::End), each
/// process needs the memory and its own [`Bells`]; neither should get the other's.
#[derive(Debug)]
pub struct Parts {
    /// The memory that both have in common. It cannot change its size.
    pub memory: OwnedFd,
    /// For the first end, which connected.
    pub first: Bells,
    /// For the second end, which accepted.
    pub second: Bells,
}

/// One end's bells.
#[derive(Debug)]
pub struct Bells {
    /// Where this end hears that it is to wake up; also that the other end is gone, if nobody
    /// but the other end has kept the other end's `peer`.
    pub own: OwnedFd,
    /// With which it wakes the other end.
    pub peer: OwnedFd,
}

impl Parts {
    /// Makes the parts of a new connection: five descriptors, and no page of memory until one of
    /// the ends uses it.
    pub fn new(size: RingSize) -> io::Result<Self> {
        let memory = shared_memory::create(Memory::len_for(size))?;
        let (first_hears, second_rings) = doorbell::pair()?;
        let (second_hears, first_rings) = doorbell::pair()?;
        Ok(Self {
            memory,
            first: Bells {
                own: first_hears,
                peer: first_rings,
            },
            second: Bells {
                own: second_hears,
                peer: second_rings,
            },
        })
    }
}
