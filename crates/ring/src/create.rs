//! Creates a connection's memory and doorbells, for other processes to use.

use std::io;
use std::os::fd::OwnedFd;

use hvsock_sys::{doorbell, shared_memory};

use crate::RingSize;
use crate::layout::HEADER;
use crate::memory::Memory;

/// The descriptors of a connection between two processes.
///
/// To open a [`RingEnd`](crate::RingEnd), each process needs the memory and its own [`Doorbells`].
/// Neither process should receive the other's.
#[derive(Debug)]
pub struct Parts {
    /// The memory that both processes map. Its size is sealed.
    pub memory: OwnedFd,
    /// The doorbells of the first end, which connected.
    pub first: Doorbells,
    /// The doorbells of the second end, which accepted.
    pub second: Doorbells,
}

/// The two doorbells of one end. Each is one end of a pipe.
#[derive(Debug)]
pub struct Doorbells {
    /// Becomes readable when the peer notifies this end. It hangs up when the peer's process is
    /// gone, provided that only the peer kept the other end of this pipe.
    pub own: OwnedFd,
    /// Notifies the peer: one byte written is one notification.
    pub peer: OwnedFd,
}

impl Parts {
    /// Allocates the page that both ends use at once, which takes the time that it needs from their opening.
    ///
    /// # Errors
    ///
    /// Those of `fallocate`.
    pub fn allocate_header(&self) -> io::Result<()> {
        shared_memory::allocate(&self.memory, HEADER as u64)
    }

    /// Creates the parts of a new connection: five descriptors. The kernel allocates no page of
    /// memory until an end uses it.
    ///
    /// # Errors
    ///
    /// The error of `memfd_create`, `ftruncate` or `pipe2`, such as `EMFILE` when the process is
    /// out of descriptors.
    pub fn new(size: RingSize) -> io::Result<Self> {
        let memory = shared_memory::create(Memory::len_for(size))?;
        let (first_own, second_peer) = doorbell::pair()?;
        let (second_own, first_peer) = doorbell::pair()?;
        Ok(Self {
            memory,
            first: Doorbells {
                own: first_own,
                peer: first_peer,
            },
            second: Doorbells {
                own: second_own,
                peer: second_peer,
            },
        })
    }
}
