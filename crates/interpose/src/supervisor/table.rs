//! What the supervisor knows of each emulated socket.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::Instant;

use hvsock_address::{SockAddrHv, VmId};
use hvsock_sys::closed_sockets::Watch;
use hvsock_sys::foreign_socket::Name;
use hvsock_sys::remote::Credentials;

use crate::broker::Connection;
use crate::model::{Address, Socket};

/// An emulated socket. It is found by the inode of the Unix socket that the program has.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Its state.
    pub(crate) socket: Socket,
    /// The name of the Unix socket, once it is bound. It tells whether the program still has it.
    pub(crate) name: Option<Name>,
    /// Its number among the sockets whose end is reported.
    pub(crate) watch: Option<Watch>,
    /// Its listener.
    pub(crate) listening: Option<Listening>,
    /// The number of the exchange in which it is being connected.
    pub(crate) attempt: Option<u64>,
    /// Its Unix socket was connected for a connect that has failed, so it cannot be connected again.
    pub(crate) is_used_up: bool,
    /// It is one of this process's network namespace, so the list of those has it until it is closed.
    pub(crate) is_listed: bool,
    /// A signal has ended the call that connected it, after the supervisor had begun: the call may start again.
    pub(crate) is_unanswered: bool,
}

/// A listener of the broker, and the connections that the program has not accepted.
#[derive(Debug)]
pub(crate) struct Listening {
    /// The listener.
    pub(crate) connection: Connection,
    /// By whose rights it listens, if not by this process's.
    pub(crate) credentials: Option<Credentials>,
    /// How many connections may wait for the program.
    pub(crate) backlog: u32,
    /// About how many connections from programs of the same supervisor wait for it.
    /// Less than none while accepts are ahead of the answers to their connects.
    pub(crate) unaccepted: i64,
    /// When the last connection arrived, or the listener was opened.
    pub(crate) last_arrival: Instant,
    /// Its number in the event set.
    pub(crate) number: u64,
    /// Whether it is in the event set.
    pub(crate) is_watched: bool,
    /// Connections, in the order of their arrival.
    pub(crate) incoming: VecDeque<Waiting>,
    /// How many tokens are in the queue of the Unix socket.
    pub(crate) tokens: usize,
    /// The numbers of the calls that wait for a connection.
    pub(crate) calls: VecDeque<u64>,
}

/// A connection that waits to be accepted.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// Its number at the broker.
    pub(crate) connection: u64,
    /// Its data.
    pub(crate) data: OwnedFd,
    /// The address at this end.
    pub(crate) local: SockAddrHv,
    /// The address of the peer, once it is known.
    pub(crate) peer: PeerAddress,
}

/// What is known of a peer's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerAddress {
    /// All.
    Known(Address),
    /// The partition, whose context id is being asked for.
    Asked(VmId),
}

impl Entry {
    /// A socket that has no other one yet. `is_listed` is that of the field.
    pub(crate) fn new(socket: Socket, is_listed: bool) -> Self {
        Self {
            socket,
            is_listed,
            name: None,
            watch: None,
            listening: None,
            attempt: None,
            is_used_up: false,
            is_unanswered: false,
        }
    }

    /// Whether the program has closed a socket that is bound. Unknown is no.
    pub(crate) fn is_closed(&self) -> bool {
        let in_use = self.name.as_ref().map(Name::is_in_use);
        matches!(in_use, Some(Ok(false)))
    }
}

impl Listening {
    /// How many connections can be accepted at once: those before the first one whose peer is unknown.
    pub(crate) fn ready(&self) -> usize {
        let known = |waiting: &&Waiting| matches!(waiting.peer, PeerAddress::Known(_));
        self.incoming.iter().take_while(known).count()
    }
}
