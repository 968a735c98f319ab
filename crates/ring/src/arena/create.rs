//! Creates an arena, for other processes to use.

use std::io;
use std::os::fd::OwnedFd;

use hvsock_sys::{doorbell, shared_memory};

use super::grant::GrantWriter;
use super::layout::ArenaLimits;
use super::monitor::ArenaMonitor;
use crate::Doorbells;

/// The descriptors of an arena between two processes, and the broker's access to it.
///
/// Each process needs the memory, the grant page and its own [`Doorbells`]. Neither should receive the
/// other's.
#[derive(Debug)]
pub struct ArenaParts {
    /// The memory that both processes map. Its size is sealed.
    pub memory: OwnedFd,
    /// The page with what the broker grants. The processes can only read it.
    pub grant: OwnedFd,
    /// The doorbells of the client.
    pub client: Doorbells,
    /// The doorbells of the server.
    pub server: Doorbells,
    /// The broker's own access.
    pub monitor: ArenaMonitor,
}

impl ArenaParts {
    /// Creates an arena of which `granted` slots may be used, and in which at most `backlog` connections
    /// wait to be accepted: six descriptors, and two of the monitor. The kernel allocates no page of a slot until it is used.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for an invalid number of slots; otherwise the error of `memfd_create`, `ftruncate`,
    /// `mmap` or `pipe2`, such as `EMFILE` when the process is out of descriptors.
    pub fn new(limits: ArenaLimits, granted: u32, backlog: u32) -> io::Result<Self> {
        limits.check()?;
        let memory = shared_memory::create(limits.len())?;
        let (grant, writer) = GrantWriter::create(limits, granted, backlog)?;
        let monitor = ArenaMonitor::new(memory.try_clone()?, grant.try_clone()?, writer)?;
        let (client_own, server_peer) = doorbell::pair()?;
        let (server_own, client_peer) = doorbell::pair()?;
        Ok(Self {
            memory,
            grant,
            client: Doorbells {
                own: client_own,
                peer: client_peer,
            },
            server: Doorbells {
                own: server_own,
                peer: server_peer,
            },
            monitor,
        })
    }
}
